package store

import "sync"

// blockCache bounds the engine's cache of blocks. The engine takes its memory tables out of the
// cache, so the cache is made for both; as long as there are only small tables, as after a start,
// it would fill the room of theirs with blocks as well, and keep none of it for them.
type blockCache struct {
	bytes int64 // of blocks, at most
	cache interface {
		// Reserve makes the cache smaller until the function that it returns is called.
		Reserve(bytes int) (release func())
	}

	mu sync.Mutex
	// unused is what the memory tables have never taken of their room. It only falls: a table that
	// was written is kept for the next one.
	unused  int64
	release func() // of unused; nil: of nothing
}

// init is called before the engine is opened. tables is the room of the memory tables.
func (c *blockCache) init(blocks, tables int64) {
	c.bytes = blocks
	c.reserve(tables)
}

// reserve keeps blocks out of the unused room of the memory tables.
func (c *blockCache) reserve(unused int64) {
	free := c.release
	c.unused, c.release = unused, nil
	if unused > 0 {
		c.release = c.cache.Reserve(int(unused))
	}
	if free != nil {
		free()
	}
}

// note is told how much memory tables take now, of the room that they have.
func (c *blockCache) note(taken, tables int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if unused := max(tables-taken, 0); unused < c.unused {
		c.reserve(unused)
	}
}

// sparedShare is which part of the cache is used while it is spared.
const sparedShare = 4

// SpareCache leaves most of the cache of blocks empty until release is called: for who reads
// through everything once, when nobody else has read anything yet.
func (s *Store) SpareCache() (release func()) {
	return s.blocks.cache.Reserve(int(s.blocks.bytes / sparedShare * (sparedShare - 1)))
}
