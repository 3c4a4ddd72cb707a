package mvcc

import (
	"context"
	"errors"
	"runtime"

	"github.com/cockroachdb/pebble/v2"

	"github.com/belaydb/belay/store"
)

// View is the store of revisions at one moment: everything read through it is consistent, whatever
// is written or compacted meanwhile. It belongs to one goroutine at a time and must be closed.
type View struct {
	s       *Store
	v       *store.View
	rev     int64
	compact int64
	err     error
}

// View opens a view of the newest revision.
func (s *Store) View() *View {
	for {
		generation := s.generation.Load()
		v := &View{s: s, v: s.st.View(), compact: -1}
		if s.st.Generation() != generation {
			v.v.Close()
			if v.err = s.awaitReload(context.Background()); v.err != nil {
				return v
			}
			continue
		}
		if v.err = v.load(); v.err != nil {
			return v
		}
		// The batch that wrote this revision may not be published yet. A later reader must not see
		// less than this one.
		for s.rev.Load() < v.rev && s.generation.Load() == generation {
			runtime.Gosched()
		}
		return v
	}
}

// ReadView opens a view of a store that no Store of this package is open on, as of what it holds.
// REQUIRES: Range is not called on it.
func ReadView(st *store.Store) *View {
	v := &View{v: st.View(), compact: -1}
	v.err = v.load()
	return v
}

// HashState is what Store.HashState gives as of the view, for a revision that is kept.
func (v *View) HashState(ctx context.Context, rev int64) (hash uint32, err error) {
	switch {
	case v.err != nil:
		return 0, v.err
	case rev < v.compact:
		return 0, ErrCompacted
	case rev > v.rev:
		return 0, ErrFutureRev
	}
	lower, upper := store.UserKeysSpan()
	it, err := v.v.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	return hashRevisions(ctx, it, v.compact, rev, false, defaultHashParts)
}

// Err is why the view cannot be read; nil: it can.
func (v *View) Err() error { return v.err }

func (v *View) load() error {
	rev, ok, err := readNumber(v.v, metaRevision)
	if err != nil {
		return err
	}
	v.rev = 1
	if ok {
		v.rev = rev
	}
	// This is at or below what the view shows, so the view cannot lack anything because of later
	// compactions: they remove nothing before they are published, and a view made before that still
	// shows everything.
	v.compact, ok, err = readNumber(v.v, metaScheduled)
	if !ok {
		v.compact = -1
	}
	return err
}

// Range reads as Store.Range does, as of the view.
func (v *View) Range(ctx context.Context, key, end []byte, o RangeOptions) (RangeResult, error) {
	if v.err != nil {
		return RangeResult{}, v.err
	}
	v.s.metrics.ranges.Inc()
	res := RangeResult{Rev: v.rev}
	rev, err := at(o.Rev, v.rev)
	if err != nil {
		return res, err
	}
	if rev < v.compact {
		return res, ErrCompacted
	}
	if len(end) == 0 {
		if kv, whole, ok := v.s.cache.get(key, true); ok && kv.ModRevision <= rev && (whole || o.KeysOnly || o.CountOnly) {
			return pointResult(kv, o, v.rev), nil
		}
		it, err := v.v.NewIter(&pebble.IterOptions{UseL6Filters: true})
		if err != nil {
			return res, err
		}
		kv, err := newestOf(it, key, rev, !o.CountOnly && !o.KeysOnly)
		if err := errors.Join(err, it.Close()); err != nil {
			return res, err
		}
		return pointResult(kv, o, v.rev), nil
	}
	lower, upper, ok := bounds(key, end)
	if !ok {
		return res, nil
	}
	it, err := v.v.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return res, err
	}
	res, err = rangeOf(ctx, it, key, rev, o, v.s.keyCounts.counter(end, rev))
	res.Rev = v.rev
	return res, errors.Join(err, it.Close())
}

// Rev is the newest revision of the view.
func (v *View) Rev() int64 { return v.rev }

// CompactRevision is the newest compaction asked for as of the view; -1: none.
func (v *View) CompactRevision() int64 { return v.compact }

// Applied is the last raft entry whose effects the view shows.
func (v *View) Applied() (index, term uint64) { return v.v.Applied() }

// Reader reads what else is in the store, as of the view.
func (v *View) Reader() store.Reader { return v.v }

// Close ends the view.
func (v *View) Close() { v.v.Close() }
