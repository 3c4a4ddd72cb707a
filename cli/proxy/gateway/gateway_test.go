package gateway

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// echo answers each connection with what it has sent, when it has sent all.
func echo(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if all, err := io.ReadAll(c); err == nil {
					_, _ = c.Write(append([]byte(l.Addr().String()+" "), all...))
				}
			}()
		}
	}()
	return l
}

// TestGateway: bytes and the ends of each direction pass, endpoints that fail are left out and come
// back.
func TestGateway(t *testing.T) {
	t.Parallel()
	here, gone := echo(t, "127.0.0.1:0"), echo(t, "127.0.0.1:0")
	gone.Close()
	core, logs := observer.New(zap.InfoLevel)
	ctx, cancel := context.WithCancel(t.Context())
	g, err := New(ctx, Config{
		ListenAddr: "127.0.0.1:0", Endpoints: []string{gone.Addr().String(), "http://" + here.Addr().String()},
		RetryDelay: 20 * time.Millisecond, Logger: zap.New(core),
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	talk := func() string {
		c, err := net.Dial("tcp", g.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for range 4 {
		if got, want := talk(), here.Addr().String()+" hello"; got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	until(t, func() bool {
		return logs.FilterMessage("failed to activate endpoint (stay inactive for another interval)").Len() > 0
	})
	back := echo(t, gone.Addr().String())
	until(t, func() bool { return logs.FilterMessage("activated").Len() == 1 })
	until(t, func() bool { return talk() == back.Addr().String()+" hello" })
	for message, count := range map[string]int{"ready to proxy client requests": 1, "deactivated endpoint": 1} {
		if n := logs.FilterMessage(message).Len(); n != count {
			t.Errorf("%q stands %d times in the log", message, n)
		}
	}
	// Its end closes what is open.
	open, err := net.Dial("tcp", g.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if b, err := io.ReadAll(open); err == nil && len(b) > 0 {
		t.Errorf("a connection that was open got %q", b)
	}
}

func until(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not come to be")
		}
	}
}

func TestPick(t *testing.T) {
	t.Parallel()
	next := 0
	r := remotes{random: func(n int) int { next++; return next % n }}
	for _, record := range []*net.SRV{{Target: "a", Port: 1, Priority: 2}, {Target: "b", Port: 1, Priority: 1, Weight: 3}, {Target: "c", Port: 1, Priority: 1, Weight: 1}} {
		r.all = append(r.all, newRemote(record))
	}
	count := make(map[string]int)
	for range 40 {
		count[r.pick(nil).record.Target]++
	}
	if count["a"] != 0 || count["b"] != 30 || count["c"] != 10 {
		t.Errorf("by weight: %v", count)
	}
	r.set(r.all[1], true)
	r.set(r.all[2], true)
	if got := r.pick(nil); got != r.all[0] {
		t.Errorf("with the best left out: %v", got)
	}
	r.set(r.all[0], true)
	if got := r.pick(nil); got == nil || got.record.Priority != 1 {
		t.Errorf("with all left out: %v", got)
	}
	if got := r.pick(map[*remote]bool{r.all[0]: true, r.all[1]: true, r.all[2]: true}); got != nil {
		t.Errorf("with all tried: %v", got)
	}
}
