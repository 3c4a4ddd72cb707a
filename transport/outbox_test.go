package transport

import (
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// TestOutboxBounded: what was taken and is not written yet counts, and a batch is freed when it is
// settled.
func TestOutboxBounded(t *testing.T) {
	big := message(raftpb.MsgApp, 1, 2, 1, make([]byte, 1000))
	size := queuedBytes(big)
	o := newOutbox(3, 2*size)
	put := func(m *raftpb.Message, want bool) {
		t.Helper()
		if o.put(m) != want {
			t.Fatalf("put says %v with %d of %d bytes", !want, o.bytes, o.maxBytes)
		}
	}
	put(big, true)
	put(big, true)
	put(big, false)
	taken := o.take(nil)
	if len(taken) != 2 || taken[0] != big {
		t.Fatalf("took %d messages, or copies", len(taken))
	}
	put(big, false) // all of it is in hand
	o.settle()
	put(big, true)
	o.take(taken)
	put(big, true)
	if n := o.drop(); n != 1 || o.bytes != size {
		t.Fatalf("dropped %d, %d bytes remain", n, o.bytes)
	}
	o.settle()
	if o.bytes != 0 {
		t.Fatalf("%d bytes in an empty queue", o.bytes)
	}
	// One that is larger than the bound goes alone.
	put(message(raftpb.MsgApp, 1, 2, 1, make([]byte, 10000)), true)
	put(message(raftpb.MsgHeartbeat, 1, 2, 1), false)
	o.drop()
	for range 3 {
		put(message(raftpb.MsgHeartbeat, 1, 2, 1), true)
	}
	put(message(raftpb.MsgHeartbeat, 1, 2, 1), false)
}
