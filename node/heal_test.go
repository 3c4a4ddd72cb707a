package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/internal/crash"
	"github.com/belaydb/belay/store"
)

// A wire carries what members in this process say to each other, until it is cut: then one of them
// says nothing more, as if it had been killed.
type wire struct {
	mu    sync.Mutex
	cut   bool
	conns []net.Conn
	dir   string // of the members' sockets
}

// over is what is put over the dialing of a member; own: of the one that can be cut off.
func (w *wire) over(own bool) func(Dial) Dial {
	return func(Dial) Dial {
		return func(ctx context.Context, _, address string) (net.Conn, error) {
			name, _, _ := strings.Cut(address, ":")
			c, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(w.dir, name))
			if err != nil || !own && name != "c" {
				return c, err
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.cut {
				c.Close()
				return nil, errors.New("killed")
			}
			w.conns = append(w.conns, c)
			return c, nil
		}
	}
}

func (w *wire) kill() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = true
	for _, c := range w.conns {
		c.Close()
	}
	w.conns = nil
}

func (w *wire) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = false
}

// trio are three members in this process; c is the one that is damaged.
type trio struct {
	dir  string
	wire *wire
	fs   map[string]vfs.FS
	n    map[string]*Node
	logs map[string]*tail // what each said last; printed if the test fails
}

// tail keeps the last lines of a log.
type tail struct {
	mu    sync.Mutex
	lines []string
}

func (l *tail) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(b))
	if n := len(l.lines); n > 300 {
		l.lines = slices.Delete(l.lines, 0, n-200)
	}
	return len(b), nil
}

func (l *tail) logger() *zap.Logger {
	cfg := zap.NewDevelopmentEncoderConfig()
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(cfg), zapcore.AddSync(l), zapcore.InfoLevel))
}

func newTrio(t *testing.T) *trio {
	g := &trio{dir: shortDir(t), wire: &wire{}, fs: map[string]vfs.FS{}, n: map[string]*Node{}, logs: map[string]*tail{}}
	g.wire.dir = g.dir
	t.Cleanup(func() {
		for name, l := range g.logs {
			if l.mu.Lock(); t.Failed() {
				t.Logf("the last that %s said:\n%s", name, strings.Join(l.lines, ""))
			}
			l.mu.Unlock()
		}
	})
	for _, name := range []string{"a", "b", "c"} {
		g.logs[name] = &tail{}
	}
	for _, name := range []string{"a", "b", "c"} {
		g.fs[name] = vfs.NewMem()
		if name == "c" {
			g.fs[name] = vfs.NewCrashableMem()
		}
		var err error
		if g.n[name], err = Start(context.Background(), g.config(name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, n := range g.n {
			if n != nil {
				n.Stop()
			}
		}
	})
	for name, n := range g.n {
		select {
		case <-n.Ready():
		case <-time.After(time.Minute):
			t.Fatalf("%s does not serve", name)
		}
	}
	return g
}

func (g *trio) socket(name string) string { return filepath.Join(g.dir, name) }

func (g *trio) config(name string) Config {
	l := lone{dir: g.dir}
	cfg := l.config()
	cfg.Name, cfg.DataDir, cfg.WALDir, cfg.Heal, cfg.FS = name, "/data", "/wal", true, g.fs[name]
	cfg.ListenPeerURLs, cfg.AdvertisePeerURLs = []url.URL{{Scheme: "unix", Path: g.socket(name)}}, []url.URL{{Scheme: "http", Host: name + ":1"}}
	cfg.ListenClientURLs = []url.URL{{Scheme: "unix", Path: g.socket(name) + "-client"}}
	cfg.InitialCluster = "a=http://a:1,b=http://b:1,c=http://c:1"
	cfg.TickInterval, cfg.ElectionTicks = 50*time.Millisecond, 10
	cfg.Over = g.wire.over(name == "c")
	cfg.Logger = g.logs[name].logger()
	return cfg
}

// client speaks to a and b.
func (g *trio) client(t *testing.T, name string) *grpc.ClientConn {
	conn, err := grpc.NewClient("unix://"+g.socket(name)+"-client", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// members are the members as a has them, without those that the others do not know yet.
func (g *trio) members() (text []string) {
	for _, m := range g.n["a"].state.Members() {
		text = append(text, fmt.Sprintf("%s voter=%v %v", m.Name, !m.IsLearner, m.PeerURLs))
	}
	slices.Sort(text)
	return text
}

// live starts c and heals it, until it is a voter again or over is closed.
func (g *trio) live(t *testing.T, cfg Config, over <-chan struct{}) (healed bool) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	go func() {
		select {
		case <-over:
			cancel()
		case <-ctx.Done():
		}
	}()
	var found error
	for {
		if found != nil {
			if err := Heal(ctx, cfg, found, nil); err != nil {
				select {
				case <-over:
					return false
				default:
				}
				t.Fatalf("it does not heal: %v", err)
			}
		}
		n, err := Start(context.Background(), cfg)
		if err == nil {
			defer func() {
				if !healed {
					n.Stop()
				}
			}()
			for {
				select {
				case <-over:
					return false
				default:
				}
				left, err := datadir.ReadHealing(cfg.FS, cfg.paths())
				if err == nil && left == nil {
					n.recovery.ended.Wait() // its last step is done, or the life was killed at it
					select {
					case <-over:
						return false
					default:
					}
					g.n["c"] = n
					return true
				}
				select {
				case <-over:
					return false
				case err := <-n.Failed():
					t.Fatalf("it ends: %v", err)
				case <-ctx.Done():
					t.Fatalf("it is not well again: %v", g.members())
				case <-time.After(20 * time.Millisecond):
				}
			}
		}
		select {
		case <-over:
			return false
		default:
		}
		if !IsDamage(err) {
			t.Fatal(err)
		}
		found = err
	}
}

// ofHealing reports whether an operation on the file system is a step of a healing, rather than of
// the life of any member.
func ofHealing(op errorfs.Op) bool {
	if op.Kind.ReadOrWrite() == errorfs.OpIsRead {
		return false
	}
	name := filepath.Base(op.Path)
	return strings.HasPrefix(name, "healing.json") || strings.HasPrefix(name, "identity.json") || strings.HasPrefix(name, "META") ||
		op.Kind == errorfs.OpRename && (name == "member" || name == "log") || filepath.Dir(op.Path) == "/" && op.Kind != errorfs.OpOpenDir
}

// TestHealKilledAtEachStep damages a member of three and kills it, with a power failure, before an
// operation of its healing; what it says from then on nobody hears. It is started again with what
// is left, and is a voter again, with a new id and the others' data, and without a write that
// failed. With BELAY_HEAL=all before each of the operations in turn; otherwise before some.
func TestHealKilledAtEachStep(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	g := newTrio(t)
	kv := pb.NewKVClient(g.client(t, "a"))
	writes := 0
	put := func() {
		if _, err := kv.Put(t.Context(), &pb.PutRequest{Key: fmt.Appendf(nil, "k%d", writes), Value: []byte("v")}); err != nil {
			t.Errorf("a write failed: %v", err)
		}
		writes++
	}
	steps, at := 0, []int{0}
	for round := 0; round < len(at); round++ {
		put()
		old := g.n["c"].MemberID()
		g.n["c"].Stop()
		mem := g.fs["c"].(*vfs.MemFS)
		damage := damages()[round%len(damages())]
		if err := damage.to(mem); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{"/data", "/wal"} { // or the third healing within an hour is refused
			names, _ := mem.List(dir)
			for _, name := range names {
				if strings.HasPrefix(name, "damaged-") {
					if err := mem.RemoveAll(mem.PathJoin(dir, name)); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		put()
		// The life that is killed.
		var mu sync.Mutex
		met, over := 0, make(chan struct{})
		var left *vfs.MemFS
		cfg := g.config("c")
		cfg.FS = errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if !ofHealing(op) {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			if met++; met != at[round] {
				return nil
			}
			t.Logf("killed before %d: %v %s, after %s", met, op.Kind, op.Path, damage.name)
			g.wire.kill()
			var err error
			if left, err = crash.Clone(mem, rng.IntN(101), rng); err != nil {
				t.Error(err)
			}
			close(over)
			return nil
		}))
		healed := g.live(t, cfg, over)
		if !healed {
			put()
			g.wire.mend()
			g.fs["c"] = left
			if !g.live(t, g.config("c"), nil) {
				t.Fatal("it is not well again")
			}
		}
		put()
		if at[round] == 0 {
			mu.Lock()
			steps = met
			mu.Unlock()
			for step := 1; step <= steps; step++ {
				at = append(at, step)
			}
			if os.Getenv("BELAY_HEAL") != "all" {
				rng.Shuffle(len(at)-1, func(i, j int) { at[i+1], at[j+1] = at[j+1], at[i+1] })
				at = at[:4]
			}
			t.Logf("%d steps", steps)
		}
		g.check(t, old, writes)
		if t.Failed() {
			t.Fatalf("killed before %d, after %s", at[round], damage.name)
		}
	}
	if steps < 12 {
		t.Errorf("only %d steps", steps)
	}
}

// check compares c with the others.
func (g *trio) check(t *testing.T, old uint64, writes int) {
	t.Helper()
	n := g.n["c"]
	if n.MemberID() == old || !g.n["a"].state.IsRemoved(old) {
		t.Errorf("it came back as %x, and was %x", n.MemberID(), old)
	}
	want := []string{"a voter=true [http://a:1]", "b voter=true [http://b:1]", "c voter=true [http://c:1]"}
	if got := g.members(); !slices.Equal(got, want) {
		t.Errorf("members %v, want %v", got, want)
	}
	select {
	case <-n.serving:
	case <-time.After(time.Minute):
		t.Fatal("it does not serve")
	}
	conn := g.client(t, "c")
	defer conn.Close()
	resp, err := pb.NewKVClient(conn).Range(t.Context(), &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), CountOnly: true})
	if err != nil || resp.Count != int64(writes) {
		t.Errorf("it has %d keys of %d, %v", resp.GetCount(), writes, err)
	}
	if _, err := pb.NewKVClient(conn).Put(t.Context(), &pb.PutRequest{Key: []byte("by c")}); err != nil {
		t.Error(err)
	}
}

// TestHealDiffering: a member whose data is not that of the others, which the leader's check finds,
// leaves, comes back with theirs under a new id, and the alarm is disarmed: writes go on by themselves.
func TestHealDiffering(t *testing.T) {
	t.Parallel()
	g := newTrio(t)
	kv := pb.NewKVClient(g.client(t, "a"))
	for _, key := range []string{"k0", "k1"} {
		if _, err := kv.Put(t.Context(), &pb.PutRequest{Key: []byte(key), Value: []byte("v")}); err != nil {
			t.Fatal(err)
		}
	}
	old := g.n["c"].MemberID()
	if _, err := pb.NewKVClient(g.client(t, "c")).Range(t.Context(), &pb.RangeRequest{Key: []byte("k1")}); err != nil {
		t.Fatal(err) // what it has read it has applied
	}
	g.n["c"].Stop()
	if err := alterValue(g.fs["c"], "k1"); err != nil {
		t.Fatal(err)
	}
	// All check, whoever leads.
	for _, name := range []string{"a", "b", "c"} {
		if name != "c" {
			g.n[name].Stop()
		}
		cfg := g.config(name)
		cfg.CorruptCheckTime = 500 * time.Millisecond
		var err error
		if g.n[name], err = Start(context.Background(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	var found error
	select {
	case found = <-g.n["c"].Failed():
	case <-time.After(2 * time.Minute):
		t.Fatalf("it does not leave; alarms %v", g.n["a"].state.Alarms())
	}
	if !IsDamage(found) || !IsDiffering(found) {
		t.Fatalf("it leaves because of %v", found)
	}
	cfg, others := g.config("c"), Others(g.n["c"])
	g.n["c"].Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := Heal(ctx, cfg, found, others); err != nil {
		t.Fatal(err)
	}
	if !g.live(t, cfg, nil) {
		t.Fatal("it is not well again")
	}
	if alarms := g.n["a"].state.Alarms(); len(alarms) > 0 {
		t.Errorf("the alarms %v are left", alarms)
	}
	g.check(t, old, 2) // it writes, too
	a, _, _, err := g.n["a"].kv.HashState(ctx, 3)
	c, _, _, errC := g.n["c"].kv.HashState(ctx, 3)
	if err != nil || errC != nil || a != c {
		t.Errorf("hashes %d and %d, %v, %v", a, c, err, errC)
	}
}

// alterValue changes one byte of a key's newest value in the store of a member that does not run.
func alterValue(fs vfs.FS, key string) (err error) {
	st, err := store.Open("/data/member/store", store.Options{FS: fs})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	it, err := st.NewIter(nil)
	if err != nil {
		return err
	}
	prefix := store.AppendUserKeyPrefix(nil, []byte(key))
	if !it.SeekGE(prefix) || !bytes.HasPrefix(it.Key(), prefix) {
		return errors.Join(fmt.Errorf("there is no %q", key), it.Close())
	}
	stored, value := slices.Clone(it.Key()), slices.Clone(it.Value())
	if err := it.Close(); err != nil {
		return err
	}
	value[len(value)-1] ^= 1
	b := st.NewLocalBatch()
	return errors.Join(b.Set(stored, value), b.Commit(), st.Flush(context.Background()))
}

// A damage is something that happens to a member's files while it does not run.
type damage struct {
	name string
	to   func(fs *vfs.MemFS) error
}

func damages() []damage {
	flip := func(fs *vfs.MemFS, path string) error {
		info, err := fs.Stat(path)
		if err != nil {
			return err
		}
		f, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
		if err != nil {
			return err
		}
		b := make([]byte, 1)
		at := min(info.Size()/2, 100)
		if _, err := f.ReadAt(b, at); err != nil {
			return err
		}
		b[0] ^= 0x10
		_, err = f.WriteAt(b, at)
		return errors.Join(err, f.Sync(), f.Close())
	}
	remove := func(fs *vfs.MemFS, paths ...string) (err error) {
		for _, path := range paths {
			err = errors.Join(err, fs.RemoveAll(path), datadir.SyncDir(fs, fs.PathDir(path)))
		}
		return err
	}
	return []damage{
		{"the log is gone", func(fs *vfs.MemFS) error { return remove(fs, "/wal/log") }},
		{"a byte of META", func(fs *vfs.MemFS) error { return flip(fs, "/wal/log/META") }},
		{"all is gone", func(fs *vfs.MemFS) error { return remove(fs, "/wal/log", "/data/member") }},
		{"a byte of the identity", func(fs *vfs.MemFS) error { return flip(fs, "/data/member/identity.json") }},
		{"META is gone", func(fs *vfs.MemFS) error { return remove(fs, "/wal/log/META") }},
		{"a byte of the store's name", func(fs *vfs.MemFS) error { return flip(fs, "/data/member/store/STORE") }},
		{"the store's identity is gone", func(fs *vfs.MemFS) error { return remove(fs, "/data/member/store/identity.json") }},
	}
}

// TestHealRefusedHere: where the others are no quorum nothing of the member is changed, and it starts
// again when what was damaged is put back.
func TestHealRefusedHere(t *testing.T) {
	t.Parallel()
	l := &lone{dir: shortDir(t)}
	cfg := l.config()
	cfg.Heal = true
	n, err := Start(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	<-n.Ready()
	// What it finds while it applies is not noted either: the next start would refuse because of it.
	n.recovery.note(n)(errors.New("a byte"))
	if h, err := datadir.ReadHealing(datadir.FS(), datadir.PathsOf(cfg.DataDir, cfg.WALDir)); h != nil || err != nil {
		t.Errorf("it has noted %+v, %v", h, err)
	}
	n.Stop()
	log := filepath.Join(l.wal(), "log")
	if err := os.Rename(log, log+"-away"); err != nil {
		t.Fatal(err)
	}
	if _, err = Start(context.Background(), cfg); !IsDamage(err) {
		t.Fatalf("it starts without its log: %v", err)
	}
	before := l.promises(t)
	err = Heal(t.Context(), cfg, err, nil)
	if !errors.Is(err, ErrNoHealing) || !IsDamage(err) || !strings.Contains(err.Error(), "no other member") {
		t.Errorf("alone: %v", err)
	}
	if after := l.promises(t); len(after) != len(before) {
		t.Errorf("%d files of %d", len(after), len(before))
	}
	if err := os.Rename(log+"-away", log); err != nil {
		t.Fatal(err)
	}
	if n, err = Start(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	n.Stop()
}

// TestHelpless: two voters are no quorum without one of them; a learner beside two is no loss to it.
func TestHelpless(t *testing.T) {
	members := func(voters, learners int) (all []*command.Member) {
		for i := range voters + learners {
			all = append(all, &command.Member{ID: uint64(i + 1), IsLearner: i >= voters})
		}
		return all
	}
	for _, tc := range []struct {
		voters, learners int
		own              uint64
		want             bool
	}{{1, 0, 1, true}, {2, 0, 2, true}, {2, 1, 2, true}, {2, 1, 3, false}, {3, 0, 1, false}, {1, 1, 2, false}, {2, 0, 9, false}} {
		if got := helpless(members(tc.voters, tc.learners), tc.own); got != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}

// TestUnfinishedHealing: a member that has asked for a new id does not start with its old one, with
// the flag or without.
func TestUnfinishedHealing(t *testing.T) {
	t.Parallel()
	l := &lone{dir: shortDir(t)}
	if err := l.start(); err != nil {
		t.Fatal(err)
	}
	l.stop()
	cfg := l.config()
	paths := datadir.PathsOf(cfg.DataDir, cfg.WALDir)
	h, err := datadir.BeginHealing(datadir.FS(), paths, errors.New("a byte"), []string{"http://127.0.0.1:9"}, time.Now())
	if err != nil || h.Member == 0 {
		t.Fatalf("%+v, %v", h, err)
	}
	if err := l.start(); !IsDamage(err) || !strings.Contains(err.Error(), "--heal") {
		t.Errorf("it starts: %v", err)
		l.stop()
	}
	again, err := datadir.BeginHealing(datadir.FS(), paths, errors.New("another"), nil, time.Now())
	if err != nil || again.Nonce != h.Nonce || again.Found != "a byte" {
		t.Errorf("it asks again as somebody else: %+v, %v", again, err)
	}
	// Its file can be damaged, too.
	path := filepath.Join(cfg.DataDir, "healing.json")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.start(); !IsDamage(err) || !strings.Contains(err.Error(), path) {
		t.Errorf("it starts: %v", err)
		l.stop()
	}
	if next, err := datadir.BeginHealing(datadir.FS(), paths, errors.New("a file"), nil, time.Now()); err != nil || next.Nonce == h.Nonce || next.Member != h.Member {
		t.Errorf("%+v, %v", next, err)
	}
}

// TestHealsWithin bounds how often a member heals.
func TestHealsWithin(t *testing.T) {
	fs, paths := vfs.NewMem(), datadir.PathsOf("/data", "")
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	for i, wait := range []time.Duration{0, time.Minute, time.Minute, time.Hour, time.Hour} {
		now = now.Add(wait)
		h, err := datadir.BeginHealing(fs, paths, errors.New("a byte"), nil, now)
		if (i == 2) != (err != nil) {
			t.Errorf("time %d: %v", i, err)
		}
		if err != nil {
			continue
		}
		if err := fs.MkdirAll(paths.Member, 0o700); err != nil {
			t.Fatal(err)
		}
		h.Heir = 1
		if err := errors.Join(h.SetAside(fs, paths, zap.NewNop()), h.SetAside(fs, paths, zap.NewNop()), h.Done(fs, paths, zap.NewNop())); err != nil {
			t.Fatal(err)
		}
	}
	if n := datadir.DamagedCopies(fs, paths); n != 2 {
		t.Errorf("%d copies are kept", n)
	}
}
