package cache

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// noID is the id of what is about no watch.
const noID = -1

var (
	errNotAsked  = errors.New("cache: the cluster has created a watch that was not asked for")
	errOrder     = errors.New("cache: the cluster has created watches in another order")
	errFragments = errors.New("cache: the cluster has sent a part of a revision")
)

// Up notes that there is a new Watch stream: areas go on from where they are.
func (c *Cache) Up(now time.Duration) {
	c.up, c.nextID, c.asked, c.answered, c.hot = true, 0, 0, 0, false
	areas := slices.SortedFunc(maps.Values(c.areas), func(a, b *area) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.End, b.End))
	})
	for _, a := range areas {
		if a.live {
			c.watch(a)
		}
	}
	c.beginNamed(now)
}

// Down notes that the stream has ended. What the areas have remains right, for as long as
// serializable reads may be answered with it.
func (c *Cache) Down(now time.Duration) {
	c.up, c.pending = false, nil
	clear(c.byID)
	c.forgetBarriers()
	for _, a := range c.areas {
		a.created, a.id = false, 0
		waiting := a.waiting
		a.waiting = nil
		forward(waiting)
		if !a.live {
			c.refuse(now, a, 0)
		}
	}
}

// watch asks the cluster for the events of an area, or leaves that to Up.
func (c *Cache) watch(a *area) {
	if !c.up {
		return
	}
	c.nextID++
	a.id = c.nextID
	c.pending = append(c.pending, a)
	create := &pb.WatchCreateRequest{Key: []byte(a.Key), StartRevision: max(a.at, 1), WatchId: a.id}
	if a.End != "" {
		create.RangeEnd = []byte(a.End)
	}
	c.env.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}})
}

// unwatch ends an area's watch. One that was asked for and not answered ends when it is.
func (c *Cache) unwatch(a *area) {
	if a.created {
		a.created = false
		delete(c.byID, a.id)
		c.env.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: a.id}}})
	}
}

// Response handles a response of the stream. After an error the stream is of no use any more.
func (c *Cache) Response(now time.Duration, r *pb.WatchResponse) error {
	switch {
	case r.Fragment:
		return errFragments
	case !c.sameHistory(r.Header):
		return nil
	case r.Created:
		return c.createdWatch(now, r)
	case r.WatchId == noID && !r.Canceled && len(r.Events) == 0:
		c.progress(r.Header.GetRevision())
		return nil
	}
	a := c.byID[r.WatchId]
	switch {
	case a == nil: // ended since
	case r.Canceled:
		a.created = false
		delete(c.byID, r.WatchId)
		c.lost(now, a, r)
	case len(r.Events) == 0:
		c.advance(a, r.Header.GetRevision())
	default:
		c.events(now, a, r.Events)
	}
	return nil
}

func (c *Cache) createdWatch(now time.Duration, r *pb.WatchResponse) error {
	if len(c.pending) == 0 {
		return errNotAsked
	}
	a := c.pending[0]
	c.pending = c.pending[1:]
	switch {
	case r.Canceled && a.gone:
	case r.Canceled:
		c.lost(now, a, r)
	case r.WatchId != a.id:
		return errOrder
	default:
		a.created, a.createdAt, a.doubt = true, r.Header.GetRevision(), c.asked-c.answered
		c.byID[a.id] = a
		if a.gone {
			c.unwatch(a)
		}
	}
	return nil
}

// lost handles a watch that the cluster has ended, or refused: for a compaction the area is read
// again, and for any other reason it was a right.
func (c *Cache) lost(now time.Duration, a *area, r *pb.WatchResponse) {
	if r.CompactRevision == 0 {
		c.off(now)
		return
	}
	c.refuse(now, a, 0)
}

// events brings an area to what the cluster says has happened.
func (c *Cache) events(now time.Duration, a *area, events []*mvccpb.Event) {
	for len(events) > 0 && events[0].Kv.ModRevision <= a.at {
		events = events[1:] // the area has it: see the package
	}
	if len(events) == 0 {
		return
	}
	for _, e := range events {
		if e.Type == mvccpb.Event_DELETE {
			c.valueBytes += a.remove(e.Kv.Key)
		} else {
			c.valueBytes += a.put(e.Kv)
		}
	}
	a.events += int64(len(events))
	c.dropBodies(a)
	last := events[len(events)-1].Kv.ModRevision
	a.changed = last
	c.advance(a, last)
	if !c.makeRoom(a) {
		c.refuse(now, a, tooLargeFor)
	}
}

// progress handles the cluster's word that all watches have everything up to a revision.
func (c *Cache) progress(revision int64) {
	c.answered = min(c.answered+1, c.asked)
	for _, a := range c.byID {
		if a.doubt == 0 || revision > a.createdAt {
			c.advance(a, revision)
		}
		a.doubt = max(a.doubt-1, 0)
	}
}

// TickInterval is the time between calls of Tick while the Cache is Restless. AtRest is it
// otherwise.
const (
	TickInterval = 100 * time.Millisecond
	AtRest       = 10 * time.Second
)

// askProgress asks the cluster how far it is, if somebody waits for that and it is not being asked.
// It answers nothing while a watch is behind, so it is asked again.
func (c *Cache) askProgress(now time.Duration) {
	if !c.up || !c.Restless() || c.asked > c.answered && now-c.askedAt < TickInterval {
		return
	}
	c.asked++
	c.askedAt = now
	c.env.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
}

// Tick is to be called as TickInterval and AtRest say.
func (c *Cache) Tick(now time.Duration) {
	c.askProgress(now)
	if now-c.sweptAt >= AtRest {
		c.sweep(now)
	}
}
