package check

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/belaydb/belay/proof/cluster"
)

// load is clients that write and read while members die. One load lasts one round; its keys are its
// own, so an operation of unknown outcome can not reach into the history of a later round.
type load struct {
	round   int
	clients []*clientv3.Client
	epoch   time.Time

	acked atomic.Int64 // writes acknowledged

	mu      sync.Mutex
	history []porcupine.Operation
	writes  []ackedWrite
	tried   map[string]string // every unique key ever sent, with its value
	unknown int
}

// An ackedWrite was acknowledged with this revision: it must be there for ever.
type ackedWrite struct {
	rev        int64
	key, value string
	deleted    bool
}

const contendedKeys = 6

func newClient(t testing.TB, endpoints []string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints:   endpoints,
		DialTimeout: 10 * time.Second,
		Logger:      zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// run keeps all clients busy until ctx ends; it returns when all are back.
func (l *load) run(ctx context.Context, seed uint64) {
	l.tried = make(map[string]string)
	var wg sync.WaitGroup
	for i, c := range l.clients {
		wg.Go(func() { l.client(ctx, i, c, rand.New(rand.NewPCG(seed, uint64(l.round*100+i)))) })
	}
	wg.Wait()
}

func (l *load) client(ctx context.Context, id int, c *clientv3.Client, rng *rand.Rand) {
	seen := make(map[string]string) // what this client last read, for cas
	for seq := 0; ctx.Err() == nil; seq++ {
		key := fmt.Sprintf("c/%d/%d", l.round, rng.IntN(contendedKeys))
		value := fmt.Sprintf("%d.%d.%d", l.round, id, seq)
		switch n := rng.IntN(10); {
		case n < 5:
			if l.round%2 == 1 && rng.IntN(8) == 0 { // so large that it stays in a segment of the log
				value = strings.Repeat(value+" ", 40_000/len(value))
			}
			l.unique(c, fmt.Sprintf("u/%d/%d/%d", l.round, id, seq), value)
		case n < 7:
			if v, ok := l.do(id, c, regInput{kind: opGet, key: key}); ok {
				seen[key] = v.value
			}
		case n < 8:
			l.do(id, c, regInput{kind: opPut, key: key, new: value})
		case n < 9:
			l.do(id, c, regInput{kind: opCAS, key: key, old: seen[key], new: value})
		default:
			l.do(id, c, regInput{kind: opDelete, key: key})
		}
	}
}

// One request waits this long; it outlasts an election.
const requestTimeout = 4 * time.Second

// unique puts a key that no other request writes.
func (l *load) unique(c *clientv3.Client, key, value string) {
	l.mu.Lock()
	l.tried[key] = value
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	resp, err := c.Put(ctx, key, value)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.unknown++
		return
	}
	l.writes = append(l.writes, ackedWrite{rev: resp.Header.Revision, key: key, value: value})
	l.acked.Add(1)
}

// do runs one operation of a register and records it. ok is false when the outcome is not known.
func (l *load) do(client int, c *clientv3.Client, in regInput) (out regOutput, ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	var err error
	var write *ackedWrite
	call := time.Since(l.epoch).Nanoseconds()
	switch in.kind {
	case opGet:
		var resp *clientv3.GetResponse
		if resp, err = c.Get(ctx, in.key); err == nil && len(resp.Kvs) > 0 {
			out.value = string(resp.Kvs[0].Value)
		}
	case opPut:
		var resp *clientv3.PutResponse
		if resp, err = c.Put(ctx, in.key, in.new); err == nil {
			write = &ackedWrite{rev: resp.Header.Revision, key: in.key, value: in.new}
		}
	case opDelete:
		var resp *clientv3.DeleteResponse
		if resp, err = c.Delete(ctx, in.key); err == nil {
			if out.done = resp.Deleted > 0; out.done {
				write = &ackedWrite{rev: resp.Header.Revision, key: in.key, deleted: true}
			}
		}
	case opCAS:
		cmp := clientv3.Compare(clientv3.Value(in.key), "=", in.old)
		if in.old == "" {
			cmp = clientv3.Compare(clientv3.CreateRevision(in.key), "=", 0)
		}
		var resp *clientv3.TxnResponse
		resp, err = c.Txn(ctx).If(cmp).Then(clientv3.OpPut(in.key, in.new), clientv3.OpPut(in.key+"/also", in.new)).Commit()
		if err == nil {
			if out.done = resp.Succeeded; out.done {
				write = &ackedWrite{rev: resp.Header.Revision, key: in.key, value: in.new}
			}
		}
	}
	ret := time.Since(l.epoch).Nanoseconds()
	if write != nil {
		out.revision = write.rev
	}
	if err != nil {
		if in.kind == opGet {
			return out, false // it saw nothing and changed nothing
		}
		out.unknown, ret = true, endOfTime
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.history = append(l.history, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: ret})
	if write != nil {
		l.writes = append(l.writes, *write)
		l.acked.Add(1)
	}
	if out.unknown {
		l.unknown++
	}
	return out, err == nil
}

// A follower is a watcher of everything on one member. When its stream breaks
// it opens another from the revision after the last it has seen, as a careful
// client does. It notes every broken promise of order.
type follower struct {
	member *cluster.Member
	done   chan struct{}

	mu      sync.Mutex
	events  [][]seenEvent // events[i] are those of revision i+2
	last    int64
	resumes int
	faults  []string
	changed chan struct{}
}

type seenEvent struct {
	kind       mvccpb.Event_EventType
	key, value string
	version    int64
}

func follow(ctx context.Context, m *cluster.Member) (*follower, error) {
	conn, err := m.Dial()
	if err != nil {
		return nil, err
	}
	f := &follower{member: m, last: 1, changed: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(f.done)
		defer conn.Close()
		for ctx.Err() == nil {
			f.stream(ctx, pb.NewWatchClient(conn))
			f.mu.Lock()
			f.resumes++
			f.mu.Unlock()
			select { // the member is down: ask again soon, not at once
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return f, nil
}

func (f *follower) stream(ctx context.Context, client pb.WatchClient) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Watch(ctx, grpc.WaitForReady(true))
	if err != nil {
		return
	}
	f.mu.Lock()
	from := f.last + 1
	f.mu.Unlock()
	if stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: from,
	}}}) != nil {
		return
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return
		}
		f.mu.Lock()
		if resp.Canceled {
			f.faults = append(f.faults, fmt.Sprintf("cancelled at revision %d: %s", f.last, resp.CancelReason))
		}
		before := f.last // a response never continues the revision of the one before
		for _, ev := range resp.Events {
			f.note(ev, before)
		}
		close(f.changed)
		f.changed = make(chan struct{})
		f.mu.Unlock()
		if resp.Canceled {
			return
		}
	}
}

func (f *follower) note(ev *mvccpb.Event, before int64) {
	rev := ev.Kv.ModRevision
	if !(rev == f.last+1 || rev == f.last && rev > before) {
		f.faults = append(f.faults, fmt.Sprintf("event of revision %d (%s) after revision %d", rev, ev.Kv.Key, f.last))
	}
	if rev < 2 {
		return
	}
	for int64(len(f.events)) <= rev-2 {
		f.events = append(f.events, nil)
	}
	f.events[rev-2] = append(f.events[rev-2], seenEvent{ev.Type, string(ev.Kv.Key), string(ev.Kv.Value), ev.Kv.Version})
	f.last = max(f.last, rev)
}

// waitFor waits until the watcher has seen revision rev.
func (f *follower) waitFor(ctx context.Context, rev int64) error {
	for {
		f.mu.Lock()
		last, changed := f.last, f.changed
		f.mu.Unlock()
		if last >= rev {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("the watcher of %s stands at revision %d, the cluster at %d: %w", f.member.Name, last, rev, ctx.Err())
		}
	}
}

func (f *follower) at(rev int64) []seenEvent {
	f.mu.Lock()
	defer f.mu.Unlock()
	if rev < 2 || rev-2 >= int64(len(f.events)) {
		return nil
	}
	return f.events[rev-2]
}
