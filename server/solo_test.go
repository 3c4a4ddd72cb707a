package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/store"
	"github.com/belaydb/belay/watch"
)

// solo is a Replica without raft: what is proposed is applied at once. Leader,
// term and failures are the test's to set.
type solo struct {
	id      uint64
	machine *state.Machine

	mu         sync.Mutex
	index      uint64
	term       uint64
	leader     uint64
	changed    chan struct{}
	proposeErr error         // of Propose, ProposeInTerm and ProposeChange
	waited     time.Duration // of Propose
	barrierErr error
	readyErr   error           // of LearnerReady
	moveErr    error           // of TransferLeader
	proposed   []proto.Message // clones of all requests
	confState  raftpb.ConfState
	candidate  bool   // while there is no leader
	backlog    uint64 // committed and not applied, says Status

	// kept are the proposals that have no result until their callers leave; nil: each has one at once.
	kept map[uint64]replica.Completion

	statuses atomic.Int64 // calls of Status
	hot      atomic.Int64 // of ProposeThen
	ids      atomic.Uint64
	barriers atomic.Int64
	shared   atomic.Int64 // of barriers, those by ReadBarrierThen
}

func (r *solo) Propose(ctx context.Context, req *pb.InternalRaftRequest) (command.Result, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kept != nil {
		r.mu.Unlock()
		<-ctx.Done()
		r.mu.Lock()
		return command.Result{}, gaveUp(ctx.Err())
	}
	if r.proposeErr != nil {
		return command.Result{Waited: r.waited}, r.proposeErr
	}
	if err := ctx.Err(); err != nil {
		return command.Result{}, err
	}
	r.proposed = append(r.proposed, proto.Clone(req))
	r.index++
	result := r.machine.Apply([]command.Entry{{Index: r.index, Term: r.term, Request: req}})[0]
	result.Waited = r.waited
	return result, nil
}

// gaveUp is what becomes of a proposal that raft has, and nobody waits for.
func gaveUp(cause error) error {
	if cause == context.Canceled {
		return replica.ErrCanceled
	}
	return replica.ErrTimeout
}

func (r *solo) ProposeThen(req *pb.InternalRaftRequest, then replica.Completion) (uint64, error) {
	id := uint64(r.hot.Add(1))
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kept != nil {
		r.kept[id] = then
		return id, nil
	}
	go func() { then.Completed(r.Propose(context.Background(), req)) }()
	return id, nil
}

func (r *solo) CancelProposal(id uint64, cause error) {
	r.mu.Lock()
	then := r.kept[id]
	delete(r.kept, id)
	r.mu.Unlock()
	if then != nil {
		then.Completed(command.Result{}, gaveUp(cause))
	}
}

func (r *solo) ProposeInTerm(ctx context.Context, term uint64, req *pb.InternalRaftRequest) (command.Result, error) {
	if st := r.Status(); !st.IsLeader() || st.Term != term {
		return command.Result{}, replica.ErrNotLeader
	}
	return r.Propose(ctx, req)
}

func (r *solo) ProposeChange(ctx context.Context, c *command.Change) (command.Result, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.proposeErr != nil {
		return command.Result{}, r.proposeErr
	}
	r.index++
	e := command.Entry{Index: r.index, Term: r.term, Change: c}
	if e.Refused = r.machine.CheckChange(c); e.Refused == nil {
		switch c.Type {
		case raftpb.ConfChangeAddNode:
			r.confState.Voters = append(r.confState.Voters, c.MemberID)
		case raftpb.ConfChangeAddLearnerNode:
			r.confState.Learners = append(r.confState.Learners, c.MemberID)
		}
	}
	e.ConfState = proto.Clone(&r.confState).(*raftpb.ConfState)
	return r.machine.ApplyChange(e), nil
}

func (r *solo) ReadBarrier(ctx context.Context) error {
	r.barriers.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.barrierErr != nil {
		return r.barrierErr
	}
	return ctx.Err()
}

func (r *solo) ReadBarrierThen(then func(error)) {
	r.shared.Add(1)
	go func() { then(r.ReadBarrier(context.Background())) }()
}

func (r *solo) TransferLeader(ctx context.Context, to uint64) error {
	r.mu.Lock()
	err := r.moveErr
	r.mu.Unlock()
	if err == nil {
		r.setLeader(to, 1)
	}
	return err
}

func (r *solo) LearnerReady(ctx context.Context, id uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.readyErr
}

func (r *solo) Status() replica.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.statuses.Add(1)
	st := replica.Status{ID: r.id, Leader: r.leader, Term: r.term, Applied: r.index, Committed: r.index + r.backlog}
	switch {
	case r.leader == r.id:
		st.State = raft.StateLeader
	case r.leader == 0 && r.candidate:
		st.State = raft.StateCandidate
	}
	return st
}

func (r *solo) Role() (raft.StateType, uint64) {
	st := r.Status()
	return st.State, st.Term
}
func (r *solo) Leader() uint64 { return r.Status().Leader }
func (r *solo) Term() uint64   { return r.Status().Term }
func (r *solo) NextID() uint64 { return r.ids.Add(1) }

func (r *solo) ElectionTimeout() time.Duration { return time.Second }

func (r *solo) LeaderChanged() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// setLeader makes another member lead (0: none), terms later.
func (r *solo) setLeader(id, terms uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leader = id
	r.term += terms
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *solo) set(f func(*solo)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r)
}

func (r *solo) requests() []proto.Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]proto.Message(nil), r.proposed...)
}

// members is a Peers whose members are reachable since the times in active.
type members struct {
	mu     sync.Mutex
	active map[uint64]time.Time
	client *http.Client
	open   func(ctx context.Context, id uint64, path, protocol string) (io.ReadWriteCloser, error) // nil: nobody answers
}

func (p *members) ActiveSince(id uint64) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.active[id]
}

func (p *members) Client() *http.Client { return p.client }

func (p *members) Open(ctx context.Context, id uint64, path, protocol string) (io.ReadWriteCloser, error) {
	p.mu.Lock()
	open := p.open
	p.mu.Unlock()
	if open == nil {
		return nil, errors.New("nobody answers")
	}
	return open(ctx, id, path, protocol)
}

const (
	testMember  = 0x8e9e05c52164694d
	testCluster = 0xcdf818194e3a8c32
)

// member is one member's services over the real state in memory.
type member struct {
	*Server
	t       testing.TB
	replica *solo
	peers   *members
	conn    *grpc.ClientConn
	reg     *prometheus.Registry
	clock   *atomic.Int64 // the lease table's, nanoseconds ahead of the real one

	kv          pb.KVClient
	lease       pb.LeaseClient
	cluster     pb.ClusterClient
	maintenance pb.MaintenanceClient
	auth        pb.AuthClient
}

// newMember makes a member that leads, alone, and has published itself and the
// cluster version; its loops do not run unless the test starts them.
func newMember(t testing.TB, edit ...func(*Config, *state.Config)) *member {
	t.Helper()
	m := newBareMember(t, edit...)
	m.configure(&command.Change{Type: raftpb.ConfChangeAddNode, MemberID: testMember,
		Member: command.Member{ID: testMember, PeerURLs: []string{"http://127.0.0.1:2380"}}})
	ctx, cancel := context.WithCancel(context.Background())
	m.publisher.run(ctx)
	m.version.Update(ctx, m.replica.Term())
	cancel()
	if !m.cfg.Leases.Promote(m.replica.Term(), 0) {
		t.Fatal("the lease table did not become primary")
	}
	return m
}

// newBareMember makes a member of a cluster without members and version.
func newBareMember(t testing.TB, edit ...func(*Config, *state.Config)) *member {
	t.Helper()
	st, err := store.Open("data", store.Options{FS: vfs.NewMem()})
	must(t, err)
	t.Cleanup(func() { _ = st.Close() })
	kv, err := mvcc.Open(st, mvcc.Options{})
	must(t, err)
	t.Cleanup(kv.Close)
	clock := new(atomic.Int64)
	leases, err := lease.Open(st, lease.Options{MinTTL: 2, Clock: func() time.Time {
		return time.Now().Add(time.Duration(clock.Load()))
	}})
	must(t, err)
	reg := prometheus.NewRegistry()
	hub := watch.NewHub(kv, watch.Options{Metrics: watch.NewMetrics(reg)})
	t.Cleanup(hub.Close)
	m := &member{
		t:       t,
		replica: &solo{id: testMember, leader: testMember, term: 2, changed: make(chan struct{})},
		peers:   &members{active: map[uint64]time.Time{}, client: http.DefaultClient},
		reg:     reg,
		clock:   clock,
	}
	cfg := Config{
		MemberID: testMember, ClusterID: testCluster, Name: "one", ClientURLs: []string{"http://127.0.0.1:2379"},
		Version: "0.1.0", DataDir: t.TempDir(),
		Replica: m.replica, Peers: m.peers, Store: st, KV: kv, Leases: leases, Hub: hub,
		Metrics: NewMetrics(reg, MetricsOptions{}), Gatherer: reg, Settings: Settings{StrictReconfigCheck: true},
		ElectionTimeout: 100 * time.Millisecond, HeartbeatInterval: 10 * time.Millisecond, RequestTimeout: 2 * time.Second,
	}
	machine := state.Config{Store: st, KV: kv, Leases: leases, Sink: hub, MemberID: testMember, ClusterID: testCluster}
	for _, f := range edit {
		f(&cfg, &machine)
	}
	cfg.State, err = state.Open(machine)
	must(t, err)
	m.replica.machine = cfg.State
	m.Server, err = New(cfg)
	must(t, err)
	t.Cleanup(m.Stop)
	m.conn = serveMember(t, m.Server)
	m.kv, m.lease, m.cluster = pb.NewKVClient(m.conn), pb.NewLeaseClient(m.conn), pb.NewClusterClient(m.conn)
	m.maintenance, m.auth = pb.NewMaintenanceClient(m.conn), pb.NewAuthClient(m.conn)
	return m
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (m *member) configure(c *command.Change) {
	m.t.Helper()
	result, err := m.replica.ProposeChange(m.t.Context(), c)
	must(m.t, errors.Join(err, result.Err))
}

// addMember adds a member with a peer URL and, if started, a name.
func (m *member) addMember(id uint64, url string, learner, started bool) {
	m.t.Helper()
	c := &command.Change{Type: raftpb.ConfChangeAddNode, MemberID: id, Member: command.Member{ID: id, PeerURLs: []string{url}, IsLearner: learner}}
	if learner {
		c.Type = raftpb.ConfChangeAddLearnerNode
	}
	if started {
		c.Member.Name = url
	}
	m.configure(c)
}

func (m *member) put(key, value string) *pb.PutResponse {
	m.t.Helper()
	resp, err := m.kv.Put(m.t.Context(), &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
	must(m.t, err)
	return resp
}

// get serves an HTTP GET on the client port.
func (m *member) get(target string) *httptest.ResponseRecorder {
	w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, target, nil)
	r.Host = "127.0.0.1:2379"
	m.httpHandler().ServeHTTP(w, r)
	return w
}

// httpHandler is the client port's HTTP without a gateway.
func (m *member) httpHandler() http.Handler {
	m.t.Helper()
	h, err := m.HTTPHandler(nil)
	must(m.t, err)
	return h
}
