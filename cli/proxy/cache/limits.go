package cache

import (
	"slices"
	"time"
)

// A heat is how often a range was read that is not kept.
type heat struct {
	reads int
	// until: it is not worth trying before.
	until time.Duration
}

const (
	// hotReads within about AtRest make a range one that is kept.
	hotReads = 32
	// maxHeats bounds the ranges of which something is remembered, maxAreas those that are kept unless
	// they are named.
	maxHeats = 1024
	maxAreas = 256
	// coldSweeps after the last read an area is dropped.
	coldSweeps = 6
	// eventsPerRead: an area with more of them, and more than fewEvents between two sweeps, costs more
	// than it saves.
	eventsPerRead = 16
	fewEvents     = 1024

	retryAfter  = time.Second
	tooLargeFor = time.Minute
)

// warm notes that a range was read that is not kept, and has it be kept when it is hot.
func (c *Cache) warm(now time.Duration, i Interval) {
	h := c.heat[i]
	if h == nil {
		if len(c.heat) >= maxHeats {
			return
		}
		h = &heat{}
		c.heat[i] = h
	}
	h.reads++
	if h.reads < hotReads || now < h.until || c.areas[i] != nil || len(c.areas) >= maxAreas+len(c.named) {
		return
	}
	if !c.up {
		// Wanted by the first range that is hot; it is read when there is a stream.
		c.hot = true
		return
	}
	c.begin(now, i)
}

// beginNamed has the named ranges be read that are not there, and may be.
func (c *Cache) beginNamed(now time.Duration) {
	if !c.up || now < c.offUntil {
		return
	}
	for _, i := range c.cfg.Named {
		if h := c.heat[i]; c.areas[i] == nil && (h == nil || now >= h.until) {
			c.begin(now, i)
		}
	}
}

// refuse drops an area that cannot be had now, and not before some time has passed.
func (c *Cache) refuse(now time.Duration, a *area, wait time.Duration) {
	c.drop(a)
	h := c.heat[a.Interval]
	if h == nil {
		h = &heat{}
		c.heat[a.Interval] = h
	}
	h.reads, h.until = max(h.reads, hotReads), now+wait
	if a.named {
		c.beginNamed(now)
	}
}

// drop forgets an area.
func (c *Cache) drop(a *area) {
	if a.gone {
		return
	}
	a.gone, a.live, a.filling = true, false, nil
	c.unwatch(a)
	c.dropBodies(a)
	c.valueBytes -= a.bytes
	a.kvs, a.bytes = nil, 0
	delete(c.areas, a.Interval)
	c.wide = slices.DeleteFunc(c.wide, func(w *area) bool { return w == a })
	waiting := a.waiting
	a.waiting = nil
	forward(waiting)
}

func (c *Cache) dropBodies(a *area) {
	c.bodyBytes -= a.bodyBytes
	a.bodyBytes = 0
	clear(a.bodies)
}

// maxValueBytes is what of Config.Bytes the areas may have; answers that are kept have the rest.
func (c *Config) maxValueBytes() int64 { return c.Bytes / 4 * 3 }

// maxAreaBytes is what one area may have: as much as remains for answers, so that the answer with
// all of it can be kept.
func (c *Config) maxAreaBytes() int64 { return c.Bytes / 4 }

// makeRoom drops areas that were not read since the last sweep, the coldest first, until there is
// room for what an area has; false: there is none.
func (c *Cache) makeRoom(a *area) bool {
	if a.bytes > c.cfg.maxAreaBytes() {
		return false
	}
	for c.valueBytes > c.cfg.maxValueBytes() {
		var coldest *area
		for _, o := range c.areas {
			if o != a && !o.named && o.readAt < c.sweptAt && (coldest == nil || o.readAt < coldest.readAt) {
				coldest = o
			}
		}
		if coldest == nil {
			return false
		}
		c.drop(coldest)
	}
	for _, o := range c.areas {
		if c.Bytes() <= c.cfg.Bytes {
			break
		}
		c.dropBodies(o)
	}
	return true
}

// keepBody keeps an answer, if there is room.
func (c *Cache) keepBody(a *area, key string, body []byte) {
	const bodyOverhead = 128
	size := int64(len(key)+len(body)) + bodyOverhead
	if c.valueBytes+size > c.cfg.Bytes {
		return
	}
	for _, o := range c.areas {
		if c.Bytes()+size <= c.cfg.Bytes {
			break
		}
		c.dropBodies(o)
	}
	a.bodies[key] = body
	a.bodyBytes += size
	c.bodyBytes += size
}

// sweep lets go what is not read any more.
func (c *Cache) sweep(now time.Duration) {
	c.sweptAt = now
	for _, a := range c.areas {
		switch {
		case a.named:
		case now-a.readAt > coldSweeps*AtRest:
			c.drop(a)
		case a.events > max(eventsPerRead*a.reads, fewEvents):
			c.refuse(now, a, tooLargeFor)
		}
		a.reads, a.events = 0, 0
	}
	for i, h := range c.heat {
		if h.reads /= 2; h.reads == 0 && now >= h.until {
			delete(c.heat, i)
		}
	}
	c.beginNamed(now)
}
