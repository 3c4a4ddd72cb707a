package relay

import (
	"testing"

	"google.golang.org/grpc/mem"

	"github.com/belaydb/belay/cli/proxy/upstream"
)

// TestSending: an answer counts once from when the first client gets it until the last one has, or
// is gone.
func TestSending(t *testing.T) {
	var s sending
	near, far := &ledger{all: &s}, &ledger{all: &s}
	expect := func(what string, want int64) {
		t.Helper()
		if got := s.total(); got != want {
			t.Errorf("%s: %d bytes, want %d", what, got, want)
		}
	}
	marshal := func(l *ledger, body []byte) mem.BufferSlice {
		t.Helper()
		b, err := upstream.Codec().Marshal(&upstream.Frame{Head: []byte("head"), Body: body, Pool: l.begin(body)})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	one, two := make([]byte, 10_000), make([]byte, 20_000)
	a, b, c, d := marshal(near, one), marshal(far, one), marshal(near, two), marshal(near, two)
	expect("two answers for four calls", 30_000)
	a.Ref() // the transport keeps it
	a.Free()
	b.Free()
	expect("one client has not read", 30_000)
	a.Free()
	expect("all have read the first", 20_000)
	c.Free()
	expect("one has read the second", 20_000)
	e := marshal(far, two)
	near.end()
	expect("one is gone", 20_000)
	d.Free() // late
	expect("that counts once", 20_000)
	e.Free()
	expect("all have read all", 0)
	marshal(near, two).Free()
	marshal(far, make([]byte, 100)).Free()
	expect("who is gone, and a small one", 0)
	if len(s.answers) != 0 || len(far.refs) != 0 {
		t.Errorf("%d and %d are left", len(s.answers), len(far.refs))
	}
}
