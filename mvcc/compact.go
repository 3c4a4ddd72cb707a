package mvcc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.uber.org/zap"

	"github.com/belaydb/belay/internal/show"
	"github.com/belaydb/belay/store"
)

// compactor is the goroutine that removes what compactions have made unreachable, one compaction
// after the other.
type compactor struct {
	mu      sync.Mutex
	queue   []compactionRequest
	moves   []chan error  // who waits for values to be moved
	work    chan struct{} // one token: the queue or moves may have something, or segments are full
	cancel  context.CancelFunc
	stopped chan struct{} // closed when the goroutine has ended
}

// A compaction that fails (a block that cannot be read, a failing disk) is retried after a pause,
// which doubles each time.
const (
	compactionRetry    = time.Second
	compactionRetryMax = time.Minute
)

// startCompactor starts the goroutine; an unfinished compaction is its first work.
func (s *Store) startCompactor() {
	c := &s.compactor
	ctx, cancel := context.WithCancel(context.Background())
	c.mu.Lock()
	c.queue, c.moves, c.work, c.cancel, c.stopped = nil, nil, make(chan struct{}, 1), cancel, make(chan struct{})
	c.mu.Unlock()
	if scheduled, finished := s.compact.Load(), s.finished.Load(); scheduled > finished {
		s.logger.Info("resume scheduled compaction", zap.Int64("scheduled-compact-revision", scheduled))
		s.enqueue([]compactionRequest{{rev: scheduled, previous: finished}})
	}
	go s.compactLoop(ctx, c.work, c.stopped)
	s.keyCounts.start(ctx)
}

// stopCompactor ends the goroutine and waits for it. startCompactor finds what it has not finished.
func (s *Store) stopCompactor() {
	c := &s.compactor
	c.cancel()
	<-c.stopped
	s.keyCounts.stop()
}

func (s *Store) enqueue(requests []compactionRequest) {
	if len(requests) == 0 {
		return
	}
	c := &s.compactor
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue = append(c.queue, requests...)
	c.wake()
}

// wake has the goroutine look for work. REQUIRES: mu.
func (c *compactor) wake() {
	select {
	case c.work <- struct{}{}:
	default: // it will look
	}
}

// take returns the next compaction. Several that wait are done in one walk, unless an earlier one
// must leave its hash.
func (c *compactor) take() (r compactionRequest, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		return r, false
	}
	r = c.queue[0]
	c.queue = c.queue[1:]
	for !r.whole && len(c.queue) > 0 {
		r.rev = c.queue[0].rev
		c.queue = c.queue[1:]
	}
	return r, true
}

func (s *Store) compactLoop(ctx context.Context, work <-chan struct{}, stopped chan<- struct{}) {
	defer close(stopped)
	for {
		select {
		case <-work:
		case <-ctx.Done():
			return
		}
		for r, ok := s.compactor.take(); ok; r, ok = s.compactor.take() {
			for wait := s.opts.compactionRetry; ; wait = min(2*wait, compactionRetryMax) {
				err := s.runCompaction(ctx, r)
				if err == nil {
					break
				}
				if ctx.Err() != nil || errors.Is(err, store.ErrReplaced) {
					return // Reload or the next Open begins again where this one stopped
				}
				s.st.Note(err)
				// After its first steps there must be no hash: it would differ from every other
				// member's.
				r.whole = false
				s.logger.Warn("Failed compaction", zap.Int64("compact-revision", r.rev), zap.Error(err), zap.Duration("retry-in", wait))
				// The next compaction relies on this one: without it, it would leave behind what
				// this one should have removed.
				if sleep(ctx, wait) != nil {
					return
				}
			}
			s.finishWaiters()
		}
		if err := s.moveValues(ctx, false); ctx.Err() != nil || errors.Is(err, store.ErrReplaced) {
			return
		}
		for _, done := range s.compactor.takeMoves() {
			done <- s.moveValues(ctx, true)
		}
	}
}

// moveValues moves values out of kept segments of the log, of which a compaction leaves little. It is
// for the goroutine that removes versions.
func (s *Store) moveValues(ctx context.Context, all bool) error {
	err := s.st.Segments.Move(ctx, all, s.pause)
	if err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrReplaced) {
		s.logger.Warn("failed to move values out of segments of the raft log", zap.Error(err))
	}
	return err
}

// DropSegments says from which segment on the log may have values of entries that are not
// flushed. What is kept of earlier ones, and holds no value that is needed, goes; and values are
// moved from those of which little is needed, by the goroutine that compacts: transactions that
// failed leave nothing but their entries, and nobody need compact for that. It waits for the
// disk.
func (s *Store) DropSegments(from store.LogSegment) {
	s.st.Segments.Drop(from)
	c := &s.compactor
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wake()
}

// MoveValues has the values moved into the store that are in kept segments of the log with more garbage
// than a tenth, so that their space becomes free. It waits for that, until ctx ends.
func (s *Store) MoveValues(ctx context.Context) error {
	done := make(chan error, 1)
	c := &s.compactor
	c.mu.Lock()
	c.moves = append(c.moves, done)
	c.wake()
	stopped := c.stopped
	c.mu.Unlock()
	select {
	case err := <-done:
		if errors.Is(err, store.ErrReplaced) {
			return nil // by a snapshot, which refers to no segment
		}
		return err
	case <-stopped: // a snapshot replaces all, or the member stops
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *compactor) takeMoves() (moves []chan error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	moves, c.moves = c.moves, nil
	return moves
}

// Compacted returns a channel that is closed when everything that a compaction of this revision
// should remove is gone.
func (s *Store) Compacted(rev int64) <-chan struct{} {
	ch := make(chan struct{})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished.Load() >= rev {
		close(ch)
	} else {
		s.waiters = append(s.waiters, compactionWaiter{rev, ch})
	}
	return ch
}

func (s *Store) finishWaiters() {
	s.mu.Lock()
	defer s.mu.Unlock()
	finished := s.finished.Load()
	rest := s.waiters[:0]
	for _, w := range s.waiters {
		if w.rev <= finished {
			close(w.ch)
		} else {
			rest = append(rest, w)
		}
	}
	clear(s.waiters[len(rest):])
	s.waiters = rest
}

// runCompaction does one compaction, of revision C, after one of revision F was finished.
//
// A version at or below C is removed if the key has a newer one at or below C, or if it is a
// tombstone below C. (A tombstone at C itself stays until the next compaction, as in etcd, so that
// a watcher that begins at C sees it.) F's walk left one version of each key at or below F, so it
// is enough to look at the revisions of [F, C]: each is removed if it is not the newest at or below
// C; if it is, what F left of its key is removed.
//
// Each step reads and removes in one small batch, and records how far it came. Readers are not
// disturbed: see Store.open.
func (s *Store) runCompaction(ctx context.Context, req compactionRequest) error {
	start := time.Now()
	hash, hashed := uint32(0), false
	if req.whole && !s.opts.NoCompactionHash {
		var err error
		if hash, err = s.hashForCompaction(ctx, req); err != nil {
			return err
		}
		hashed = true
	}
	w := walk{s: s, req: req, newest: map[string]newest{}}
	from, err := s.walkStart(req)
	if err != nil {
		return err
	}
	removed := 0
	for done := false; !done; {
		stepStart := time.Now()
		var n int
		if from, n, done, err = w.step(from); err != nil {
			return err
		}
		removed += n
		s.metrics.compactionPause.Observe(float64(time.Since(stepStart).Milliseconds()))
		s.metrics.compactionKeys.Add(float64(n))
		if !done {
			if err := s.pause(ctx); err != nil {
				return err
			}
		}
	}
	switch {
	case hashed:
		s.hashes.put(s.logger, CompactionHash{req.rev, req.previous, hash})
	case !req.whole:
		s.logger.Info("previous compaction was interrupted, skip storing compaction hash value")
	}
	s.finished.Store(req.rev)
	s.st.Reclaim()
	took := time.Since(start)
	s.metrics.compactionTotal.Observe(float64(took.Milliseconds()))
	s.metrics.compactionLast.Set(float64(time.Now().Unix()))
	size, inUse := s.st.Size()
	fields := []zap.Field{
		zap.Int64("compact-revision", req.rev), zap.Duration("took", took), zap.Int("number-of-keys-compacted", removed),
		zap.Int64("current-db-size-bytes", size), zap.String("current-db-size", show.LogBytes(size)),
		zap.Int64("current-db-size-in-use-bytes", inUse), zap.String("current-db-size-in-use", show.LogBytes(inUse)),
	}
	if hashed {
		fields = append(fields, zap.Uint32("hash", hash))
	}
	s.logger.Info("finished scheduled compaction", fields...)
	return nil
}

func (s *Store) pause(ctx context.Context) error {
	if s.opts.CompactionSleep < 0 {
		return ctx.Err()
	}
	return sleep(ctx, s.opts.CompactionSleep)
}

// walkStart is where the walk begins: where an interrupted one of the same compaction stopped, or
// else at the last finished compaction. An interrupted walk to an earlier C must not be continued:
// before the point where it stopped it left versions that were the newest at its C and are not at
// ours.
func (s *Store) walkStart(req compactionRequest) (Revision, error) {
	b, ok, err := s.st.Get(store.MetaKey(metaProgress))
	if err != nil {
		return Revision{}, err
	}
	if ok {
		if len(b) < 8 {
			return Revision{}, fmt.Errorf("mvcc: the record of a compaction's progress is malformed: %x", b)
		}
		main, sub, valid := store.ParseRevisionKey(b[8:])
		if !valid {
			return Revision{}, fmt.Errorf("mvcc: the record of a compaction's progress is malformed: %x", b)
		}
		if int64(binary.BigEndian.Uint64(b)) == req.rev {
			return Revision{int64(main), int64(sub)}, nil
		}
	}
	return Revision{max(req.previous, 0), 0}, nil
}

// hashForCompaction computes the compaction's hash before the first step.
func (s *Store) hashForCompaction(ctx context.Context, req compactionRequest) (hash uint32, err error) {
	lower, upper := store.UserKeysSpan()
	it, err := s.st.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	tombstone, err := s.hasTombstoneAt(req.rev)
	if err != nil {
		return 0, err
	}
	return hashRevisions(ctx, it, req.previous, req.rev, tombstone, s.opts.hashParts)
}

func (s *Store) hasTombstoneAt(rev int64) (found bool, err error) {
	if rev < 1 {
		return false, nil
	}
	it, err := s.st.NewIter(&pebble.IterOptions{
		LowerBound: store.AppendRevisionKey(nil, uint64(rev), 0), UpperBound: store.AppendRevisionKey(nil, uint64(rev)+1, 0),
	})
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok && !found; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return false, store.Explain(err)
		}
		if _, found, _, err = decodeRevision(it.Key(), value); err != nil {
			return false, err
		}
	}
	return found, store.Explain(it.Error())
}

// walk removes the revisions of one compaction.
type walk struct {
	s   *Store
	req compactionRequest

	// newest remembers the newest version at or below C of keys seen lately: a hot key has many
	// revisions in a row.
	newest map[string]newest

	key, rkey []byte // scratch
}

const walkRemembers = 4096

// newest is the newest version at or below C of a key, and how large some of those below it are,
// newest first: the store needs the size of what it deletes. The iterator that found the newest
// finds each with one more step.
type newest struct {
	Revision
	older []olderVersion
}

type olderVersion struct {
	rev    Revision
	extent store.Extent
}

// walkMeasures is how many versions of one key are measured at once. The sizes of others are looked
// up.
const walkMeasures = 16

// step processes some revisions starting at from, and commits the removals and how far it came.
// next is where to continue.
func (w *walk) step(from Revision) (next Revision, removed int, done bool, err error) {
	s, c := w.s, w.req.rev
	b := s.st.NewLocalBatch()
	defer b.Close()
	it, err := s.st.NewIter(&pebble.IterOptions{
		LowerBound: store.AppendRevisionKey(nil, uint64(from.Main), uint32(from.Sub)),
		UpperBound: store.AppendRevisionKey(nil, uint64(c)+1, 0),
	})
	if err != nil {
		return from, 0, false, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	versions, err := it.Clone(pebble.CloneOptions{IterOptions: &pebble.IterOptions{}})
	if err != nil {
		return from, 0, false, err
	}
	defer func() { err = errors.Join(err, versions.Close()) }()

	next, done = from, true
	seen := 0
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return from, 0, false, store.Explain(err)
		}
		rev, tombstone, key, err := decodeRevision(it.Key(), value)
		if err != nil {
			return from, 0, false, err
		}
		if seen == s.opts.CompactionBatchLimit {
			next, done = rev, false
			break
		}
		seen++
		n, err := w.look(b, versions, rev, tombstone, key)
		if err != nil {
			return from, 0, false, err
		}
		removed += n
	}
	if err := it.Error(); err != nil {
		return from, 0, false, store.Explain(err)
	}
	if done {
		if err := errors.Join(b.Set(store.MetaKey(metaFinished), number(c)), b.Delete(store.MetaKey(metaProgress))); err != nil {
			return from, 0, false, err
		}
	} else if err := b.Set(store.MetaKey(metaProgress), store.AppendRevisionKey(number(c), uint64(next.Main), uint32(next.Sub))); err != nil {
		return from, 0, false, err
	}
	return next, removed, done, b.Commit()
}

// look removes what the revision calls for.
func (w *walk) look(b *store.Batch, versions store.Iterator, rev Revision, tombstone bool, key []byte) (removed int, err error) {
	c, f := w.req.rev, w.req.previous
	top, ok := w.newest[string(key)]
	if !ok {
		if top.Revision, ok, err = w.seek(versions, key, c); err != nil {
			return 0, err
		}
		if !ok {
			return 0, fmt.Errorf("mvcc: revision %d.%d has no version of its key %q", rev.Main, rev.Sub, key)
		}
		if top.older, err = measure(versions); err != nil {
			return 0, err
		}
		if len(w.newest) >= walkRemembers {
			clear(w.newest)
		}
		w.newest[string(key)] = top
	}
	if rev != top.Revision {
		x, err := w.extentOf(versions, top, key, rev)
		if err != nil {
			return 0, err
		}
		return 1, w.delete(b, key, rev, x)
	}
	if rev.Main > f && f >= 0 {
		for _, ok, err := w.seek(versions, key, f); ; ok = versions.Next() {
			if err != nil {
				return 0, err
			}
			if !ok {
				break
			}
			_, _, main, sub, valid := store.ParseUserKey(versions.Key())
			if !valid {
				return 0, errRecord
			}
			old := Revision{int64(main), int64(sub)}
			if old.Main == f {
				continue // the walk began with it
			}
			removed++
			if err := w.delete(b, key, old, versions.Extent()); err != nil {
				return 0, err
			}
		}
		if err := versions.Error(); err != nil {
			return 0, store.Explain(err)
		}
	}
	if tombstone && rev.Main < c {
		removed++
		return removed, w.delete(b, key, rev, store.Extent{})
	}
	return removed, nil
}

// seek finds the newest version of a key at or below a revision.
func (w *walk) seek(versions store.Iterator, key []byte, rev int64) (Revision, bool, error) {
	w.key = store.AppendUserKey(w.key[:0], key, uint64(rev), store.MaxSub)
	if rev == 0 || !versions.SeekPrefixGE(w.key) {
		return Revision{}, false, store.Explain(versions.Error())
	}
	prefix, _, main, sub, ok := store.ParseUserKey(versions.Key())
	if !ok || !bytes.HasPrefix(w.key, prefix) {
		return Revision{}, false, errRecord
	}
	return Revision{int64(main), int64(sub)}, true, nil
}

// measure returns the sizes of the versions after the one that the iterator is at.
func measure(versions store.Iterator) (older []olderVersion, err error) {
	for len(older) < walkMeasures && versions.Next() {
		_, _, main, sub, ok := store.ParseUserKey(versions.Key())
		if !ok {
			return nil, errRecord
		}
		older = append(older, olderVersion{Revision{int64(main), int64(sub)}, versions.Extent()})
	}
	return older, store.Explain(versions.Error())
}

// extentOf is the extent of a version that is not the newest of its key; none if it does not exist.
func (w *walk) extentOf(versions store.Iterator, top newest, key []byte, rev Revision) (store.Extent, error) {
	for _, v := range top.older {
		if v.rev == rev {
			return v.extent, nil
		}
	}
	w.key = store.AppendUserKey(w.key[:0], key, uint64(rev.Main), uint32(rev.Sub))
	if !versions.SeekPrefixGE(w.key) || !bytes.Equal(versions.Key(), w.key) {
		return store.Extent{}, store.Explain(versions.Error())
	}
	return versions.Extent(), nil
}

// delete removes a version of this extent, and its revision.
func (w *walk) delete(b *store.Batch, key []byte, rev Revision, x store.Extent) error {
	w.key = store.AppendUserKey(w.key[:0], key, uint64(rev.Main), uint32(rev.Sub))
	w.rkey = store.AppendRevisionKey(w.rkey[:0], uint64(rev.Main), uint32(rev.Sub))
	return errors.Join(b.DeleteVersion(w.key, x), b.DeleteSized(w.rkey, 1+len(key)))
}
