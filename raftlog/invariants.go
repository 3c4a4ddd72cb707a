package raftlog

import (
	"bytes"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/internal/invariants"
)

// The asserts of a build with the tag invariants: see package invariants.

const (
	// checkedPerAppend is how many entries an Append may cost to be looked at in memory, and
	// checkedPerCompact how many a Compact may cost to be read from the files.
	checkedPerAppend  = 64
	checkedPerCompact = 4096
	checkReadBytes    = 1 << 20
)

// checkTail holds the tail against its own numbers. REQUIRES l.mu.
func (l *Log) checkTail() {
	if !invariants.Enabled || !l.checks.Due(checkedPerAppend) {
		return
	}
	t := &l.tail
	l.checks.Spent(int(t.last - t.base))
	if l.hard.commit > t.last || t.base > t.last {
		invariants.Broken("raftlog", "the tail goes from %d to %d, and %d is committed", t.base, t.last, l.hard.commit)
	}
	term, sum := t.baseTerm, int64(0)
	for i := t.base + 1; i <= t.last; i++ {
		e := t.at(i)
		if e == nil || e.GetIndex() != i || e.GetTerm() < term {
			invariants.Broken("raftlog", "at %d, after an entry of term %d, the tail has %v", i, term, e)
		}
		term = e.GetTerm()
		sum += entryBytes(e)
	}
	if term != t.lastTerm {
		invariants.Broken("raftlog", "the last entry, %d, is of term %d, the tail says %d", t.last, term, t.lastTerm)
	}
	chunks := int64(0)
	for _, c := range t.chunks {
		chunks += c.bytes
	}
	if sum != t.bytes || chunks != t.bytes {
		invariants.Broken("raftlog", "the tail has %d bytes, %d by its chunks, and says %d", sum, chunks, t.bytes)
	}
}

// checkWritten: when nothing waits for the disk any longer, the files end where the tail does. It
// is called by the writer after a release. REQUIRES l.mu.
func (l *Log) checkWritten(rest []item) {
	if !invariants.Enabled || len(rest) > 0 || len(l.queue) > 0 {
		return
	}
	if l.w.last != l.tail.last || l.w.lastTerm != l.tail.lastTerm {
		invariants.Broken("raftlog", "the files end with entry %d of term %d, the tail with %d of %d", l.w.last, l.w.lastTerm, l.tail.last, l.tail.lastTerm)
	}
	if n, b := l.unsyncedEntries.Load(), l.unsyncedBytes.Load(); n != 0 || b != 0 || l.oldest.isSet() {
		invariants.Broken("raftlog", "nothing waits for the disk, and %d entries of %d bytes are counted as waiting", n, b)
	}
}

// checkFiles reads the committed entries of the tail from the files, as a Reader does for a
// follower, and compares them. REQUIRES: compactMu held, so that no file goes away; not l.mu.
func (l *Log) checkFiles() {
	if !invariants.Enabled || !l.fileChecks.Due(checkedPerCompact) {
		return
	}
	l.mu.Lock()
	from, commit := l.tail.base+1, l.hard.commit
	if commit < from || l.failure != nil {
		l.mu.Unlock()
		return
	}
	term := l.tail.term(commit)
	l.mu.Unlock()
	r, err := l.Read(from)
	if err != nil {
		return // a base that is a snapshot's, or a disk that cannot be read
	}
	defer r.Close()
	for {
		entries, err := r.Next(checkReadBytes, commit, term)
		if err != nil || len(entries) == 0 {
			return
		}
		l.fileChecks.Spent(len(entries))
		l.mu.Lock()
		for _, e := range entries {
			if i := e.GetIndex(); i > l.tail.base && i <= min(commit, l.tail.last) && !sameEntry(e, l.tail.at(i)) {
				invariants.Broken("raftlog", "entry %d is %v in the files and %v in the tail", i, e, l.tail.at(i))
			}
		}
		l.mu.Unlock()
	}
}

func sameEntry(a, b *raftpb.Entry) bool {
	return a.GetIndex() == b.GetIndex() && a.GetTerm() == b.GetTerm() && a.GetType() == b.GetType() && bytes.Equal(a.GetData(), b.GetData())
}
