package logs

import (
	"testing"
	"time"
)

// TestRaftLines: a 3.4 that writes capnslog text has raft's lines in a form of their own, and tells
// of its elections in no other.
func TestRaftLines(t *testing.T) {
	p := newParser(time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC), time.UTC)
	l, ok := p.parse("raft2026/11/29 04:55:56 INFO: c8409cb940bfde5a became leader at term 2")
	if !ok || l.Msg != "raft: c8409cb940bfde5a became leader at term 2" || l.Level != "info" || !l.At.Equal(time.Date(2026, 11, 29, 4, 55, 56, 0, time.UTC)) {
		t.Errorf("%v %+v", ok, l)
	}
}
