package listen

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// echoServer answers each HTTP request with its method and protocol.
func echoServer() *http.Server {
	return &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		secure := ""
		if r.TLS != nil {
			secure = " TLS"
		}
		_, _ = io.WriteString(w, r.Method+" "+r.Proto+secure)
	})}
}

// serveFront serves until the test ends; it gives the address.
func serveFront(t *testing.T, opts FrontOptions) *Front {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := NewFront(inner, opts)
	served := make(chan error, 1)
	go func() { served <- f.Serve(echoServer()) }()
	t.Cleanup(func() {
		if err := f.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		if _, err := f.GRPC().Accept(); err == nil {
			t.Error("accepted a connection after Close")
		}
	})
	return f
}

func dialAndWrite(t *testing.T, f *Front, parts ...string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", f.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	for _, p := range parts {
		if _, err := io.WriteString(c, p); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func TestFrontPlain(t *testing.T) {
	f := serveFront(t, FrontOptions{GRPC: true, HTTP: true})
	expectGRPC := func(want string) {
		t.Helper()
		c, err := f.GRPC().Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetReadDeadline(time.Now().Add(30 * time.Second))
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
			t.Fatalf("read %q, %v; want %q", got, err, want)
		}
	}
	expectHTTP := func(c net.Conn, status int) {
		t.Helper()
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != status {
			t.Fatalf("answered %s, want %d", resp.Status, status)
		}
	}
	dialAndWrite(t, f) // says nothing: must delay nobody
	preface := "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	dialAndWrite(t, f, preface)
	expectGRPC(preface)
	dialAndWrite(t, f, "P", "RI * HT", "TP/2.0\r\n\r\nSM\r\n\r\n")
	expectGRPC(preface)
	expectHTTP(dialAndWrite(t, f, "GET /version HTTP/1.1\r\nHost: a\r\n\r\n"), http.StatusOK)
	// The first difference decides.
	expectHTTP(dialAndWrite(t, f, "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"), http.StatusOK)
	expectHTTP(dialAndWrite(t, f, "PRI * HTTP/1.0\r\n\r\n"), http.StatusOK)
}

// A port for HTTP alone does not know HTTP/2 without TLS, a port for gRPC alone
// gives grpc everything.
func TestFrontPlainOneProtocol(t *testing.T) {
	f := serveFront(t, FrontOptions{HTTP: true})
	c := dialAndWrite(t, f, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Fatalf("read %d bytes of a connection that nobody serves", n)
	}
	f = serveFront(t, FrontOptions{GRPC: true})
	dialAndWrite(t, f, "GET / HTTP/1.1\r\n\r\n")
	got, err := f.GRPC().Accept()
	if err != nil {
		t.Fatal(err)
	}
	got.Close()
}

// Of a flood of connections that say nothing the oldest go first.
// TestFrontNotReady: before a member is ready it answers HTTP/1 and sends nothing
// to a gRPC client, which then gives its calls to others.
func TestFrontNotReady(t *testing.T) {
	ready := make(chan struct{})
	f := serveFront(t, FrontOptions{GRPC: true, HTTP: true, Ready: ready})
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := f.GRPC().Accept(); err == nil {
			accepted <- c
		}
	}()
	dialAndWrite(t, f, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	// It waits until after the answer to one that came later.
	c := dialAndWrite(t, f, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", r, err)
	}
	r.Body.Close()
	select {
	case <-accepted:
		t.Fatal("a connection was handed on before the member was ready")
	default:
	}
	close(ready)
	select {
	case c := <-accepted:
		c.Close()
	case <-time.After(30 * time.Second):
		t.Fatal("the connection still waits")
	}
}

func TestFrontFlood(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const maxPending = 300
	f := NewFront(inner, FrontOptions{GRPC: true, HTTP: true, MaxPending: maxPending})
	defer f.Close()
	var first net.Conn
	for i := range maxPending + 1 {
		here, there := net.Pipe()
		if i == 0 {
			first = here
		}
		if _, ok := f.begin(there); !ok {
			t.Fatal("closed")
		}
	}
	if _, err := first.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("the oldest: %v, want EOF", err)
	}
	if f.pending.Len() != maxPending {
		t.Fatalf("%d pending, want %d", f.pending.Len(), maxPending)
	}
}
