package relay

import (
	"testing"

	"google.golang.org/grpc/mem"

	"github.com/belaydb/belay/cli/proxy/upstream"
)

// TestSending: an answer counts once from when the first client gets it until the last one has.
func TestSending(t *testing.T) {
	var s sending
	expect := func(what string, want int64) {
		t.Helper()
		if got := s.total(); got != want {
			t.Errorf("%s: %d bytes, want %d", what, got, want)
		}
	}
	marshal := func(body []byte) mem.BufferSlice {
		t.Helper()
		b, err := upstream.Codec().Marshal(&upstream.Frame{Head: []byte("head"), Body: body, Pool: s.begin(body)})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	one, two := make([]byte, 10_000), make([]byte, 20_000)
	a, b, c := marshal(one), marshal(one), marshal(two)
	expect("two answers for three clients", 30_000)
	a.Ref() // the transport keeps it
	a.Free()
	b.Free()
	expect("one client has not read", 30_000)
	a.Free()
	expect("all have read the first", 20_000)
	c.Free()
	expect("all have read all", 0)
	small := marshal(make([]byte, 100))
	expect("a small one", 0)
	small.Free()
	if len(s.refs) != 0 {
		t.Errorf("%d are left", len(s.refs))
	}
}
