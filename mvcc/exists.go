package mvcc

import (
	"hash/maphash"
	"sync"
)

// existsFilter knows keys that certainly do not exist, so that the put of a new key, the most
// common one, need not look for a previous version in Pebble's memtable and levels. It is a Bloom
// filter of the keys that exist or did: if never is true, the key does not exist; if it is false,
// the key may still not exist, which costs only the look-up.
//
// # Why it holds every key that exists
//
// A key exists as of the applier's next batch if it existed at some revision R or was created after
// R. The goroutine of keyCounts reads all keys that exist at R and adds them. The applier adds the
// keys that each batch creates, between commit and publication, under the same lock under which
// counts.rev is raised (keyCounts.take); R is counts.rev, read after the filter was put in place.
// So a batch beyond R finds the filter in place, and the goroutine reads the batches up to R. Until
// it has read all, the filter is not used. Deletions and compactions remove nothing from it.
//
// # How large it gets
//
// Layers are added as keys come, each twice as large as the one before, up to limit bytes. Deleted
// keys stay in it. When no layer can be added and fewer than half of the keys that fit exist, the
// filter is rebuilt beside the old one, which is used meanwhile: for this time there are two. If
// more keys exist than fit, it stays as it is and is wrong more often.
type existsFilter struct {
	seed  maphash.Seed
	limit int

	mu       sync.Mutex
	complete bool   // filter holds every key that exists
	filter   *bloom // nil: off
	next     *bloom // being built to replace filter
}

// bloom is a list of layers; a key is in one of them.
type bloom struct {
	limit    int // bytes of all layers
	layers   []bloomLayer
	bytes    int
	capacity int // keys that all layers are made for
	full     bool
}

// bloomLayer is a split-block Bloom filter: a key's hash chooses one block, a cache line, and a bit
// in each of its words.
type bloomLayer struct {
	blocks [][8]uint64
	n      int // keys added
}

const (
	defaultExistsFilterBytes = 32 << 20

	bloomBlockBytes  = 64
	bloomBlockKeys   = 42 // 12 bits a key: about 0.5 % of a layer's answers are wrong
	bloomFirstBlocks = 1 << 10
)

func newBloom(limit int) *bloom { return &bloom{limit: limit} }

// bloomBits draws the bits of a key in its block, six of the result's bits for each word, from all
// bits of its hash.
func bloomBits(h uint64) uint64 {
	h ^= h >> 31
	h *= 0x9e3779b97f4a7c15
	return h ^ h>>29
}

func (l *bloomLayer) block(h uint64) *[8]uint64 {
	return &l.blocks[(h>>32)*uint64(len(l.blocks))>>32]
}

func (l *bloomLayer) has(h, bits uint64) bool {
	b := l.block(h)
	for i := range b {
		if b[i]&(1<<(bits&63)) == 0 {
			return false
		}
		bits >>= 6
	}
	return true
}

func (f *bloom) has(h uint64) bool {
	bits := bloomBits(h)
	for i := len(f.layers) - 1; i >= 0; i-- { // half of all keys are in the last
		if f.layers[i].has(h, bits) {
			return true
		}
	}
	return false
}

func (f *bloom) add(h uint64) {
	if f.has(h) {
		return
	}
	last := len(f.layers) - 1
	if last < 0 || f.layers[last].n >= len(f.layers[last].blocks)*bloomBlockKeys {
		if f.grow() {
			last++
		} else {
			f.full = true
		}
	}
	l := &f.layers[last]
	l.n++
	bits := bloomBits(h)
	b := l.block(h)
	for i := range b {
		b[i] |= 1 << (bits & 63)
		bits >>= 6
	}
}

// grow adds a layer, if there is room. The first is always made.
func (f *bloom) grow() bool {
	blocks := max(1, min(bloomFirstBlocks<<len(f.layers), (f.limit-f.bytes)/bloomBlockBytes))
	if n := len(f.layers); n > 0 && (f.limit-f.bytes < bloomBlockBytes || blocks < len(f.layers[n-1].blocks)/4) {
		return false
	}
	f.layers = append(f.layers, bloomLayer{blocks: make([][8]uint64, blocks)})
	f.bytes += blocks * bloomBlockBytes
	f.capacity += blocks * bloomBlockKeys
	return true
}

// reset starts over with an empty filter, which is not used yet; off: with none.
func (k *existsFilter) reset(limit int, off bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.limit == 0 {
		k.seed = maphash.MakeSeed()
	}
	k.limit = limit
	k.complete, k.filter, k.next = false, nil, nil
	if !off {
		k.filter = newBloom(limit)
	}
}

// never reports whether a key certainly does not exist. REQUIRES: every batch committed so far was
// given to keyCounts.take.
func (k *existsFilter) never(key []byte) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.complete && !k.filter.has(maphash.Bytes(k.seed, key))
}

// created adds the keys that a batch created.
func (k *existsFilter) created(changes []change) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.filter == nil {
		return
	}
	for _, ch := range changes {
		if ch.delta < 0 {
			continue
		}
		h := maphash.Bytes(k.seed, ch.key)
		k.filter.add(h)
		if k.next != nil {
			k.next.add(h)
		}
	}
}

// stale reports whether the filter is full although far fewer keys exist than fit into it.
func (k *existsFilter) stale(exist int64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.complete && k.next == nil && k.filter.full && exist <= int64(k.filter.capacity/2)
}

// renew puts an empty filter beside the present one; done(nil) puts it in its place.
func (k *existsFilter) renew() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.next = newBloom(k.limit)
}

// done is called after the last existing key was added. After an error the filter is off.
func (k *existsFilter) done(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case err != nil:
		k.complete, k.filter = false, nil
	case k.next != nil:
		k.filter = k.next
		fallthrough
	default:
		k.complete = k.filter != nil
	}
	k.next = nil
}

// scan returns a function that takes the keys that exist, and one to be called after the last. They
// are added in groups, so that the applier rarely waits.
func (k *existsFilter) scan() (add func(key []byte), flush func()) {
	hashes := make([]uint64, 0, 512)
	flush = func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		f := k.filter
		if k.next != nil {
			f = k.next
		}
		if f != nil {
			for _, h := range hashes {
				f.add(h)
			}
		}
		hashes = hashes[:0]
	}
	return func(key []byte) {
		if hashes = append(hashes, maphash.Bytes(k.seed, key)); len(hashes) == cap(hashes) {
			flush()
		}
	}, flush
}
