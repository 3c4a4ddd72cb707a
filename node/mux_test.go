package node

import (
	"io"
	"net"
	"testing"
	"time"
)

func TestSplitListener(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newSplitListener(inner)
	served := make(chan error, 1)
	go func() { served <- l.Serve() }()

	dial := func(parts ...string) net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		for _, p := range parts {
			if _, err := io.WriteString(c, p); err != nil {
				t.Fatal(err)
			}
		}
		return c
	}
	expect := func(from net.Listener, want string) {
		t.Helper()
		c, err := from.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
			t.Fatalf("read %q, %v; want %q", got, err, want)
		}
	}

	dial() // says nothing: must delay nobody
	preface := "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	dial(preface)
	expect(l.GRPC(), preface)
	dial("P", "RI * HT", "TP/2.0\r\n\r\nSM\r\n\r\n")
	expect(l.GRPC(), preface)
	dial("GET /version HTTP/1.1\r\n")
	expect(l.HTTP(), "GET /version HTTP/1.1\r\n")
	dial("PRI * HTTP/1.0\r\n") // the first difference decides
	expect(l.HTTP(), "PRI * HTTP/1.0\r\n")
	dial("PUT ")
	expect(l.HTTP(), "PUT ")

	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	if _, err := l.GRPC().Accept(); err == nil {
		t.Fatal("accepted a connection after Close")
	}
}
