//go:build invariants

package raftlog

import (
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/internal/invariants"
)

// TestInvariantsBreak breaks each invariant on purpose: the assert must say so.
func TestInvariantsBreak(t *testing.T) {
	for _, c := range []struct {
		name  string
		harm  func(l *Log)
		check func(l *Log)
		want  string
	}{
		{"nothing in the tail", func(*Log) {}, (*Log).checkTail, ""},
		{"nothing written", func(*Log) {}, func(l *Log) { l.checkWritten(nil) }, ""},
		{"nothing in the files", func(*Log) {}, filesOf, ""},
		{"commit beyond the end", func(l *Log) { l.hard.commit = 99 }, (*Log).checkTail, "99 is committed"},
		{"gap", func(l *Log) { l.tail.chunks[0].entries[5] = nil }, (*Log).checkTail, "at 5, after an entry of term 1"},
		{"wrong index", func(l *Log) { l.tail.chunks[0].entries[5] = l.tail.at(6) }, (*Log).checkTail, "at 5, after an entry of term 1"},
		{"term that goes back", func(l *Log) { l.tail.baseTerm = 7 }, (*Log).checkTail, "at 1, after an entry of term 7"},
		{"last term", func(l *Log) { l.tail.lastTerm = 7 }, (*Log).checkTail, "the tail says 7"},
		{"bytes", func(l *Log) { l.tail.bytes++ }, (*Log).checkTail, "and says"},
		{"bytes of a chunk", func(l *Log) { l.tail.chunks[0].bytes++ }, (*Log).checkTail, "by its chunks"},
		{"files that end earlier", func(l *Log) { l.w.last-- }, func(l *Log) { l.checkWritten(nil) }, "the files end with entry 19"},
		{"bytes that wait", func(l *Log) { l.unsyncedBytes.Add(1) }, func(l *Log) { l.checkWritten(nil) }, "counted as waiting"},
		{"another entry in the files", func(l *Log) {
			e := proto.Clone(l.tail.at(5)).(*raftpb.Entry)
			e.Data = append(e.Data, 'x')
			l.tail.chunks[0].entries[5] = e
		}, filesOf, "entry 5 is"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := mustOpen(t, "log", testOptions(vfs.NewMem(), &sink{}))
			l.Append(Append{Entries: entries(1, 20, 1), HardState: &raftpb.HardState{Term: new(uint64(1)), Vote: new(uint64(1)), Commit: new(uint64(20))}})
			if err := l.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			mustClose(t, l) // nobody works on it any more
			l.mu.Lock()
			defer l.mu.Unlock()
			c.harm(l)
			l.checks, l.fileChecks = invariants.Budget{}, invariants.Budget{}
			text := invariants.Caught(func() { c.check(l) })
			if c.want == "" && text != "" || !strings.Contains(text, c.want) {
				t.Errorf("got %q, want %q", text, c.want)
			}
		})
	}
}

// filesOf is checkFiles, called with mu held.
func filesOf(l *Log) {
	l.mu.Unlock()
	defer l.mu.Lock()
	if text := invariants.Caught(l.checkFiles); text != "" {
		l.mu.Unlock() // checkFiles has it when it panics
		panic(text)
	}
}
