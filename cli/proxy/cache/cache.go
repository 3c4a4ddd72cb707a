package cache

import (
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Config is what a Cache is made from.
type Config struct {
	// Bytes bounds what is kept. It is not 0.
	Bytes int64
	// Staleness bounds how old what a serializable read is told may be.
	Staleness time.Duration
	// Named are the ranges that are always kept, as far as they find room.
	Named []Interval
	// Prefix is taken from the keys of answers; every area lies within it.
	Prefix string
}

// An Env is the way to the cluster, and to whoever reads the log.
type Env interface {
	// Send queues a request for the Watch stream that is up. It does not block.
	Send(*pb.WatchRequest)
	// Ask asks the member that the stream goes to, without a user. It does not block; Answered is due
	// for each question.
	Ask(*Question)
	// Notice tells the operator something, seldom.
	Notice(message, key string)
}

// A Question is a Range of the Cache's own.
type Question struct {
	Request *pb.RangeRequest
	// Revision 0, area nil: a barrier.
	area *area
	// Of a barrier.
	sent  time.Duration
	floor int64 // a revision that the answer is not below
	reads []*Read
}

// Barrier reports whether the question is a barrier.
func (q *Question) Barrier() bool { return q.area == nil }

// A Read is one Range of a client.
type Read struct {
	// Request has the cluster's keys. The Cache keeps it until the read is done, and clears
	// Serializable.
	Request *pb.RangeRequest
	// Seen is a revision that the answer is not below.
	Seen int64
	// Done is called once for a read that waits, unless it was dropped. false: ask the cluster.
	Done func(Answer, bool)

	need int64 // the area's revision that is waited for
	area *area
	over bool // done, or dropped
}

// An Answer is a RangeResponse as it is on the wire: Head and then Body, which other answers share.
type Answer struct {
	Head, Body []byte
	Revision   int64
}

// A Verdict says what becomes of a read.
type Verdict int

// The verdicts.
const (
	Miss  Verdict = iota // the cluster is to be asked
	Hit                  // answered
	Waits                // Done will be called
)

// A Cache is the areas of one proxy.
type Cache struct {
	cfg Config
	env Env

	areas map[Interval]*area
	wide  []*area // those of more than one key, in the order of their making
	heat  map[Interval]*heat
	named map[Interval]bool
	// valueBytes are of all areas' keys and values, bodyBytes of the answers that are kept.
	valueBytes, bodyBytes int64
	sweptAt               time.Duration
	offUntil              time.Duration // the cluster has users
	hot                   bool          // a range is, and there is no stream

	// The stream.
	up       bool
	byID     map[int64]*area
	pending  []*area // that the cluster was asked to watch, in this order
	nextID   int64
	asked    int64 // progress requests of this stream
	answered int64
	askedAt  time.Duration // the last one

	speaker   speaker
	clusterID uint64 // 0: none is known

	barrier *Question // that is on the way; nil: none
	queued  []*Read   // for the next one
	refresh bool      // a next one is wanted though no read may wait
	marks   marks
	scratch []byte

	// Barriers counts those that were sent.
	Barriers int64
}

// Patience is how long a barrier may be on the way before reads stop waiting for it.
const Patience = time.Second

// New makes a Cache without a stream: see Up.
func New(cfg Config, env Env) *Cache {
	c := &Cache{
		cfg: cfg, env: env, areas: make(map[Interval]*area), heat: make(map[Interval]*heat), named: make(map[Interval]bool),
		byID: make(map[int64]*area),
	}
	for _, i := range cfg.Named {
		c.named[i] = true
	}
	return c
}

// Areas is how many ranges are kept, or being read.
func (c *Cache) Areas() int { return len(c.areas) }

// Bytes is what is kept.
func (c *Cache) Bytes() int64 { return c.valueBytes + c.bodyBytes }

// Wanted reports that there should be a stream.
func (c *Cache) Wanted() bool { return c.hot || len(c.areas) > 0 || len(c.named) > 0 }

// Restless reports that Tick is due every TickInterval.
func (c *Cache) Restless() bool {
	for _, a := range c.areas {
		if c.up && a.live && a.at < a.want {
			return true
		}
	}
	return false
}

// Read answers a read, or takes it to be answered later, or neither. The request is one that the
// cluster would not refuse for its form; see Cacheable.
func (c *Cache) Read(now time.Duration, r *Read) (Answer, Verdict) {
	serializable := r.Request.Serializable
	r.Request.Serializable = false
	if now < c.offUntil {
		return Answer{}, Miss
	}
	a := c.find(r.Request)
	if a == nil {
		c.warm(now, Interval{string(r.Request.Key), string(r.Request.RangeEnd)})
		return Answer{}, Miss
	}
	a.reads++
	a.readAt = now
	if !a.live || a.leased > 0 && r.Request.KeysOnly {
		return Answer{}, Miss
	}
	if serializable {
		age := now - c.marks.freshAt(a.at)
		if age <= c.cfg.Staleness && a.at >= r.Seen {
			if age > c.cfg.Staleness/2 {
				c.refresh = true
				c.sendBarrier(now)
			}
			return c.answer(a, r)
		}
	}
	if !c.up || c.barrier != nil && now-c.barrier.sent > Patience {
		return Answer{}, Miss
	}
	r.area = a
	c.queued = append(c.queued, r)
	c.sendBarrier(now)
	return Answer{}, Waits
}

// Drop has a read that waits not be answered any more; false: it has been.
func (c *Cache) Drop(r *Read) bool {
	was := r.over
	r.over = true
	return !was
}

// sendBarrier sends a barrier for who waits, unless there is one on the way: what comes after it
// was sent needs the next one.
func (c *Cache) sendBarrier(now time.Duration) {
	if c.barrier != nil || !c.up || len(c.queued) == 0 && !c.refresh {
		return
	}
	q := &Question{
		// Whether there is the key does not matter.
		Request: &pb.RangeRequest{Key: append([]byte(c.cfg.Prefix), 0), CountOnly: true},
		sent:    now, reads: c.queued,
	}
	for _, a := range c.areas {
		if a.live {
			q.floor = max(q.floor, a.at)
		}
	}
	c.barrier, c.queued, c.refresh = q, nil, false
	c.Barriers++
	c.env.Ask(q)
}

// Answered handles the answer to a question. refused: the cluster wants to know who asks.
func (c *Cache) Answered(now time.Duration, q *Question, r *pb.RangeResponse, err error, refused bool) {
	if refused {
		c.off(now)
	}
	if q.area != nil {
		c.filled(now, q, r, err)
		return
	}
	if q != c.barrier {
		return // of a stream that is gone, or before all was forgotten
	}
	c.barrier = nil
	if err != nil {
		forward(q.reads)
		c.sendBarrier(now)
		return
	}
	revision := r.Header.GetRevision()
	if !c.sameHistory(r.Header) || revision < q.floor {
		if revision < q.floor {
			c.env.Notice("the cluster's history has gone back; the read cache begins anew", "")
			c.forget()
		}
		forward(q.reads)
		return
	}
	c.speaker.is(r.Header)
	c.marks.add(mark{q.sent, revision}, c.cfg.Staleness)
	for _, a := range c.areas {
		if a.live && a.readAt >= c.sweptAt {
			a.want = revision
		}
	}
	for _, r := range q.reads {
		c.resolve(r, revision)
	}
	c.askProgress(now)
	c.sendBarrier(now)
}

// resolve answers a read for which a barrier had this revision, when its area has that, too.
func (c *Cache) resolve(r *Read, revision int64) {
	r.need = max(revision, r.Seen)
	switch a := r.area; {
	case r.over:
	case a.gone:
		r.end(Answer{}, false)
	case a.at >= r.need:
		c.finish(a, r)
	default:
		a.waiting = append(a.waiting, r)
		a.want = max(a.want, r.need)
	}
}

// finish answers a read from its area.
func (c *Cache) finish(a *area, r *Read) {
	answer, verdict := c.answer(a, r)
	r.end(answer, verdict == Hit)
}

func (r *Read) end(a Answer, ok bool) {
	if r.over {
		return
	}
	r.over = true
	r.Done(a, ok)
}

func forward(reads []*Read) {
	for _, r := range reads {
		r.end(Answer{}, false)
	}
}

// sameHistory reports whether the cluster is the one that it was; if not all is forgotten.
func (c *Cache) sameHistory(h *pb.ResponseHeader) bool {
	id := h.GetClusterId()
	if was := c.clusterID; was != 0 && id != was {
		c.clusterID = id
		c.env.Notice("another cluster answers; the read cache begins anew", "")
		c.forget()
		return false
	}
	c.clusterID = id
	return true
}

// offFor is how long the cluster is not asked again after it has wanted to know who asks.
const offFor = 30 * time.Second

// off forgets everything, for there are users.
func (c *Cache) off(now time.Duration) {
	if now >= c.offUntil && (c.offUntil == 0 || now-c.offUntil > offFor) {
		c.env.Notice("the cluster has users: reads are not answered from the cache", "")
	}
	c.offUntil = now + offFor
	c.forget()
	clear(c.heat)
}

// forget begins anew.
func (c *Cache) forget() {
	for _, a := range c.areas {
		c.drop(a)
	}
	c.marks = nil
	c.forgetBarriers()
}

// forgetBarriers forwards the reads that wait for a barrier, the one that was asked for or the next.
func (c *Cache) forgetBarriers() {
	if q := c.barrier; q != nil {
		c.barrier = nil
		forward(q.reads)
	}
	queued := c.queued
	c.queued, c.refresh = nil, false
	forward(queued)
}
