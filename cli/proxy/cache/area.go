package cache

import (
	"bytes"
	"context"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/state"
)

// An Interval is a key, or with an End the keys from Key to below End, or with the End "\x00" all
// from Key on.
type Interval struct{ Key, End string }

// openEnd is the end of a range that has none.
const openEnd = "\x00"

// covers reports whether all keys of another interval are in this one.
func (i Interval) covers(key, end []byte) bool {
	k, e := string(key), string(end)
	switch {
	case i.End == "":
		return k == i.Key && e == ""
	case k < i.Key, i.End != openEnd && k >= i.End:
		return false
	case e == "" || i.End == openEnd:
		return true
	}
	return e != openEnd && e <= i.End
}

// An area is a range that is kept.
type area struct {
	Interval
	named bool
	// live: at is known, and the content is whole.
	live bool
	gone bool

	// kvs are in the order of their keys. They are not changed, but replaced.
	kvs         []*mvccpb.KeyValue
	at, changed int64
	bytes       int64 // of kvs
	leased      int   // how many have a lease

	// bodies are the answers that were made since the content changed, by request.
	bodies    map[string][]byte
	bodyBytes int64
	// head is the header of answers at headAt.
	head                []byte
	headAt, headChanges int64

	// The watch. id is that of the present stream; created: the cluster has said so, at createdAt.
	id        int64
	created   bool
	createdAt int64
	doubt     int64 // progress messages that may be from before it
	// want is a revision that somebody waits for, or will.
	want    int64
	waiting []*Read

	filling *Question // the page that is being read; nil: none
	page    int64     // its limit

	// Since the last sweep.
	reads, events int64
	readAt        time.Duration
}

// valueOverhead is about what a key takes in memory on top of its bytes.
const valueOverhead = 200

func sizeOf(kv *mvccpb.KeyValue) int64 {
	return int64(len(kv.Key)+len(kv.Value)) + valueOverhead
}

func (a *area) search(key []byte) (at int, found bool) {
	return slices.BinarySearchFunc(a.kvs, key, func(kv *mvccpb.KeyValue, key []byte) int { return bytes.Compare(kv.Key, key) })
}

// put and remove change the content, and return by how many bytes.
func (a *area) put(kv *mvccpb.KeyValue) (grown int64) {
	i, found := a.search(kv.Key)
	if found {
		grown = a.lose(a.kvs[i])
		a.kvs[i] = kv
	} else {
		a.kvs = slices.Insert(a.kvs, i, kv)
	}
	return grown + a.gain(kv)
}

func (a *area) remove(key []byte) (grown int64) {
	i, found := a.search(key)
	if !found {
		return 0
	}
	grown = a.lose(a.kvs[i])
	a.kvs = slices.Delete(a.kvs, i, i+1)
	return grown
}

func (a *area) gain(kv *mvccpb.KeyValue) int64 {
	if kv.Lease != 0 {
		a.leased++
	}
	a.bytes += sizeOf(kv)
	return sizeOf(kv)
}

func (a *area) lose(kv *mvccpb.KeyValue) int64 {
	if kv.Lease != 0 {
		a.leased--
	}
	a.bytes -= sizeOf(kv)
	return -sizeOf(kv)
}

// Range is as in state.Ranger: what reads a member's store reads an area, so the answers are a
// member's.
func (a *area) Range(_ context.Context, key, end []byte, o mvcc.RangeOptions) (mvcc.RangeResult, error) {
	from, found := a.search(key)
	to := len(a.kvs)
	switch {
	case len(end) == 0 && !found:
		to = from
	case len(end) == 0:
		to = from + 1
	case string(end) != openEnd:
		to, _ = a.search(end)
	}
	r := mvcc.RangeResult{Count: int64(to - from), Rev: a.at}
	if o.CountOnly {
		return r, nil
	}
	if o.Limit > 0 {
		to = min(to, from+int(min(o.Limit, int64(to-from))))
	}
	r.KVs = slices.Clone(a.kvs[from:to])
	return r, nil
}

// Cacheable reports whether a Range may be answered from a cache, if its keys are there: it is one
// that the cluster understands as it is understood here, and does not refuse.
func Cacheable(r *pb.RangeRequest) bool {
	const maxKeyBytes = 1024 // of a range of which something is remembered
	_, order := pb.RangeRequest_SortOrder_name[int32(r.SortOrder)]
	_, target := pb.RangeRequest_SortTarget_name[int32(r.SortTarget)]
	inOrder := len(r.RangeEnd) == 0 || string(r.RangeEnd) == openEnd || bytes.Compare(r.Key, r.RangeEnd) < 0
	return order && target && inOrder && len(r.Key) > 0 && len(r.Key)+len(r.RangeEnd) <= maxKeyBytes && r.Revision == 0 &&
		len(r.ProtoReflect().GetUnknown()) == 0
}

// find is the area that covers a request; nil: none.
func (c *Cache) find(r *pb.RangeRequest) *area {
	if a := c.areas[Interval{string(r.Key), string(r.RangeEnd)}]; a != nil {
		return a
	}
	for _, a := range c.wide {
		if a.live && a.covers(r.Key, r.RangeEnd) {
			return a
		}
	}
	return nil
}

// answer reads an area. It is a miss when the request is none that can be answered.
func (c *Cache) answer(a *area, r *Read) (Answer, Verdict) {
	if a.leased > 0 && r.Request.KeysOnly {
		return Answer{}, Miss // versions of etcd differ in which leases they show
	}
	body, ok := c.body(a, r.Request)
	if !ok {
		return Answer{}, Miss
	}
	return Answer{Head: c.speaker.head(a), Body: body, Revision: a.at}, Hit
}

// body is the answer's part that does not depend on the revision at which it is read.
func (c *Cache) body(a *area, r *pb.RangeRequest) ([]byte, bool) {
	key, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(c.scratch[:0], r)
	if err != nil {
		return nil, false
	}
	c.scratch = key
	if body, ok := a.bodies[string(key)]; ok {
		return body, true
	}
	resp, err := state.RangeResponse(context.Background(), a, r)
	if err != nil {
		return nil, false
	}
	resp.Header = nil
	if c.cfg.Prefix != "" {
		kvs := make([]*mvccpb.KeyValue, len(resp.Kvs))
		for i, kv := range resp.Kvs {
			kvs[i] = &mvccpb.KeyValue{
				Key: kv.Key[len(c.cfg.Prefix):], Value: kv.Value, Lease: kv.Lease,
				CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Version: kv.Version,
			}
		}
		resp.Kvs = kvs
	}
	body, err := proto.Marshal(resp)
	if err != nil {
		return nil, false
	}
	c.keepBody(a, string(key), body)
	return body, true
}

// advance notes that an area has everything up to a revision, and answers who waited for that.
func (c *Cache) advance(a *area, revision int64) {
	if revision <= a.at {
		return
	}
	a.at = revision
	waiting := a.waiting
	a.waiting = nil
	for _, r := range waiting {
		switch {
		case r.over:
		case a.at >= r.need:
			c.finish(a, r)
		default:
			a.waiting = append(a.waiting, r)
		}
	}
}
