package peers

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// A connection on which both sides speak as they like begins as a request that asks for another
// protocol (RFC 9110, 7.8): who asks is judged by its headers, as for every other path, and who
// does not know the path, or not this version of the protocol, answers as it does to any request.

// ErrNotUpgraded is the error of Open for a member that has answered and does not speak the protocol.
var ErrNotUpgraded = errors.New("the member does not speak this protocol")

// upgradeTimeout bounds the write of the answer to a request for another protocol.
const upgradeTimeout = 5 * time.Second

// Open asks for a connection on which protocol is spoken, with the headers given. ctx is for the
// handshake alone; the connection has no deadlines, but its Close ends a Read or a Write that waits.
func Open(ctx context.Context, rt http.RoundTripper, url string, header http.Header, protocol string) (io.ReadWriteCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", protocol)
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if conn, ok := resp.Body.(io.ReadWriteCloser); ok && resp.StatusCode == http.StatusSwitchingProtocols && resp.Header.Get("Upgrade") == protocol {
		return conn, nil
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 256)) // it is for the error alone
	_ = resp.Body.Close()
	return nil, fmt.Errorf("%w: %s answered %s: %.100s", ErrNotUpgraded, url, resp.Status, bytes.TrimSpace(text))
}

// Upgrade answers a request for a connection on which protocol is spoken, and takes it over. If it
// returns nil, it has answered that it cannot, or the connection is gone.
func Upgrade(w http.ResponseWriter, r *http.Request, protocol string) io.ReadWriteCloser {
	if !strings.EqualFold(r.Header.Get("Connection"), "Upgrade") || r.Header.Get("Upgrade") != protocol {
		w.Header().Set("Upgrade", protocol)
		w.Header().Set("Connection", "Upgrade")
		http.Error(w, "this path is for a connection on which "+protocol+" is spoken", http.StatusUpgradeRequired)
		return nil
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil { // HTTP/2, on which no member asks
		http.Error(w, "cannot change the protocol of this connection", http.StatusNotImplemented)
		return nil
	}
	var b bytes.Buffer
	b.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	h := w.Header().Clone()
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", protocol)
	err = h.Write(&b)
	b.WriteString("\r\n")
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(upgradeTimeout))
	}
	if err == nil {
		_, err = conn.Write(b.Bytes())
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		_ = conn.Close() // given up either way
		return nil
	}
	return &upgraded{Conn: conn, early: rw.Reader}
}

// upgraded is a connection that was taken over from net/http.
type upgraded struct {
	net.Conn
	early *bufio.Reader // what net/http has read already; nil: no more
}

func (u *upgraded) Read(b []byte) (int, error) {
	if u.early != nil {
		if n := u.early.Buffered(); n > 0 {
			return u.early.Read(b[:min(n, len(b))])
		}
		u.early = nil
	}
	return u.Conn.Read(b)
}
