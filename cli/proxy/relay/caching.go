package relay

import (
	"context"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/cli/proxy/cache"
	"github.com/belaydb/belay/cli/proxy/upstream"
	"github.com/belaydb/belay/rpc"
)

// questionTimeout bounds how long a member has for a question of the cache.
const questionTimeout = 5 * time.Second

// caching is the cache of reads: package cache decides, under a lock that nobody holds while it
// waits.
type caching struct {
	relay  *Relay
	began  time.Time
	ctx    context.Context // ends with the Relay
	cancel context.CancelFunc
	wake   chan struct{} // Tick is due sooner

	sending sending

	mu     sync.Mutex
	cache  *cache.Cache
	stream *sender[*pb.WatchRequest] // nil: none
	linked bool                      // a link keeps a stream
	told   int64                     // barriers that the metrics have
}

func newCaching(r *Relay) *caching {
	k := &caching{relay: r, began: time.Now(), wake: make(chan struct{}, 1)}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	cfg := r.cfg.Cache
	cfg.Prefix = string(r.ns)
	k.cache = cache.New(cfg, k)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.link()
	return k
}

func (k *caching) stop() {
	if k != nil {
		k.cancel()
	}
}

func (k *caching) now() time.Duration { return time.Since(k.began) }

// link has a stream be kept, from when the first range is wanted. REQUIRES: mu.
func (k *caching) link() {
	if k.linked || !k.cache.Wanted() {
		return
	}
	k.linked = true
	type stream = sender[*pb.WatchRequest]
	locked := func(do func()) {
		k.mu.Lock()
		defer k.mu.Unlock()
		do()
		k.show()
	}
	l := link[*pb.WatchRequest, *pb.WatchResponse]{
		cluster: k.relay.cfg.Cluster, method: watchMethod, fresh: func() *pb.WatchResponse { return &pb.WatchResponse{} },
		up: func(s *stream) {
			locked(func() {
				k.stream = s
				k.cache.Up(k.now())
			})
		},
		down: func(s *stream) {
			locked(func() {
				if s == k.stream {
					k.cache.Down(k.now())
					k.stream = nil
				}
			})
		},
		got: func(s *stream, r *pb.WatchResponse) {
			locked(func() {
				if s != k.stream {
					return
				}
				if err := k.cache.Response(k.now(), r); err != nil {
					k.relay.cfg.Logger.Sugar().Errorf("a member's watch stream is not understood; opening another: %v", err)
					k.cache.Down(k.now())
					k.stream = nil
					s.cancel()
				}
			})
		},
		hopeless: func(error) {}, // reads go to the cluster, which says so
	}
	go l.run(k.ctx)
	go k.tick()
}

// tick calls Tick when it is due.
func (k *caching) tick() {
	timer := time.NewTimer(cache.AtRest)
	defer timer.Stop()
	for {
		select {
		case <-k.ctx.Done():
			return
		case <-k.wake:
		case <-timer.C:
		}
		k.mu.Lock()
		k.cache.Tick(k.now())
		k.show()
		next := cache.AtRest
		if k.cache.Restless() {
			next = cache.TickInterval
		}
		k.mu.Unlock()
		timer.Reset(next)
	}
}

// show brings the metrics to what is. REQUIRES: mu.
func (k *caching) show() {
	m := k.relay.cfg.Metrics
	m.cacheKeys.Set(float64(k.cache.Areas()))
	m.cacheBytes.Set(float64(k.cache.Bytes()))
	m.sendingBytes.Set(float64(k.sending.total()))
	m.barriers.Add(float64(k.cache.Barriers - k.told))
	k.told = k.cache.Barriers
}

// Send is as in cache.Env.
func (k *caching) Send(r *pb.WatchRequest) { k.stream.send(r) }

// Notice is as in cache.Env.
func (k *caching) Notice(message, key string) {
	k.relay.cfg.Logger.Warn(message, zap.String("key", key))
}

// Ask is as in cache.Env.
func (k *caching) Ask(q *cache.Question) {
	stream := k.stream
	go func() {
		ctx, cancel := context.WithTimeout(k.ctx, questionTimeout)
		defer cancel()
		answer := &pb.RangeResponse{}
		f, err := encode(q.Request)
		if err == nil {
			f, err = k.relay.cfg.Cluster.AskAt(ctx, stream.member, stream.serving, rangeMethod, f, cache.MaxPageBytes)
		}
		if err == nil {
			err = proto.Unmarshal(f.Head, answer)
		}
		refused := false
		switch status.Code(err) {
		case codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated:
			refused = true
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		k.cache.Answered(k.now(), q, answer, err, refused)
		k.show()
		if k.cache.Restless() {
			select {
			case k.wake <- struct{}{}:
			default:
			}
		}
	}()
}

// An outcome is what has become of a read that waited.
type outcome struct {
	answer cache.Answer
	ok     bool
}

// read answers a read of a client, unless the cluster is to be asked.
func (k *caching) read(ctx context.Context, r *pb.RangeRequest, seen int64) (cache.Answer, bool) {
	var done chan outcome
	read := &cache.Read{Request: r, Seen: seen}
	read.Done = func(a cache.Answer, ok bool) { done <- outcome{a, ok} }
	k.mu.Lock()
	answer, verdict := k.cache.Read(k.now(), read)
	switch verdict {
	case cache.Waits:
		done = make(chan outcome, 1) // before the lock is free
	case cache.Miss:
		k.link()
	}
	k.mu.Unlock()
	if verdict != cache.Waits {
		return answer, verdict == cache.Hit
	}
	late := time.NewTimer(cache.Patience)
	defer late.Stop()
	select {
	case o := <-done:
		return o.answer, o.ok
	case <-late.C:
	case <-ctx.Done():
	}
	k.mu.Lock()
	dropped := k.cache.Drop(read)
	k.mu.Unlock()
	if dropped {
		return cache.Answer{}, false
	}
	o := <-done
	return o.answer, o.ok
}

// anonymous reports whether a call with this metadata says nothing of who makes it, nor how: the cache
// has what there is to say to such a one.
func anonymous(md metadata.MD) bool {
	return len(md.Get(rpctypes.TokenFieldNameGRPC)) == 0 && len(md.Get("authorization")) == 0 && len(md.Get(rpctypes.MetadataRequireLeaderKey)) == 0
}

// fromCache answers a Range from the cache; false: the cluster is to be asked.
func (c *call) fromCache(f *upstream.Frame) (answered bool, err error) {
	ctx := c.stream.Context()
	if c.caching != nil && anonymous(c.md) && c.caching.sending.total() < maxSendingBytes {
		r := &pb.RangeRequest{}
		if proto.Unmarshal(f.Head, r) == nil && cache.Cacheable(r) {
			if answer, ok := c.caching.read(ctx, r, c.client.Seen()); ok {
				c.client.Advance(answer.Revision)
				c.cfg.Metrics.cacheHits.Inc()
				return true, c.sendCached(answer)
			}
		}
	}
	c.cfg.Metrics.cacheMisses.Inc()
	return false, nil
}

// sendCached gives the client an answer, which has its keys already.
func (c *call) sendCached(a cache.Answer) error {
	if c.payloads != nil {
		c.payloads.answer(c.stream.Context(), c.method, append(append([]byte(nil), a.Head...), a.Body...))
	}
	c.method.counts.sent.Inc()
	f := &upstream.Frame{Head: a.Head, Body: a.Body}
	if f.Pool = c.ledger.begin(a.Body); f.Pool != nil {
		rpc.ShareAnswer(c.stream.Context())
	}
	return c.stream.SendMsg(f)
}
