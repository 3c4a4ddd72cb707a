package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
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
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/internal/crash"
)

// lone is a member of a cluster of its own whose three parts each have a folder: the data, the
// store as a part of it, and the log. Its clients come by a unix socket, and nobody speaks to its
// peer port.
type lone struct {
	dir             string // holds data, wal, and the socket
	n               *Node
	member, cluster uint64 // its ids when it ran last
}

func (l *lone) data() string { return filepath.Join(l.dir, "data") }
func (l *lone) wal() string  { return filepath.Join(l.dir, "wal") }

func (l *lone) config() Config {
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:1"}
	return Config{
		Settings: Settings{
			Cluster: Cluster{Name: "a", DataDir: l.data(), WALDir: l.wal(), InitialCluster: "a=http://127.0.0.1:1", InitialClusterToken: "t", MaxLearners: 1},
			Ports: Ports{
				ListenPeerURLs: []url.URL{{Scheme: "unix", Path: filepath.Join(l.dir, "peer")}}, AdvertisePeerURLs: []url.URL{peer},
				ListenClientURLs: []url.URL{{Scheme: "unix", Path: filepath.Join(l.dir, "client")}}, AdvertiseClientURLs: []url.URL{peer},
				RPCEngine: os.Getenv("BELAY_RPC_ENGINE"),
			},
			Raft: Raft{PreVote: true, AdvanceTicks: true},
			Data: Data{QuotaBytes: 1 << 30, WarningApply: time.Minute, WarningRequest: time.Minute},
		},
		TickInterval: 10 * time.Millisecond, ElectionTicks: 10, MaxRequestBytes: 1 << 20, MaxTxnOps: 128, BcryptCost: 4, Logger: zap.NewNop(),
	}
}

func (l *lone) start() (err error) {
	l.n, err = Start(context.Background(), l.config())
	return err
}

func (l *lone) stop() {
	if l.n != nil {
		l.n.Stop()
		l.n = nil
	}
}

// ask calls fn with a client, when the member serves.
func (l *lone) ask(t *testing.T, fn func(ctx context.Context, kv pb.KVClient) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	select {
	case <-l.n.Ready():
	case err := <-l.n.Failed():
		t.Fatal(err)
	case <-ctx.Done():
		t.Fatal("the member does not serve")
	}
	conn, err := grpc.NewClient("unix://"+filepath.Join(l.dir, "client"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := fn(ctx, pb.NewKVClient(conn)); err != nil {
		t.Fatal(err)
	}
}

func (l *lone) put(t *testing.T, prefix string, count int) {
	t.Helper()
	l.ask(t, func(ctx context.Context, kv pb.KVClient) error {
		for i := range count {
			if _, err := kv.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "%s%02d", prefix, i), Value: []byte("v")}); err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *lone) keys(t *testing.T) (keys []string) {
	t.Helper()
	l.ask(t, func(ctx context.Context, kv pb.KVClient) error {
		resp, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, KeysOnly: true})
		if err == nil {
			for _, kv := range resp.Kvs {
				keys = append(keys, string(kv.Key))
			}
		}
		return err
	})
	return keys
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if _, err := os.Stat(from); os.IsNotExist(err) {
		return
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// moment is a member's data as it was at some time, and what it had acknowledged.
type moment struct {
	name    string
	history string // the same for all moments of one life
	time    int    // within it
	dir     string
	keys    []string
}

// keep copies the data of a member, which may run: nothing moves in it, as after a kill.
func (l *lone) keep(t *testing.T, history string, time int) *moment {
	m := &moment{name: fmt.Sprint(history, time), history: history, time: time, dir: t.TempDir()}
	if l.n != nil {
		m.keys = l.keys(t)
	}
	copyTree(t, l.data(), filepath.Join(m.dir, "data"))
	copyTree(t, l.wal(), filepath.Join(m.dir, "wal"))
	return m
}

func shortDir(t *testing.T) string { // of a socket: t.TempDir may be too long for one
	dir, err := os.MkdirTemp("", "lone")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// moments lives two lives under the same flags: both are member and cluster of the same ids. The
// first two of A have a store that was never flushed.
func moments(t *testing.T) (a, b []*moment) {
	for _, history := range []string{"A", "B"} {
		l := &lone{dir: shortDir(t)}
		var kept []*moment
		for start := range 3 {
			if err := l.start(); err != nil {
				t.Fatal(err)
			}
			l.put(t, fmt.Sprint(history, start, "/"), 5)
			kept = append(kept, l.keep(t, history, len(kept)))
			keys := kept[len(kept)-1].keys
			if l.stop(); start == 0 { // as if it had been killed
				if err := os.RemoveAll(l.dir); err != nil {
					t.Fatal(err)
				}
				copyTree(t, filepath.Join(kept[0].dir, "data"), l.data())
				copyTree(t, filepath.Join(kept[0].dir, "wal"), l.wal())
				continue
			}
			kept = append(kept, l.keep(t, history, len(kept)))
			kept[len(kept)-1].keys = keys
		}
		if a == nil {
			a = kept
		} else {
			b = kept
		}
	}
	return a, b
}

// assemble puts a member together of parts of several moments; nil: the part is lost.
func assembled(t *testing.T, identity, store, log *moment) *lone {
	l := &lone{dir: shortDir(t)}
	for _, dir := range []string{l.data(), l.wal()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	member := filepath.Join(l.data(), "member")
	if identity != nil || store != nil {
		if err := os.MkdirAll(member, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if identity != nil {
		data, err := os.ReadFile(filepath.Join(identity.dir, "data", "member", "identity.json"))
		if err == nil {
			err = os.WriteFile(filepath.Join(member, "identity.json"), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if store != nil {
		copyTree(t, filepath.Join(store.dir, "data", "member", "store"), filepath.Join(member, "store"))
	}
	if log != nil {
		copyTree(t, filepath.Join(log.dir, "wal"), l.wal())
	}
	return l
}

// promises are the files that a refused start must leave alone.
func (l *lone) promises(t *testing.T) map[string][]byte {
	all := make(map[string][]byte)
	for _, dir := range []string{l.data(), l.wal()} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			name := filepath.Base(path)
			if os.IsNotExist(err) {
				return nil
			}
			if err != nil || d.IsDir() || name != "identity.json" && name != "META" && !strings.HasPrefix(name, "segment-") {
				return err
			}
			all[path], err = os.ReadFile(path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// refused starts a member that must not start.
func (l *lone) refused(t *testing.T, texts ...string) {
	t.Helper()
	before := l.promises(t)
	err := l.start()
	if err == nil {
		l.stop()
		t.Error("it starts")
		return
	}
	for _, text := range append(texts, l.wal()) {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("the error does not name %s: %v", text, err)
		}
	}
	after := l.promises(t)
	if len(before) != len(after) {
		t.Errorf("%d files before, %d after", len(before), len(after))
	}
	for path, data := range before {
		if !bytes.Equal(after[path], data) {
			t.Errorf("%s was changed", path)
		}
	}
}

// TestPartsOfOtherTimes puts a member together of every combination of an identity, a store and a
// log that are lost, of an earlier time, or of another life under the same flags. It serves exactly
// what was acknowledged by the time of its log, the first time and after it was restarted, or it is
// refused.
func TestPartsOfOtherTimes(t *testing.T) {
	a, b := moments(t)
	parts := []*moment{nil, a[0], a[2], a[3], a[4], b[2]}
	name := func(m *moment) string {
		if m == nil {
			return "none"
		}
		return m.name
	}
	for _, log := range parts {
		for _, identity := range parts {
			for _, store := range parts {
				right := log != nil || identity == nil && store == nil
				for _, part := range []*moment{identity, store} {
					if part != nil && log != nil && (part.history != log.history || part.time > log.time) {
						right = false
					}
				}
				t.Run(fmt.Sprintf("identity %s store %s log %s", name(identity), name(store), name(log)), func(t *testing.T) {
					l := assembled(t, identity, store, log)
					if !right {
						l.refused(t)
						return
					}
					var want []string
					if log != nil {
						want = log.keys
					}
					for range 2 {
						if err := l.start(); err != nil {
							t.Fatal(err)
						}
						if got := l.keys(t); !slices.Equal(got, want) {
							t.Errorf("serves %v, want %v", got, want)
						}
						l.stop()
						if testing.Short() {
							break
						}
					}
				})
			}
		}
	}
}

// forgets makes a moment's data that of a version which did not know the log's id.
func (l *lone) forgets(t *testing.T) {
	t.Helper()
	member := filepath.Join(l.data(), "member")
	data, err := os.ReadFile(filepath.Join(member, "identity.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]any
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	delete(all, "log")
	delete(all, "group")
	if data, err = json.Marshal(all); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(member, "identity.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(member, "store", "identity.json")); err != nil {
		t.Fatal(err)
	}
}

// TestPartsOfAnOlderVersion: data without ids goes on, gets them, and is as safe as any other from
// then on. What was never flushed is data, too.
func TestPartsOfAnOlderVersion(t *testing.T) {
	a, b := moments(t)
	for _, m := range []*moment{a[0], a[2], a[3]} {
		t.Run(m.name, func(t *testing.T) {
			l := assembled(t, m, m, m)
			l.forgets(t)
			old := assembled(t, m, m, nil)
			old.forgets(t)
			old.refused(t, old.data())
			if err := l.start(); err != nil {
				t.Fatal(err)
			}
			if got := l.keys(t); !slices.Equal(got, m.keys) {
				t.Errorf("serves %v, want %v", got, m.keys)
			}
			l.stop()
			for _, other := range []*moment{m, b[2]} { // an older log of its own, and another's
				if err := os.RemoveAll(l.wal()); err != nil {
					t.Fatal(err)
				}
				copyTree(t, filepath.Join(other.dir, "wal"), l.wal())
				l.refused(t)
			}
		})
	}
	t.Run("a store without ids under an identity with them", func(t *testing.T) {
		l := assembled(t, a[2], a[2], a[2])
		if err := os.Remove(filepath.Join(l.data(), "member", "store", "identity.json")); err != nil {
			t.Fatal(err)
		}
		l.refused(t, filepath.Join(l.data(), "member", "store"))
	})
	t.Run("another cluster", func(t *testing.T) {
		l := assembled(t, a[2], a[2], a[2])
		l.forgets(t)
		path := filepath.Join(l.data(), "member", "identity.json")
		if err := os.WriteFile(path, []byte(`{"member":"1","cluster":"2"}`), 0o600); err != nil {
			t.Fatal(err)
		}
		l.refused(t, path, "member 1 of cluster 2")
	})
	t.Run("damaged", func(t *testing.T) {
		for _, dir := range []string{"", "store"} {
			l := assembled(t, a[2], a[2], a[2])
			path := filepath.Join(l.data(), "member", dir, "identity.json")
			if err := os.WriteFile(path, []byte(`{"member":`), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := l.start(); err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("%v; want the name of %s", err, path)
			}
			l.stop()
		}
	})
}

// TestCrashAtEveryStep lets the power fail before each operation on the file system of a member's
// first start, of what it writes, of its stop and of its second start. Whatever is left, the parts
// belong together and the next start goes on; once the member has said something they know each
// other, and the log holds all that was acknowledged.
func TestCrashAtEveryStep(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	mem := vfs.NewCrashableMem()
	var (
		mu      sync.Mutex
		acked   uint64 // index of an entry that was acknowledged
		crashes int
		faults  []error
	)
	l := &lone{dir: shortDir(t)}
	goesOn := func(left *vfs.MemFS) error {
		cfg := l.config()
		cfg.FS, cfg.DataDir, cfg.WALDir = left, "/data", "/wal"
		n := newNode(cfg)
		defer n.closeParts()
		if err := n.openData(); err != nil {
			return err
		}
		if err := n.openLog(context.Background()); err != nil {
			return err
		}
		last, err := n.log.LastIndex()
		if err == nil && last < acked {
			err = fmt.Errorf("the log ends with entry %d, but %d was acknowledged", last, acked)
		}
		return err
	}
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsRead {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		crashes++
		if err := crash.Kinds(mem, 1, rng, goesOn); err != nil && len(faults) < 5 {
			faults = append(faults, fmt.Errorf("before %v %s: %w", op.Kind, op.Path, err))
		}
		return nil
	}))
	for life := range 3 {
		if life == 2 { // the data of an older version
			data, err := json.Marshal(map[string]string{"member": command.IDText(l.member), "cluster": command.IDText(l.cluster)})
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(datadir.WriteFile(mem, "/data/member", "identity.json", data), mem.Remove("/data/member/store/identity.json"),
				datadir.SyncDir(mem, "/data/member/store")); err != nil {
				t.Fatal(err)
			}
		}
		cfg := l.config()
		cfg.FS, cfg.DataDir, cfg.WALDir = fs, "/data", "/wal"
		var err error
		if l.n, err = Start(context.Background(), cfg); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			l.put(t, fmt.Sprint(life, i), 1)
			index, _ := l.n.store.Applied()
			mu.Lock()
			acked = index
			mu.Unlock()
		}
		l.member, l.cluster = l.n.MemberID(), l.n.ClusterID()
		l.stop()
	}
	mu.Lock()
	defer mu.Unlock()
	for _, err := range faults {
		t.Error(err)
	}
	t.Logf("%d operations, entry %d", crashes, acked)
	if crashes < 100 || acked < 9 {
		t.Errorf("only %d operations and %d entries were met", crashes, acked)
	}
}

// TestRestoredParts: what a restore makes is whole from the beginning, and its log does not hold
// what its store does.
func TestRestoredParts(t *testing.T) {
	l := &lone{dir: shortDir(t)}
	if err := l.start(); err != nil {
		t.Fatal(err)
	}
	l.put(t, "k", 5)
	want := l.keys(t)
	snapshot := filepath.Join(t.TempDir(), "snapshot")
	func() {
		conn, err := grpc.NewClient("unix://"+filepath.Join(l.dir, "client"), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		stream, err := pb.NewMaintenanceClient(conn).Snapshot(t.Context(), &pb.SnapshotRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var all []byte
		for {
			part, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, part.Blob...)
		}
		if err := os.WriteFile(snapshot, all, 0o600); err != nil {
			t.Fatal(err)
		}
	}()
	l.stop()
	restored := func() *lone {
		r := &lone{dir: shortDir(t)}
		c := r.config()
		if _, err := datadir.Restore(t.Context(), datadir.RestoreConfig{
			Snapshot: snapshot, Name: c.Name, DataDir: c.DataDir, WALDir: c.WALDir, InitialCluster: c.InitialCluster,
			InitialClusterToken: c.InitialClusterToken,
		}); err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := restored()
	if _, err := os.Stat(filepath.Join(r.data(), "member", "snap")); err != nil {
		t.Errorf("nothing keeps an etcd out: %v", err)
	}
	// The data of one restore and the log of another, made of the same file.
	mixed, kept := restored(), filepath.Join(t.TempDir(), "wal")
	copyTree(t, mixed.wal(), kept)
	if err := os.RemoveAll(mixed.wal()); err != nil {
		t.Fatal(err)
	}
	copyTree(t, r.wal(), mixed.wal())
	mixed.refused(t, "two histories")
	if err := os.RemoveAll(mixed.wal()); err != nil {
		t.Fatal(err)
	}
	mixed.refused(t, "missing")
	copyTree(t, kept, mixed.wal())
	// Without its store: the log does not reach back so far.
	store, aside := filepath.Join(mixed.data(), "member", "store"), filepath.Join(mixed.dir, "aside")
	if err := os.Rename(store, aside); err != nil {
		t.Fatal(err)
	}
	mixed.refused(t, "older than the log")
	if err := errors.Join(os.RemoveAll(store), os.Rename(aside, store)); err != nil {
		t.Fatal(err)
	}
	for _, whole := range []*lone{r, mixed} {
		if err := whole.start(); err != nil {
			t.Fatal(err)
		}
		if got := whole.keys(t); !slices.Equal(got, want) {
			t.Errorf("serves %v, want %v", got, want)
		}
		whole.stop()
	}
}

// TestNobodyElseReads walks all that a member makes. The umask of the test's process is what it is:
// package datadir tries others.
func TestNobodyElseReads(t *testing.T) {
	l := &lone{dir: shortDir(t)}
	for range 2 {
		if err := l.start(); err != nil {
			t.Fatal(err)
		}
		l.put(t, "k", 3)
		l.stop()
	}
	files := 0
	for _, dir := range []string{l.data(), l.wal()} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			want := fs.FileMode(0o600)
			if d.IsDir() {
				want = 0o700
			} else {
				files++
			}
			if got := info.Mode().Perm(); got != want {
				t.Errorf("%s has mode %o, want %o", path, got, want)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files < 10 {
		t.Errorf("only %d files were met", files)
	}
}

// TestAloneWithoutAFlush: a member is killed before its store was ever flushed, and comes back
// without a quorum. It has no leader to find, but what it knows it tells its gRPC clients: the raft
// log is a state as much as the store. It once kept them waiting for ever.
func TestAloneWithoutAFlush(t *testing.T) {
	l := &lone{dir: shortDir(t)}
	start := func() {
		cfg := l.config()
		cfg.InitialCluster += ",b=http://127.0.0.1:2" // nobody is there
		var err error
		if l.n, err = Start(context.Background(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	start()
	killed := filepath.Join(l.dir, "killed")
	copyTree(t, l.data(), filepath.Join(killed, "data"))
	copyTree(t, l.wal(), filepath.Join(killed, "wal"))
	l.stop()
	l = &lone{dir: killed}
	start()
	defer l.stop()
	if index, _ := l.n.store.Applied(); l.n.store.DurableIndex() != 0 {
		t.Fatalf("the store was flushed: %d", index)
	}
	select {
	case <-l.n.serving:
	case <-time.After(time.Minute):
		t.Error("gRPC clients are not let in")
	}
}

// A stop whose flush fails ends, and says why: a flush that failed is not tried again, and to wait for
// its end would be in vain.
func TestStopWithoutADirectory(t *testing.T) {
	t.Parallel()
	l := &lone{dir: shortDir(t)}
	cfg := l.config()
	core, logs := observer.New(zap.WarnLevel)
	cfg.Logger = zap.New(core)
	var err error
	if l.n, err = Start(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	l.put(t, "key", 1)
	if err := os.Rename(l.data(), l.data()+".moved"); err != nil {
		t.Fatal(err)
	}
	l.stop()
	told := logs.FilterMessage("the store could not be flushed").All()
	if store := filepath.Join(l.data(), "member", "store"); len(told) != 1 || !strings.Contains(fmt.Sprint(told[0].ContextMap()["error"]), store+" is not there any more") {
		t.Errorf("told %v; all: %v", told, logs.All())
	}
}
