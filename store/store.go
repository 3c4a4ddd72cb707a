package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/cockroachkvs"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
)

// Options of a store. The zero value is usable.
type Options struct {
	FS     vfs.FS      // default: the operating system's
	Logger *zap.Logger // default: none

	// CacheBytes bounds the cache of uncompressed blocks. 0: 128 MiB.
	CacheBytes int64

	// MemTableBytes is how much is written before a flush begins by itself. 0: 32 MiB. When flushes
	// stall, up to sixteen times as much waits in memory before commits block.
	MemTableBytes int64

	// MaxOpenFiles bounds the tables that are kept open; Pebble wants some 70 at least. 0: 4096.
	MaxOpenFiles int

	Metrics *Metrics // default: not registered

	// Failed is called once, in a goroutine of its own, when the disk has failed permanently: the
	// process should end. A full disk does not count. Default: the store retries for ever.
	Failed func(error)

	// Corrupt is called each time a file turns out to be corrupt, with an error that names it. It
	// may be called while the store is opened, from any goroutine, and must not wait. Default: the
	// reads that meet it fail, and nothing else happens.
	Corrupt func(error)

	// FailFull makes a full disk an error like any other, of Flush and of the commits that follow, and
	// tries nothing again: for a store that a command fills, whose user waits for it and not for
	// somebody to make room.
	FailFull bool

	// NoSync skips every sync: a crash of the machine, though not of the process, may destroy the
	// store.
	NoSync bool

	// PlaceBytes is from which size on values may have a place in the raft log instead. 0: 32 KiB.
	PlaceBytes int

	// manifestBytes, for tests, is how large a manifest gets before the next one is begun. 0:
	// Pebble's default.
	manifestBytes int64

	// valuesAge, for tests, is how old a file of values is before it is written anew for the garbage
	// in it. 0: rewriteAge.
	valuesAge time.Duration
}

// Store is the open database of a member. The package comment says what it promises, and which
// goroutine may call what.
type Store struct {
	// Segments have values that are not in the store's own files.
	Segments *Segments

	db      *pebble.DB
	dir     string
	fs      vfs.FS
	opts    *pebble.Options
	logger  *zap.Logger
	metrics *Metrics
	failed  func(error)
	corrupt func(error)

	failFull bool
	broken   chan struct{} // closed when a flush or compaction failed, with failFull
	why      error         // of that; set before

	background background
	disk       *diskWatch
	appliedKey []byte

	// applied is the last committed batch. It is set after the batch can be read.
	applied atomic.Pointer[position]
	// durable is the index that survives a crash at least; durable <= applied.
	durable atomic.Uint64
	writing atomic.Bool // the applier's batch is open

	// write is held by whoever changes the content or makes the engine begin a new memtable. The
	// engine makes writers wait for a disk that has stalled for long; here others can wait for the
	// writers and still give up.
	write      gate
	readers    *readers
	outputs    *outputs
	closing    chan struct{} // closed by Close
	generation atomic.Uint64

	incoming atomic.Uint64 // names for directories of snapshots being received

	sizes   sizes
	reclaim reclaim
	blocks  blockCache

	opened atomic.Bool // Open has succeeded
	closed atomic.Bool
	pinned *pinnedFS // of OpenReadOnly, else nil
}

type position struct{ index, term uint64 }

const (
	defaultCacheBytes    = 128 << 20
	defaultMemTableBytes = 32 << 20
	defaultMaxOpenFiles  = 4096

	// stalledMemTables is how many full memtables may wait for a stalled disk. Reaching it blocks
	// the applier, and with it reads; the raft log's own bound on what is not yet durable should be
	// reached first.
	stalledMemTables = 16

	separateBytes = 4 << 10 // values from this size on go to blob files
	blockBytes    = 16 << 10

	// tableBytes is how large a table of level 0 gets before the next one is begun. A table counts
	// with the values that it points to, and a flush makes a file of values for each table. With
	// 4 MiB, puts of 100 KB made a file for every ten, and the making of files was an eighth of their
	// CPU: each costs two syncs, and ext4 looks for an inode among all that were freed lately.
	tableBytes = 32 << 20

	// lowTableBytes is the same for the level below; each level has tables of twice the size of those
	// above it, up to a quarter of a memtable. What they bound is memory: the engine keeps the values
	// of older versions until the table ends, compressed, but in 32 KiB for each 16 KiB of values.
	// With tables of 32 MiB, 4,000,000 puts of the same value to 100,000 keys took 800 MB for that.
	lowTableBytes = 4 << 20
	// lowTableBytesLeast holds however small memtables are.
	lowTableBytesLeast = 1 << 20

	// blobDepth is how many files of values the tables of one key may point into, about, before a
	// compaction copies their values into new files, so that neighbours lie together. The copies cost
	// more than they gain: a value takes a quarter of a block at least. The bound is for the lists of
	// files that each table has, which are in memory.
	blobDepth = 500

	// rewriteAge and rewriteGarbage: when that share of all values in files is garbage, the files with
	// the most of it are written anew without it, but for those younger than this, since what is
	// overwritten often soon leaves nothing in them. Nothing else bounds the garbage, so the age bounds
	// how far a busy writer can get ahead.
	rewriteAge     = 5 * time.Second
	rewriteGarbage = 0.2
)

// Open opens the store in dir, and creates it if there is none. It fails, changing nothing, if dir
// holds another program's Pebble database or a newer Belay's store.
func Open(dir string, opts Options) (*Store, error) {
	fs := opts.FS
	if fs == nil {
		fs = vfs.Default
	}
	if opts.NoSync {
		fs = noSyncFS{fs}
	}
	disk := newDiskWatch()
	fs = watchedFS{fs, disk}
	s := &Store{dir: dir, fs: fs, disk: disk, logger: opts.Logger, metrics: opts.Metrics, failed: opts.Failed, corrupt: opts.Corrupt, failFull: opts.FailFull, broken: make(chan struct{}), appliedKey: MetaKey("applied"), write: newGate(), readers: newReaders(), outputs: newOutputs(), closing: make(chan struct{})}
	if s.logger == nil {
		s.logger = zap.NewNop()
	}
	if s.metrics == nil {
		s.metrics = NewMetrics(nil)
	}
	s.applied.Store(&position{})
	if err := prepareDir(fs, dir); err != nil {
		return nil, err
	}
	if err := fs.RemoveAll(fs.PathJoin(dir, incomingDir)); err != nil {
		return nil, fmt.Errorf("store: remove an unfinished snapshot: %w", err)
	}
	s.Segments = newSegments(s, fs, opts.PlaceBytes)
	if opts.MaxOpenFiles <= 0 {
		opts.MaxOpenFiles = defaultMaxOpenFiles
	}
	s.Segments.maxOpen = openSegments(opts.MaxOpenFiles)
	opts.MaxOpenFiles -= s.Segments.maxOpen
	if err := s.Segments.list(false); err != nil {
		return nil, err
	}
	s.sizes.init()
	s.opts = s.pebbleOptions(opts)
	blocks := pebble.NewCache(s.opts.CacheSize)
	defer blocks.Unref() // the engine has it then
	s.opts.Cache, s.blocks.cache = blocks, blocks
	s.blocks.init(s.opts.CacheSize-s.memTableRoom(), s.memTableRoom())
	before, err := blobsIn(fs, dir)
	if err != nil {
		return nil, fmt.Errorf("store: list %s: %w", dir, err)
	}
	if s.db, err = pebble.Open(dir, s.opts); err != nil {
		return nil, openError(dir, err)
	}
	if err := s.checkBlobs(before); err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	if err := s.loadApplied(); err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	if err := s.Segments.load(false); err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	s.opened.Store(true)
	s.startSampling()
	s.metrics.store.Store(s)
	return s, nil
}

func (s *Store) pebbleOptions(opts Options) *pebble.Options {
	cacheBytes, memTableBytes := opts.CacheBytes, opts.MemTableBytes
	if cacheBytes <= 0 {
		cacheBytes = defaultCacheBytes
	}
	if memTableBytes <= 0 {
		memTableBytes = defaultMemTableBytes
	}
	maxOpenFiles := opts.MaxOpenFiles
	if maxOpenFiles <= 0 {
		maxOpenFiles = defaultMaxOpenFiles
	}
	valuesAge := opts.valuesAge
	if valuesAge <= 0 {
		valuesAge = rewriteAge
	}
	listener := s.eventListener()
	o := &pebble.Options{
		FS:                 pacedFS{blobFS{markerFS{s.fs}, s}, s},
		DisableWAL:         true,
		FormatMajorVersion: pebble.FormatNewest,
		Comparer:           &cockroachkvs.Comparer,
		KeySchema:          cockroachkvs.KeySchema.Name,
		KeySchemas:         sstable.MakeKeySchemas(&cockroachkvs.KeySchema),
		// Pebble takes its memtables out of the cache; see blockCache.
		CacheSize:    cacheBytes + memTables*memTableBytes,
		MemTableSize: uint64(memTableBytes),

		MemTableStopWritesThreshold: stalledMemTables,
		L0CompactionThreshold:       4,
		// Writers never wait for compactions: reads would get slower before that helped anybody.
		L0StopWritesThreshold: 1000,
		LBaseMaxBytes:         128 << 20,
		FlushSplitBytes:       4 << 20,
		// One compaction normally, a second one when compactions fall behind.
		CompactionConcurrencyRange: func() (lower, upper int) { return 1, 2 },
		MaxOpenFiles:               maxOpenFiles,
		MaxManifestFileSize:        opts.manifestBytes,
		EventListener:              &listener,
		Logger:                     pebbleLogger{s.logger, s.fs, s.dir},
	}
	o.TargetFileSizes[0] = tableBytes
	for i := range o.TargetFileSizes[1:] {
		o.TargetFileSizes[i+1] = max(lowTableBytesLeast, min(lowTableBytes<<i, memTableBytes/4))
	}
	// The write-ahead log makes a flushable ingest durable, and there is none: Install must wait
	// for the manifest.
	o.Experimental.DisableIngestAsFlushable = func() bool { return true }
	o.Experimental.EnableColumnarBlocks = func() bool { return true }
	// Pebble's default reads 1 KB in 16 of every iterator for statistics; compactions for reads do
	// not pay here.
	o.Experimental.ReadSamplingMultiplier = -1
	o.Experimental.ValueSeparationPolicy = func() pebble.ValueSeparationPolicy {
		garbage := rewriteGarbage
		if !s.opened.Load() || s.outputs.refused.Load() {
			garbage = 1
		}
		return pebble.ValueSeparationPolicy{
			Enabled:               true,
			MinimumSize:           separateBytes,
			MaxBlobReferenceDepth: blobDepth,
			RewriteMinimumAge:     valuesAge,
			TargetGarbageRatio:    garbage,
		}
	}
	for i := range o.Levels {
		o.Levels[i].BlockSize = blockBytes
		o.Levels[i].IndexBlockSize = 256 << 10
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		o.Levels[i].FilterType = pebble.TableFilter
	}
	o.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionFastest })
	return o
}

// memTables is how many memtables the cache has room for: one being written, one being flushed or kept
// for the next.
const memTables = 2

// memTableRoom is the room for them, in bytes.
func (s *Store) memTableRoom() int64 { return memTables * int64(s.opts.MemTableSize) }

func (s *Store) loadApplied() error {
	value, ok, err := s.Get(s.appliedKey)
	if err != nil {
		return err
	}
	p := position{}
	if ok {
		if p.index, p.term, err = decodeApplied(value); err != nil {
			return err
		}
	}
	s.durable.Store(p.index)
	s.applied.Store(&p)
	return nil
}

func decodeApplied(b []byte) (index, term uint64, err error) {
	if len(b) != 16 {
		return 0, 0, fmt.Errorf("store: the record of the applied index has %d bytes instead of 16", len(b))
	}
	return binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), nil
}

// Applied is the last committed batch: its effects can be read.
func (s *Store) Applied() (index, term uint64) {
	p := s.applied.Load()
	return p.index, p.term
}

// DurableIndex: the effects of all entries up to it survive a crash.
func (s *Store) DurableIndex() uint64 { return s.durable.Load() }

// Generation grows with each installed snapshot: before the first key is replaced, and again after
// the last. What was read in one generation comes from one content.
func (s *Store) Generation() uint64 { return s.generation.Load() }

// AsyncFlush starts to make everything applied so far durable. When done is closed, everything up
// to index is durable. While the disk stalls or fails, done stays open. If the disk has stalled for
// so long that writers wait for it, AsyncFlush waits, too, until ctx ends or the store closes.
func (s *Store) AsyncFlush(ctx context.Context) (index uint64, done <-chan struct{}, err error) {
	select {
	case s.write <- struct{}{}:
	case <-s.closing:
		return 0, nil, errClosed
	case <-ctx.Done():
		return 0, nil, fmt.Errorf("store: flush: %w", ctx.Err())
	}
	if s.closed.Load() {
		s.write.leave()
		return 0, nil, errClosed
	}
	index, _ = s.Applied()
	changes := s.Segments.position()
	type begun struct {
		flushed <-chan struct{}
		err     error
	}
	began := make(chan begun, 1)
	go func() {
		defer s.write.leave()
		flushed, err := s.db.AsyncFlush()
		began <- begun{flushed, err}
	}()
	var b begun
	select {
	case b = <-began:
	case <-s.closing:
		return 0, nil, errClosed
	case <-s.broken:
		return 0, nil, s.why
	case <-ctx.Done():
		return 0, nil, fmt.Errorf("store: flush: %w", ctx.Err())
	}
	if b.err != nil {
		return 0, nil, fmt.Errorf("store: flush: %w", b.err)
	}
	ch := make(chan struct{})
	go func() {
		select {
		case <-b.flushed:
			s.raiseDurable(index)
			s.Segments.raiseFlushed(changes)
			close(ch)
		case <-s.broken:
		}
	}()
	return index, ch, nil
}

// Flush makes everything applied so far durable. When ctx ends, that may still happen.
func (s *Store) Flush(ctx context.Context) error {
	_, flushed, err := s.AsyncFlush(ctx)
	if err != nil {
		return err
	}
	select {
	case <-flushed:
		return nil
	case <-s.broken:
		return s.why
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errClosed = errors.New("store: closed")

// A gate lets one in at a time. Unlike a mutex it can be used in a select.
type gate chan struct{}

func newGate() gate   { return make(gate, 1) }
func (g gate) enter() { g <- struct{}{} }
func (g gate) leave() { <-g }

func (s *Store) raiseDurable(index uint64) {
	for old := s.durable.Load(); old < index; old = s.durable.Load() {
		if s.durable.CompareAndSwap(old, index) {
			return
		}
	}
}

// FreeBytes is the free space of the store's file system.
func (s *Store) FreeBytes() (uint64, error) {
	usage, err := s.fs.GetDiskUsage(s.dir)
	if err != nil {
		return 0, fmt.Errorf("store: free space of %s: %w", s.dir, err)
	}
	return usage.AvailBytes, nil
}

// CompactAll rewrites the whole store so that it takes the least space. Reads and writes continue.
func (s *Store) CompactAll(ctx context.Context) error {
	if err := s.Flush(ctx); err != nil {
		return err
	}
	if err := s.readers.enter(); err != nil {
		return err
	}
	defer s.readers.leave()
	lower, upper := allKeys()
	if err := s.db.Compact(ctx, lower, upper, true); err != nil {
		return fmt.Errorf("store: compact: %w", explain(err))
	}
	s.Segments.dropDead()
	s.takeSample()
	return nil
}

// Pebble returns the metrics of the engine, for diagnosis; all zero once the store is closed.
func (s *Store) Pebble() *pebble.Metrics {
	if s.readers.enter() != nil {
		return &pebble.Metrics{}
	}
	defer s.readers.leave()
	return s.db.Metrics()
}

// readersEnd is how long Close waits for readers: their clients are gone by then, and what they read
// from memory or from a disk that is well ends at once.
const readersEnd = 5 * time.Second

// Close closes the store. What was not flushed is lost here: the raft log has it. Who reads from now
// on gets an error, and Close waits for those who read already, but not for ever: if some read on,
// perhaps from a disk that hangs, that is its error, and the store is closed when they have ended.
// REQUIRES: all batches are closed.
func (s *Store) Close() error {
	if !s.closed.CompareAndSwap(false, true) {
		return nil
	}
	close(s.closing)
	s.metrics.store.CompareAndSwap(s, nil)
	s.stopSampling()
	closeEngine := func() error {
		s.write.enter()
		defer s.write.leave()
		if s.pinned != nil {
			defer s.pinned.close()
		}
		defer s.Segments.close()
		closed := make(chan error, 1)
		go func() { closed <- s.db.Close() }()
		select {
		case err := <-closed:
			if err != nil {
				return fmt.Errorf("store: close: %w", err)
			}
			return nil
		case <-s.outputs.stuck:
			return errors.New("store: close: a file of values that is written anew does not end, for the disk is full or fails")
		}
	}
	s.readers.refuse()
	if left := s.readers.await(readersEnd); left > 0 {
		go func() {
			s.readers.await(0)
			if err := closeEngine(); err != nil {
				s.logger.Warn("failed to close the store", zap.Error(err))
			}
		}()
		return fmt.Errorf("store: close: it is still being read after %v (by %d); it is closed when they have ended", readersEnd, left)
	}
	return closeEngine()
}

// oneLine is an error of Pebble whose text has no line breaks and no names of Go types, for the
// log.
type oneLine struct{ error }

func (e oneLine) Error() string {
	text := strings.ReplaceAll(e.error.Error(), "\n<corruption detail carrier>", "")
	return strings.ReplaceAll(text, "\n", "; ")
}

func (e oneLine) Unwrap() error { return e.error }

// explain prefixes an error with the name of the corrupt file, where Pebble knows it.
func explain(err error) error {
	if info := pebble.ExtractDataCorruptionInfo(err); info != nil {
		return corruptFile(info.Path, err)
	}
	return err
}

func corruptFile(path string, err error) error {
	return damage{fmt.Errorf("file %s is corrupt (restore this member from its peers: remove it from the cluster, delete its data, add it again): %w", path, oneLine{err})}
}

// Note reports damage that a read has met and that the engine (Pebble 2.1.7) does not report by
// itself, as that of an entry in an index. Options.Corrupt hears of it as of any other. Who reads
// values by an iterator passes its errors here; nil and other errors are of no interest.
func (s *Store) Note(err error) {
	if err != nil && pebble.IsCorruptionError(err) && pebble.ExtractDataCorruptionInfo(err) == nil && !errors.Is(err, errBlobDamaged) {
		s.tellCorrupt(s.dir, err)
	}
}

// damage marks an error that says what is damaged.
type damage struct{ error }

func (d damage) Unwrap() error { return d.error }

// IsDamage reports whether an error of this package means that files of the store are damaged, or
// are missing, rather than that the disk or this program failed.
func IsDamage(err error) bool {
	var d damage
	return errors.As(err, &d) || pebble.IsCorruptionError(err) || errors.Is(err, errBlobDamaged)
}

// Explain returns an error of an iterator with the name of the corrupt file, if that is what it is.
func Explain(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("store: %w", explain(err))
}
