package main

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/proof/cluster"
	"github.com/belaydb/belay/proof/inject"
)

const (
	writerCount = 8
	readerCount = 4
	// Writers and readers pause between two requests, so that the load does not fill the CPUs by
	// itself and the measurement shows the fault.
	writerThink = 4 * time.Millisecond
	readerThink = 10 * time.Millisecond

	requestTimeout = 2 * time.Second
	// leaseTTL is longer than any row silences one member: a client that keeps its lease alive
	// through a silent member does not notice.
	leaseTTL = 40 // seconds: the pauses of 20 s, and a renewal each third of it

	writePrefix = "f/"
)

// An op is one request as its client saw it.
type op struct {
	read       bool
	start, end time.Time
	err        string // "" if it was answered
}

// An ackedWrite was acknowledged at this revision.
type ackedWrite struct {
	key, value string
	rev        int64
}

// A seenEvent is a write as the watcher saw it.
type seenEvent struct {
	key, value string
	rev        int64
	version    int64
}

// A sighting is a leader, the time when a member first named it, and the number of answers that
// did. A member reads its term and its leader one after the other, so an answer may have the term
// of one and the leader of another.
type sighting struct {
	term, leader uint64
	at           time.Time
	times        int
}

// load is the clients of one run. Each worker appends to a log of its own,
// under mu; the fields are read by others once wait has returned.
type load struct {
	clients []*clientv3.Client
	wg      sync.WaitGroup

	ackedRev atomic.Int64 // the highest revision that any write was acknowledged at

	mu       sync.Mutex
	ops      []op
	acked    []ackedWrite
	stale    []string // reads with an answer that was too old
	events   []seenEvent
	watchErr string
	leaders  []sighting
	leaseID  clientv3.LeaseID
	leaseErr string
	renewals []time.Time
}

func newClient(endpoints []string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
}

// startLoad starts the clients; they run until ctx ends. The watcher and the lease run until long
// ends, so that they can be checked after the writes.
func startLoad(ctx, long context.Context, c *cluster.Cluster) (*load, error) {
	l := &load{}
	add := func() (*clientv3.Client, error) {
		cl, err := newClient(c.Endpoints())
		if err == nil {
			l.clients = append(l.clients, cl)
		}
		return cl, err
	}
	keeper, err := add()
	if err != nil {
		return nil, err
	}
	if err := l.keepLease(long, keeper); err != nil {
		return nil, err
	}
	watcher, err := add()
	if err != nil {
		return nil, err
	}
	go l.watch(long, watcher)
	for i := range writerCount {
		cl, err := add()
		if err != nil {
			return nil, err
		}
		l.wg.Go(func() { l.write(ctx, i, cl) })
	}
	for i := range readerCount {
		cl, err := add()
		if err != nil {
			return nil, err
		}
		l.wg.Go(func() { l.read(ctx, i, cl) })
	}
	for _, m := range c.Members {
		l.wg.Go(func() { l.look(ctx, m) })
	}
	return l, nil
}

func (l *load) close() {
	for _, c := range l.clients {
		c.Close()
	}
}

func (l *load) done(o op) {
	l.mu.Lock()
	l.ops = append(l.ops, o)
	l.mu.Unlock()
}

// volatile are the parts of an error's text that differ from one to the next.
var volatile = regexp.MustCompile(`127\.0\.0\.1:\d+(->127\.0\.0\.1:\d+)?`)

func errText(err error) string {
	if err == nil {
		return ""
	}
	return volatile.ReplaceAllString(err.Error(), "ADDR")
}

// write puts keys that nobody else puts, so that a doubled or lost write is visible.
func (l *load) write(ctx context.Context, id int, c *clientv3.Client) {
	for seq := 0; ctx.Err() == nil; seq++ {
		w := ackedWrite{key: fmt.Sprintf("%s%d/%07d", writePrefix, id, seq), value: fmt.Sprintf("%d.%d %0200d", id, seq, seq)}
		o := op{start: time.Now()}
		call, cancel := context.WithTimeout(context.Background(), requestTimeout)
		resp, err := c.Put(call, w.key, w.value)
		cancel()
		o.end, o.err = time.Now(), errText(err)
		if err == nil {
			w.rev = resp.Header.Revision
			for old := l.ackedRev.Load(); old < w.rev && !l.ackedRev.CompareAndSwap(old, w.rev); old = l.ackedRev.Load() {
			}
			l.mu.Lock()
			l.acked = append(l.acked, w)
			l.mu.Unlock()
		}
		l.done(o)
		inject.Think(ctx, writerThink)
	}
}

// read reads one of the last acknowledged writes. Its answer must be at least
// as new as any write that was acknowledged before it asked.
func (l *load) read(ctx context.Context, id int, c *clientv3.Client) {
	rng := rand.New(rand.NewPCG(uint64(id), 7))
	for ctx.Err() == nil {
		newest := l.ackedRev.Load()
		l.mu.Lock()
		var want ackedWrite
		if n := len(l.acked); n > 0 {
			want = l.acked[n-1-rng.IntN(min(n, 50))]
		}
		l.mu.Unlock()
		o := op{read: true, start: time.Now()}
		call, cancel := context.WithTimeout(context.Background(), requestTimeout)
		resp, err := c.Get(call, cmp.Or(want.key, "none"))
		cancel()
		o.end, o.err = time.Now(), errText(err)
		if err == nil {
			fault := ""
			switch {
			case resp.Header.Revision < newest:
				fault = fmt.Sprintf("a read was answered at revision %d after %d was acknowledged", resp.Header.Revision, newest)
			case want.key != "" && len(resp.Kvs) != 1:
				fault = fmt.Sprintf("a read does not find %s, acknowledged at revision %d", want.key, want.rev)
			case want.key != "" && (string(resp.Kvs[0].Value) != want.value || resp.Kvs[0].ModRevision != want.rev):
				fault = fmt.Sprintf("a read finds %s at revision %d, not %d", want.key, resp.Kvs[0].ModRevision, want.rev)
			}
			if fault != "" {
				l.mu.Lock()
				l.stale = append(l.stale, fault)
				l.mu.Unlock()
			}
		}
		l.done(o)
		inject.Think(ctx, readerThink)
	}
}

func (l *load) keepLease(ctx context.Context, c *clientv3.Client) error {
	call, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	grant, err := c.Grant(call, leaseTTL)
	if err != nil {
		return fmt.Errorf("grant a lease: %w", err)
	}
	if _, err := c.Put(call, "lease", "mine", clientv3.WithLease(grant.ID)); err != nil {
		return err
	}
	answers, err := c.KeepAlive(ctx, grant.ID)
	if err != nil {
		return err
	}
	l.leaseID = grant.ID
	go func() {
		for range answers {
			l.mu.Lock()
			l.renewals = append(l.renewals, time.Now())
			l.mu.Unlock()
		}
		if ctx.Err() == nil {
			l.mu.Lock()
			l.leaseErr = "the lease was lost"
			l.mu.Unlock()
		}
	}()
	return nil
}

func (l *load) watch(ctx context.Context, c *clientv3.Client) {
	for resp := range c.Watch(ctx, writePrefix, clientv3.WithPrefix(), clientv3.WithRev(1)) {
		l.mu.Lock()
		if err := resp.Err(); err != nil && ctx.Err() == nil {
			l.watchErr = errText(err)
		}
		for _, e := range resp.Events {
			l.events = append(l.events, seenEvent{string(e.Kv.Key), string(e.Kv.Value), e.Kv.ModRevision, e.Kv.Version})
		}
		l.mu.Unlock()
	}
}

// look asks one member again and again whom it follows.
func (l *load) look(ctx context.Context, m *cluster.Member) {
	conn, err := m.Dial()
	if err != nil {
		return
	}
	defer conn.Close()
	client := pb.NewMaintenanceClient(conn)
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		st, err := client.Status(call, &pb.StatusRequest{})
		cancel()
		if err == nil && st.Leader != 0 {
			l.mu.Lock()
			i := slices.IndexFunc(l.leaders, func(s sighting) bool { return s.term == st.RaftTerm && s.leader == st.Leader })
			if i < 0 {
				i = len(l.leaders)
				l.leaders = append(l.leaders, sighting{term: st.RaftTerm, leader: st.Leader, at: time.Now()})
			}
			l.leaders[i].times++
			l.mu.Unlock()
		}
		inject.Think(ctx, 50*time.Millisecond)
	}
}
