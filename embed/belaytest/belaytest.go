package belaytest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/embed/internal/local"
	"github.com/belaydb/belay/internal/fault"
	"github.com/belaydb/belay/node"
)

// patience is how long C waits for what a cluster does within seconds; in a bubble it is virtual.
const patience = 2 * time.Minute

// keptLogBytes is how much of each member's log a failed test shows.
const keptLogBytes = 16 << 10

// C is a cluster under test. Members are counted from 0. Its methods are for the goroutine of the
// test; what cannot be done ends the test.
type C struct {
	t       testing.TB
	flags   []string
	network *local.Network
	members []*member
	clients []*clientv3.Client
	zombies sync.WaitGroup // lives that were killed and are still on their way out
	rng     *rand.Rand     // which unsynced bytes a power failure spares
}

// A member is what stays over its lives.
type member struct {
	name, host string
	mem        *vfs.MemFS
	faults     fault.State
	life       *life // nil: it does not run
	log        tail
}

// A life is one start of a member.
type life struct {
	*local.Member
	layer *fault.Layer
	dead  atomic.Bool // killed: it reaches nobody any more
}

// Cluster starts a cluster whose data and network are in memory, and returns when all members serve.
// The test's end stops it. Flags are more of `belay server`'s, each as --name=value. If the test
// fails, the ends of the members' logs are shown.
func Cluster(t testing.TB, size int, flags ...string) *C {
	t.Helper()
	if size < 1 {
		t.Fatalf("belaytest: a cluster of %d members", size)
	}
	c := &C{t: t, flags: flags, network: local.NewNetwork(), rng: rand.New(rand.NewPCG(1, uint64(size)))}
	for i := range size {
		c.members = append(c.members, &member{name: fmt.Sprintf("m%d", i), host: c.network.Host(), mem: vfs.NewCrashableMem()})
	}
	t.Cleanup(c.end)
	for i := range c.members {
		c.begin(i)
	}
	for i := range c.members {
		c.WaitReady(i)
	}
	return c
}

func (c *C) end() {
	for _, client := range c.clients {
		_ = client.Close() // it was of use
	}
	for i, m := range c.members {
		if m.life != nil {
			c.RepairDisk(i) // what waits for it goes on
		}
	}
	c.Join()
	var stopping sync.WaitGroup
	for _, m := range c.members {
		if m.life != nil {
			stopping.Go(m.life.Stop)
		}
	}
	stopping.Wait()
	c.zombies.Wait()
	if c.t.Failed() {
		for _, m := range c.members {
			c.t.Logf("--- the end of the log of %s:\n%s", m.name, m.log.String())
		}
	}
}

// begin starts a life of a member.
func (c *C) begin(i int) {
	c.t.Helper()
	m := c.members[i]
	var initial []string
	for _, o := range c.members {
		initial = append(initial, o.name+"="+local.PeerURL(o.host))
	}
	l := &life{layer: fault.New()}
	l.layer.Set(m.faults)
	dir := "/" + m.name
	core := zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(&m.log), zapcore.InfoLevel)
	started, err := local.Start(context.Background(), local.Spec{
		Name: m.name, Dir: dir, FS: l.layer.FS(m.mem, datadir.PathsOf(dir, "").Log), Flags: c.flags, Logger: zap.New(core),
		Network: c.network, Host: m.host, Initial: strings.Join(initial, ","),
		Over: func(next node.Dial) node.Dial {
			return l.layer.Dialer(func(ctx context.Context, network, address string) (net.Conn, error) {
				if l.dead.Load() {
					return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
				}
				return next(ctx, network, address)
			})
		},
	})
	if err != nil {
		c.t.Fatalf("belaytest: start %s: %v", m.name, err)
	}
	l.Member = started
	m.life = l
}

// running is a member that runs.
func (c *C) running(i int) *member {
	c.t.Helper()
	m := c.at(i)
	if m.life == nil {
		c.t.Fatalf("belaytest: %s does not run: Start it", m.name)
	}
	return m
}

func (c *C) at(i int) *member {
	c.t.Helper()
	if i < 0 || i >= len(c.members) {
		c.t.Fatalf("belaytest: there is no member %d: they are 0 to %d", i, len(c.members)-1)
	}
	return c.members[i]
}

// Size is how many members the cluster has.
func (c *C) Size() int { return len(c.members) }

// Client returns a client of all members. The test's end closes it.
func (c *C) Client() *clientv3.Client {
	c.t.Helper()
	var members []*local.Member
	for _, m := range c.members {
		if m.life != nil {
			members = append(members, m.life.Member)
		}
	}
	return c.client(members...)
}

// ClientOf returns a client of one member. The test's end closes it.
func (c *C) ClientOf(i int) *clientv3.Client {
	c.t.Helper()
	return c.client(c.running(i).life.Member)
}

func (c *C) client(members ...*local.Member) *clientv3.Client {
	c.t.Helper()
	if len(members) == 0 {
		c.t.Fatal("belaytest: no member runs that a client could ask")
	}
	client, err := local.Client(members...)
	if err != nil {
		c.t.Fatalf("belaytest: a client: %v", err)
	}
	c.clients = append(c.clients, client)
	return client
}

// WaitReady waits until a member serves.
func (c *C) WaitReady(i int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := c.running(i).life.Ready(ctx); err != nil {
		c.t.Fatalf("belaytest: %v", err)
	}
}

// Err is why a member has ended by itself; nil while it runs.
func (c *C) Err(i int) error { c.t.Helper(); return c.running(i).life.Err() }

// Leader waits until all members that run and are not cut off agree on a leader, and returns it.
func (c *C) Leader() int {
	c.t.Helper()
	var last string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		leader, said := c.leader()
		if leader >= 0 {
			return leader
		}
		last = said
	}
	c.t.Fatalf("belaytest: no leader that a majority follows within %v: %s", patience, last)
	return -1
}

// leader is whom a majority calls the leader; below 0: there is none.
func (c *C) leader() (int, string) {
	votes, said := map[uint64]int{}, []string{}
	for _, m := range c.members {
		if m.life == nil {
			continue
		}
		id := m.life.Leader()
		said = append(said, fmt.Sprintf("%s says %x", m.name, id))
		if id != 0 {
			votes[id]++
		}
	}
	for i, m := range c.members {
		if m.life != nil && 2*votes[m.life.ID()] > len(c.members) {
			return i, ""
		}
	}
	return -1, strings.Join(said, ", ")
}

// Stop ends a member in order, as SIGTERM does.
func (c *C) Stop(i int) {
	c.t.Helper()
	m := c.running(i)
	m.life.Stop()
	m.life = nil
}

// Kill ends a member at once, as SIGKILL does: what it has written is there for the next Start,
// synced or not.
func (c *C) Kill(i int) { c.t.Helper(); c.crash(i, 100) }

// PowerOff ends a member at once and loses what it has not synced, whole or in part, as a power
// failure of its machine does.
func (c *C) PowerOff(i int) { c.t.Helper(); c.crash(i, c.rng.IntN(2)*50) }

func (c *C) crash(i, spared int) {
	c.t.Helper()
	m := c.running(i)
	l := m.life
	m.life = nil
	// Nothing may leave after its disk is taken: it might promise what that does not hold.
	l.dead.Store(true)
	c.network.Unplug(m.host)
	m.mem = m.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: spared, RNG: c.rng})
	l.layer.Set(fault.State{}) // what hangs goes on, where nobody sees it
	c.zombies.Go(l.Stop)
}

// Start starts a member that was ended. It does not wait: see WaitReady.
func (c *C) Start(i int) {
	c.t.Helper()
	if m := c.at(i); m.life != nil {
		c.t.Fatalf("belaytest: %s runs", m.name)
	}
	c.begin(i)
}

// Restart is Start and WaitReady.
func (c *C) Restart(i int) { c.t.Helper(); c.Start(i); c.WaitReady(i) }

// tell has a member's faults be as change makes them.
func (c *C) tell(i int, change func(*fault.State)) {
	m := c.members[i]
	if m.faults.Links = maps.Clone(m.faults.Links); m.faults.Links == nil { // the Layer reads the old one
		m.faults.Links = map[string]fault.Link{}
	}
	change(&m.faults)
	if m.life != nil {
		m.life.layer.Set(m.faults)
	}
}

// link has both ways between two members be w.
func (c *C) link(i, j int, w fault.Way) {
	for _, p := range [][2]int{{i, j}, {j, i}} {
		to := local.Address(c.members[p[1]].host, local.PeerPort)
		c.tell(p[0], func(s *fault.State) { s.Links[to] = fault.Link{Out: w, In: w} })
	}
}

// Cut has nothing arrive between two members, and closes nothing, as a network that drops all
// packets. Clients reach both.
func (c *C) Cut(i, j int) {
	c.t.Helper()
	c.at(i)
	c.at(j)
	c.link(i, j, fault.Way{Cut: true})
}

// Isolate is Cut between a member and every other one.
func (c *C) Isolate(i int) {
	c.t.Helper()
	c.at(i)
	for j := range c.members {
		if j != i {
			c.Cut(i, j)
		}
	}
}

// Delay has what members send each other take d longer, one way; 0 ends it, and cuts.
func (c *C) Delay(d time.Duration) {
	for i := range c.members {
		for j := range i {
			c.link(i, j, fault.Way{Delay: d})
		}
	}
}

// Join ends what Cut, Isolate and Delay began.
func (c *C) Join() { c.Delay(0) }

func (c *C) disk(i int, d fault.Disk) {
	c.t.Helper()
	c.at(i)
	c.tell(i, func(s *fault.State) { s.Log, s.Store = d, d })
}

// StallDisk has no sync of a member end before RepairDisk.
func (c *C) StallDisk(i int) { c.t.Helper(); c.disk(i, fault.Disk{Stall: true}) }

// SlowDisk has each sync of a member take d longer.
func (c *C) SlowDisk(i int, d time.Duration) { c.t.Helper(); c.disk(i, fault.Disk{Delay: d}) }

// FillDisk has a member's files become no longer: writes fail with "no space left on device".
func (c *C) FillDisk(i int) { c.t.Helper(); c.disk(i, fault.Disk{Full: true}) }

// RepairDisk ends what StallDisk, SlowDisk and FillDisk began.
func (c *C) RepairDisk(i int) { c.t.Helper(); c.disk(i, fault.Disk{}) }

// CheckEqual waits until all members have applied as much, and ends the test if their data is not
// the same. All must run, without cuts.
func (c *C) CheckEqual() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	newest, err := c.Client().Get(ctx, "\x00")
	if err != nil {
		c.t.Fatalf("belaytest: the newest revision: %v", err)
	}
	rev := newest.Header.Revision
	var first *pb.HashKVResponse
	for i, m := range c.members {
		client := c.ClientOf(i)
		// A linearizable read waits until the member has applied what the others acknowledged.
		if _, err := client.Get(ctx, "\x00"); err != nil {
			c.t.Fatalf("belaytest: read from %s: %v", m.name, err)
		}
		r, err := pb.NewMaintenanceClient(client.ActiveConnection()).HashKV(ctx, &pb.HashKVRequest{Revision: rev})
		if err != nil {
			c.t.Fatalf("belaytest: the hash of %s: %v", m.name, err)
		}
		if first == nil {
			first = r
		} else if r.CompactRevision == first.CompactRevision && r.Hash != first.Hash {
			c.t.Fatalf("belaytest: at revision %d the data of %s and %s differ: hashes %d and %d", rev, c.members[0].name, m.name, first.Hash, r.Hash)
		}
	}
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	kept []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, p...)
	if len(t.kept) > 2*keptLogBytes {
		t.kept = append(t.kept[:0], t.kept[len(t.kept)-keptLogBytes:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	kept := t.kept
	if len(kept) > keptLogBytes {
		kept = kept[len(kept)-keptLogBytes:]
	}
	if i := bytes.IndexByte(kept, '\n'); i >= 0 && len(kept) == keptLogBytes {
		kept = kept[i+1:]
	}
	return string(kept)
}
