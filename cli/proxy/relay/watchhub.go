package relay

import (
	"context"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/cli/proxy/merge"
)

// watching is the watches of all callers.
type watching struct {
	hubs[*watchHub]
	queued atomic.Int64 // bytes for all clients
}

// end removes a stream with its watches.
func (w *watching) end(h *watchHub, client *watchClient) {
	h.tell(h.ctx, hubEvent{client: client, kind: closed})
	client.mu.Lock()
	left := client.bytes
	client.gone, client.bytes, client.queue = true, 0, nil
	client.mu.Unlock()
	w.queued.Add(-left)
	w.leave(h)
}

// A hubEvent is what a hub's goroutine is told.
type hubEvent struct {
	kind     hubEventKind
	client   *watchClient
	request  *pb.WatchRequest
	response *pb.WatchResponse
	stream   *sender[*pb.WatchRequest] // that an event of the connection is about
	err      error
}

type hubEventKind int

const (
	joined    hubEventKind = iota // a client is there, and wants to hear that there is no leader
	requested                     // a client sends a request
	drained                       // a client's queue has room
	closed                        // a client is gone
	connected                     // there is a stream to a member
	responded                     // a response came
	broken                        // the stream is gone
	hopeless                      // there will be none: err says why
)

// A watchHub is the watches of one caller. Its goroutine owns the merge.Hub; a link has the stream to
// a member.
type watchHub struct {
	hubLife
	relay *Relay
	// inbox: its goroutine never waits for who tells it something.
	inbox chan hubEvent

	// Of its goroutine.
	merge  *merge.Hub
	stream *sender[*pb.WatchRequest] // nil: none
	shown  shown
}

// shown is what of a hub the metrics have.
type shown struct{ watches, sources, shared, parked int64 }

func newWatchHub(r *Relay, life hubLife) *watchHub {
	h := &watchHub{hubLife: life, relay: r, inbox: make(chan hubEvent, 64)}
	h.merge = merge.New(h)
	go h.run()
	l := link[*pb.WatchRequest, *pb.WatchResponse]{
		cluster: r.cfg.Cluster, method: watchMethod, fresh: func() *pb.WatchResponse { return &pb.WatchResponse{} },
		up:   func(s *sender[*pb.WatchRequest]) { h.tell(h.ctx, hubEvent{kind: connected, stream: s}) },
		down: func(s *sender[*pb.WatchRequest]) { h.tell(h.ctx, hubEvent{kind: broken, stream: s}) },
		got: func(s *sender[*pb.WatchRequest], response *pb.WatchResponse) {
			if r.ns != "" {
				r.ns.answer(response)
			}
			h.tell(h.ctx, hubEvent{kind: responded, stream: s, response: response})
		},
		hopeless: func(err error) { h.tell(h.ctx, hubEvent{kind: hopeless, err: err}) },
	}
	go l.run(h.ctx)
	return h
}

// tell puts an event into the inbox, unless one of the contexts ends.
func (h *watchHub) tell(ctx context.Context, e hubEvent) {
	select {
	case h.inbox <- e:
	case <-ctx.Done():
		if e.kind == closed { // not lost as long as there is somebody to hear it
			select {
			case h.inbox <- e:
			case <-h.ctx.Done():
			}
		}
	case <-h.ctx.Done():
	}
}

// Send is as in merge.Env.
func (h *watchHub) Send(r *pb.WatchRequest) { h.stream.send(r) }

func (h *watchHub) run() {
	defer h.show(shown{})
	timer := time.NewTimer(merge.AtRest)
	defer timer.Stop()
	last, restless := time.Now(), false
	all := make(map[*watchClient]bool) // true: it has sent a request
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-timer.C:
			h.merge.Tick(max(1, int(time.Since(last)/merge.TickInterval)))
			last, restless = time.Now(), h.merge.Restless()
			timer.Reset(interval(restless))
		case e := <-h.inbox:
			h.handle(e, all)
		}
		if h.merge.Restless() && !restless {
			restless = true
			timer.Reset(merge.TickInterval)
		}
		h.show(shown{int64(h.merge.Watches()), int64(h.merge.Sources()), h.merge.Shared, h.merge.Parked})
	}
}

func interval(restless bool) time.Duration {
	if restless {
		return merge.TickInterval
	}
	return merge.AtRest
}

func (h *watchHub) handle(e hubEvent, all map[*watchClient]bool) {
	switch e.kind {
	case joined:
		all[e.client] = false
	case requested:
		if e.client.merged == nil {
			e.client.merged = h.merge.NewClient(e.client)
			all[e.client] = true
		}
		h.merge.Request(e.client.merged, e.request)
	case drained:
		h.merge.Drained(e.client.merged)
	case closed:
		if e.client.merged != nil {
			h.merge.Close(e.client.merged)
		}
		delete(all, e.client)
	case connected:
		h.stream = e.stream
		h.merge.Up()
	case responded:
		if e.stream != h.stream {
			return
		}
		if err := h.merge.Response(e.response); err != nil {
			h.relay.cfg.Logger.Sugar().Errorf("a member's watch stream is not understood; opening another: %v", err)
			h.disconnect()
		}
	case broken:
		if e.stream == h.stream && h.stream != nil {
			h.disconnect()
		}
	case hopeless:
		for c, asked := range all {
			if asked || noLeader(e.err) { // a member tells that also to those that have asked for nothing
				c.fail(e.err)
			}
		}
	}
}

// disconnect ends the stream.
func (h *watchHub) disconnect() {
	h.merge.Down()
	h.stream.cancel()
	h.stream = nil
}

// show brings the metrics to what is.
func (h *watchHub) show(now shown) {
	m, was := h.relay.cfg.Metrics, h.shown
	m.queued.Set(float64(h.relay.watching.queued.Load()))
	if now == was {
		return
	}
	m.watches.Add(float64(now.watches - was.watches))
	m.sources.Add(float64(now.sources - was.sources))
	m.watchersCoalescing.Add(float64((now.watches - now.sources) - (was.watches - was.sources)))
	if now.shared > was.shared {
		m.eventsCoalescing.Add(float64(now.shared - was.shared))
	}
	if now.parked > was.parked {
		m.parked.Add(float64(now.parked - was.parked))
	}
	h.shown = now
}
