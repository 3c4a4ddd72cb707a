package mvcc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.uber.org/zap"

	"github.com/belaydb/belay/store"
)

// keyCounts knows how many keys exist in each of many small blocks of the key space, so that the
// count of a range costs two block ends and not the range: a client that pages through 100,000 keys
// gets the count with every page.
//
// It exists only in memory. A goroutine builds it after Open, in the background; until then ranges
// are counted by reading them. The applier adds the keys that a batch creates and deletes, before
// the batch is published, so counts is never older than what readers see, but may be newer. For a
// reader at an older revision R, log has the keys created and deleted recently: what came after R
// is subtracted. A reader older than log reads the range.
//
// The same pass over all keys fills the filter of keys that exist: see existsFilter.
//
// Only the goroutine moves the bounds of blocks: it splits those that have grown (reading their
// keys as of some revision, and adding what log has after it) and merges those that have shrunk.
type keyCounts struct {
	env countsEnv

	blockKeys int // a new block has this many

	mu     sync.Mutex
	state  countState
	rev    int64   // as of this revision
	groups []group // in key order; once built, never empty, and none of them empty
	total  int64
	// log holds every change after logFrom, in order. Its keys are copies.
	log     []change
	logFrom int64
	arena   []byte
	size    int                 // bytes of keys in log
	resize  map[string]struct{} // starts of blocks to split or to merge

	work    chan struct{} // one token: resize may have something
	ready   chan struct{} // closed when built
	stopped chan struct{} // closed when the goroutine has ended
}

// countsEnv is what keyCounts needs of its Store; see there.
type countsEnv struct {
	store      *store.Store
	opts       *Options
	logger     *zap.Logger
	generation *atomic.Uint64
	rev        *atomic.Int64
	compact    *atomic.Int64
	exists     *existsFilter // filled and renewed by the same passes
}

type countState int

const (
	countsOff countState = iota
	countsBuilding
	countsBuilt
)

// group is up to groupBlocks neighbouring blocks.
type group struct {
	blocks []block
	n      int64
}

// block is the keys from start up to the next block's start. The very first one starts at "".
type block struct {
	start []byte
	n     int64
}

const (
	countBlockKeys = 192
	groupBlocks    = 512

	countLogMax      = 1 << 16
	countLogBytesMax = 8 << 20

	// The first pass over all keys pauses after each of these steps, to leave the machine to the
	// traffic.
	buildStepKeys = 4096
	buildRest     = time.Millisecond
)

// start begins to build, and maintains the counts until ctx ends.
func (c *keyCounts) start(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped, c.ready = make(chan struct{}), make(chan struct{})
	c.groups, c.total, c.log, c.arena, c.size = nil, 0, nil, nil, 0
	c.rev = c.env.rev.Load()
	c.logFrom = c.rev
	c.env.exists.reset(c.env.opts.ExistsFilterBytes, c.env.opts.NoCounts || c.env.opts.NoExistsFilter)
	if c.env.opts.NoCounts {
		c.state = countsOff
		close(c.stopped)
		return
	}
	c.state, c.resize, c.work = countsBuilding, map[string]struct{}{}, make(chan struct{}, 1)
	if c.blockKeys = c.env.opts.countBlockKeys; c.blockKeys == 0 {
		c.blockKeys = countBlockKeys
	}
	go c.loop(ctx, c.work, c.stopped)
}

func (c *keyCounts) stop() { <-c.stopped }

func (c *keyCounts) loop(ctx context.Context, work <-chan struct{}, stopped chan<- struct{}) {
	defer close(stopped)
	err := c.build(ctx)
	for err == nil {
		select {
		case <-work:
			if err = c.tidy(ctx); err == nil {
				err = c.renewExists(ctx)
			}
		case <-ctx.Done():
			return
		}
	}
	if errors.Is(err, store.ErrReplaced) {
		<-ctx.Done() // Reload is about to start over
	}
	if ctx.Err() == nil {
		c.env.exists.done(err)
		c.mu.Lock()
		c.state, c.groups, c.log = countsOff, nil, nil
		c.mu.Unlock()
		c.env.logger.Warn("keys are no longer counted ahead; ranges are counted by reading them", zap.Error(err))
	}
}

// take adds what a batch has changed, up to revision rev. REQUIRES: the batch is committed and not
// yet published.
func (c *keyCounts) take(changes []change, rev int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rev = rev
	if c.state == countsOff || len(changes) == 0 {
		return
	}
	c.env.exists.created(changes)
	for _, ch := range changes {
		if cap(c.arena)-len(c.arena) < len(ch.key) {
			c.arena = make([]byte, 0, max(64<<10, len(ch.key)))
		}
		n := len(c.arena)
		c.arena = append(c.arena, ch.key...)
		ch.key = c.arena[n:len(c.arena):len(c.arena)]
		c.size += len(ch.key)
		c.log = append(c.log, ch)
		if c.state == countsBuilt {
			c.add(ch)
		}
	}
	if c.state == countsBuilt && c.env.exists.stale(c.total) {
		c.wake()
	}
	if c.state == countsBuilt && (len(c.log) > countLogMax || c.size > countLogBytesMax) {
		cut := len(c.log) / 2
		c.logFrom = c.log[cut-1].rev
		for _, ch := range c.log[:cut] {
			c.size -= len(ch.key)
		}
		c.log = append(make([]change, 0, cap(c.log)), c.log[cut:]...)
	}
}

// find returns the block that a key belongs to.
func (c *keyCounts) find(key []byte) (gi, bi int) {
	gi = sort.Search(len(c.groups), func(i int) bool { return bytes.Compare(c.groups[i].blocks[0].start, key) > 0 }) - 1
	blocks := c.groups[gi].blocks
	bi = sort.Search(len(blocks), func(i int) bool { return bytes.Compare(blocks[i].start, key) > 0 }) - 1
	return gi, bi
}

func (c *keyCounts) add(ch change) {
	gi, bi := c.find(ch.key)
	g := &c.groups[gi]
	b := &g.blocks[bi]
	delta := int64(ch.delta)
	b.n += delta
	g.n += delta
	c.total += delta
	if b.n < 0 {
		panic(fmt.Sprintf("mvcc: a block of keys at %q counts %d", b.start, b.n))
	}
	if big := int64(2 * c.blockKeys); delta > 0 && b.n == big+1 || delta < 0 && b.n == int64(c.blockKeys/4) {
		c.resize[string(b.start)] = struct{}{}
		c.wake()
	}
}

func (c *keyCounts) wake() {
	select {
	case c.work <- struct{}{}:
	default:
	}
}

// next returns the start of the following block; nil: there is none.
func (c *keyCounts) next(gi, bi int) []byte {
	if blocks := c.groups[gi].blocks; bi+1 < len(blocks) {
		return blocks[bi+1].start
	}
	if gi+1 < len(c.groups) {
		return c.groups[gi+1].blocks[0].start
	}
	return nil
}

// wholeBlocks counts, as of a revision, the keys of all blocks that lie within [from, to); to nil:
// no bound. They are the keys of [first, last). ok is false if the counts cannot be used.
func (c *keyCounts) wholeBlocks(from, to []byte, rev int64) (n int64, first, last []byte, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != countsBuilt || rev < c.logFrom || rev > c.rev {
		return 0, nil, nil, false
	}
	gi, bi := c.find(from)
	if !bytes.Equal(c.groups[gi].blocks[bi].start, from) {
		if bi++; bi == len(c.groups[gi].blocks) {
			if gi, bi = gi+1, 0; gi == len(c.groups) {
				return 0, nil, nil, false
			}
		}
	}
	first = c.groups[gi].blocks[bi].start
	within := func(next []byte) bool { // whether a block that ends at next does
		return to == nil || next != nil && bytes.Compare(next, to) <= 0
	}
	for gi < len(c.groups) {
		g := &c.groups[gi]
		if bi == 0 {
			if next := c.next(gi, len(g.blocks)-1); within(next) {
				n, last, gi, ok = n+g.n, next, gi+1, true
				continue
			}
		}
		next := c.next(gi, bi)
		if !within(next) {
			break
		}
		n, last, ok = n+g.blocks[bi].n, next, true
		if bi++; bi == len(g.blocks) {
			gi, bi = gi+1, 0
		}
	}
	if !ok {
		return 0, nil, nil, false
	}
	since := sort.Search(len(c.log), func(i int) bool { return c.log[i].rev > rev })
	for _, ch := range c.log[since:] {
		if bytes.Compare(ch.key, first) >= 0 && (last == nil || bytes.Compare(ch.key, last) < 0) {
			n -= int64(ch.delta)
		}
	}
	return n, first, last, true
}

// keys is the number of keys that exist, if it is known.
func (c *keyCounts) keys() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.total
}

// Estimate estimates the number of keys in [key, end), end as in Range; ok is false while it is not
// known. It reads nothing.
func (s *Store) Estimate(key, end []byte) (keys int64, ok bool) {
	if len(end) == 0 {
		return 1, true
	}
	if isAll(end) {
		end = nil
	} else if bytes.Compare(key, end) >= 0 {
		return 0, true
	}
	c := &s.keyCounts
	c.mu.Lock()
	built := c.state == countsBuilt
	c.mu.Unlock()
	if !built {
		return 0, false
	}
	n, _, _, _ := c.wholeBlocks(key, end, s.rev.Load())
	return n + 2*countBlockKeys, true // of the blocks at its ends
}

// counter returns a function that counts the keys of [from, end) that exist at a revision, with an
// iterator over them, whose bounds it changes. Its ok is false if it cannot.
func (c *keyCounts) counter(end []byte, rev int64) func(w *paced, it store.Iterator, from []byte) (n int64, ok bool, err error) {
	return c.counterWith(end, rev, rev, nil)
}

// counterWith is counter for a batch that is being written: own are its changes after the revision
// base, up to which all is committed. It gives up if there are more of them than keys to count.
func (c *keyCounts) counterWith(end []byte, rev, base int64, own []change) func(w *paced, it store.Iterator, from []byte) (n int64, ok bool, err error) {
	return func(w *paced, it store.Iterator, from []byte) (int64, bool, error) {
		to := end
		if isAll(end) {
			to = nil
		}
		n, first, last, ok := c.wholeBlocks(from, to, min(rev, base))
		if !ok || rev > base && int64(len(own)) > n {
			return 0, false, nil
		}
		if rev == base {
			own = nil
		}
		for _, ch := range own {
			if ch.rev <= rev && bytes.Compare(ch.key, first) >= 0 && (last == nil || bytes.Compare(ch.key, last) < 0) {
				n += int64(ch.delta)
			}
		}
		edge := func(from, to []byte) error {
			if to != nil && bytes.Equal(from, to) {
				return nil
			}
			lower := store.AppendUserKeyPrefix(nil, from)
			_, upper := store.UserKeysSpan()
			if to != nil {
				upper = store.AppendUserKeyPrefix(nil, to)
			}
			it.SetBounds(lower, upper)
			v := visible{it: it, rev: uint64(rev), walk: *w}
			for v.next() {
				n++
			}
			*w = v.walk
			return v.err()
		}
		if err := edge(from, first); err != nil {
			return 0, false, err
		}
		if last != nil {
			if err := edge(last, to); err != nil {
				return 0, false, err
			}
		}
		return n, true, nil
	}
}

// read calls fn for each key of [from, to) that exists at c.rev, and returns that revision. With
// rest it pauses now and then, for a long pass. It fails with errMoved if the revision was
// compacted meanwhile.
func (c *keyCounts) read(ctx context.Context, from, to []byte, rest bool, fn func(key []byte)) (rev int64, err error) {
	c.mu.Lock()
	rev = c.rev
	c.mu.Unlock()
	lower := store.AppendUserKeyPrefix(nil, from)
	_, upper := store.UserKeysSpan()
	if to != nil {
		upper = store.AppendUserKeyPrefix(nil, to)
	}
	it, err := c.env.store.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return rev, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if c.env.store.Generation() != c.env.generation.Load() {
		return rev, store.ErrReplaced
	}
	if rev < c.env.compact.Load() {
		return rev, errMoved
	}
	v := visible{it: it, rev: uint64(rev)}
	for n := 1; v.next(); n++ {
		fn(v.key)
		if rest && n%buildStepKeys == 0 {
			if err := sleep(ctx, buildRest); err != nil {
				return rev, err
			}
		}
	}
	return rev, store.Explain(it.Error())
}

var errMoved = errors.New("mvcc: compacted while keys were counted")

// split makes blocks of keys, which it gets in order.
type split struct {
	blockKeys int64
	blocks    []block
}

func (sp *split) add(key []byte) {
	last := &sp.blocks[len(sp.blocks)-1]
	if last.n == sp.blockKeys {
		sp.blocks = append(sp.blocks, block{start: bytes.Clone(key), n: 1})
		return
	}
	last.n++
}

// build reads all keys once, and leaves the cache of blocks to those who read some of them.
func (c *keyCounts) build(ctx context.Context) error {
	defer c.env.store.SpareCache()()
	for {
		sp := split{int64(c.blockKeys), []block{{}}}
		know, flush := c.env.exists.scan()
		rev, err := c.read(ctx, nil, nil, true, func(key []byte) {
			sp.add(key)
			know(key)
		})
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil {
			return err
		}
		flush()
		c.env.exists.done(nil)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.groups = groupsOf(sp.blocks)
		c.total = 0
		for _, g := range c.groups {
			c.total += g.n
		}
		c.state = countsBuilt
		// Nothing was removed from the log while the state was countsBuilding.
		since := sort.Search(len(c.log), func(i int) bool { return c.log[i].rev > rev })
		for _, ch := range c.log[since:] {
			c.add(ch)
		}
		close(c.ready)
		return nil
	}
}

// renewExists rebuilds the filter of keys if it is full of keys that no longer exist.
func (c *keyCounts) renewExists(ctx context.Context) error {
	if !c.env.exists.stale(c.keys()) {
		return nil
	}
	for {
		c.env.exists.renew()
		know, flush := c.env.exists.scan()
		_, err := c.read(ctx, nil, nil, true, know)
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil {
			return err
		}
		flush()
		c.env.exists.done(nil)
		return nil
	}
}

func groupsOf(blocks []block) (groups []group) {
	for part := range slices.Chunk(blocks, groupBlocks/2) {
		g := group{blocks: slices.Clone(part)}
		for _, b := range part {
			g.n += b.n
		}
		groups = append(groups, g)
	}
	return groups
}

// tidy splits and merges the blocks that need it.
func (c *keyCounts) tidy(ctx context.Context) error {
	for ctx.Err() == nil {
		c.mu.Lock()
		var start []byte
		found := false
		for k := range c.resize {
			start, found = []byte(k), true
			delete(c.resize, k)
			break
		}
		if !found {
			c.mu.Unlock()
			return nil
		}
		gi, bi := c.find(start)
		b := c.groups[gi].blocks[bi]
		to := c.next(gi, bi)
		switch {
		case !bytes.Equal(b.start, start): // merged meanwhile
		case b.n <= int64(c.blockKeys/4):
			c.merge(gi, bi)
		case b.n > int64(2*c.blockKeys):
			c.mu.Unlock()
			if err := c.splitBlock(ctx, start, to); err != nil {
				return err
			}
			continue
		}
		c.mu.Unlock()
	}
	return ctx.Err()
}

// merge joins a block with the one before or after it, if the result is not large.
func (c *keyCounts) merge(gi, bi int) {
	g := &c.groups[gi]
	for _, at := range []int{bi, bi - 1} { // the left one of two
		if at < 0 || at+1 >= len(g.blocks) || g.blocks[at].n+g.blocks[at+1].n > int64(c.blockKeys) {
			continue
		}
		g.blocks[at].n += g.blocks[at+1].n
		g.blocks = slices.Delete(g.blocks, at+1, at+2)
		break
	}
	// A group with few blocks left is joined with the one before it.
	if gi > 0 && len(g.blocks) <= groupBlocks/32 && len(c.groups[gi-1].blocks) <= groupBlocks/2 {
		left := &c.groups[gi-1]
		left.blocks = append(left.blocks, g.blocks...)
		left.n += g.n
		c.groups = slices.Delete(c.groups, gi, gi+1)
	}
}

// splitBlock splits the block [start, to) into as many as necessary.
func (c *keyCounts) splitBlock(ctx context.Context, start, to []byte) error {
	for {
		sp := split{int64(c.blockKeys), []block{{start: start}}}
		rev, err := c.read(ctx, start, to, false, sp.add)
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil {
			return err
		}
		c.mu.Lock()
		if rev < c.logFrom {
			c.mu.Unlock()
			continue // too much has changed meanwhile
		}
		since := sort.Search(len(c.log), func(i int) bool { return c.log[i].rev > rev })
		for _, ch := range c.log[since:] {
			if bytes.Compare(ch.key, start) >= 0 && (to == nil || bytes.Compare(ch.key, to) < 0) {
				i := sort.Search(len(sp.blocks), func(i int) bool { return bytes.Compare(sp.blocks[i].start, ch.key) > 0 }) - 1
				sp.blocks[i].n += int64(ch.delta)
			}
		}
		gi, bi := c.find(start)
		g := &c.groups[gi]
		sum := int64(0)
		for _, b := range sp.blocks {
			sum += b.n
			if b.n > int64(2*c.blockKeys) {
				c.resize[string(b.start)] = struct{}{} // it has grown while it was read; add noticed nothing
			}
		}
		if sum != g.blocks[bi].n {
			c.mu.Unlock()
			return fmt.Errorf("mvcc: the block of keys at %q was counted as %d and holds %d", start, g.blocks[bi].n, sum)
		}
		g.blocks = slices.Replace(g.blocks, bi, bi+1, sp.blocks...)
		if len(g.blocks) > groupBlocks {
			c.groups = slices.Replace(c.groups, gi, gi+1, groupsOf(g.blocks)...)
		}
		c.mu.Unlock()
		return nil
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
