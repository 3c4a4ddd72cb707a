package mvcc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.uber.org/zap"

	"github.com/belaydb/belay/internal/invariants"
	"github.com/belaydb/belay/store"
)

// The texts are etcd's.
var (
	// ErrCompacted: the history at this revision is gone.
	ErrCompacted = errors.New("mvcc: required revision has been compacted")
	// ErrFutureRev: the revision does not exist yet.
	ErrFutureRev = errors.New("mvcc: required revision is a future revision")
	// ErrTooLarge: a range holds more than RangeOptions.MaxBytes.
	ErrTooLarge = errors.New("mvcc: range is too large")
	// ErrClosed: the store of revisions was closed.
	ErrClosed = errors.New("mvcc: closed")
)

// Options of a store. The zero value is usable.
type Options struct {
	Logger  *zap.Logger // default: none
	Metrics *Metrics    // default: not registered

	// CacheBytes bounds the cache of the newest versions of hot keys. 0: 64 MiB.
	CacheBytes int64

	// CompactionBatchLimit is how many revisions a step of a compaction processes. 0: 1000.
	CompactionBatchLimit int
	// CompactionSleep is the pause between steps. 0: 10 ms; below 0: none.
	CompactionSleep time.Duration

	// NoCompactionHash skips the hash of what a compaction covers, which costs a pass over all
	// keys. HashKV of a compacted revision then differs from etcd's.
	NoCompactionHash bool

	// NoCounts disables the counted index of keys, as if it were never built.
	NoCounts bool

	// ExistsFilterBytes bounds the filter of keys that exist, which spares the put of a new key the
	// look-up; twice as much for short times. 0: 32 MiB, enough for 22 million keys.
	ExistsFilterBytes int
	// NoExistsFilter disables the filter. NoCounts does, too.
	NoExistsFilter bool

	// For tests, which want small ones:
	countBlockKeys int // size of a block of keys that are counted together
	hashParts      int // versions that one pass of a hash joins
	wideDelete     int // how many keys of a DeleteRange may go into the cache
	keepOverlay    int // up to how many keys a batch's overlay is kept for the next batch

	// compactionRetry is the first pause after a compaction that failed. 0: one second.
	compactionRetry time.Duration
}

const (
	defaultCacheBytes           = 64 << 20
	defaultCompactionBatchLimit = 1000
	defaultCompactionSleep      = 10 * time.Millisecond
	defaultWideDelete           = 1024
	defaultKeepOverlay          = 16 << 10
)

// Store is every version of every key: the published revision, the cache, the filter and the counts
// beside the versions in package store, and the goroutines that compact and count. Writing goes
// through a Writer.
type Store struct {
	st      *store.Store
	logger  *zap.Logger
	metrics *Metrics
	opts    Options
	cache   *cache

	// What readers see. rev is the newest readable revision; compact the newest requested
	// compaction, -1: none. Publish sets compact before rev and never beyond it. generation is the
	// store's generation that both belong to.
	rev        atomic.Int64
	compact    atomic.Int64
	generation atomic.Uint64

	// finished is the newest compaction that has removed everything it should; -1: none. finished
	// <= compact.
	finished atomic.Int64

	hashes    hashes
	keyCounts keyCounts
	exists    existsFilter

	mu       sync.Mutex         // of these two
	reloaded chan struct{}      // closed and replaced by Reload
	waiters  []compactionWaiter // those of revisions beyond finished

	compactor compactor

	closed    chan struct{}
	closeOnce sync.Once

	// scratch is the applier's map of what a batch wrote, kept between batches.
	scratch overlay
	// indexed is the same for the entries of the revision index that are to be written.
	indexed []indexed

	checks invariants.Budget // the applier's
}

type compactionWaiter struct {
	rev int64
	ch  chan struct{}
}

// Names of the records in the store's meta space.
const (
	metaRevision  = "revision"
	metaScheduled = "scheduledCompactRev"
	metaFinished  = "finishedCompactRev"
	metaProgress  = "compactProgress"
)

// Open reads the current revision. It does not read keys. An interrupted compaction continues in
// the background.
func Open(st *store.Store, opts Options) (*Store, error) {
	if opts.Logger == nil {
		opts.Logger = zap.NewNop()
	}
	if opts.Metrics == nil {
		opts.Metrics = NewMetrics(nil)
	}
	if opts.CacheBytes <= 0 {
		opts.CacheBytes = defaultCacheBytes
	}
	if opts.CompactionBatchLimit <= 0 {
		opts.CompactionBatchLimit = defaultCompactionBatchLimit
	}
	if opts.CompactionSleep == 0 {
		opts.CompactionSleep = defaultCompactionSleep
	}
	if opts.compactionRetry <= 0 {
		opts.compactionRetry = compactionRetry
	}
	if opts.ExistsFilterBytes <= 0 {
		opts.ExistsFilterBytes = defaultExistsFilterBytes
	}
	if opts.hashParts <= 0 {
		opts.hashParts = defaultHashParts
	}
	if opts.wideDelete <= 0 {
		opts.wideDelete = defaultWideDelete
	}
	if opts.keepOverlay <= 0 {
		opts.keepOverlay = defaultKeepOverlay
	}
	s := &Store{
		st: st, logger: opts.Logger, metrics: opts.Metrics, opts: opts, cache: newCache(opts.CacheBytes),
		reloaded: make(chan struct{}), closed: make(chan struct{}), scratch: overlay{},
	}
	s.keyCounts.env = countsEnv{
		store: st, opts: &s.opts, logger: s.logger, generation: &s.generation, rev: &s.rev, compact: &s.compact, exists: &s.exists,
	}
	if err := s.load(); err != nil {
		return nil, err
	}
	s.metrics.store.Store(s)
	s.startCompactor()
	if rev := s.CompactRevision(); rev >= 0 {
		s.logger.Info("restored last compact revision", zap.String("meta-bucket-name-key", metaFinished), zap.Int64("restored-compact-revision", s.finished.Load()))
	}
	s.logger.Info("kvstore restored", zap.Int64("current-rev", s.Revision()))
	return s, nil
}

// load reads the store's meta space.
func (s *Store) load() error {
	generation := s.st.Generation()
	numbers := map[string]int64{metaRevision: 1, metaScheduled: -1, metaFinished: -1}
	for name := range numbers {
		n, ok, err := readNumber(s.st, name)
		if err != nil {
			return err
		}
		if ok {
			numbers[name] = n
		}
	}
	rev, scheduled, finished := numbers[metaRevision], numbers[metaScheduled], numbers[metaFinished]
	if rev < 1 || scheduled > rev || finished > scheduled {
		return fmt.Errorf("mvcc: the store says current revision %d, compaction asked for at %d, done up to %d: that cannot be", rev, scheduled, finished)
	}
	s.cache.reset(rev)
	s.compact.Store(scheduled)
	s.finished.Store(finished)
	s.rev.Store(rev)
	s.generation.Store(generation)
	return nil
}

func readNumber(r store.Reader, name string) (n int64, ok bool, err error) {
	b, ok, err := r.Get(store.MetaKey(name))
	if err != nil || !ok {
		return 0, false, err
	}
	if len(b) != 8 {
		return 0, false, fmt.Errorf("mvcc: the record %q has %d bytes instead of 8", name, len(b))
	}
	return int64(binary.BigEndian.Uint64(b)), true, nil
}

func number(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

// Reload drops everything remembered about the content that an installed snapshot has replaced.
// Readers that arrive in the meantime wait for it. REQUIRES: nothing is being written.
func (s *Store) Reload() error {
	s.stopCompactor()
	if err := s.load(); err != nil {
		return err
	}
	s.mu.Lock()
	close(s.reloaded)
	s.reloaded = make(chan struct{})
	s.mu.Unlock()
	s.finishWaiters()
	s.startCompactor()
	s.logger.Info("kvstore restored", zap.Int64("current-rev", s.Revision()))
	return nil
}

// awaitReload waits until what is remembered matches the store's content again.
func (s *Store) awaitReload(ctx context.Context) error {
	for {
		s.mu.Lock()
		ch := s.reloaded
		s.mu.Unlock()
		if s.st.Generation() == s.generation.Load() {
			return nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.closed:
			return ErrClosed
		}
	}
}

// Revision is the newest revision that can be read. The empty store has 1.
func (s *Store) Revision() int64 { return s.rev.Load() }

// CompactRevision is the newest requested compaction: older revisions cannot be read. -1: there was
// none.
func (s *Store) CompactRevision() int64 { return s.compact.Load() }

// Close stops the background work. Readers must have finished; the store itself stays open.
func (s *Store) Close() {
	s.closeOnce.Do(func() {
		close(s.closed)
		s.stopCompactor()
		s.metrics.store.CompareAndSwap(s, nil)
	})
}

// at returns the revision that a reader reads: the requested one, or the newest.
func at(asked, current int64) (rev int64, err error) {
	switch {
	case asked > current:
		return 0, ErrFutureRev
	case asked <= 0:
		return current, nil
	}
	return asked, nil
}

// open makes an iterator that shows everything readable at a revision (asked, or the newest if
// asked <= 0), whatever compactions do meanwhile: a compaction removes nothing before s.compact
// says so, and s.compact is looked at after the iterator was made.
func (s *Store) open(ctx context.Context, asked int64, o *pebble.IterOptions) (it store.Iterator, rev, current int64, err error) {
	for {
		generation := s.generation.Load()
		current = s.rev.Load()
		if rev, err = at(asked, current); err != nil {
			return store.Iterator{}, 0, current, err
		}
		if it, err = s.st.NewIter(o); err != nil {
			return store.Iterator{}, 0, current, err
		}
		switch {
		case s.st.Generation() != generation:
			err = s.awaitReload(ctx)
		case rev >= s.compact.Load():
			return it, rev, current, nil
		case asked > 0:
			err = ErrCompacted
		}
		// Otherwise the newest revision has moved on, past a compaction: take the new one.
		if err = errors.Join(err, it.Close()); err != nil {
			if errors.Is(err, ErrCompacted) {
				err = ErrCompacted
			}
			return store.Iterator{}, 0, current, err
		}
	}
}
