package relay

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/cli/proxy/merge"
	"github.com/belaydb/belay/cli/proxy/upstream"
)

const (
	// clientQueueBytes is how much may be queued for one stream of a client before its watches wait.
	// When all streams together have allQueuesBytes, fairQueueBytes is enough for that. Events that go
	// to many are counted for each, and are in memory once.
	clientQueueBytes = 1 << 20
	allQueuesBytes   = 256 << 20
	fairQueueBytes   = 16 << 10
)

// A watchClient is one Watch stream of a client: a queue between its caller's hub and its own
// goroutine, which sends.
type watchClient struct {
	outbox[merge.Message]
	total  *atomic.Int64 // of all queues
	merged *merge.Client // of the hub's goroutine
	ctx    context.Context

	// Guarded by mu.
	bytes   int64
	starved bool // events are held back until there is room
	gone    bool // the stream has ended: nothing is queued any more
}

// Push, Full and End are called by the hub.
func (c *watchClient) Push(m merge.Message) {
	size := int64(m.Size())
	c.mu.Lock()
	if c.gone {
		c.mu.Unlock()
		return
	}
	c.queue = append(c.queue, m)
	c.bytes += size
	c.total.Add(size)
	c.mu.Unlock()
	c.signal()
}

// Full is as in merge.Outlet.
func (c *watchClient) Full() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	full := c.full()
	c.starved = c.starved || full
	return full
}

func (c *watchClient) full() bool {
	return c.bytes >= clientQueueBytes || c.bytes >= fairQueueBytes && c.total.Load() >= allQueuesBytes
}

// End is as in merge.Outlet.
func (c *watchClient) End(reason string) { c.fail(status.Error(codes.Unavailable, reason)) }

// sent notes that messages of this size have left; drained: what was held back may come.
func (c *watchClient) sent(size int64) (drained bool) {
	c.total.Add(-size)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bytes -= size
	if !c.full() {
		c.freed()
	}
	if c.starved && !c.full() && c.bytes < clientQueueBytes/2 {
		c.starved = false
		return true
	}
	return false
}

// hasRoom waits until the queue is not full: a client that only asks and never reads waits here.
func (c *watchClient) hasRoom() bool {
	return c.await(c.ctx, func() bool { return !c.full() })
}

// watch is a Watch stream of a client.
func (c *call) watch() error {
	ctx := c.stream.Context()
	client := &watchClient{outbox: newOutbox[merge.Message](), total: &c.watching.queued, ctx: ctx}
	hub := c.watching.join(c)
	defer c.watching.end(hub, client)
	if hub.who.hasLeader == rpctypes.MetadataHasLeader {
		hub.tell(ctx, hubEvent{client: client, kind: joined})
	}
	received := make(chan error, 1)
	// Not waited for: it ends with the call.
	go func() {
		if err := c.receiveWatches(hub, client); err != nil {
			received <- err
		}
	}()
	for {
		select {
		case <-client.ready:
			messages, ended := client.take()
			for _, m := range messages {
				if err := m.Frames(c.cfg.FragmentBytes, c.sendWatch); err != nil {
					return err
				}
				if client.sent(int64(m.Size())) {
					hub.tell(ctx, hubEvent{client: client, kind: drained})
				}
			}
			if ended != nil {
				return ended
			}
		case err := <-received:
			return err
		case <-c.stopping:
			return errStopping()
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

func (c *call) receiveWatches(hub *watchHub, client *watchClient) error {
	for client.hasRoom() {
		r := &pb.WatchRequest{}
		if err := c.stream.RecvMsg(r); errors.Is(err, io.EOF) {
			return nil // the client listens on
		} else if err != nil {
			return err
		}
		c.method.counts.received.Inc()
		if c.payloads != nil {
			if f, err := encode(r); err == nil {
				c.payloads.request(c.stream.Context(), c.method, f.Head)
			}
		}
		if c.ns != "" {
			if err := c.ns.request(r); err != nil {
				return err
			}
		}
		hub.tell(client.ctx, hubEvent{client: client, kind: requested, request: r})
	}
	return nil
}

func (c *call) sendWatch(head, body []byte) error {
	if c.payloads != nil {
		c.payloads.answer(c.stream.Context(), c.method, append(append([]byte(nil), head...), body...))
	}
	c.method.counts.sent.Inc()
	f := &upstream.Frame{Head: head, Body: body}
	c.client.Advance(f.Revision())
	return c.stream.SendMsg(f)
}
