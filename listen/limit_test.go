package listen

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// The shares never exceed the limit, whatever it is.
func TestShare(t *testing.T) {
	for limit := uint64(1); limit < 5000; limit++ {
		s, err := Share(limit)
		if limit <= ReservedDescriptors {
			if !errors.Is(err, ErrFewDescriptors) {
				t.Fatalf("limit %d: %v", limit, err)
			}
			continue
		}
		if err != nil || s.Clients < 1 || s.Peers < 1 || s.Metrics < 1 {
			t.Fatalf("limit %d: %+v, %v", limit, s, err)
		}
		// Each share is at least one, however small the rest.
		if used := s.Clients + s.Peers + s.Metrics; uint64(used) > limit-ReservedDescriptors+2 || uint64(used+s.StoreFiles) > limit+3 {
			t.Fatalf("limit %d: %+v", limit, s)
		}
	}
	if s, err := Share(0); err != nil || s.Clients != plenty {
		t.Errorf("unknown limit: %+v, %v", s, err)
	}
	if s, err := Share(1 << 40); err != nil || s.Clients > plenty {
		t.Errorf("huge limit: %+v, %v", s, err)
	}
}

// Who said nothing makes room, the oldest first; where all have spoken the new one is closed.
func TestBound(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := make(chan bool, 16)
	b := NewBound(3, func(silent bool) { refused <- silent })
	l := b.Listener(inner)
	defer l.Close()
	accepted := make(chan net.Conn, 16)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	// speak has the server read a byte of client.
	speak := func(client, server net.Conn) {
		t.Helper()
		if _, err := client.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	ended := func(c net.Conn) {
		t.Helper()
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Fatalf("the connection lives: %v", err)
		}
	}
	first, second, third := dial(), dial(), dial()
	firstServed, secondServed, thirdServed := <-accepted, <-accepted, <-accepted
	speak(first, firstServed)
	fourth := dial() // the second is the oldest that said nothing
	fourthServed := <-accepted
	ended(second)
	if silent := <-refused; !silent || b.Open() != 3 {
		t.Errorf("silent %v, open %d", silent, b.Open())
	}
	secondServed.Close() // again: its place was given back already
	speak(third, thirdServed)
	speak(fourth, fourthServed)
	fifth := dial()
	ended(fifth)
	if silent := <-refused; silent || b.Open() != 3 {
		t.Errorf("silent %v, open %d", silent, b.Open())
	}
	firstServed.Close()
	firstServed.Close()
	sixth := dial()
	speak(sixth, <-accepted)
	if b.Open() != 3 || b.Max() != 3 {
		t.Errorf("open %d of %d", b.Open(), b.Max())
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
