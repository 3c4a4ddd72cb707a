package raftlog

import (
	"errors"
	"fmt"
	"os"

	"github.com/cockroachdb/errors/oserror"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// Adopt is the restart rule. The store was flushed without waiting for this log, so it
// may be ahead: index and term are the store's applied entry, cs its configuration.
//
//   - The log holds entry index with that term (or it is the log's base): the log stays.
//   - Otherwise the log is replaced by the base (index, term).
//
// In both cases commit and term are raised to at least these, and the vote is forgotten if the term
// rose. This is safe: entry index was committed, so a quorum other than us had it durably, and no
// vote or acknowledgement of ours ever left before it was durable here, so what the log lacks was
// never promised.
//
// A replaced log is durable when Adopt returns, and a crash at any point leaves either the old log,
// for which the next Adopt decides the same, or the new one: a new segment that says "what came
// before does not count" is made durable before the old ones are removed. What was raised in a log
// that stays is written with the next group; until then the next Adopt would raise it again.
//
// REQUIRES: called once, after Open and before the first Append or Sync.
func (l *Log) Adopt(index, term uint64, cs *raftpb.ConfState) (replaced bool, err error) {
	l.compactMu.Lock()
	defer l.compactMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.started || l.closing {
		panic("raftlog: Adopt after Append, Sync or Close")
	}
	if index < l.opts.Applied {
		panic(fmt.Sprintf("raftlog: Adopt of entry %d, but Open was told that entry %d is applied", index, l.opts.Applied))
	}
	t := &l.tail
	if index < t.base {
		return false, unfit("%s starts after entry %d, but the store has applied only up to %d: "+
			"the store is older than the log, or was removed. "+
			"Put back the store that belongs to this log; or remove this member, move its data directory away and add it again",
			l.files.dir, t.base, index)
	}
	keep := index <= t.last && t.term(index) == term

	h := l.hard
	if !keep && index <= h.commit {
		return false, unfit("the store has applied entry %d of term %d, but in the log in %s the committed entry %d has term %d: "+
			"the two do not belong together, and nothing was changed. "+
			"Put back the store that belongs to this log; or remove this member, move its data directory away and add it again",
			index, term, l.files.dir, index, t.term(index))
	}
	if !keep {
		h.commit = index
	}
	h.commit = max(h.commit, index)
	if h.term < term {
		h.term, h.vote = term, 0
	}
	if cs != nil {
		l.confState = cloneConfState(cs)
	}

	// The writer goroutine sleeps until the first item, and mu is held: w is ours.
	w := &l.w
	w.hard = h
	l.hard = h
	if keep {
		t.trim(t.trimPoint(index, l.opts.MemoryBytes))
		return false, nil
	}
	l.logger.Info("the store is ahead of the raft log, which is replaced",
		zap.String("path", l.files.dir),
		zap.Uint64("applied-index", index), zap.Uint64("applied-term", term),
		zap.Uint64("log-first-index", t.base+1), zap.Uint64("log-last-index", t.last), zap.Uint64("log-last-term", t.lastTerm))
	t.reset(index, term)
	l.trimmed = nil
	w.last, w.lastTerm = index, term
	// The header must be sufficient by itself: it may be on disk without the group after it.
	w.written = h
	w.beginGroup()
	if err := w.writeGroup(true); err != nil {
		return false, err
	}
	l.files.mu.Lock()
	segs := l.files.segments
	l.files.segments = append([]segment(nil), segs[len(segs)-1])
	l.files.mu.Unlock()
	for _, s := range segs[:len(segs)-1] {
		if err := l.files.retire(s); err != nil {
			return false, err
		}
	}
	return true, nil
}

// Mark writes an empty group, with what Adopt has raised, and returns its number once it is
// durable: from then on this log can be told apart from every copy that was made of it before
// (Options.LeastGroup). With NoSync nothing is durable, so it does nothing and returns 0.
//
// REQUIRES: called after Adopt and before the first Append or Sync.
func (l *Log) Mark() (group uint64, err error) {
	l.compactMu.Lock()
	defer l.compactMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.started || l.closing {
		panic("raftlog: Mark after Append, Sync or Close")
	}
	if l.opts.NoSync {
		return 0, nil
	}
	w := &l.w // ours, as in Adopt
	w.beginGroup()
	if err := w.writeGroup(false); err != nil {
		return 0, err
	}
	return w.synced, nil
}

func isNotExist(err error) bool {
	return err != nil && (errors.Is(err, os.ErrNotExist) || oserror.IsNotExist(err))
}
