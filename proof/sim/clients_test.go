package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/watch"
)

const (
	registerKeys = 6
	clients      = 6
	watchers     = 3
	leasers      = 3
)

type opKind uint8

const (
	opGet opKind = iota
	opPut
	opDelete
	opCAS
	opMulti // a put of two keys
)

func (k opKind) String() string {
	return [...]string{"get", "put", "delete", "cas", "multi-put"}[k]
}

// op is one operation of a client. Every write writes id as a value, a delete
// does so beside the key, so that the oracle knows what came of it.
type op struct {
	kind         opKind
	client       int
	key, second  string
	id           string
	old          string // cas
	serializable bool
	life         string
	call, ret    int64 // in the order in which all clients called and returned

	unknown bool // no answer
	never   bool // the answer said that it was not and will not be proposed
	rev     int64
	read    string // get, and a cas that failed: the value
	hit     bool   // cas: it wrote; delete: the key was there
}

func (o *op) String() string {
	return fmt.Sprintf("client %d %s %s %s old %q serializable %v at %s [%d,%d] unknown %v rev %d read %q hit %v",
		o.client, o.kind, o.key, o.id, o.old, o.serializable, o.life, o.call, o.ret, o.unknown, o.rev, o.read, o.hit)
}

type history struct {
	clock    atomic.Int64
	mu       sync.Mutex
	ops      []*op
	watchers []*watcher
	leases   []*leased
}

func (h *history) add(o *op) {
	h.mu.Lock()
	h.ops = append(h.ops, o)
	h.mu.Unlock()
}

func registerKey(i int) string { return fmt.Sprintf("r/%d", i) }

// rest waits for up to most, or until the faults end.
func (w *world) rest(r *rand.Rand, most time.Duration) {
	for until := time.Now().Add(time.Duration(r.Int64N(int64(most)))); !w.calm.Load(); {
		left := time.Until(until)
		if left <= 0 {
			return
		}
		time.Sleep(min(left, time.Second))
	}
}

// deadlineSlack is how much later than its deadline a call may end. What waits
// longer than the request timeout is swept up twice a second.
const deadlineSlack = time.Second

// requestTimeout is replica's.
func (f *localFlags) requestTimeout() time.Duration {
	return 5*time.Second + 2*time.Duration(f.electionTicks)*tickInterval
}

// judgeEnd checks that a call ended by its deadline, whatever hangs, unless its
// member stood still or is gone.
func (w *world) judgeEnd(l *life, o *op, began time.Time, timeout time.Duration) {
	if w.o.mutation == lateAnswer {
		l.applying.pass()
	}
	if o.kind != opGet {
		// Readers that come while a question is under way share the next one, which
		// has the request timeout for itself.
		timeout = min(timeout, l.flags.requestTimeout())
	}
	took := time.Since(began)
	if took > timeout+deadlineSlack && !l.dead.Load() && !l.paused.shutAfter(began) {
		w.violation(deadline, "with a timeout of %s it took %s: %s", timeout, took, o)
	}
}

// client works until the faults end.
func (w *world) client(n int) {
	r := rand.New(rand.NewPCG(w.seed, 100+uint64(n)))
	seen := map[string]string{}
	usual := r.IntN(600)
	size := func() int { return usual }
	if w.kinds[big] {
		size = func() int { return bigSize(r) }
	}
	for i := 0; !w.calm.Load(); i++ {
		w.rest(r, w.clientPause)
		ls := w.lives()
		if len(ls) == 0 {
			continue
		}
		l := ls[r.IntN(len(ls))]
		o := &op{client: n, key: registerKey(r.IntN(registerKeys)), id: valueID(n, i, size()), life: l.name}
		switch p := r.IntN(100); {
		case p < 30:
			o.kind = opGet
		case p < 38:
			o.kind, o.serializable = opGet, true
		case p < 70:
			o.kind = opPut
		case p < 76:
			o.kind = opDelete
		case p < 94:
			o.kind, o.old = opCAS, seen[o.key]
		default:
			o.kind, o.second = opMulti, registerKey(r.IntN(registerKeys))
			if o.second == o.key {
				o.kind = opPut
			}
		}
		timeout := time.Duration(300+r.IntN(9000)) * time.Millisecond
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		o.call = w.history.clock.Add(1)
		l.paused.pass()
		began := time.Now()
		err := w.do(ctx, l, o)
		w.judgeEnd(l, o, began, timeout)
		l.paused.pass()
		if l.dead.Load() {
			o.never, err = false, errDown // the answer did not leave
		}
		cancel()
		o.ret = w.history.clock.Add(1)
		o.unknown = err != nil
		if err == nil {
			w.beat.Add(1)
			switch {
			case o.kind == opGet, o.kind == opCAS && !o.hit:
				seen[o.key] = o.read
			case o.kind == opDelete:
				seen[o.key] = ""
			default:
				seen[o.key] = o.id
			}
			w.count("operations")
		} else {
			w.count("operations without an answer")
		}
		w.history.add(o)
	}
}

var errNoHeader = errors.New("sim: a response without a header")

func (w *world) do(ctx context.Context, l *life, o *op) error {
	key, value := []byte(o.key), valueOf(o.id)
	put := func(key []byte) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: value}}}
	}
	if o.kind == opGet {
		if !o.serializable && w.o.mutation != noBarrier {
			if err := l.replica.ReadBarrier(ctx); err != nil {
				return err
			}
		}
		resp, err := state.RangeResponse(ctx, l.kv, &pb.RangeRequest{Key: key, Serializable: o.serializable})
		if err != nil {
			return err
		}
		o.rev = resp.Header.GetRevision()
		if len(resp.Kvs) > 0 {
			o.read = idOf(resp.Kvs[0].Value)
		}
		return nil
	}
	if o.kind == opPut {
		result, err := w.propose(ctx, l, userOf(o.client), &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: key, Value: value}})
		o.never = err == context.DeadlineExceeded || isOfRights(result.Err)
		if err = errors.Join(err, result.Err); err != nil {
			return err
		}
		o.rev = result.Response.(*pb.PutResponse).GetHeader().GetRevision()
		return nil
	}
	txn := &pb.TxnRequest{}
	switch o.kind {
	case opDelete:
		txn.Success = []*pb.RequestOp{
			{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key}}},
			put([]byte("deletes/" + o.key)),
		}
	case opMulti:
		txn.Success = []*pb.RequestOp{put(key), put([]byte(o.second))}
	case opCAS:
		if o.old == "" {
			txn.Compare = []*pb.Compare{{Target: pb.Compare_VERSION, Result: pb.Compare_EQUAL, Key: key, TargetUnion: &pb.Compare_Version{Version: 0}}}
		} else {
			txn.Compare = []*pb.Compare{{Target: pb.Compare_VALUE, Result: pb.Compare_EQUAL, Key: key, TargetUnion: &pb.Compare_Value{Value: valueOf(o.old)}}}
		}
		txn.Success = []*pb.RequestOp{put(key)}
		txn.Failure = []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}}
	}
	result, err := w.propose(ctx, l, userOf(o.client), &pb.InternalRaftRequest{Txn: txn})
	o.never = err == context.DeadlineExceeded || isOfRights(result.Err)
	if err = errors.Join(err, result.Err); err != nil {
		return err
	}
	resp := result.Response.(*pb.TxnResponse)
	if resp.Header == nil {
		return errNoHeader
	}
	o.rev, o.hit = resp.Header.Revision, resp.Succeeded
	if o.kind == opDelete {
		o.hit = resp.Responses[0].GetResponseDeleteRange().GetDeleted() > 0
	}
	if !resp.Succeeded {
		if kvs := resp.Responses[0].GetResponseRange().GetKvs(); len(kvs) > 0 {
			o.read = idOf(kvs[0].Value)
		}
	}
	return nil
}

func (w *world) putOnce(ctx context.Context, l *life, key, value string) error {
	result, err := w.propose(ctx, l, auth.Root, &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte(key), Value: []byte(value)}})
	return errors.Join(err, result.Err)
}

// compactor asks for compactions until the faults end.
func (w *world) compactor() {
	r := rand.New(rand.NewPCG(w.seed, 200))
	for !w.calm.Load() {
		w.rest(r, w.clientPause+6*time.Second)
		ls := w.lives()
		if len(ls) == 0 {
			continue
		}
		l := ls[r.IntN(len(ls))]
		back := int64(r.IntN(100))
		if rev := l.kv.Revision() - back; rev > 0 {
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			if _, err := w.propose(ctx, l, auth.Root, &pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: rev}}); err == nil {
				w.count("compactions")
			}
			cancel()
		}
	}
}

// watcher follows a range over all members and restarts.
type watcher struct {
	key, end string
	prevKV   bool
	start    int64
	next     int64 // first revision it has not seen
	events   []seenEvent
	gaps     [][2]int64 // revisions [from, to) lost to a compaction, by its answer
}

type seenEvent struct {
	rev        int64
	sum        string // as oracle has it
	prev       int64  // mod revision of PrevKv; 0: none
	prevValue  string
	member     string
	hasPrevKey bool
}

// watch runs until the world ends and the watcher has seen the last revision.
func (w *world) watch(n int, last func() int64) {
	r := rand.New(rand.NewPCG(w.seed, 300+uint64(n)))
	x := &watcher{key: "r/", end: "r0", start: 1, next: 1, prevKV: n%2 == 0}
	if n == 1 {
		x.key, x.end = registerKey(r.IntN(registerKeys)), ""
	}
	w.history.mu.Lock()
	w.history.watchers = append(w.history.watchers, x)
	w.history.mu.Unlock()
	for {
		if to := last(); to > 0 && (x.next > to || w.failed()) {
			return
		}
		ls := w.lives()
		if len(ls) == 0 {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		w.watchAt(r, x, ls[r.IntN(len(ls))], last)
		time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond)
	}
}

// watchAt watches at one member for a while.
func (w *world) watchAt(r *rand.Rand, x *watcher, l *life, last func() int64) {
	s := l.hub.NewStream()
	defer s.Close()
	req := watch.Request{Key: []byte(x.key), Start: x.next, PrevKV: x.prevKV}
	if x.end != "" {
		req.End = []byte(x.end)
	}
	if _, err := s.Watch(req); err != nil {
		w.violation(wrongWatch, "watch at %s: %v", l.name, err)
		return
	}
	until := time.Now().Add(time.Duration(r.IntN(20000)) * time.Millisecond)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	slow := time.Duration(0)
	if r.IntN(4) == 0 {
		slow = time.Duration(r.IntN(2000)) * time.Millisecond
	}
	ended := false
	for !ended && time.Now().Before(until) && !l.dead.Load() {
		select {
		case <-s.Ready():
		case <-tick.C:
			if to := last(); to > 0 && x.next <= to {
				s.Progress() // answered once everything up to the current revision has arrived
			} else if to > 0 {
				return
			}
		}
		l.paused.pass()
		if l.dead.Load() {
			return
		}
		time.Sleep(slow)
		err := s.Drain(func(resp *watch.Response) error {
			if l.dead.Load() {
				return errDown // what a crashed process still does is nobody's
			}
			if resp.Canceled {
				ended = true
				if resp.CompactRev > 0 {
					if resp.CompactRev > x.next {
						x.gaps = append(x.gaps, [2]int64{x.next, resp.CompactRev})
						x.next = resp.CompactRev
					}
				} else {
					w.violation(wrongWatch, "watcher at %s was cancelled: %s", l.name, resp.CancelReason)
				}
				return nil
			}
			at := int64(0)
			for _, ev := range resp.Events {
				rev := ev.Kv.ModRevision
				if rev < x.next || rev < at {
					w.violation(wrongWatch, "watcher at %s gets revision %d after %d, next was %d", l.name, rev, at, x.next)
				}
				at = rev
				e := seenEvent{rev: rev, sum: eventText(ev), member: l.name}
				if ev.PrevKv != nil {
					e.hasPrevKey, e.prev, e.prevValue = true, ev.PrevKv.ModRevision, idOf(ev.PrevKv.Value)
				}
				x.events = append(x.events, e)
			}
			if at > 0 {
				x.next = at + 1
			} else if resp.ID == watch.InvalidID && resp.Rev >= x.next {
				x.next = resp.Rev + 1 // progress: nothing of ours is missing up to there
			}
			return nil
		})
		if err != nil {
			return
		}
	}
}

func eventText(ev *mvccpb.Event) string {
	if ev.Type == mvccpb.Event_DELETE {
		return fmt.Sprintf("delete %s at %d", ev.Kv.Key, ev.Kv.ModRevision)
	}
	return fmt.Sprintf("put %s=%s at %d created %d version %d lease %d", ev.Kv.Key, idOf(ev.Kv.Value), ev.Kv.ModRevision, ev.Kv.CreateRevision, ev.Kv.Version, ev.Kv.Lease)
}

// leased is a lease with a key on it.
type leased struct {
	key     string
	id, ttl int64
	renewed time.Duration // when the last renewal that was answered was sent
	revoked bool
}

// leaser grants leases, renews them for a while, and leaves them to expire.
func (w *world) leaser(n int) {
	r := rand.New(rand.NewPCG(w.seed, 400+uint64(n)))
	for i := int64(1); !w.calm.Load(); i++ {
		w.rest(r, w.clientPause+time.Second)
		x := &leased{id: int64(n+1)*1_000_000 + i, ttl: int64(2 + r.IntN(7))}
		x.key = fmt.Sprintf("lease/%d", x.id)
		ls := w.lives()
		if len(ls) == 0 {
			continue
		}
		l := ls[r.IntN(len(ls))]
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		sent := w.now()
		result, err := w.propose(ctx, l, auth.Root, &pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: x.id, TTL: x.ttl}})
		l.paused.pass()
		if errors.Join(err, result.Err) != nil || l.dead.Load() {
			cancel()
			continue
		}
		x.renewed = sent
		result, err = w.propose(ctx, l, auth.Root, &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte(x.key), Value: []byte(x.key), Lease: x.id}})
		cancel()
		_, _ = result, err // applied or not, the key must not go before its time
		w.count("leases")
		w.history.mu.Lock()
		w.history.leases = append(w.history.leases, x)
		w.history.mu.Unlock()
		gone := false
		for range r.IntN(12) {
			time.Sleep(time.Duration(r.Int64N(x.ttl*700)) * time.Millisecond)
			sent := w.now()
			ttl, err := w.renew(r, x.id)
			switch {
			case err != nil:
			case ttl <= 0:
				if now := w.now(); now < x.renewed+time.Duration(x.ttl)*time.Second {
					w.violation(earlyExpiry, "a renewal of lease %d says that it is gone, %s after the last one (TTL %d)", x.id, now-x.renewed, x.ttl)
				}
				gone = true
			default:
				w.history.mu.Lock()
				x.renewed = sent
				w.history.mu.Unlock()
				w.count("renewals")
			}
			if gone || w.calm.Load() {
				break
			}
		}
	}
}

// oneKeepAlive is the stream of a client that renews one lease.
type oneKeepAlive struct {
	grpc.ServerStream // none of its other methods are called
	ctx               context.Context
	id                int64
	asked             bool
	ttl               int64
}

func (s *oneKeepAlive) Context() context.Context { return s.ctx }

func (s *oneKeepAlive) Recv() (*pb.LeaseKeepAliveRequest, error) {
	if s.asked {
		return nil, io.EOF
	}
	s.asked = true
	return &pb.LeaseKeepAliveRequest{ID: s.id}, nil
}

func (s *oneKeepAlive) Send(r *pb.LeaseKeepAliveResponse) error {
	s.ttl = r.TTL
	return nil
}

// renewThrough has any member renew a lease.
func (w *world) renewThrough(r *rand.Rand, id int64) (ttl int64, err error) {
	ls := w.lives()
	if len(ls) == 0 {
		return 0, errDown
	}
	l := ls[r.IntN(len(ls))]
	l.paused.pass()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	stream := &oneKeepAlive{ctx: ctx, id: id}
	err = l.services.lease.LeaseKeepAlive(stream)
	l.paused.pass()
	if err == nil && l.dead.Load() {
		err = errDown
	}
	return stream.ttl, err
}

// renew asks a member, or the leader as members ask each other.
func (w *world) renew(r *rand.Rand, id int64) (ttl int64, err error) {
	if !w.kinds[users] && r.IntN(2) == 0 { // as nobody, who may do nothing where there are users
		return w.renewThrough(r, id)
	}
	l := w.leader()
	if l == nil {
		return 0, errDown
	}
	body, err := proto.Marshal(&pb.LeaseKeepAliveRequest{ID: id})
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, peerURL(l.id)+"/leases", bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	l.paused.pass()
	answer := newRecorder()
	l.peerHTTP.ServeHTTP(answer, req)
	l.paused.pass()
	switch {
	case l.dead.Load():
		return 0, errDown
	case answer.Code == http.StatusNotFound:
		return 0, nil
	case answer.Code != http.StatusOK:
		return 0, fmt.Errorf("%d: %s", answer.Code, answer.Body)
	}
	resp := &pb.LeaseKeepAliveResponse{}
	if err := proto.Unmarshal(answer.Body.Bytes(), resp); err != nil {
		return 0, err
	}
	return resp.TTL, nil
}

// expectExpiry waits until no lease is left.
func (w *world) expectExpiry(within time.Duration) {
	deadline := time.Now().Add(within)
	for {
		left := -1
		if l := w.leader(); l != nil {
			resp, err := state.RangeResponse(context.Background(), l.kv, &pb.RangeRequest{Key: []byte("lease/"), RangeEnd: []byte("lease0"), KeysOnly: true})
			if err == nil {
				left = len(resp.Kvs) + len(l.leases.List())
			}
		}
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			w.violation(lateExpiry, "%s after the faults and all renewals ended there are %d leases and their keys left; %s", within, left, w.describe())
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// load writes without waiting for answers, more than disks take, to whichever
// member, and gives up like a client would.
func (w *world) load() {
	r := rand.New(rand.NewPCG(w.seed, 500))
	var out atomic.Int64
	for !w.calm.Load() {
		time.Sleep(time.Duration(20+r.IntN(200)) * time.Millisecond)
		ls := w.lives()
		if len(ls) == 0 {
			continue
		}
		l := ls[r.IntN(len(ls))]
		for range r.IntN(12) {
			key, size := fmt.Sprintf("load/%d", r.IntN(20)), r.IntN(16<<10)
			if out.Load() > 400 {
				break
			}
			out.Add(1)
			w.background(func() {
				defer out.Add(-1)
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				switch err := w.putOnce(ctx, l, key, string(noise[:size])); {
				case errors.Is(err, replica.ErrTooManyRequests):
					w.count("load refused")
				case err == nil:
					w.count("load")
				}
			})
		}
	}
}
