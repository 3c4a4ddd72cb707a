package merge

import (
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// An Outlet is the way to one client.
type Outlet interface {
	// Push queues a message. It does not block.
	Push(Message)
	// Full reports that no events should be queued; when that has changed and events were held back,
	// Hub.Drained is due.
	Full() bool
	// End ends the client's stream with Unavailable: it comes again, and says anew who it is.
	End(reason string)
}

// noID is the id of what is about no watch.
const noID = -1

// textDuplicate is what members say.
const textDuplicate = "mvcc: duplicate watch ID provided on the WatchStream"

// A Client is one Watch stream of a client.
type Client struct {
	out     Outlet
	watches map[int64]*watch
	nextID  int64
	parked  []*watch
	closed  bool
}

// A watch is one of a client's.
type watch struct {
	client   *Client
	id       int64
	key      rangeKey
	noPut    bool
	noDelete bool
	progress bool
	fragment bool

	source *source // nil: parked, or gone
	at     int     // in the source's watches
	// min: events below are not for this watch.
	min int64
	// announced: the client knows that it is created.
	announced bool
	// cancelled by the client before it was created.
	cancelled bool
}

// NewClient adds a client.
func (h *Hub) NewClient(out Outlet) *Client {
	c := &Client{out: out, watches: make(map[int64]*watch)}
	h.clients[c] = true
	return c
}

// Close removes a client and its watches.
func (h *Hub) Close(c *Client) {
	if c.closed {
		return
	}
	c.closed = true
	h.watches -= len(c.watches)
	for _, w := range c.watches {
		h.detach(w)
	}
	c.watches, c.parked = nil, nil
	delete(h.clients, c)
	delete(h.wanting, c)
}

// Request handles a request of a client.
func (h *Hub) Request(c *Client, r *pb.WatchRequest) {
	if c.closed {
		return
	}
	switch {
	case r.GetCreateRequest() != nil:
		h.create(c, r.GetCreateRequest())
	case r.GetCancelRequest() != nil:
		if w := c.watches[r.GetCancelRequest().WatchId]; w != nil {
			if w.cancelled = true; w.announced {
				h.cancel(w)
			}
		}
	case r.GetProgressRequest() != nil && len(c.watches) > 0: // a stream without watches is told nothing, as at a member
		h.wanting[c] = true
		h.ask()
	}
}

func (h *Hub) create(c *Client, r *pb.WatchCreateRequest) {
	w := &watch{
		client: c, id: r.WatchId, progress: r.ProgressNotify, fragment: r.Fragment,
		noPut: slices.Contains(r.Filters, pb.WatchCreateRequest_NOPUT), noDelete: slices.Contains(r.Filters, pb.WatchCreateRequest_NODELETE),
		key: rangeKey{string(r.Key), string(r.RangeEnd), r.PrevKv},
	}
	if _, taken := c.watches[w.id]; taken && w.id != 0 {
		c.out.Push(Message{Control: &pb.WatchResponse{Header: h.header, WatchId: noID, Created: true, Canceled: true, CancelReason: textDuplicate}})
		return
	}
	if w.id == 0 {
		for w.id = c.nextID; c.watches[w.id] != nil; {
			w.id++
		}
		c.nextID = w.id + 1
	}
	c.watches[w.id] = w
	h.watches++
	h.begin(w, r.StartRevision)
}

// cancel ends a watch for its client.
func (h *Hub) cancel(w *watch) {
	h.drop(w)
	w.client.out.Push(Message{Control: &pb.WatchResponse{Header: h.header, WatchId: w.id, Canceled: true}})
}

// drop forgets a watch.
func (h *Hub) drop(w *watch) {
	h.detach(w)
	delete(w.client.watches, w.id)
	h.watches--
	if len(w.client.watches) == 0 {
		delete(h.wanting, w.client)
	}
	w.client.parked = slices.DeleteFunc(w.client.parked, func(p *watch) bool { return p == w })
}

// Drained has the watches that wait for room in the client's queue go on.
func (h *Hub) Drained(c *Client) {
	if c.closed || c.out.Full() {
		return
	}
	parked := c.parked
	c.parked = nil
	for _, w := range parked {
		h.begin(w, w.min)
	}
}

// settled reports whether the cluster's word that all sources have everything up to a revision holds
// for all of the client's watches, and is news to them: another member may be behind the one before,
// and a client that believes it begins there again.
func (c *Client) settled(revision int64) bool {
	if len(c.parked) > 0 {
		return false
	}
	for _, w := range c.watches {
		if w.source == nil || !w.source.created || !w.source.heldFor(revision) || !w.announced || revision+1 < max(w.min, w.source.next) {
			return false
		}
	}
	return true
}

// deliver gives a watch what its source got; batches are those of the same response by filter.
func (h *Hub) deliver(w *watch, r *pb.WatchResponse, batches *batches) {
	b := batches.of(w)
	if b == nil {
		return
	}
	if w.client.out.Full() {
		h.park(w)
		return
	}
	w.client.out.Push(Message{WatchID: w.id, Header: batches.header(r), Batch: b, Fragment: w.fragment})
}

// batches are a response's events, for each kind of watch encoded when the first one needs them.
type batches struct {
	response *pb.WatchResponse
	head     []byte
	made     map[[2]bool]*Batch
	failed   error
}

func (b *batches) header(r *pb.WatchResponse) []byte {
	if b.head == nil && b.failed == nil {
		b.head, b.failed = proto.Marshal(r.Header)
	}
	return b.head
}

// of are the events for a watch; nil: none.
func (b *batches) of(w *watch) *Batch {
	events := b.response.Events
	whole := events[0].Kv.ModRevision >= w.min
	kind := [2]bool{w.noPut, w.noDelete}
	if whole {
		if made, ok := b.made[kind]; ok {
			return made
		}
	}
	if !whole || w.noPut || w.noDelete {
		events = nil
		for _, e := range b.response.Events {
			if e.Kv.ModRevision < w.min || w.noPut && e.Type == mvccpb.Event_PUT || w.noDelete && e.Type == mvccpb.Event_DELETE {
				continue
			}
			events = append(events, e)
		}
	}
	var made *Batch
	if len(events) > 0 {
		var err error
		if made, err = newBatch(events); err != nil {
			b.failed = err
		}
	}
	if whole {
		b.made[kind] = made
	}
	return made
}
