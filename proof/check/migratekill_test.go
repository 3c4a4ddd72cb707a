package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
)

// TestMigrateKilled kills `util migrate --in-place` at random moments, there and back. Whenever that
// was, the old data is there to the byte, under its own name or, after the exchange, beside the new;
// and the next run does it. `make move` kills more often.
func TestMigrateKilled(t *testing.T) {
	onlyBelay(t)
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	kills, keys := 1, 50
	if os.Getenv("BELAY_MOVE") != "" {
		kills, keys = 40, 300
	}
	random := rand.New(rand.NewPCG(uint64(seedOf(t, t.Name())), 0))
	belay := Belay(t)
	m := startCluster(t, cluster.Config{Kind: cluster.Etcd, Size: 1, Args: []string{"--unsafe-no-fsync"}}).Members[0]
	client := newClient(t, []string{m.Endpoint()})
	value := strings.Repeat("value", 2000)
	for n := range keys + keys/3 {
		if _, err := client.Put(ctx, fmt.Sprintf("key/%d", n%keys), value+fmt.Sprint(n)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := client.Get(ctx, "key/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	member := filepath.Join(m.DataDir, "member")
	for _, way := range []struct {
		kind   cluster.Kind
		binary string
		args   []string
		kept   string
	}{
		{cluster.Belay, belay, nil, "member.etcd"},
		{cluster.Etcd, binaryOf(t, cluster.Etcd), []string{"--to-etcd"}, "member.belay"},
	} {
		var exit *exec.ExitError
		if err := m.Stop(ctx); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		run := func(args ...string) *exec.Cmd {
			return exec.CommandContext(ctx, belay, append(append([]string{"util", "migrate", "--data-dir", m.DataDir}, way.args...), args...)...)
		}
		began := time.Now()
		if out, err := run("--out", filepath.Join(t.TempDir(), "beside")).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		whole := time.Since(began)
		source := contentsOf(t, member)
		exchanged := 0
		for range kills {
			killed := run("--in-place")
			if err := killed.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() { _ = killed.Wait(); close(ended) }()
			after := time.Duration(random.Int64N(int64(whole)))
			select {
			case <-time.After(after):
				_ = killed.Process.Kill() // it may have ended
				<-ended
			case <-ended:
			}
			if contentsOf(t, member) == source {
				continue // as it was
			}
			// The exchange has happened: the old data is whole, and a run finishes.
			exchanged++
			old := filepath.Join(m.DataDir, way.kept)
			if _, err := os.Stat(old); err != nil {
				old = filepath.Join(m.DataDir, "member.migrating")
			}
			if contentsOf(t, old) != source {
				t.Fatalf("killed after %v: %s is not the old data", after, old)
			}
			if out, err := run("--in-place").CombinedOutput(); err == nil || !strings.Contains(string(out), " already") {
				t.Fatalf("killed after %v, and run again: %v, %s", after, err, out)
			}
			if contentsOf(t, filepath.Join(m.DataDir, way.kept)) != source {
				t.Fatalf("killed after %v, and run again: the old data has changed", after)
			}
			// Back to before.
			if err := errors.Join(os.RemoveAll(member), os.Rename(filepath.Join(m.DataDir, way.kept), member)); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := run("--in-place").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		m.Become(way.kind, way.binary)
		if err := errors.Join(m.Start(), m.WaitReady(ctx)); err != nil {
			t.Fatal(err)
		}
		got, err := newClient(t, []string{m.Endpoint()}).Get(ctx, "key/", clientv3.WithPrefix(), clientv3.WithRev(want.Header.Revision))
		if err != nil || fmt.Sprint(got.Kvs) != fmt.Sprint(want.Kvs) {
			t.Errorf("to %s: %v, %d keys of %d", way.kind, err, len(got.Kvs), len(want.Kvs))
		}
		t.Logf("to %s: %d kills within %v, %d after the exchange", way.kind, kills, whole.Round(time.Millisecond), exchanged)
	}
}

// contentsOf is a line for each file in a folder, wherever the folder is.
func contentsOf(t *testing.T, dir string) string {
	t.Helper()
	var lines []string
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		lines = append(lines, fmt.Sprint(rel, " ", sumOf(t, path)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}
