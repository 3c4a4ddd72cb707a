package check

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/proof/cluster"
)

// rootClient logs in as root.
func rootClient(t *testing.T, endpoints ...string) *clientv3.Client {
	t.Helper()
	cl, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Username: "root", Password: "pw", Logger: zap.NewNop(), DialTimeout: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cl.Close() })
	return cl
}

// fillForRestore writes what a restore has to bring over: versions, deletes and
// creations again, several changes in one revision, leases, a compaction, users.
func fillForRestore(t *testing.T, ctx context.Context, endpoint string) {
	t.Helper()
	cl, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var leases []clientv3.LeaseID
	for range 3 {
		l, err := cl.Grant(ctx, 3600)
		must(l, err)
		leases = append(leases, l.ID)
	}
	const seed = 20261121
	r := rand.New(rand.NewPCG(seed, 0))
	key := func() string { return fmt.Sprintf("key/%02d\x00%x", r.IntN(40), r.IntN(3)) }
	for i := range 600 {
		switch r.IntN(8) {
		case 0:
			must(cl.Delete(ctx, key()))
		case 1:
			a, b := key(), key()
			ops := []clientv3.Op{clientv3.OpPut(a, fmt.Sprint("txn", i)), clientv3.OpDelete("key/1", clientv3.WithPrefix())}
			if a != b {
				ops = append(ops[:1], clientv3.OpPut(b, strings.Repeat("long", r.IntN(2000))))
			}
			must(cl.Txn(ctx).Then(ops...).Commit())
		case 2:
			must(cl.Put(ctx, key(), fmt.Sprint(i), clientv3.WithLease(leases[r.IntN(len(leases))])))
		default:
			must(cl.Put(ctx, key(), fmt.Sprint(i)))
		}
		if i == 300 {
			must(cl.Compact(ctx, 250, clientv3.WithCompactPhysical()))
		}
	}
	// Enough for Belay to leave values in its log's segments.
	for i := range 40 {
		must(cl.Put(ctx, fmt.Sprintf("large/%d", i%25), fmt.Sprint(i)+strings.Repeat(fmt.Sprintf("%x", r.Uint64()), 2500+r.IntN(3000))))
	}
	must(cl.Revoke(ctx, leases[2]))
	must(cl.RoleAdd(ctx, "reader"))
	must(cl.RoleGrantPermission(ctx, "reader", "key/", "key0", clientv3.PermissionType(clientv3.PermRead)))
	for _, name := range []string{"root", "mallory"} {
		must(cl.UserAdd(ctx, name, "pw"))
	}
	must(cl.UserGrantRole(ctx, "mallory", "reader"))
	must(cl.UserGrantRole(ctx, "root", "root"))
	must(cl.AuthEnable(ctx))
}

// contentOf is all that a member holds, as text: the history since the compaction
// event by event, the leases with their keys, users and rights, and the hash.
func contentOf(t *testing.T, ctx context.Context, endpoint string, rev int64) (lines []string) {
	t.Helper()
	cl := rootClient(t, endpoint)
	lines = historyOf(t, ctx, cl, rev)
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	users, err := cl.UserList(ctx)
	must(err)
	role, err := cl.RoleGet(ctx, "reader")
	must(err)
	status, err := cl.AuthStatus(ctx)
	must(err)
	say("users %v, reader %v, enabled %v at %d", users.Users, role.Perm, status.Enabled, status.AuthRevision)
	hash, err := cl.HashKV(ctx, endpoint, rev)
	must(err)
	say("hash %x, compacted at %d", hash.Hash, hash.CompactRevision)
	return lines
}

// historyOf is the part of contentOf that every etcd has alike: keys, their history, leases.
func historyOf(t *testing.T, ctx context.Context, cl *clientv3.Client, rev int64) (lines []string) {
	t.Helper()
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	all, err := cl.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(rev))
	must(err)
	for _, kv := range all.Kvs {
		say("%v", kv)
	}
	_, err = cl.Get(ctx, "x", clientv3.WithRev(249))
	say("before the compaction: %v", err)
	watched, stop := context.WithCancel(ctx)
	defer stop()
	for r := range cl.Watch(watched, "\x00", clientv3.WithFromKey(), clientv3.WithRev(251), clientv3.WithPrevKV()) {
		must(r.Err())
		last := int64(0)
		for _, ev := range r.Events {
			if ev.Kv.ModRevision <= rev {
				say("%v", ev)
			}
			last = ev.Kv.ModRevision
		}
		if last >= rev {
			break
		}
	}
	leases, err := cl.Leases(ctx)
	must(err)
	slices.SortFunc(leases.Leases, func(a, b clientv3.LeaseStatus) int { return cmp.Compare(a.ID, b.ID) }) // etcd's order is that in which they end
	for _, l := range leases.Leases {
		ttl, err := cl.TimeToLive(ctx, l.ID, clientv3.WithAttachedKeys())
		must(err)
		keys := make([]string, len(ttl.Keys))
		for i, k := range ttl.Keys {
			keys[i] = string(k)
		}
		slices.Sort(keys) // etcd has no order among them
		say("lease %x of %d s: %q", l.ID, ttl.GrantedTTL, keys)
	}
	return lines
}

// TestRestore: what etcd or Belay saves, `belay util snapshot restore` makes three
// members of, with the same content down to the hash.
func TestRestore(t *testing.T) {
	t.Parallel()
	for _, kind := range []cluster.Kind{cluster.Etcd, cluster.Belay} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			source := startCluster(t, cluster.Config{Kind: kind, Size: 1, Args: []string{"--bcrypt-cost=4", "--unsafe-no-fsync"}}).Members[0]
			fillForRestore(t, ctx, source.Endpoint())
			file := filepath.Join(t.TempDir(), "snapshot.db")
			tools := EtcdTools(t)
			if out, err := exec.CommandContext(ctx, tools.Etcdctl, "--endpoints="+source.ClientURL, "--user=root:pw", "snapshot", "save", file).CombinedOutput(); err != nil {
				t.Fatalf("snapshot save: %v\n%s", err, out)
			}
			head, err := rootClient(t, source.Endpoint()).Get(ctx, "x")
			if err != nil {
				t.Fatal(err)
			}
			rev := head.Header.Revision
			want := contentOf(t, ctx, source.Endpoint(), rev)
			sameStatus(t, tools.Etcdutl, file)

			c := newCluster(t, cluster.Config{Kind: cluster.Belay, Size: 3, Args: []string{"--bcrypt-cost=4"}})
			for _, m := range c.Members {
				restoreMember(t, ctx, m, file)
			}
			if err := c.Start(ctx); err != nil {
				t.Fatal(err)
			}
			for _, m := range c.Members {
				sameStory(t, m.Name, contentOf(t, ctx, m.Endpoint(), rev), want)
			}
			put, err := rootClient(t, c.Members[1].Endpoint()).Put(ctx, "key/new", "v")
			if err != nil || put.Header.Revision != rev+1 {
				t.Errorf("a put after the restore: %v, %v; want revision %d", put, err, rev+1)
			}
			mallory, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints(), Username: "mallory", Password: "pw", Logger: zap.NewNop()})
			if err != nil {
				t.Fatal(err)
			}
			defer mallory.Close()
			if _, err := mallory.Get(ctx, "secret"); err == nil {
				t.Error("mallory reads what she may not")
			}
			if _, err := mallory.Get(ctx, "key/new"); err != nil {
				t.Error(err)
			}
		})
	}
}

// restoreMember makes the data directory of a member that was not started yet.
func restoreMember(t *testing.T, ctx context.Context, m *cluster.Member, file string, more ...string) {
	t.Helper()
	args := []string{"util", "snapshot", "restore", file}
	own := m.Args()
	for i, a := range own {
		switch a {
		case "--name", "--data-dir", "--wal-dir", "--initial-cluster", "--initial-cluster-token", "--initial-advertise-peer-urls":
			args = append(args, a, own[i+1])
		}
	}
	if out, err := exec.CommandContext(ctx, Belay(t), append(args, more...)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

func sameStory(t *testing.T, who string, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Fatalf("%s, line %d of %d and %d:\nis     %v\nshould %v", who, i, len(got), len(want), at(got, i), at(want, i))
		}
	}
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "nothing"
}

// sameStatus compares `snapshot status` with etcdutl's in every format.
func sameStatus(t *testing.T, etcdutl, file string) {
	t.Helper()
	for _, format := range []string{"simple", "table", "json", "fields", "protobuf", "bogus"} {
		var answers [2]string
		for i, program := range [][]string{{Belay(t), "util"}, {etcdutl}} {
			out, err := exec.CommandContext(t.Context(), program[0], append(program[1:], "snapshot", "status", file, "-w", format)...).CombinedOutput()
			answers[i] = fmt.Sprintf("%s%v", out, err)
		}
		if answers[0] != answers[1] {
			t.Errorf("snapshot status -w %s:\nbelay   %s\netcdutl %s", format, answers[0], answers[1])
		}
	}
}

// TestRestoreBumped: --bump-revision goes beyond what clients have seen, and they learn it.
func TestRestoreBumped(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	source := startCluster(t, cluster.Config{Kind: cluster.Etcd, Size: 1, Args: []string{"--bcrypt-cost=4", "--unsafe-no-fsync"}}).Members[0]
	fillForRestore(t, ctx, source.Endpoint())
	file := filepath.Join(t.TempDir(), "snapshot.db")
	if out, err := exec.CommandContext(ctx, EtcdTools(t).Etcdctl, "--endpoints="+source.ClientURL, "--user=root:pw", "snapshot", "save", file).CombinedOutput(); err != nil {
		t.Fatalf("snapshot save: %v\n%s", err, out)
	}
	old, err := rootClient(t, source.Endpoint()).Get(ctx, "key/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	const bump = 1_000_000
	m := newCluster(t, cluster.Config{Kind: cluster.Belay, Size: 1}).Members[0]
	restoreMember(t, ctx, m, file, "--bump-revision=1000000", "--mark-compacted")
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	cl := rootClient(t, m.Endpoint())
	now, err := cl.Get(ctx, "key/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := now.Header.Revision, old.Header.Revision+bump; got != want {
		t.Errorf("revision %d, want %d", got, want)
	}
	if fmt.Sprint(now.Kvs) != fmt.Sprint(old.Kvs) {
		t.Errorf("content\n%v\nwant\n%v", now.Kvs, old.Kvs)
	}
	r := <-cl.Watch(ctx, "key/", clientv3.WithPrefix(), clientv3.WithRev(old.Header.Revision))
	if r.CompactRevision != old.Header.Revision+bump {
		t.Errorf("a watch from before the restore was answered with %+v", r)
	}
}

// TestRestoreRefuses: nothing is left behind where a restore cannot be.
func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name string, size int) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	full := filepath.Join(dir, "full")
	if err := os.Mkdir(full, 0o700); err != nil {
		t.Fatal(err)
	}
	write("full/x", 1)
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{nil, 128, "snapshot restore requires exactly one argument"},
		{[]string{filepath.Join(dir, "none")}, 1, "no such file"},
		{[]string{dir}, 1, "is a directory"},
		{[]string{write("short", 1000)}, 1, "snapshot missing hash but --skip-hash-check=false"},
		{[]string{write("changed", 4096+32)}, 1, "expected sha256"},
		{[]string{write("zeros", 8192), "--skip-hash-check"}, 1, "cannot be read as a database"},
		{[]string{write("empty", 0), "--skip-hash-check"}, 1, "is empty"},
		{[]string{write("zeros", 8192), "--name=x"}, 1, `couldn't find local name "x" in the initial cluster configuration`},
		{[]string{write("zeros", 8192), "--initial-advertise-peer-urls=http://127.0.0.1:1"}, 1, "--initial-cluster has default=http://localhost:2380 but missing from --initial-advertise-peer-urls=http://127.0.0.1:1"},
		{[]string{write("zeros", 8192), "--initial-cluster=default=nonsense", "--initial-advertise-peer-urls=nonsense"}, 1, "URL scheme must be http, https, unix, or unixs: nonsense"},
		{[]string{write("zeros", 8192), "--bump-revision=4"}, 128, "--mark-compacted required if --revision-bump > 0"},
		{[]string{write("zeros", 8192), "--data-dir=" + full}, 1, "not empty or could not be read"},
		{[]string{write("zeros", 8192), "--wal-dir=" + full}, 1, "exists"},
	} {
		target := filepath.Join(dir, "target")
		args := append([]string{"util", "snapshot", "restore", "--data-dir=" + target}, c.args...)
		cmd := exec.CommandContext(t.Context(), Belay(t), args...)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != c.code || !strings.Contains(string(out), c.says) || strings.Contains(string(out), "goroutine") {
			t.Errorf("%v: exit code %d, want %d with %q\n%s", c.args, code, c.code, c.says, out)
		}
		if _, err := os.Stat(target); err == nil {
			t.Errorf("%v: left %s behind", c.args, target)
		}
	}
}
