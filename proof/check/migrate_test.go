package check

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/proof/cluster"
)

// TestMigrate moves three members of an etcd to Belay and back, each with its own data.
func TestMigrate(t *testing.T) {
	t.Parallel()
	migrateAndBack(t, cluster.EtcdVersion, EtcdTools(t).Etcd, 10)
}

// TestOlderMigrate is TestMigrate with every older etcd that was built (make older).
func TestOlderMigrate(t *testing.T) {
	forOlder(t, "BELAY_OLDER", "`make older` runs it", func(t *testing.T, version string, tools cluster.Tools) {
		migrateAndBack(t, version, tools.Etcd, 1)
	})
}

// forOlder runs a test with each of the older etcds that were built, where a variable asks for it.
func forOlder(t *testing.T, variable, otherwise string, test func(t *testing.T, version string, tools cluster.Tools)) {
	if os.Getenv(variable) == "" {
		t.Skip(otherwise)
	}
	for _, version := range cluster.OlderEtcd() {
		t.Run(version, func(t *testing.T) {
			tools, ok, err := cluster.OlderTools(t.Context(), version, false)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				t.Skip("not built: make tools-old")
			}
			test(t, version, tools)
		})
	}
}

// migrateAndBack compares what clients see before and after, and HashKV at every step-th revision
// that is kept.
func migrateAndBack(t *testing.T, version, etcd string, step int64) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	c := startCluster(t, cluster.Config{Kind: cluster.Etcd, Binary: etcd, Size: 3, Args: []string{"--bcrypt-cost=4", "--snapshot-count=100"}})
	belay := Belay(t)
	all := func(m *cluster.Member, rev int64) []string {
		if strings.HasPrefix(version, "3.4.") { // knows no AuthStatus, and hashes differently
			return historyOf(t, ctx, rootClient(t, m.Endpoint()), rev)
		}
		return append(contentOf(t, ctx, m.Endpoint(), rev), hashesOf(t, ctx, m.Endpoint(), 250, rev, step)...)
	}
	head := func() int64 {
		r, err := rootClient(t, c.Endpoints()...).Get(ctx, "x")
		if err != nil {
			t.Fatal(err)
		}
		return r.Header.Revision
	}
	stop := func() {
		// The last one is killed: its database lags behind its log.
		for i, m := range c.Members {
			end := m.Stop
			if i == 2 {
				end = func(context.Context) error { return m.Kill() }
			}
			var exit *exec.ExitError
			if err := end(ctx); err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
		}
	}
	migrate := func(m *cluster.Member, args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(ctx, belay, append([]string{"util", "migrate", "--data-dir", m.DataDir}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("migrate %v: %v\n%s", args, err, out)
		}
		t.Logf("%s %v\n%s", m.Name, args, out)
		return string(out)
	}

	fillForRestore(t, ctx, c.Members[0].Endpoint())
	rev := head()
	want := all(c.Members[0], rev)
	members := membersOf(t, ctx, c)
	// While it runs its data is not to be had.
	if out, err := exec.CommandContext(ctx, belay, "util", "migrate", "--data-dir", c.Members[0].DataDir).CombinedOutput(); err == nil {
		t.Errorf("migrate takes the data of an etcd that runs:\n%s", out)
	}
	stop()
	before := filesOf(t, c.Members[0].DataDir)
	if out := migrate(c.Members[0]); !strings.Contains(out, "Nothing was written") {
		t.Errorf("a dry run says:\n%s", out)
	}
	// One is made beside its old data, which then has not changed by a byte.
	beside := filepath.Join(t.TempDir(), "belay")
	migrate(c.Members[0], "--out", beside)
	if after := filesOf(t, c.Members[0].DataDir); after != before {
		t.Errorf("the source has changed:\n%s\nwas\n%s", after, before)
	}
	for _, step := range [][2]string{{c.Members[0].DataDir, filepath.Join(t.TempDir(), "etcd")}, {beside, c.Members[0].DataDir}} {
		if err := os.Rename(step[0], step[1]); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range c.Members[1:] {
		migrate(m, "--in-place")
		if _, err := os.Stat(filepath.Join(m.DataDir, "member.etcd", "snap", "db")); err != nil {
			t.Error(err)
		}
	}
	c.Become(cluster.Belay, belay)
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.Members {
		sameStory(t, "Belay's "+m.Name, all(m, rev), want)
	}
	if now := membersOf(t, ctx, c); now != members {
		t.Errorf("the members are\n%s\nwere\n%s", now, members)
	}
	for i := range 50 {
		if _, err := rootClient(t, c.Endpoints()...).Put(ctx, "later", fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if now := head(); now != rev+50 {
		t.Errorf("revision %d after 50 puts, was %d", now, rev)
	}
	rev = head()
	want = all(c.Members[0], rev)

	stop()
	back := "--to-etcd=" + version[:strings.LastIndexByte(version, '.')]
	for _, m := range c.Members {
		// Of before: the first has none, it was made beside.
		if err := os.RemoveAll(filepath.Join(m.DataDir, "member.etcd")); err != nil {
			t.Fatal(err)
		}
		migrate(m, back)
		migrate(m, back, "--in-place")
	}
	c.Become(cluster.Etcd, etcd)
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.Members {
		sameStory(t, "etcd's "+m.Name, all(m, rev), want)
	}
	if now := membersOf(t, ctx, c); now != members {
		t.Errorf("the members are\n%s\nwere\n%s", now, members)
	}
	if _, err := rootClient(t, c.Endpoints()...).Put(ctx, "later", "again"); err != nil {
		t.Fatal(err)
	}
	if now := head(); now != rev+1 {
		t.Errorf("revision %d after a put, was %d", now, rev)
	}
}

// hashesOf is HashKV at every step-th revision.
func hashesOf(t *testing.T, ctx context.Context, endpoint string, from, to, step int64) (lines []string) {
	t.Helper()
	cl := rootClient(t, endpoint)
	for rev := from + 1; rev <= to; rev += step { // of the compaction itself it may remember another
		r, err := cl.HashKV(ctx, endpoint, rev)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("%d: %x", rev, r.Hash))
	}
	return lines
}

func membersOf(t *testing.T, ctx context.Context, c *cluster.Cluster) string {
	t.Helper()
	r, err := rootClient(t, c.Endpoints()...).MemberList(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, m := range r.Members {
		lines = append(lines, fmt.Sprintf("%x %s %v %v %v", m.ID, m.Name, m.PeerURLs, m.ClientURLs, m.IsLearner))
	}
	return fmt.Sprintf("cluster %x: %s", r.Header.ClusterId, strings.Join(lines, ", "))
}

// filesOf is every file under a folder with its size, time and content's sum.
func filesOf(t *testing.T, dir string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		lines = append(lines, fmt.Sprint(path, info.Size(), info.ModTime(), sumOf(t, path)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

func sumOf(t *testing.T, path string) uint32 {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return crc32.ChecksumIEEE(content)
}

// TestMigrateRefuses what it cannot make whole: nothing is written then.
func TestMigrateRefuses(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	m := startCluster(t, cluster.Config{Kind: cluster.Etcd, Size: 1, Args: []string{"--snapshot-count=10"}}).Members[0]
	cl, err := clientv3.New(clientv3.Config{Endpoints: []string{m.Endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for i := range 30 {
		if _, err := cl.Put(ctx, fmt.Sprint("k", i), strings.Repeat("v", 100)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Stop(ctx); err != nil && m.ExitErr() == nil {
		t.Fatal(err)
	}
	wals, err := filepath.Glob(filepath.Join(m.DataDir, "member", "wal", "*.wal"))
	if err != nil || len(wals) != 1 {
		t.Fatal(wals, err)
	}
	good, err := os.ReadFile(wals[0])
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		damage func(b []byte) []byte
		says   string
	}{
		"a flipped bit":       {func(b []byte) []byte { b[200] ^= 1; return b }, "is damaged at offset"},
		"an end that is lost": {func(b []byte) []byte { return b[:400] }, ""},
		"no log":              {nil, "no write-ahead log"},
	} {
		if c.damage == nil {
			err = os.Remove(wals[0])
		} else {
			err = os.WriteFile(wals[0], c.damage(append([]byte{}, good...)), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		before := filesOf(t, m.DataDir)
		for _, args := range [][]string{nil, {"--in-place"}, {"--out", filepath.Join(t.TempDir(), "new")}} {
			out, err := exec.CommandContext(ctx, Belay(t), append([]string{"util", "migrate", "--data-dir", m.DataDir}, args...)...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), c.says) {
				t.Errorf("%s, %v: %v\n%s", name, args, err, out)
			}
			if len(args) == 2 {
				if _, err := os.Stat(args[1]); err == nil {
					t.Errorf("%s: %s was left", name, args[1])
				}
			}
		}
		if after := filesOf(t, m.DataDir); after != before {
			t.Errorf("%s: the source has changed", name)
		}
	}
}
