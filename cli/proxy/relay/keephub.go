package relay

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// keepAliveStreams is how many streams a caller's keepalives go over, by lease: a member renews one
// lease of a stream after the other.
const keepAliveStreams = 4

// keepSweep is the time between two looks for leases that nobody keeps alive any more.
const keepSweep = 10 * time.Second

// keeping is the keepalives of all callers.
type keeping struct{ hubs[*keepHub] }

// forget has no later keepalive of a lease be answered by what was known of it, whether or not somebody
// still waits for the call that has changed it.
func (k *keeping) forget(id int64) {
	for _, h := range k.all() {
		h.tell(h.ctx, keepEvent{kind: keepForget, id: id})
	}
}

// A keepEvent is what a hub's goroutine is told.
type keepEvent struct {
	kind     keepEventKind
	client   *keepClient
	id       int64
	response *pb.LeaseKeepAliveResponse
	lane     int
	stream   *sender[*pb.LeaseKeepAliveRequest]
	err      error
}

type keepEventKind int

const (
	keepRequested keepEventKind = iota // a client sends a request
	keepForget                         // a lease was revoked, or granted
	keepConnected                      // there is a stream to a member
	keepResponded                      // an answer came
	keepBroken                         // the stream is gone
	keepHopeless                       // there will be none: err says why
	keepJoined                         // a stream of a client begins
	keepLeft                           // it has ended
)

// A keepHub is the keepalives of one caller. Its goroutine owns the leases; a link for each lane has
// a stream to a member.
type keepHub struct {
	hubLife
	relay *Relay
	// inbox: its goroutine never waits for who tells it something.
	inbox chan keepEvent

	// Of its goroutine.
	leases leases
	lanes  [keepAliveStreams]keepLane
	// clients are those that want to be told when there is no leader; nil: these do not.
	clients map[*keepClient]bool
}

// A keepLane is one stream to a member, which begins with its first lease.
type keepLane struct {
	begun  bool
	stream *sender[*pb.LeaseKeepAliveRequest] // nil: none
}

func newKeepHub(r *Relay, l hubLife) *keepHub {
	h := &keepHub{hubLife: l, relay: r, inbox: make(chan keepEvent, 64)}
	h.leases = leases{byID: make(map[int64]*keptLease), ask: h.ask}
	if l.who.hasLeader == rpctypes.MetadataHasLeader {
		h.clients = make(map[*keepClient]bool)
	}
	go h.run()
	return h
}

// tell puts an event into the inbox, unless one of the contexts ends.
func (h *keepHub) tell(ctx context.Context, e keepEvent) {
	select {
	case h.inbox <- e:
	case <-ctx.Done():
	case <-h.ctx.Done():
	}
}

func laneOf(id int64) int { return int(uint64(id) % keepAliveStreams) }

// ask sends a keepalive, or leaves that to the stream that will be there.
func (h *keepHub) ask(id int64) {
	lane := &h.lanes[laneOf(id)]
	h.begin(laneOf(id))
	if lane.stream != nil {
		lane.stream.send(&pb.LeaseKeepAliveRequest{ID: id})
		h.relay.cfg.Metrics.keepalives.Inc()
	}
}

// begin has a lane get its stream, unless it has begun.
func (h *keepHub) begin(lane int) {
	if h.lanes[lane].begun {
		return
	}
	h.lanes[lane].begun = true
	tell := func(e keepEvent) {
		e.lane = lane
		h.tell(h.ctx, e)
	}
	l := link[*pb.LeaseKeepAliveRequest, *pb.LeaseKeepAliveResponse]{
		cluster: h.relay.cfg.Cluster, method: keepAliveMethod,
		fresh: func() *pb.LeaseKeepAliveResponse { return &pb.LeaseKeepAliveResponse{} },
		up:    func(s *sender[*pb.LeaseKeepAliveRequest]) { tell(keepEvent{kind: keepConnected, stream: s}) },
		down:  func(s *sender[*pb.LeaseKeepAliveRequest]) { tell(keepEvent{kind: keepBroken, stream: s}) },
		got: func(s *sender[*pb.LeaseKeepAliveRequest], r *pb.LeaseKeepAliveResponse) {
			tell(keepEvent{kind: keepResponded, stream: s, response: r})
		},
		hopeless: func(err error) { tell(keepEvent{kind: keepHopeless, err: err}) },
	}
	go l.run(h.ctx)
}

func (h *keepHub) run() {
	ticker := time.NewTicker(keepSweep)
	defer ticker.Stop()
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-ticker.C:
			h.leases.sweep(time.Now())
		case e := <-h.inbox:
			h.handle(e)
		}
	}
}

func (h *keepHub) handle(e keepEvent) {
	lane := &h.lanes[e.lane]
	mine := func(id int64) bool { return laneOf(id) == e.lane }
	switch e.kind {
	case keepRequested:
		h.leases.request(e.client, e.id, time.Now())
	case keepForget:
		h.leases.forget(e.id)
	case keepConnected:
		lane.stream = e.stream
		h.leases.again(mine, time.Now())
	case keepResponded:
		if e.stream == lane.stream {
			h.leases.answer(e.response)
		}
	case keepBroken:
		if e.stream == lane.stream {
			lane.stream = nil
		}
	case keepHopeless:
		h.leases.fail(mine, e.err)
		if noLeader(e.err) { // as a member does, also to those that wait for nothing now
			for c := range h.clients {
				c.fail(e.err)
			}
		}
	case keepJoined:
		if h.clients != nil {
			h.clients[e.client] = true
			h.begin(0) // a member tells who asks nothing, too
		}
	case keepLeft:
		delete(h.clients, e.client)
	}
}
