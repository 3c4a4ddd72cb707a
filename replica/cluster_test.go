package replica

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	dto "github.com/prometheus/client_model/go"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/evidence"
	"github.com/belaydb/belay/raftlog"
)

// The cluster of these tests is whole replicas over real logs on a disk in
// memory that can stall and lose what was not synced. The state machine is a
// map; the network delivers in order, and can be cut for each direction.

type memoryState struct {
	mu          sync.Mutex
	index, term uint64
	confState   *raftpb.ConfState
	values      map[string]string
	removed     map[uint64]bool
	durable     *memoryState // what a crash leaves
	applyTakes  atomic.Int64
	// applyStalled and flushStalled, if not nil, are closed when Apply, and what Flush
	// began, may go on.
	applyStalled, flushStalled atomic.Pointer[chan struct{}]
}

// stallState has the state machine hang in Apply, or in what Flush begins, until release.
func stallState(at *atomic.Pointer[chan struct{}]) (release func()) {
	gate := make(chan struct{})
	at.Store(&gate)
	return func() { goOn(at) }
}

// goOn ends a stall, if there is one.
func goOn(at *atomic.Pointer[chan struct{}]) {
	if gate := at.Swap(nil); gate != nil {
		close(*gate)
	}
}

func newMemoryState() *memoryState {
	return &memoryState{confState: &raftpb.ConfState{}, values: map[string]string{}, removed: map[uint64]bool{}}
}

func (s *memoryState) clone() *memoryState {
	return &memoryState{index: s.index, term: s.term, confState: proto.Clone(s.confState).(*raftpb.ConfState), values: maps.Clone(s.values), removed: maps.Clone(s.removed)}
}

func (s *memoryState) Apply(entries []command.Entry) []command.Result {
	if d := s.applyTakes.Load(); d > 0 {
		time.Sleep(time.Duration(d))
	}
	if gate := s.applyStalled.Load(); gate != nil {
		<-*gate
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	results := make([]command.Result, len(entries))
	for i := range entries {
		e := &entries[i]
		if e.Index != s.index+1 {
			panic(fmt.Sprintf("applied entry %d after %d", e.Index, s.index))
		}
		s.index, s.term = e.Index, e.Term
		e.Placed = len(e.Data) // if it has a place
		if put := e.Request.GetPut(); put != nil {
			s.values[string(put.Key)] = string(put.Value)
			results[i].Response = &pb.PutResponse{}
		}
	}
	return results
}

// refusedMember is one that CheckChange does not let in.
const refusedMember = 99

func (s *memoryState) CheckChange(c *command.Change) error {
	if c.MemberID == refusedMember {
		return errors.New("refused")
	}
	return nil
}

func (s *memoryState) ApplyChange(e command.Entry) command.Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index, s.term, s.confState = e.Index, e.Term, e.ConfState
	if e.Refused == nil && e.Change.Type == raftpb.ConfChangeRemoveNode {
		s.removed[e.Change.MemberID] = true
	}
	return command.Result{Err: e.Refused}
}

func (s *memoryState) Applied() (uint64, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index, s.term
}

func (s *memoryState) ConfState() *raftpb.ConfState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.confState
}

func (s *memoryState) Flush(context.Context) (uint64, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	done := make(chan struct{})
	flushed := s.clone()
	if gate := s.flushStalled.Load(); gate != nil {
		go func() {
			<-*gate
			s.mu.Lock()
			defer s.mu.Unlock()
			s.durable = flushed
			close(done)
		}()
		return s.index, done, nil
	}
	s.durable = flushed
	close(done)
	return s.index, done, nil
}

func (s *memoryState) get(key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.values[key]
}

func (s *memoryState) isRemoved(id uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.removed[id]
}

func (s *memoryState) replace(with *memoryState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index, s.term, s.confState, s.values = with.index, with.term, with.confState, maps.Clone(with.values)
	s.removed = maps.Clone(with.removed)
	s.durable = with.clone()
}

type testMember struct {
	id      uint64
	c       *testCluster
	disk    *vfs.MemFS
	stalled atomic.Pointer[chan struct{}] // non-nil: syncs wait for it to close
	// opStalled, if not nil, is a kind of operation of the disk that does not end.
	opStalled atomic.Pointer[stalledOp]
	// syncTakes is how long each sync takes.
	syncTakes atomic.Int64
	// storeBusy, if not nil, is since when an operation on a file of the store is under way;
	// installStalled, if not nil, is closed when installing a snapshot may go on.
	storeBusy      atomic.Pointer[time.Time]
	installStalled atomic.Pointer[chan struct{}]
	state          *memoryState
	log            *raftlog.Log
	ring           *evidence.Ring
	running        atomic.Pointer[Replica] // of this life
	failed         atomic.Pointer[error]
	// life counts the member's starts, up to which a log may still release: the
	// log of an earlier life goes on writing to its lost disk.
	life atomic.Int64
	dead atomic.Bool  // nothing leaves a crashed member
	mute atomic.Bool  // it answers no question about its disk
	told atomic.Bool  // by another member, that it was removed
	back atomic.Int64 // Unix nanoseconds since which others are connected to it again; 0: they always were

	heartbeats atomic.Int64 // sent
}

type testCluster struct {
	t       *testing.T
	rng     *rand.Rand
	members map[uint64]*testMember
	// Of the replicas' configuration.
	keepBytes, holdBytes, maxUnsynced int64
	segmentBytes, holdDiskBytes       int64
	keeper                            raftlog.Keeper
	snapshotTakes                     time.Duration // on its way; 0: it is there at once
	snapshotsSent                     atomic.Int64
	logger                            *zap.Logger
	tune                              bool
	roundTrips                        RoundTrips
	// latency is when a message that leaves now arrives; nil: at once.
	latency func(now time.Time) time.Time

	// lies: the test sends messages that no member sends.
	lies bool

	// drop, where set, loses messages.
	drop func(*raftpb.Message) bool
	// mail, where set, takes what members send, and the test delivers it.
	mail func(*raftpb.Message)
	// calm: members start without hastening their first election.
	calm bool
	// loggerOf is a logger of each member's own; nil: logger is everybody's.
	loggerOf func(id uint64) *zap.Logger

	mu  sync.Mutex
	cut map[[2]uint64]bool // from, to
	// lose says whether a message, not a snapshot, is lost; nil: none.
	lose func(*raftpb.Message) bool
}

const testClusterID = 0xc1

func newTestCluster(t *testing.T, n int, options ...func(*testCluster)) *testCluster {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	c := &testCluster{t: t, rng: rand.New(rand.NewPCG(seed, 0)), members: map[uint64]*testMember{}, cut: map[[2]uint64]bool{}, keepBytes: 1, segmentBytes: 1 << 20}
	for _, o := range options {
		o(c)
	}
	var entries []*raftpb.Entry
	for id := uint64(1); id <= uint64(n); id++ {
		context, _ := json.Marshal(&command.Member{ID: id, PeerURLs: []string{fmt.Sprintf("http://m%d", id)}})
		data, err := proto.Marshal(&raftpb.ConfChange{Type: raftpb.ConfChangeAddNode.Enum(), NodeId: new(id), Context: context})
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Term: new(uint64(1)), Index: new(id), Data: data})
	}
	for id := uint64(1); id <= uint64(n); id++ {
		c.members[id] = &testMember{id: id, c: c, disk: vfs.NewCrashableMem(), state: newMemoryState(), ring: evidence.NewRing(0)}
	}
	for id := uint64(1); id <= uint64(n); id++ { // once all are there: they look at each other
		m := c.members[id]
		m.openLog()
		m.log.Append(raftlog.Append{
			HardState: &raftpb.HardState{Term: new(uint64(1)), Vote: new(uint64(0)), Commit: new(uint64(n))},
			Entries:   entries,
		})
		if err := m.log.Sync(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := m.log.Close(); err != nil {
			t.Fatal(err)
		}
		m.restart()
	}
	return c
}

// MaybeError makes the member's disk an errorfs.Injector: syncs of a stalled
// disk do not return until it is released.
func (m *testMember) MaybeError(op errorfs.Op) error {
	if stalled := m.opStalled.Load(); stalled != nil && stalled.kind == op.Kind {
		stalled.met.Store(true)
		<-stalled.over
	}
	switch op.Kind {
	case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
		if gate := m.stalled.Load(); gate != nil {
			<-*gate
		}
		if d := m.syncTakes.Load(); d > 0 {
			time.Sleep(time.Duration(d))
		}
	}
	return nil
}

// loopFunc is a request of a test.
type loopFunc func(*loop)

func (f loopFunc) handle(l *loop) { f(l) }

func (m *testMember) replica() *Replica { return m.running.Load() }

func (m *testMember) String() string { return fmt.Sprintf("disk of member %d", m.id) }

func (m *testMember) stall() (release func()) {
	gate := make(chan struct{})
	m.stalled.Store(&gate)
	return func() { m.stalled.Store(nil); close(gate) }
}

func (m *testMember) openLog() {
	life := m.life.Add(1)
	log, err := raftlog.Open("log", raftlog.Options{
		FS: errorfs.Wrap(m.disk, m), MemberID: m.id, ClusterID: testClusterID, SegmentBytes: m.c.segmentBytes, Applied: m.state.index,
		PipelineBytes: m.c.rng.IntN(2), // the default, or each group
		Keeper:        m.c.keeper,
		Released: func(ms []*raftpb.Message) {
			if m.life.Load() == life {
				m.replica().Released(ms)
			}
		},
		Failed: func(err error) { m.failed.Store(&err) },
	})
	if err != nil {
		m.c.t.Fatal(err)
	}
	m.log = log
}

func (m *testMember) start() {
	index, term := m.state.Applied()
	if _, err := m.log.Adopt(index, term, m.state.ConfState()); err != nil {
		m.c.t.Fatal(err)
	}
	logger := m.c.logger
	if m.c.loggerOf != nil {
		logger = m.c.loggerOf(m.id)
	}
	r, err := New(Config{
		ID: m.id, Log: m.log, State: m.state, Network: m, Failed: func(err error) { m.failed.Store(&err) },
		Settings: Settings{
			PreVote: true, AdvanceTicks: !m.c.calm, TuneTimeouts: m.c.tune, MaxUnsyncedBytes: m.c.maxUnsynced,
			FlushEntries: 50, KeepBytes: m.c.keepBytes, HoldBytes: max(m.c.keepBytes, m.c.holdBytes), HoldDiskBytes: m.c.holdDiskBytes,
		},
		PeerDisks: m, StoreDisk: m.storeDisk, Logger: logger, RoundTrips: m.c.roundTrips, Evidence: m.ring,
		MembersChanged: m.tellRemoved,
	})
	if err != nil {
		m.c.t.Fatal(err)
	}
	m.running.Store(r)
	if err := r.Start(); err != nil {
		m.c.t.Fatal(err)
	}
}

func (m *testMember) storeDisk() (d StoreDisk) {
	if began := m.storeBusy.Load(); began != nil {
		d.Oldest = time.Since(*began)
	}
	return d
}

func (m *testMember) Send(ms []*raftpb.Message) {
	if m.dead.Load() {
		return
	}
	for _, original := range ms {
		data, err := proto.Marshal(original)
		if err != nil {
			panic(err)
		}
		msg := &raftpb.Message{}
		if err := proto.Unmarshal(data, msg); err != nil {
			panic(err)
		}
		if m.c.mail != nil {
			m.c.mail(msg)
			continue
		}
		m.deliver(msg)
	}
}

// deliver gives another member what m has sent, unless it is lost.
func (m *testMember) deliver(msg *raftpb.Message) {
	m.c.mu.Lock()
	to := m.c.members[msg.GetTo()]
	cut := to == nil || m.c.cut[[2]uint64{m.id, msg.GetTo()}] || (m.c.drop != nil && m.c.drop(msg))
	lost := m.c.lose != nil && msg.GetType() != raftpb.MsgSnap && m.c.lose(msg)
	m.c.mu.Unlock()
	if lost {
		return
	}
	if msg.GetType() == raftpb.MsgSnap {
		if cut {
			m.replica().ReportSnapshot(msg.GetTo(), false)
			return
		}
		m.state.mu.Lock()
		content := m.state.clone()
		m.state.mu.Unlock()
		msg.Snapshot.Metadata.Index, msg.Snapshot.Metadata.Term = new(content.index), new(content.term)
		msg.Snapshot.Metadata.ConfState = content.confState
		m.c.snapshotsSent.Add(1)
		deliver := func() {
			if err := to.replica().CheckMessage(msg); err != nil {
				m.c.t.Errorf("member %d refuses the snapshot of member %d: %v", to.id, m.id, err)
			}
			to.replica().ProcessSnapshot(msg, func() error {
				if gate := to.installStalled.Load(); gate != nil {
					<-*gate
				}
				to.state.replace(content)
				return nil
			}, func() {})
			m.replica().ReportSnapshot(msg.GetTo(), true)
		}
		if m.c.snapshotTakes == 0 {
			deliver()
		} else {
			time.AfterFunc(m.c.snapshotTakes, deliver)
		}
		return
	}
	if cut {
		m.replica().ReportUnreachable(msg.GetTo())
		return
	}
	if to.tell(m) {
		return
	}
	m.count(msg)
	process := func() {
		if err := to.replica().Process(msg); errors.Is(err, ErrRefused) {
			m.c.t.Errorf("member %d refuses what member %d sends: %v", to.id, m.id, err)
		}
	}
	if m.c.latency == nil {
		process()
		return
	}
	now := time.Now()
	time.AfterFunc(m.c.latency(now).Sub(now), process)
}

// tell is a transport's 403 and 410: it tells another member that it was removed.
func (m *testMember) tell(other *testMember) (told bool) {
	if m.dead.Load() || !m.state.isRemoved(other.id) || m.replica().RemovalPending(other.id) {
		return false
	}
	other.told.Store(true)
	other.replica().ToldRemoved()
	return true
}

// tellRemoved tells those that m can reach: their streams end, and are refused.
func (m *testMember) tellRemoved() {
	m.c.mu.Lock()
	members := maps.Clone(m.c.members)
	m.c.mu.Unlock()
	for id, other := range members {
		m.c.mu.Lock()
		cut := m.c.cut[[2]uint64{m.id, id}] || m.c.cut[[2]uint64{id, m.id}]
		m.c.mu.Unlock()
		if id != m.id && !cut && !other.dead.Load() {
			m.tell(other)
		}
	}
}

func (m *testMember) count(msg *raftpb.Message) {
	if msg.GetType() == raftpb.MsgHeartbeat {
		m.heartbeats.Add(1)
	}
}

// AskDisks answers from the members themselves, unless the network is cut.
func (m *testMember) AskDisks(ids []uint64) {
	for _, id := range ids {
		m.c.mu.Lock()
		to := m.c.members[id]
		cut := to == nil || m.c.cut[[2]uint64{m.id, id}] || m.c.cut[[2]uint64{id, m.id}]
		m.c.mu.Unlock()
		if !cut && !to.dead.Load() && !to.mute.Load() {
			m.replica().TellDisk(id, to.replica().Disk())
		}
	}
}

func (m *testMember) ActiveSince(id uint64) time.Time {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	if to := m.c.members[id]; m.c.cut[[2]uint64{m.id, id}] || to != nil && to.dead.Load() {
		return time.Time{}
	} else if to != nil && to.back.Load() > 0 {
		return time.Unix(0, to.back.Load())
	}
	return time.Unix(1, 0)
}

// crash stops the member, loses what its disk had not synced, and leaves it ready to start again.
// The store keeps what it had flushed, or what it had applied (a store may flush at any time).
func (m *testMember) crash() {
	m.dead.Store(true) // before the clone: what left until now was durable
	clone := m.disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: m.c.rng.IntN(101), RNG: m.c.rng})
	if gate := m.stalled.Swap(nil); gate != nil {
		close(*gate) // what the disk does from here on is lost
	}
	synctest.Wait() // a real process would be gone: let this one do what it can until it is
	old := m.state
	old.mu.Lock()
	left := old.durable
	if m.c.rng.IntN(2) == 0 {
		left = old.clone() // flushed just before: may well be ahead of the log
	}
	old.mu.Unlock()
	m.replica().Stop()
	log := m.log
	go log.Close()
	m.disk = clone
	m.state = newMemoryState()
	if left != nil {
		m.state.replace(left)
	}
	synctest.Wait()
}

func (m *testMember) restart() {
	m.dead.Store(false)
	m.openLog()
	m.start()
}

// dropping has messages lost of which drop says so. It is called with the cluster's lock.
func (c *testCluster) dropping(drop func(*raftpb.Message) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop = drop
}

func (c *testCluster) partition(id uint64, on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for other := range c.members {
		if other != id {
			c.cut[[2]uint64{id, other}] = on
			c.cut[[2]uint64{other, id}] = on
		}
	}
}

func (c *testCluster) close() {
	for _, m := range c.members {
		if err := m.failed.Load(); err != nil {
			c.t.Errorf("member %d cannot go on: %v", m.id, *err)
		}
		for _, why := range []string{refusedTerm, refusedAck} {
			if n := m.refused(why); n > 0 && !c.lies {
				c.t.Errorf("member %d refused %v messages of honest members: %s", m.id, n, why)
			}
		}
		for _, at := range []*atomic.Pointer[chan struct{}]{&m.stalled, &m.state.applyStalled, &m.state.flushStalled, &m.installStalled} {
			goOn(at)
		}
		if op := m.opStalled.Swap(nil); op != nil {
			close(op.over)
		}
		m.replica().Stop()
		m.log.Close()
	}
}

// refused is how many messages this life of the member has refused.
func (m *testMember) refused(why string) float64 {
	var out dto.Metric
	if err := m.replica().metrics.Refused.WithLabelValues(why).Write(&out); err != nil {
		panic(err)
	}
	return out.GetCounter().GetValue()
}

func (c *testCluster) leader() *testMember {
	c.t.Helper()
	for range 300 {
		for _, id := range slices.Sorted(maps.Keys(c.members)) {
			m := c.members[id]
			if m.replica().IsLeader() && m.replica().ReadBarrier(c.short()) == nil {
				return m
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Fatal("no leader in 30 s")
	return nil
}

func (c *testCluster) short() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	c.t.Cleanup(cancel)
	return ctx
}

func (c *testCluster) others(m *testMember) []*testMember {
	var out []*testMember
	for _, id := range slices.Sorted(maps.Keys(c.members)) {
		if id != m.id {
			out = append(out, c.members[id])
		}
	}
	return out
}

func putRequest(key, value string) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte(key), Value: []byte(value)}}
}

func (m *testMember) put(ctx context.Context, key, value string) error {
	result, err := m.replica().Propose(ctx, putRequest(key, value))
	if err != nil {
		return err
	}
	return result.Err
}

func (m *testMember) mustPut(key, value string) {
	m.c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := m.put(ctx, key, value); err != nil {
		m.c.t.Fatalf("put %s at member %d: %v", key, m.id, err)
	}
}

func (m *testMember) mustRead(key, want string) {
	m.c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := m.replica().ReadBarrier(ctx); err != nil {
		m.c.t.Fatalf("read at member %d: %v", m.id, err)
	}
	if got := m.state.get(key); got != want {
		m.c.t.Fatalf("member %d reads %s = %q, want %q", m.id, key, got, want)
	}
}

var _ = raft.None
