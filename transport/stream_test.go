package transport

import (
	"errors"
	"net"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// brokenConn is a connection whose peer is gone after a number of writes.
type brokenConn struct {
	net.Conn // nil: nothing else is called
	good     int
	writes   int
}

var errBroken = errors.New("broken pipe")

func (c *brokenConn) Write(b []byte) (int, error) {
	c.writes++
	if c.writes > c.good {
		return 0, errBroken
	}
	return len(b), nil
}
func (c *brokenConn) SetWriteDeadline(time.Time) error { return nil }

// TestWriteEndsWithItsConnection: a batch of several writes ends at the first that fails, whichever
// it is. It once went on for ever, and took memory with each turn, when more than one write was
// left: a member was killed by the kernel because another's connection broke amid a large append.
func TestWriteEndsWithItsConnection(t *testing.T) {
	for good := range 6 {
		conn := &brokenConn{good: good}
		o := &outgoing{timeout: time.Second, conn: conn, vecConn: conn}
		var out batch
		for i := range uint64(5) {
			(&msgappEncoder{}).encode(&out, message(raftpb.MsgApp, 1, 2, i, make([]byte, writeAtOnce)))
		}
		done := make(chan error, 1)
		go func() { done <- o.write(&out) }()
		if err := await(t, "a write on a broken connection to end", done); !errors.Is(err, errBroken) {
			t.Fatalf("with %d good writes: %v", good, err)
		}
	}
}
