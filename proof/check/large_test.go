package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/proof/cluster"
)

// TestLargeValuesAreWrittenOnce: large values stay in the log's segments, and are all there after
// a kill, in a watch of the past, in a snapshot file and after a defragmentation; what a
// compaction removes frees its segments.
func TestLargeValuesAreWrittenOnce(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	m := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 1, Args: []string{"--snapshot-count=100"}}).Members[0] // flushed before the kill
	cl, err := clientv3.New(clientv3.Config{Endpoints: []string{m.Endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	segments := func() int {
		names, err := filepath.Glob(filepath.Join(m.DataDir, "member", "store", "segments", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}

	rng := rand.New(rand.NewPCG(1, 1))
	value := func() []byte {
		b := make([]byte, 100_000+rng.IntN(50_000))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	want := map[string][]byte{}
	var written [][]byte
	for i := range 300 {
		key, v := fmt.Sprintf("key-%02d", i%30), value()
		if _, err := cl.Put(ctx, key, string(v)); err != nil {
			t.Fatal(err)
		}
		want[key] = v
		written = append(written, v)
	}
	check := func(when string, cl *clientv3.Client) {
		t.Helper()
		resp, err := cl.Get(ctx, "key-", clientv3.WithPrefix())
		if err != nil {
			t.Fatal(when, err)
		}
		if len(resp.Kvs) != len(want) {
			t.Fatalf("%s: %d keys", when, len(resp.Kvs))
		}
		for _, kv := range resp.Kvs {
			if !bytes.Equal(kv.Value, want[string(kv.Key)]) {
				t.Errorf("%s: %s has another value", when, kv.Key)
			}
		}
	}
	check("after the puts", cl)
	if n := segments(); n < 2 {
		t.Errorf("%d segments are kept", n)
	}
	hash, err := cl.HashKV(ctx, m.Endpoint(), 0)
	if err != nil {
		t.Fatal(err)
	}

	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	if v, code, text := verifyData(t, m.DataDir); code != 0 || v.Revision < 100 {
		t.Fatalf("verify after a kill: code %d\n%s", code, text)
	}
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	check("after a kill", cl)
	if again, err := cl.HashKV(ctx, m.Endpoint(), 0); err != nil {
		t.Error(err)
	} else if again.Hash != hash.Hash {
		t.Errorf("the hash was %d, and is %d", hash.Hash, again.Hash)
	}
	n := 0
	for resp := range cl.Watch(ctx, "key-", clientv3.WithPrefix(), clientv3.WithRev(1)) {
		for _, ev := range resp.Events {
			if !bytes.Equal(ev.Kv.Value, written[n]) {
				t.Fatalf("event %d has another value", n)
			}
			n++
		}
		if n == len(written) || resp.Err() != nil {
			break
		}
	}
	if n != len(written) {
		t.Errorf("a watch of the past had %d of %d events", n, len(written))
	}

	file := filepath.Join(t.TempDir(), "snapshot.db")
	if out, err := exec.CommandContext(ctx, Belay(t), "ctl", "--endpoints", m.Endpoint(), "snapshot", "save", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := cl.Compact(ctx, hash.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Defragment(ctx, m.Endpoint()); err != nil {
		t.Fatal(err)
	}
	check("after a defragmentation", cl)
	for before := segments(); before > 2; before = segments() {
		if ctx.Err() != nil {
			t.Fatalf("%d segments are kept after a compaction", before)
		}
		time.Sleep(20 * time.Millisecond)
	}
	status, err := cl.Status(ctx, m.Endpoint())
	if err != nil {
		t.Fatal(err)
	}
	if live := int64(30 * 125_000); status.DbSize > 2*live || status.DbSizeInUse < live/2 {
		t.Errorf("%d bytes, %d in use, of %d", status.DbSize, status.DbSizeInUse, live)
	}

	back := newCluster(t, cluster.Config{Kind: cluster.Belay, Size: 1})
	restored := back.Members[0]
	restoreMember(t, ctx, restored, file)
	if err := restored.Start(); err != nil {
		t.Fatal(err)
	}
	other, err := clientv3.New(clientv3.Config{Endpoints: []string{restored.Endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	check("restored", other)
}

// TestLargeValuesAndAMovedLog: a log that is moved to another file system than the store's, and
// back, with a kill before each move, takes no value with it: those in kept segments stay, those that
// come on the other file system are in the store, and the log says so once.
func TestLargeValuesAndAMovedLog(t *testing.T) {
	onlyBelay(t)
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	dir := t.TempDir()
	second, err := os.MkdirTemp("/dev/shm", "belay")
	if err != nil {
		t.Skipf("there is no second file system: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(second) })
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	usage, err := vfs.Default.GetDiskUsage(second)
	if err != nil || usage.AvailBytes < 1<<30 || os.Link(filepath.Join(dir, "f"), filepath.Join(second, "f")) == nil {
		t.Skipf("there is no second file system with room: %+v, %v", usage, err)
	}
	here, there := filepath.Join(dir, "wal"), filepath.Join(second, "wal")
	at := func(dir string) func([]string) []string {
		return func(args []string) []string {
			return append(slices.DeleteFunc(args, func(a string) bool { return strings.HasPrefix(a, "--wal-dir=") }), "--wal-dir="+dir)
		}
	}
	m := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 1, Args: []string{"--wal-dir=" + here}}).Members[0]
	cl := newClient(t, []string{m.Endpoint()})
	want := map[string]string{}
	write := func(prefix string) (hash uint32) {
		t.Helper()
		for i := range 80 {
			key := fmt.Sprintf("key-%s-%02d", prefix, i)
			want[key] = strings.Repeat(key, 100_000/len(key))
			if _, err := cl.Put(ctx, key, want[key]); err != nil {
				t.Fatal(err)
			}
		}
		resp, err := cl.HashKV(ctx, m.Endpoint(), 0)
		if err != nil {
			t.Fatal(err)
		}
		return resp.Hash
	}
	move := func(from, to string, hash uint32) {
		t.Helper()
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.CopyFS(to, os.DirFS(from)), os.RemoveAll(from)); err != nil {
			t.Fatal(err)
		}
		m.SetArgs(at(to))
		if err := errors.Join(m.Start(), m.WaitReady(ctx)); err != nil {
			t.Fatal(err)
		}
		resp, err := cl.HashKV(ctx, m.Endpoint(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Hash != hash {
			t.Errorf("after a move to %s the hash is %d, and was %d", to, resp.Hash, hash)
		}
	}
	hash := write("first")
	if names, err := filepath.Glob(filepath.Join(m.DataDir, "member", "store", "segments", "*")); err != nil || len(names) == 0 {
		t.Fatalf("no segment is kept: %v", err)
	}
	move(here, there, hash)
	hash = write("elsewhere")
	move(there, here, hash)
	write("back")
	resp, err := cl.Get(ctx, "key-", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range resp.Kvs {
		if want[string(kv.Key)] != string(kv.Value) {
			t.Errorf("%s has another value", kv.Key)
		}
	}
	if len(resp.Kvs) != len(want) {
		t.Errorf("%d keys of %d", len(resp.Kvs), len(want))
	}
	text, err := os.ReadFile(m.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "cannot be kept for the large values in it"); n != 1 {
		t.Errorf("the log says %d times that a segment cannot be kept", n)
	}
}
