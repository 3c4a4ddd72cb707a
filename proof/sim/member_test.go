package sim

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/raftlog"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/server"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/store"
	"github.com/belaydb/belay/transport"
	"github.com/belaydb/belay/watch"
)

const (
	clusterID     = 0xc1
	tickInterval  = 100 * time.Millisecond
	electionTicks = 10
	election      = electionTicks * tickInterval
)

func peerURL(id uint64) string { return fmt.Sprintf("http://m%d", id) }

// member is one member over all its lives.
type member struct {
	w  *world
	id uint64

	mu      sync.Mutex
	mem     *vfs.MemFS // between two lives
	now     *life      // nil: down
	begins  bool       // a start is under way
	removed bool       // for good
	damaged bool       // its disk was, while it was down
	refuses bool       // it is damaged and has stopped
	lives   int
	peers   []uint64 // of a member that has no state yet
	// group is a group of the raft log that was on the disk when a life began: identity.json's.
	group uint64

	restarting atomic.Bool // restartLater is under way
}

func (m *member) life() *life {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

// life is one process of a member, from start to crash.
type life struct {
	m    *member
	w    *world
	id   uint64
	name string // member.life
	dead atomic.Bool
	// failed: the member said that it must stop.
	failed atomic.Bool

	disk   *disk
	paused gate
	broken atomic.Bool // its disk was made to fail: it may stop

	store    *store.Store
	kv       *mvcc.Store
	leases   *lease.Table
	hub      *watch.Hub
	flags    localFlags
	machine  *state.Machine
	applying gate // what applies entries
	log      *raftlog.Log
	replica  *replica.Replica
	server   *server.Server
	services services
	peerHTTP http.Handler
	endpoint *transport.Endpoint
	logger   *zap.Logger

	peersMu sync.Mutex
	peers   map[uint64]bool

	lastRev int64      // applier: of the last event seen; 0: none
	rng     *rand.Rand // applier: of the mutation that loses events
}

// firstLog writes the log of a fresh cluster's member.
func firstLog(fs vfs.FS, id uint64, members []uint64) error {
	log, err := raftlog.Open(logDir, raftlog.Options{FS: fs, MemberID: id, ClusterID: clusterID, SegmentBytes: segmentBytes, Released: func([]*raftpb.Message) {}})
	if err != nil {
		return err
	}
	var entries []*raftpb.Entry
	for i, other := range members {
		context, err := json.Marshal(&command.Member{ID: other, PeerURLs: []string{peerURL(other)}})
		if err != nil {
			return err
		}
		data, err := proto.Marshal(&raftpb.ConfChange{Type: raftpb.ConfChangeAddNode.Enum(), NodeId: new(other), Context: context})
		if err != nil {
			return err
		}
		entries = append(entries, &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Term: new(uint64(1)), Index: new(uint64(i + 1)), Data: data})
	}
	log.Append(raftlog.Append{
		HardState: &raftpb.HardState{Term: new(uint64(1)), Vote: new(uint64(0)), Commit: new(uint64(len(entries)))},
		Entries:   entries,
	})
	if err := log.Sync(context.Background()); err != nil {
		return err
	}
	return log.Close()
}

// newDisk makes an empty disk whose top directories survive a crash.
func emptyDisk() (*vfs.MemFS, error) {
	mem := vfs.NewCrashableMem()
	if err := mem.MkdirAll(dataDir, 0o700); err != nil {
		return nil, err
	}
	root, err := mem.OpenDir("")
	if err != nil {
		return nil, err
	}
	return mem, errors.Join(root.Sync(), root.Close())
}

const segmentBytes = 256 << 10

// start begins a new life on the disk that the last one left.
func (m *member) start() (err error) {
	m.mu.Lock()
	if m.now != nil || m.removed || m.begins {
		m.mu.Unlock()
		return nil
	}
	m.begins = true
	m.lives++
	m.mu.Unlock()
	l := &life{m: m, w: m.w, id: m.id, name: fmt.Sprintf("%d.%d", m.id, m.lives), peers: map[uint64]bool{}, rng: rand.New(rand.NewPCG(m.w.seed, m.id)), flags: m.w.flagsOf(m)}
	l.disk = newDisk(m.mem, &l.paused, m.w.o.mutation)
	l.logger = m.w.logger(l)
	// A panic while the parts are put together is a finding like any other.
	defer func() {
		if p := recover(); p != nil {
			buf := make([]byte, 16<<10)
			err = fmt.Errorf("%w: %v\n%s", errPanics, p, buf[:runtime.Stack(buf, false)])
		}
		m.mu.Lock()
		m.begins = false
		if err == nil {
			m.now = l
		}
		m.mu.Unlock()
		if err != nil {
			l.dead.Store(true)
			m.w.background(l.close)
		}
		if err == nil && l.failed.Load() {
			m.crash(l, 100)
			m.w.restartLater(m)
		}
	}()
	if l.store, err = store.Open(storeDir, store.Options{FS: l.disk.fs, Logger: l.logger, CacheBytes: 1 << 20, MemTableBytes: l.flags.memTableBytes, PlaceBytes: l.flags.placeBytes, Failed: l.fail, Corrupt: l.corrupt}); err != nil {
		return err
	}
	if l.kv, err = mvcc.Open(l.store, mvcc.Options{Logger: l.logger, CompactionBatchLimit: l.flags.compactionBatch, CompactionSleep: 5 * time.Millisecond}); err != nil {
		return err
	}
	applied, _ := l.store.Applied()
	least := m.group
	if m.w.o.mutation != intact {
		least = 0 // else this alone would notice most of them
	}
	if l.log, err = raftlog.Open(logDir, raftlog.Options{
		FS: l.disk.fs, MemberID: l.id, ClusterID: clusterID, Logger: l.logger, SegmentBytes: l.flags.segmentBytes, MemoryBytes: l.flags.memoryBytes,
		Applied: applied, LeastGroup: least, Keeper: l.store.Segments, PipelineBytes: l.flags.pipelineBytes,
		Released: func(ms []*raftpb.Message) { l.paused.pass(); l.replica.Released(ms) },
		Failed:   func(err error) { l.fail(fmt.Errorf("the raft log failed: %w", err)) },
	}); err != nil {
		return err
	}
	clock := m.w.dates(m.id)
	if m.w.o.mutation == earlyRevoke {
		born := time.Now()
		clock = func() time.Time { return born.Add(2 * time.Since(born)) }
	}
	if l.leases, err = lease.Open(l.store, lease.Options{MinTTL: 2, Clock: clock}); err != nil {
		return err
	}
	l.hub = watch.NewHub(l.kv, watch.Options{Logger: l.logger, StreamBytes: 16 << 10, RecentRevisions: 64, ScanRevisions: 50})
	if l.machine, err = state.Open(state.Config{
		Store: l.store, KV: l.kv, Leases: l.leases, Sink: l, Logger: l.logger, MemberID: l.id, ClusterID: clusterID, QuotaBytes: -1,
	}); err != nil {
		return err
	}
	index, term := l.store.Applied()
	if have, err := l.log.Term(index); err == nil && have != term && index > 0 {
		m.w.count("log with another entry than the store's")
	}
	switch m.w.o.mutation {
	case keepTail:
		if have, err := l.log.Term(index); err == nil {
			term = have
		}
		fallthrough
	default:
		replaced, err := l.log.Adopt(index, term, l.machine.ConfState())
		if err != nil {
			return err
		}
		if replaced && index > 0 {
			m.w.count("log replaced by the store's base")
		}
		// As datadir.Parts.Bind: no copy of this log that ends before is taken for it again.
		if m.group, err = l.log.Mark(); err != nil {
			return err
		}
	case skipAdopt:
	}
	l.endpoint = m.w.net.Join(l.id, l, l)
	l.endpoint.OnRemoved(func(error) { l.replica.ToldRemoved(); l.leave() })
	if l.replica, err = replica.New(replica.Config{
		ID: l.id, Log: l.log, State: gatedMachine{l}, Segments: gatedSegments{l}, Network: gatedNetwork{l}, Logger: l.logger,
		Settings: replica.Settings{
			TickInterval: tickInterval, ElectionTicks: l.flags.electionTicks, PreVote: l.flags.preVote, AdvanceTicks: l.flags.advanceTicks,
			FlushEntries: l.flags.flushEntries, KeepBytes: l.flags.keepBytes, HoldBytes: l.flags.holdBytes, MaxUnsyncedBytes: l.flags.maxUnsynced,
			TuneTimeouts: l.flags.tuneTimeouts,
		},
		MembersChanged: l.membersChanged, Failed: l.fail, PeerDisks: otherMembers{l}, StoreDisk: l.storeDisk, RoundTrips: roundTrips{m.w},
	}); err != nil {
		return err
	}
	if l.server, err = server.New(server.Config{
		MemberID: l.id, ClusterID: clusterID, Name: fmt.Sprintf("m%d", l.id), ClientURLs: []string{"http://client"}, Version: "0",
		Replica: l.replica, Peers: otherMembers{l}, State: l.machine, Store: l.store, KV: l.kv, Leases: l.leases, Hub: l.hub, Logger: l.logger,
		FreeBytes:       func() (uint64, error) { return 1 << 40, nil },
		ElectionTimeout: time.Duration(l.flags.electionTicks) * tickInterval, HeartbeatInterval: tickInterval,
	}); err != nil {
		return err
	}
	mux := peers.NewMux(nil)
	l.server.RegisterPeers(mux)
	l.server.RegisterGRPC(&l.services)
	l.peerHTTP = mux
	for _, other := range m.peers {
		if other != l.id {
			l.endpoint.AddPeer(other, nil)
			l.peers[other] = true
		}
	}
	l.syncPeers()
	if err := l.replica.Start(); err != nil {
		return err
	}
	l.server.Start()
	go l.watchLoop()
	return nil
}

// maxLoopDelay is how long the raft loop may take to come to something new. It waits for nothing
// but a pause of the whole process, and computing takes no virtual time.
const maxLoopDelay = tickInterval / 2

// watchLoop asks the raft loop at each tick how it does.
func (l *life) watchLoop() {
	for !l.dead.Load() {
		time.Sleep(tickInterval)
		began := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		_, _ = l.replica.Progress(ctx, l.id) // the answer comes from the loop
		cancel()
		l.judgeMemory()
		if took := time.Since(began); took > maxLoopDelay && !l.dead.Load() && !l.paused.shutAfter(began.Add(-tickInterval)) {
			l.w.violation(loopDelay, "the raft loop of member %s does not answer for %s", l.name, took)
			return
		}
	}
}

// fail is called when the member says that it cannot go on: its process ends.
func (l *life) fail(err error) {
	if l.dead.Load() || !l.failed.CompareAndSwap(false, true) {
		return
	}
	if !l.broken.Load() && !l.m.isDamaged() {
		l.w.violation(ofStop(err), "member %s stops by itself: %v", l.name, err)
	}
	l.w.tracef("member %s stops: %v", l.name, err)
	// What a broken disk says is no damage: the member starts again.
	if l.m.isDamaged() && !l.broken.Load() {
		l.m.refuse(err)
	}
	l.w.background(func() {
		l.m.crash(l, 100)
		l.w.restartLater(l.m)
	})
}

// corrupt is called when the store meets a file that is not as it was written: the
// member stops, since the others can do without it.
func (l *life) corrupt(err error) {
	if !l.dead.Load() && !l.m.isDamaged() {
		l.w.violation(unreadable, "member %s: %v", l.name, err)
	}
	l.fail(err)
}

var errPanics = errors.New("start panics")

// ofStop separates what raft says of entries that cannot be from other stops.
func ofStop(err error) finding {
	for _, text := range []string{"out of range", "out of bound", "conflict", "unavailable"} {
		if strings.Contains(err.Error(), text) {
			return brokenLog
		}
	}
	return stopped
}

// leave ends a member that was removed.
func (l *life) leave() {
	if l.dead.Load() {
		return
	}
	time.AfterFunc(election, func() {
		l.m.mu.Lock()
		l.m.removed = true
		l.m.mu.Unlock()
		l.m.crash(l, 100)
	})
}

// crash ends a life. Of what its disk had not synced, percent survives, block by
// block; with 100 it is the process alone that died.
func (m *member) crash(l *life, percent int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.now != l || l == nil {
		return
	}
	m.now = nil
	// Nothing leaves from here on; what left before was durable then.
	l.dead.Store(true)
	l.endpoint.Stop()
	m.mem = l.disk.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: m.w.crashRand()})
	l.disk.retire()
	l.applying.retire()
	m.w.background(l.close)
}

// close ends the goroutines of a life. What it does to its disk nobody sees.
func (l *life) close() {
	if l.store != nil && l.store.Segments.Stats().Moved > 0 {
		l.w.count("life with values moved out of segments")
	}
	if l.endpoint != nil {
		l.endpoint.Stop()
	}
	if l.server != nil {
		l.server.Stop()
	}
	if l.hub != nil {
		l.hub.Close()
	}
	if l.replica != nil {
		l.replica.Stop()
	}
	time.Sleep(20 * time.Second) // readers and snapshot streams end
	if l.kv != nil {
		l.kv.Close()
	}
	if l.store != nil {
		l.awaitReaders()
		_ = l.store.Close()
	}
	if l.log != nil {
		_ = l.log.Close()
	}
}

// awaitReaders waits for who still reads, and for compactions, and names them before the engine panics.
func (l *life) awaitReaders() {
	const patience = 10 * time.Minute
	for begun := time.Now(); l.store.Pebble().TableIters > 0; time.Sleep(time.Second) {
		if time.Since(begun) > patience {
			stacks := make([]byte, 4<<20)
			stacks = stacks[:runtime.Stack(stacks, true)]
			panic(fmt.Sprintf("sim: member %d has readers %v after its end:\n%s", l.id, patience, stacks))
		}
	}
}

func (l *life) membersChanged() {
	l.server.MembersChanged()
	if !l.machine.IsRemoved(l.id) {
		l.syncPeers()
	}
}

// syncPeers is node's: the transport follows the member list.
func (l *life) syncPeers() {
	l.peersMu.Lock()
	defer l.peersMu.Unlock()
	for _, m := range l.machine.Members() {
		if m.ID != l.id && !l.peers[m.ID] {
			l.peers[m.ID] = true
			l.endpoint.AddPeer(m.ID, m.PeerURLs)
		}
	}
	for id := range l.peers {
		if l.IsRemoved(id) {
			delete(l.peers, id)
			l.endpoint.RemovePeer(id)
		}
	}
}

// The member as its peers' messages see it: node/snapshot.go.

func (l *life) Process(_ context.Context, m *raftpb.Message) error {
	err := l.replica.Process(m)
	if errors.Is(err, replica.ErrRefused) {
		l.w.violation(brokenLog, "member %s: %v", l.name, err)
	}
	return err
}
func (l *life) ReportUnreachable(id uint64)       { l.replica.ReportUnreachable(id) }
func (l *life) ReportSnapshot(id uint64, ok bool) { l.replica.ReportSnapshot(id, ok) }
func (l *life) IsRemoved(id uint64) bool {
	return l.machine.IsRemoved(id) && !l.replica.RemovalPending(id)
}

func (l *life) ReceiveSnapshot(ctx context.Context, m *raftpb.Message, body io.Reader, kind string) error {
	in, err := l.store.ReceiveSnapshot(ctx, body)
	if err != nil {
		return err
	}
	meta := m.GetSnapshot().GetMetadata()
	if in.Index != meta.GetIndex() || in.Term != meta.GetTerm() {
		l.w.violation(diverged, "snapshot of %x: message says %d/%d, state %d/%d", m.GetFrom(), meta.GetIndex(), meta.GetTerm(), in.Index, in.Term)
	}
	if err := l.replica.CheckMessage(m); err != nil {
		l.w.violation(brokenLog, "member %s: %v", l.name, err)
	}
	l.w.count("snapshots received")
	l.replica.ProcessSnapshot(m, func() error {
		l.w.count("snapshots installed")
		if err := l.machine.Install(in); err != nil {
			return err
		}
		l.lastRev = l.kv.Revision()
		l.hub.Reload()
		return nil
	}, in.Discard)
	return nil
}

func (l *life) OpenSnapshot(_ context.Context, m *raftpb.Message, _ transport.Software) (io.ReadCloser, error) {
	if l.dead.Load() {
		return nil, errDown
	}
	view := l.store.View()
	index, term := view.Applied()
	confState, err := state.ConfStateOf(view)
	if err != nil {
		view.Close()
		return nil, err
	}
	m.Snapshot = &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(index), Term: new(term), ConfState: confState}}
	reader, writer := io.Pipe()
	go func() {
		defer view.Close()
		writer.CloseWithError(l.store.WriteSnapshot(context.Background(), view, writer))
	}()
	return reader, nil
}

// Notify makes life a state.Sink: the world sees what every member applies.
func (l *life) Notify(rev int64, events []*mvccpb.Event) {
	if !l.dead.Load() {
		if l.lastRev != 0 && rev != l.lastRev+1 {
			l.w.violation(gap, "member %s applies revision %d after %d", l.name, rev, l.lastRev)
		}
		l.w.oracle.saw(l, rev, events)
	}
	l.lastRev = rev
	if l.w.o.mutation == loseEvent && l.rng.IntN(200) == 0 {
		events = events[1:]
	}
	l.hub.Notify(rev, events)
}

// gatedMachine blocks while the member is paused.
type gatedMachine struct{ l *life }

func (g gatedMachine) Apply(entries []command.Entry) []command.Result {
	g.l.paused.pass()
	g.l.applying.pass()
	for i := range entries {
		if entries[i].Place.IsSet() {
			g.l.w.count("entry with a place in the log applied")
		}
	}
	if !g.l.w.kinds[users] {
		return g.l.machine.Apply(entries)
	}
	// A process that has crashed may keep running: with one voter, what its disk was about to write
	// is then committed, and nobody will ever see it.
	if !g.l.dead.Load() {
		g.l.w.rights.expect(entries)
	}
	results := g.l.machine.Apply(g.mutated(entries))
	g.l.w.rights.compare(g.l, entries, results)
	return results
}

// mutated has one member take everybody for root.
func (g gatedMachine) mutated(entries []command.Entry) []command.Entry {
	if g.l.w.o.mutation != allRoot || g.l.id != 2 {
		return entries
	}
	entries = slices.Clone(entries)
	for i, e := range entries {
		if h := e.Request.GetHeader(); h.GetUsername() != "" {
			r := proto.CloneOf(e.Request)
			r.Header.Username = auth.Root
			entries[i].Request = r
		}
	}
	return entries
}

func (g gatedMachine) ApplyChange(e command.Entry) command.Result {
	g.l.paused.pass()
	g.l.applying.pass()
	return g.l.machine.ApplyChange(e)
}
func (g gatedMachine) CheckChange(c *command.Change) error { return g.l.machine.CheckChange(c) }
func (g gatedMachine) Applied() (index, term uint64)       { return g.l.machine.Applied() }
func (g gatedMachine) ConfState() *raftpb.ConfState        { return g.l.machine.ConfState() }
func (g gatedMachine) Flush(ctx context.Context) (uint64, <-chan struct{}, error) {
	g.l.paused.pass()
	return g.l.machine.Flush(ctx)
}

// gatedSegments blocks while the member is paused.
type gatedSegments struct{ l *life }

func (g gatedSegments) DropSegments(from command.Segment) {
	g.l.paused.pass()
	if g.l.w.o.mutation == dropSoon {
		from = store.NoLog
	}
	before := g.l.store.Segments.Stats()
	g.l.kv.DropSegments(from)
	if after := g.l.store.Segments.Stats(); after.Dropped > before.Dropped {
		g.l.w.count("kept segment of the log dropped")
	}
}

// gatedNetwork stops the raft loop while the member is paused, and watches what leaves.
type gatedNetwork struct{ l *life }

func (g gatedNetwork) Send(ms []*raftpb.Message) {
	g.l.paused.pass()
	if g.l.dead.Load() {
		return
	}
	if g.l.w.o.mutation == loopWaits {
		g.l.disk.logOps.pass()
	}
	for _, m := range ms {
		g.l.w.elections.sent(g.l, m)
		if string(m.GetContext()) == peers.ContextEarly {
			g.l.w.count("early answers")
			if g.l.w.o.mutation == earlyCount {
				last, _ := g.l.log.LastIndex()
				m.Index = new(last)
			}
		}
	}
	g.l.endpoint.Send(ms)
}

func (g gatedNetwork) ActiveSince(id uint64) time.Time { return g.l.endpoint.ActiveSince(id) }

// services are a member's that are called here.
type services struct{ lease pb.LeaseServer }

// RegisterService is grpc.ServiceRegistrar's.
func (s *services) RegisterService(_ *grpc.ServiceDesc, service any) {
	if lease, ok := service.(pb.LeaseServer); ok {
		s.lease = lease
	}
}

// otherMembers is HTTP between members.
type otherMembers struct{ l *life }

func (p otherMembers) ActiveSince(id uint64) time.Time { return p.l.endpoint.ActiveSince(id) }
func (p otherMembers) Client() *http.Client            { return &http.Client{Transport: p} }

// Open opens a connection to another member, which passes what all else does between the two.
func (p otherMembers) Open(ctx context.Context, id uint64, path, protocol string) (io.ReadWriteCloser, error) {
	to, err := p.reach(ctx, id)
	if err != nil {
		return nil, err
	}
	near, here := net.Pipe()
	there, far := net.Pipe()
	p.l.w.background(func() { p.carry(here, there, to) })
	p.l.w.background(func() { p.carry(there, here, to) })
	p.l.w.background(func() { serveOver(far, to.peerHTTP) })
	header := http.Header{}
	header.Set(peers.HeaderFrom, command.IDText(p.l.id))
	header.Set(peers.HeaderTo, command.IDText(id))
	way := &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return near, nil }}
	conn, err := peers.Open(ctx, way, peerURL(id)+path, header, protocol)
	if err != nil {
		_ = near.Close() // perhaps once more
	}
	p.l.w.count("connections between members")
	return conn, err
}

// carry brings what one end of a connection says to the other, until one is gone, or the link is cut.
func (p otherMembers) carry(from, to net.Conn, other *life) {
	defer from.Close()
	defer to.Close()
	b := make([]byte, 4<<10)
	for {
		n, err := from.Read(b)
		if err != nil || p.pass(context.Background(), other.id) != nil {
			return
		}
		other.paused.pass()
		if other.dead.Load() {
			return
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

// serveOver serves one request that comes over a connection, which it may take over.
func serveOver(conn net.Conn, h http.Handler) {
	defer conn.Close()
	early := bufio.NewReader(conn)
	r, err := http.ReadRequest(early)
	if err != nil {
		return
	}
	w := &takenOver{ResponseRecorder: httptest.NewRecorder(), conn: conn, early: early}
	h.ServeHTTP(w, r)
	if w.early != nil {
		_ = w.Result().Write(conn) // nobody to tell
	}
}

// takenOver is the answer of a request whose connection a handler may take over.
type takenOver struct {
	*httptest.ResponseRecorder
	conn  net.Conn
	early *bufio.Reader // nil: it was taken
}

func (w *takenOver) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	rw := bufio.NewReadWriter(w.early, bufio.NewWriter(w.conn))
	w.early = nil
	return w.conn, rw, nil
}

// roundTrips are what the links between the members make it, at worst.
type roundTrips struct{ w *world }

func (t roundTrips) RoundTrip(uint64) (median, tail time.Duration, ok bool) {
	link := t.w.link.Load()
	return 2 * link.Delay, 2 * (link.Delay + link.Jitter), true
}

// AskDisks is node's: each member is asked in a goroutine of its own.
func (p otherMembers) AskDisks(ids []uint64) {
	for _, id := range ids {
		p.l.w.background(func() {
			if to, err := p.reach(context.Background(), id); err == nil {
				p.l.replica.TellDisk(id, to.replica.Disk())
			}
		})
	}
}

var errDown = errors.New("the member is down")

func (p otherMembers) RoundTrip(r *http.Request) (*http.Response, error) {
	id, err := strconv.ParseUint(strings.TrimPrefix(r.URL.Host, "m"), 10, 64)
	if err != nil {
		return nil, err
	}
	to, err := p.reach(r.Context(), id)
	if err != nil {
		return nil, err
	}
	answer := httptest.NewRecorder()
	to.peerHTTP.ServeHTTP(answer, r)
	to.paused.pass()
	if to.dead.Load() {
		return nil, errDown
	}
	if err := p.pass(r.Context(), id); err != nil {
		return nil, err
	}
	return answer.Result(), nil
}

// pass waits as long as something takes on its way between this member and id.
func (p otherMembers) pass(ctx context.Context, id uint64) error {
	p.l.paused.pass()
	if p.l.dead.Load() || p.l.endpoint.ActiveSince(id).IsZero() {
		time.Sleep(tickInterval)
		return errDown
	}
	time.Sleep(2 * time.Millisecond)
	return ctx.Err()
}

// reach is pass, and returns the life of id that is to answer.
func (p otherMembers) reach(ctx context.Context, id uint64) (*life, error) {
	if err := p.pass(ctx, id); err != nil {
		return nil, err
	}
	m := p.l.w.member(id)
	if m == nil {
		return nil, errDown
	}
	to := m.life()
	if to == nil {
		return nil, errDown
	}
	to.paused.pass()
	return to, nil
}

// logger keeps a member's lines for the trace; one that would stop the process
// ends the life instead.
func (w *world) logger(l *life) *zap.Logger {
	hook := exitHook{l}
	return zap.New(&traceCore{l: l}, zap.WithFatalHook(hook), zap.WithPanicHook(hook))
}

type exitHook struct{ l *life }

func (h exitHook) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	text := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(text)
	}
	h.l.fail(fmt.Errorf("%s %v", e.Message, text.Fields))
	runtime.Goexit()
}

type traceCore struct {
	l    *life
	with []zapcore.Field
}

func (c *traceCore) Enabled(level zapcore.Level) bool { return level >= zapcore.InfoLevel }
func (c *traceCore) With(f []zapcore.Field) zapcore.Core {
	return &traceCore{c.l, append(append([]zapcore.Field(nil), c.with...), f...)}
}
func (c *traceCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}
func (c *traceCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if !c.l.w.o.trace && e.Level < zapcore.WarnLevel {
		return nil
	}
	text := zapcore.NewMapObjectEncoder()
	for _, f := range append(c.with, fields...) {
		f.AddTo(text)
	}
	c.l.w.tracef("%s %s: %s %v", c.l.name, e.Level, e.Message, text.Fields)
	return nil
}
func (c *traceCore) Sync() error { return nil }

// storeDisk returns how the disk under the store does.
func (l *life) storeDisk() replica.StoreDisk {
	oldest, sinceProgress := l.store.Disk()
	return replica.StoreDisk{Oldest: oldest, SinceProgress: sinceProgress}
}
