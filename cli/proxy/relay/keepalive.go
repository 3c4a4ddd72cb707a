package relay

import (
	"context"
	"errors"
	"io"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/cli/proxy/upstream"
)

// keepQueueCount is how many answers may wait for one stream of a client before no more of its requests
// are taken.
const keepQueueCount = 4096

// A keepClient is one LeaseKeepAlive stream of a client: a queue between its caller's hub and its own
// goroutine, which sends.
type keepClient struct {
	outbox[*pb.LeaseKeepAliveResponse]
	owed int // requests that are not answered, with what is queued; guarded by mu
}

func newKeepClient() *keepClient {
	return &keepClient{outbox: newOutbox[*pb.LeaseKeepAliveResponse]()}
}

func (c *keepClient) push(r *pb.LeaseKeepAliveResponse) {
	c.mu.Lock()
	c.queue = append(c.queue, r)
	c.mu.Unlock()
	c.signal()
}

func (c *keepClient) sent() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owed--
	c.freed()
}

// owe counts a request, when there is room for its answer.
func (c *keepClient) owe(ctx context.Context) bool {
	return c.await(ctx, func() bool {
		room := c.owed < keepQueueCount
		if room {
			c.owed++
		}
		return room
	})
}

// keepAlive is a LeaseKeepAlive stream of a client.
func (c *call) keepAlive() error {
	ctx := c.stream.Context()
	client := newKeepClient()
	hub := c.keeping.join(c)
	defer c.keeping.leave(hub)
	hub.tell(ctx, keepEvent{kind: keepJoined, client: client})
	defer hub.tell(hub.ctx, keepEvent{kind: keepLeft, client: client})
	received := make(chan error, 1)
	// Not waited for: it ends with the call.
	go func() { received <- c.receiveKeepAlives(hub, client) }()
	closing := false // the client sends no more: the stream ends when all is answered
	for {
		select {
		case <-client.ready:
		case err := <-received:
			if err != nil {
				return err
			}
			closing, received = true, nil
		case <-c.stopping:
			return errStopping()
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
		answers, ended := client.take()
		for _, r := range answers {
			b, err := encode(r)
			if err != nil {
				return err
			}
			c.payloads.answer(ctx, c.method, b.Head)
			c.method.counts.sent.Inc()
			c.client.Advance(r.Header.GetRevision())
			if err := c.stream.SendMsg(b); err != nil {
				return err
			}
			client.sent()
		}
		if ended != nil {
			return ended
		}
		client.mu.Lock()
		done := closing && client.owed == 0
		client.mu.Unlock()
		if done {
			return nil
		}
	}
}

func (c *call) receiveKeepAlives(hub *keepHub, client *keepClient) error {
	ctx := c.stream.Context()
	for client.owe(ctx) {
		f := &upstream.Frame{}
		if err := c.stream.RecvMsg(f); errors.Is(err, io.EOF) {
			client.sent() // what was owed for the request that did not come
			client.signal()
			return nil
		} else if err != nil {
			return err
		}
		c.method.counts.received.Inc()
		c.payloads.request(ctx, c.method, f.Head)
		m, err := decode(c.method.request, f.Head)
		if err != nil {
			return status.Errorf(codes.Internal, "grpc: error unmarshalling request: %v", err)
		}
		r, ok := m.(*pb.LeaseKeepAliveRequest)
		if !ok {
			return status.Errorf(codes.Internal, "belay proxy: a keepalive is a %T", m)
		}
		hub.tell(ctx, keepEvent{kind: keepRequested, client: client, id: r.ID})
	}
	return nil
}

// leases decides which keepalives go to the cluster, and answers the others. It asks no clock.
//
// A client's request is answered from the last answer of the cluster while the request for that is
// younger than a third of the TTL, and than maxPace: with the TTL that truly remains, rounded
// down. So the proxy never renews a lease by itself, and a lease never expires later than the last
// request of a client lets it. Nor is one asked for that a request is on the way for.
type leases struct {
	byID map[int64]*keptLease
	// ask sends a keepalive to the cluster.
	ask func(id int64)
}

// A keptLease is one that clients keep alive.
type keptLease struct {
	waiting []*keepClient // in the order of their requests; not empty: the cluster is asked
	askedAt time.Time
	// doubtful: the lease was changed since, so the answer is for those who wait alone.
	doubtful bool
	// The last answer; ttl 0: none.
	ttl    int64 // seconds
	header *pb.ResponseHeader
	sentAt time.Time // of the request that it answers
}

// maxPace is for how long a lease is taken to be there because it was: one that somebody else has
// revoked is confirmed for no longer.
const maxPace = 5 * time.Second

func (l *keptLease) pace() time.Duration {
	return min(time.Duration(l.ttl)*time.Second/3, maxPace)
}

func (ls *leases) request(c *keepClient, id int64, now time.Time) {
	l := ls.byID[id]
	if l == nil {
		l = &keptLease{}
		ls.byID[id] = l
	}
	age := now.Sub(l.sentAt)
	if left := l.ttl - int64((age+time.Second-1)/time.Second); left > 0 && age < l.pace() && len(l.waiting) == 0 {
		c.push(&pb.LeaseKeepAliveResponse{Header: l.header, ID: id, TTL: left})
		return
	}
	l.waiting = append(l.waiting, c)
	if len(l.waiting) == 1 {
		l.askedAt = now
		ls.ask(id)
	}
}

func (ls *leases) answer(r *pb.LeaseKeepAliveResponse) {
	l := ls.byID[r.ID]
	if l == nil {
		return
	}
	for _, c := range l.waiting {
		c.push(r)
	}
	l.waiting = nil
	if l.ttl, l.header, l.sentAt = r.TTL, r.Header, l.askedAt; r.TTL <= 0 || l.doubtful {
		delete(ls.byID, r.ID)
	}
}

// forget has the next request for a lease go to the cluster: it was revoked, or granted anew.
func (ls *leases) forget(id int64) {
	if l := ls.byID[id]; l != nil {
		if l.ttl, l.doubtful = 0, true; len(l.waiting) == 0 {
			delete(ls.byID, id)
		}
	}
}

// again asks for all leases of which answers are due, after a stream has ended.
func (ls *leases) again(mine func(id int64) bool, now time.Time) {
	for id, l := range ls.byID {
		if len(l.waiting) > 0 && mine(id) {
			l.askedAt = now
			ls.ask(id)
		}
	}
}

// fail ends the streams of the clients that wait.
func (ls *leases) fail(mine func(id int64) bool, err error) {
	for id, l := range ls.byID {
		if !mine(id) {
			continue
		}
		for _, c := range l.waiting {
			c.fail(err)
		}
		if len(l.waiting) > 0 {
			delete(ls.byID, id)
		}
	}
}

// sweep forgets what is of no use any more.
func (ls *leases) sweep(now time.Time) {
	for id, l := range ls.byID {
		if len(l.waiting) == 0 && now.Sub(l.sentAt) >= l.pace() {
			delete(ls.byID, id)
		}
	}
}
