package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/gorilla/websocket"
	"go.uber.org/zap"
)

// websocketProxy serves a handler of JSON streams over websocket too: each message of the client is
// one JSON request, each line of the answer one message. Browsers cannot send on a plain request
// while they read its answer; so this is their way to Watch and LeaseKeepAlive. It does what
// tmc/grpc-websocket-proxy does for etcd: POST whatever the method, credentials from
// Sec-Websocket-Protocol or a cookie.
type websocketProxy struct {
	handler  http.Handler
	logger   *zap.Logger
	upgrader websocket.Upgrader
	maxBytes int64 // of a client's message
	// stopped ends the connections that this member still serves when it stops.
	stopped context.Context
}

func newWebsocketProxy(h http.Handler, logger *zap.Logger, maxBytes int64, stopped context.Context) *websocketProxy {
	return &websocketProxy{handler: h, logger: logger, maxBytes: maxBytes, stopped: stopped, upgrader: websocket.Upgrader{
		ReadBufferSize: 1024, WriteBufferSize: 1024,
		CheckOrigin: func(*http.Request) bool { return true }, // accessControl has looked at it
	}}
}

func (p *websocketProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !websocket.IsWebSocketUpgrade(r) {
		p.handler.ServeHTTP(w, r)
		return
	}
	protocol := r.Header.Get("Sec-WebSocket-Protocol")
	var answer http.Header
	if strings.HasPrefix(protocol, "Bearer") {
		answer = http.Header{"Sec-WebSocket-Protocol": {"Bearer"}}
	}
	conn, err := p.upgrader.Upgrade(w, r, answer)
	if err != nil {
		p.logger.Warn("error upgrading websocket", zap.Error(err))
		return
	}
	defer conn.Close()
	conn.SetReadLimit(p.maxBytes)
	// The connection was taken from net/http: r's context does not end with it.
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(p.stopped, cancel)()

	body, toBody := io.Pipe()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, r.URL.String(), body)
	if err != nil {
		p.logger.Warn("error preparing request", zap.Error(err))
		return
	}
	request.Host, request.RemoteAddr = r.Host, r.RemoteAddr
	if protocol != "" {
		request.Header.Set("Authorization", bearerOf(protocol))
	}
	for _, name := range []string{"Origin", "Referer"} {
		if v := r.Header.Get(name); v != "" {
			request.Header.Set(name, v)
		}
	}
	if cookie, err := r.Cookie("token"); err == nil {
		request.Header.Set("Authorization", "Bearer "+cookie.Value)
	}

	var reading sync.WaitGroup
	reading.Go(func() {
		defer cancel()
		err := p.readMessages(conn, toBody)
		toBody.CloseWithError(err)
	})
	lines := &lineWriter{conn: conn, header: http.Header{}}
	p.handler.ServeHTTP(lines, request)
	lines.finish()
	body.Close()
	conn.Close() // ends readMessages
	reading.Wait()
}

// readMessages writes each message of the client as one line, until it leaves.
func (p *websocketProxy) readMessages(conn *websocket.Conn, to io.Writer) error {
	for {
		_, message, err := conn.ReadMessage()
		if err != nil {
			if !websocket.IsCloseError(err, websocket.CloseNormalClosure, websocket.CloseGoingAway) && !errors.Is(err, net.ErrClosed) {
				p.logger.Warn("error reading websocket message", zap.Error(err))
			}
			return io.EOF
		}
		if _, err := to.Write(append(message, '\n')); err != nil {
			return io.EOF // the call has ended
		}
	}
}

// bearerOf takes the token out of "Bearer, token"; browsers differ in the space.
func bearerOf(protocol string) string {
	_, token, ok := strings.Cut(protocol, "Bearer,")
	if !ok {
		return ""
	}
	return "Bearer " + strings.Trim(token, " ")
}

// lineWriter sends each line that is written as one message.
type lineWriter struct {
	conn   *websocket.Conn
	header http.Header
	line   []byte // begun
}

func (w *lineWriter) Header() http.Header { return w.header }
func (w *lineWriter) WriteHeader(int)     {}
func (w *lineWriter) Flush()              {}

func (w *lineWriter) Write(b []byte) (int, error) {
	n := len(b)
	for {
		end := bytes.IndexByte(b, '\n')
		if end < 0 {
			w.line = append(w.line, b...)
			return n, nil
		}
		w.line = append(w.line, b[:end]...)
		if err := w.send(); err != nil {
			return 0, err
		}
		b = b[end+1:]
	}
}

func (w *lineWriter) send() error {
	if len(w.line) == 0 {
		return nil
	}
	err := w.conn.WriteMessage(websocket.TextMessage, w.line)
	w.line = w.line[:0]
	return err
}

// finish sends what has no newline behind it, as the answer of a unary call.
func (w *lineWriter) finish() { _ = w.send() } // the client left: nobody to tell
