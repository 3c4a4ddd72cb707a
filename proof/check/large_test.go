package check

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

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
