package server

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/watch"
)

// watchConfig is what the watch service needs.
type watchConfig struct {
	Hub                 *watch.Hub
	ClusterID, MemberID uint64
	Term                func() uint64
	// MaxRequestBytes is the bound on a request; responses of watchers that asked for
	// fragments are cut where they reach it and etcd's allowance on top.
	MaxRequestBytes int
	// ProgressInterval is how long a watcher that asked for progress is idle before it
	// is told; at least minProgressInterval.
	ProgressInterval time.Duration
	Logger           *zap.Logger
	// Rights are those of the caller of a stream.
	Rights func(ctx context.Context) rights
	Usage  *usageOf // nil: nobody counts
	// Failed counts a stream that failed: kind is receive or send. May be nil.
	Failed func(kind string)
}

const minProgressInterval = 100 * time.Millisecond

// watchService is etcdserverpb.Watch. Each stream has two goroutines: grpc's own
// sends, another receives.
type watchService struct {
	cfg           watchConfig
	fragmentBytes int
	pb.UnsafeWatchServer
}

func newWatchServer(cfg watchConfig) *watchService {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if cfg.ProgressInterval < minProgressInterval {
		cfg.Logger.Warn("adjusting watch progress notify interval to minimum period",
			zap.Duration("min-watch-progress-notify-interval", minProgressInterval))
		cfg.ProgressInterval = minProgressInterval
	}
	if cfg.Failed == nil {
		cfg.Failed = func(string) {}
	}
	return &watchService{cfg: cfg, fragmentBytes: cfg.MaxRequestBytes + recvOverheadBytes}
}

func (ws *watchService) Watch(stream pb.Watch_WatchServer) error {
	c := &watchConn{watchService: ws, stream: stream, hub: ws.cfg.Hub.NewStream(), rights: ws.cfg.Rights(stream.Context())}
	c.hub.SetReview(c.review)
	c.out.Header = &pb.ResponseHeader{ClusterId: ws.cfg.ClusterID, MemberId: ws.cfg.MemberID}
	c.whole = c.send
	received := make(chan error, 1)
	// Not waited for: Recv may outlive a context of ours that ended the stream, until
	// grpc ends the call. It finds the stream closed.
	go func() {
		if err := c.receive(); err != nil {
			received <- err
		}
	}()
	err := c.serve(received)
	c.hub.Close()
	return err
}

// watchConn is one stream.
type watchConn struct {
	*watchService
	stream pb.Watch_WatchServer
	hub    *watch.Stream
	rights rights

	// Of the sender. grpc encodes a message before Send returns, so one message serves for all.
	out    pb.WatchResponse
	answer watchAnswer
	whole  func(*watch.Response) error
}

// serve sends until the stream ends, and returns why it did.
func (c *watchConn) serve(received <-chan error) error {
	ctx := c.stream.Context()
	// With jitter, lest the watchers of clients that started together are all told together.
	interval := c.cfg.ProgressInterval
	tick := time.NewTicker(interval + time.Duration(rand.Int64N(int64(interval)/10)))
	defer tick.Stop()
	metrics := c.cfg.Hub.Metrics()
	for {
		select {
		case <-c.hub.Ready():
			err := c.hub.Drain(c.whole)
			c.answer.forget()
			if err != nil {
				if ctx.Err() != nil {
					return streamEnd(ctx)
				}
				c.failed("send", "failed to send watch response to gRPC stream", err)
				return err
			}
		case <-c.rights.replaced():
			c.review()
		case <-tick.C:
			start := time.Now()
			c.hub.Tick()
			metrics.SendProgress.Observe(time.Since(start).Seconds())
		case err := <-received:
			if ctx.Err() != nil {
				return streamEnd(ctx)
			}
			c.failed("receive", "failed to receive watch request from gRPC stream", err)
			if status.Code(err) == codes.Canceled || errors.Is(err, context.Canceled) {
				return rpctypes.ErrGRPCWatchCanceled
			}
			return err
		case <-ctx.Done():
			return streamEnd(ctx)
		}
	}
}

// streamEnd is the error for a stream whose context ended: of the client, or of
// ours because there is no leader.
func streamEnd(ctx context.Context) error {
	if err := ctx.Err(); !errors.Is(err, context.Canceled) {
		return err
	}
	return rpctypes.ErrGRPCWatchCanceled
}

func (c *watchConn) failed(kind, msg string, err error) {
	if clientGone(c.stream.Context(), err) {
		c.cfg.Logger.Debug(msg, zap.Error(err))
		return
	}
	c.cfg.Logger.Warn(msg, zap.Error(err))
	c.cfg.Failed(kind)
}

// receive handles the client's requests until it sends no more.
func (c *watchConn) receive() error {
	for {
		if room := c.hub.Room(); room != nil {
			select {
			case <-room:
				continue
			case <-c.stream.Context().Done():
				return nil
			}
		}
		req, err := c.stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil // the client listens on
		}
		if err != nil {
			return err
		}
		switch r := req.RequestUnion.(type) {
		case *pb.WatchRequest_CreateRequest:
			if r.CreateRequest != nil {
				c.create(r.CreateRequest)
			}
		case *pb.WatchRequest_CancelRequest:
			if r.CancelRequest != nil {
				c.hub.Cancel(r.CancelRequest.WatchId)
			}
		case *pb.WatchRequest_ProgressRequest:
			if r.ProgressRequest != nil {
				c.hub.Progress()
			}
		default:
			// Of a newer client, perhaps. The rest of the stream is good.
			c.cfg.Logger.Sugar().Infof("invalid watch request type %T received in gRPC stream", r)
		}
	}
}

func (c *watchConn) create(r *pb.WatchCreateRequest) {
	if len(r.Key) == 0 {
		r.Key = []byte{0} // the smallest key
	}
	if r.StartRevision < 0 {
		c.hub.Refuse(rpctypes.ErrCompacted.Error())
		return
	}
	req := watch.Request{
		ID: r.WatchId, Key: r.Key, End: r.RangeEnd, Start: r.StartRevision,
		PrevKV: r.PrevKv, ProgressNotify: r.ProgressNotify, Fragment: r.Fragment,
	}
	for _, f := range r.Filters {
		switch f {
		case pb.WatchCreateRequest_NOPUT:
			req.NoPut = true
		case pb.WatchCreateRequest_NODELETE:
			req.NoDelete = true
		}
	}
	if err := c.rights.admit(r.Key, r.RangeEnd, func() {
		if _, err := c.hub.Watch(req); err != nil {
			c.hub.Refuse(err.Error())
			return
		}
		c.cfg.Usage.watchCreated(r.Key, r.RangeEnd)
	}); err != nil {
		c.hub.Refuse(c.deniedReason(err).Error())
	}
}

// review ends the watchers that the caller may not have any more, as one that was refused when it
// was created is ended.
func (c *watchConn) review() {
	c.rights.review(c.hub.Ranges, func(id int64, err error) { c.hub.End(id, c.deniedReason(err).Error()) })
}

// deniedReason is what a client may know of why it may not watch.
func (c *watchConn) deniedReason(err error) error {
	err = toGRPC(err)
	for _, known := range []error{rpctypes.ErrGRPCInvalidAuthToken, rpctypes.ErrGRPCAuthOldRevision, rpctypes.ErrGRPCUserEmpty} {
		if errors.Is(err, known) {
			return known
		}
	}
	if !errors.Is(err, rpctypes.ErrGRPCPermissionDenied) {
		c.cfg.Logger.Error("unexpected error code", zap.Error(err))
	}
	return rpctypes.ErrGRPCPermissionDenied
}

// send encodes and sends one response of the hub.
func (c *watchConn) send(r *watch.Response) error {
	// A stream that always has something to send would not notice otherwise that it
	// was ended for want of a leader.
	if err := c.stream.Context().Err(); err != nil {
		return err
	}
	start := time.Now()
	out := &c.out
	out.Header.Revision, out.Header.RaftTerm = r.Rev, c.cfg.Term()
	out.WatchId = r.ID
	out.Created, out.Canceled = r.Created, r.Canceled
	out.CancelReason, out.CompactRevision = r.CancelReason, r.CompactRev
	out.Events, out.Fragment = r.Events, false
	var err error
	if r.Fragment && len(r.Events) > 1 {
		err = c.sendFragments(r.Events)
	} else {
		err = c.sendOne()
	}
	out.Events = nil
	took := time.Since(start).Seconds()
	m := c.cfg.Hub.Metrics()
	if n := len(r.Events); n > 0 {
		c.cfg.Usage.watchSent(c.stream.Context(), r)
		m.SendEvents.Observe(took)
		m.SendPerEvent.Observe(took / float64(n))
	} else {
		m.SendControl.Observe(took)
	}
	return err
}

// sendFragments sends c.out with the events in as many messages as it takes to
// keep each below the bound, or at one event. All but the last are marked.
func (c *watchConn) sendFragments(events []*mvccpb.Event) error {
	head := watchHeadSize(&c.out)
	if head+eventsSize(events) < c.fragmentBytes {
		return c.sendOne()
	}
	head += flagSize(true)
	for len(events) > 0 {
		n, size := 0, head
		for n < len(events) {
			b := messageSize(eventSize(events[n]))
			if n > 0 && size+b >= c.fragmentBytes {
				break
			}
			size += b
			n++
		}
		c.out.Events, c.out.Fragment = events[:n], n < len(events)
		if err := c.sendOne(); err != nil {
			return err
		}
		events = events[n:]
	}
	return nil
}

// sendOne sends c.out as it is.
func (c *watchConn) sendOne() error {
	if c.answer.set(&c.out) {
		return c.stream.SendMsg(&c.answer)
	}
	return c.stream.Send(&c.out)
}
