package cache

import (
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// An area is read in pages, all at the revision of the first. So the memory that it takes is known
// before it is there: a page has about pageBytes if its keys are like those of the page before, and
// more than MaxPageBytes of one fails.
const (
	firstPage = 64
	maxPage   = 1 << 14
	pageBytes = 1 << 20
	// MaxPageBytes bounds the answer to a Question.
	MaxPageBytes = 16 << 20
)

// begin has an area be read.
func (c *Cache) begin(now time.Duration, i Interval) {
	a := &area{Interval: i, named: c.named[i], page: firstPage, readAt: now, bodies: make(map[string][]byte)}
	c.areas[i] = a
	if i.End != "" {
		c.wide = append(c.wide, a)
	}
	c.ask(a, []byte(i.Key))
}

// ask asks for the page from a key on.
func (c *Cache) ask(a *area, from []byte) {
	// What a member has is good enough: the watch goes on from there. A single key has no pages.
	r := &pb.RangeRequest{Key: from, Serializable: true, Revision: a.at, Limit: a.page}
	if a.End != "" {
		r.RangeEnd = []byte(a.End)
	}
	a.filling = &Question{Request: r, area: a}
	c.env.Ask(a.filling)
}

// filled takes a page.
func (c *Cache) filled(now time.Duration, q *Question, r *pb.RangeResponse, err error) {
	a := q.area
	if a.gone || a.filling != q {
		return
	}
	a.filling = nil
	if err != nil {
		c.refuse(now, a, retryAfter)
		return
	}
	if !c.sameHistory(r.Header) {
		return
	}
	if a.at == 0 {
		a.at, a.changed = r.Header.GetRevision(), r.Header.GetRevision()
	}
	c.speaker.is(r.Header)
	grown := int64(0)
	for _, kv := range r.Kvs {
		grown += a.gain(kv)
	}
	a.kvs = append(a.kvs, r.Kvs...)
	c.valueBytes += grown
	if !c.makeRoom(a) {
		if a.named {
			c.env.Notice("a range is too large for the read cache; see --cache-bytes", a.Key)
		}
		c.refuse(now, a, tooLargeFor)
		return
	}
	if r.More && len(r.Kvs) > 0 {
		a.page = nextPage(a.page, grown)
		c.ask(a, append(append([]byte(nil), lastKey(r.Kvs)...), 0))
		return
	}
	a.live = true
	c.watch(a)
}

func lastKey(kvs []*mvccpb.KeyValue) []byte { return kvs[len(kvs)-1].Key }

// nextPage is the limit of the page after one with this limit that had so many bytes.
func nextPage(limit, size int64) int64 {
	switch {
	case size < pageBytes/2:
		limit *= 2
	case size > pageBytes*2:
		limit /= 2
	}
	return min(max(limit, 1), maxPage)
}
