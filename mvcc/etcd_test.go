package mvcc

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// TestAgainstEtcd runs one random history here and on a real etcd, and wants the same ranges and
// hashes at every revision, all the way. It needs BELAY_ETCD=<path of an etcd binary>.
func TestAgainstEtcd(t *testing.T) {
	binary := os.Getenv("BELAY_ETCD")
	if binary == "" {
		t.Skip("BELAY_ETCD does not name an etcd binary")
	}
	client := startEtcd(t, binary)
	seed := seeds(t, 1)[0]
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	r := newRig(t, Options{CompactionBatchLimit: 7, CompactionSleep: -1})
	ctx := context.Background()
	for i := range 400 {
		c := apiCommand(rng, r.Revision(), r.CompactRevision())
		got := r.apply(c)[0]
		if len(c.ops) == 0 {
			_, err := client.Compact(ctx, c.compact, clientv3.WithCompactPhysical())
			_, text, _ := strings.Cut(string(got), "mvcc: ")
			if (err == nil) != (text == "") || err != nil && !strings.Contains(err.Error(), strings.Split(text, " rev ")[0]) {
				t.Fatalf("command %d: compact %d: here %s, etcd %v", i, c.compact, got, err)
			}
			if err == nil {
				<-r.Compacted(c.compact)
			}
		} else {
			resp, err := client.Txn(ctx).Then(apiOps(c)...).Commit()
			if err != nil {
				t.Fatalf("command %d %v: %v", i, c, err)
			}
			if resp.Header.Revision != r.Revision() {
				t.Fatalf("command %d %v: etcd is at revision %d, we at %d", i, c, resp.Header.Revision, r.Revision())
			}
		}
		first := max(r.CompactRevision()-1, 0)
		for rev := first; rev <= r.Revision()+1; rev++ {
			if rev > first+3 && rev < r.Revision()-3 && rng.IntN(8) > 0 {
				continue
			}
			compareHash(t, client, r, rev)
			compareRange(t, client, r, rev, rng)
		}
	}
}

func compareHash(t *testing.T, client *clientv3.Client, r *rig, rev int64) {
	t.Helper()
	hash, compactRev, current, err := r.HashKV(context.Background(), rev)
	resp, etcdErr := client.HashKV(context.Background(), client.Endpoints()[0], rev)
	here := fmt.Sprintf("%08x compact %d current %d", hash, compactRev, current)
	if err != nil {
		here = strings.TrimPrefix(err.Error(), "mvcc: ")
	}
	there := ""
	if etcdErr != nil {
		_, there, _ = strings.Cut(etcdErr.Error(), "mvcc: ")
	} else {
		there = fmt.Sprintf("%08x compact %d current %d", resp.Hash, resp.CompactRevision, resp.Header.Revision)
	}
	if here != there {
		t.Fatalf("HashKV(%d) of revision %d compacted %d: here %s, etcd %s", rev, r.Revision(), r.CompactRevision(), here, there)
	}
}

func compareRange(t *testing.T, client *clientv3.Client, r *rig, rev int64, rng *rand.Rand) {
	t.Helper()
	from, to := apiKey(rng), apiKey(rng)
	limit := rng.Int64N(3)
	got, err := r.Range(context.Background(), []byte(from), []byte(to), RangeOptions{Rev: rev, Limit: limit})
	resp, etcdErr := client.Get(context.Background(), from, clientv3.WithRange(to), clientv3.WithRev(rev), clientv3.WithLimit(limit))
	if err != nil || etcdErr != nil {
		if err == nil || etcdErr == nil || !strings.Contains(etcdErr.Error(), err.Error()) {
			t.Fatalf("range at %d: here %v, etcd %v", rev, err, etcdErr)
		}
		return
	}
	here := fmt.Sprint(got.Count, got.Rev, kvsText(got.KVs, true))
	there := fmt.Sprint(resp.Count, resp.Header.Revision, kvsText(resp.Kvs, true))
	if here != there {
		t.Fatalf("range %q %q at %d limit %d:\nhere %s\netcd %s", from, to, rev, limit, here, there)
	}
}

const etcdLeases = 3 // of ids 1, 2, 3

func apiKey(rng *rand.Rand) string { return fmt.Sprintf("key-%d", rng.IntN(12)) }

// apiCommand is a random command that etcd's API lets pass: no key is written twice in a
// transaction.
func apiCommand(rng *rand.Rand, rev, compact int64) (c command) {
	if rng.IntN(8) == 0 {
		// 0 once is allowed, but its cached hash then answers for "now" for ever.
		return command{compact: max(1, max(compact, 1)+rng.Int64N(max(rev-compact, 1)+1)-rng.Int64N(2))}
	}
	if rng.IntN(20) == 0 {
		return command{ops: []op{{del: true, key: "a", end: "z"}}}
	}
	used := map[string]bool{}
	for range 1 + rng.IntN(5) {
		o := op{key: apiKey(rng)}
		if used[o.key] {
			continue
		}
		used[o.key] = true
		if rng.IntN(3) == 0 {
			o.del = true
		} else {
			o.value = randomValue(rng)
			if rng.IntN(4) == 0 {
				o.lease = 1 + rng.Int64N(etcdLeases)
			}
		}
		c.ops = append(c.ops, o)
	}
	return c
}

func apiOps(c command) (ops []clientv3.Op) {
	for _, o := range c.ops {
		switch {
		case !o.del:
			ops = append(ops, clientv3.OpPut(o.key, o.value, clientv3.WithLease(clientv3.LeaseID(o.lease))))
		case o.end != "":
			ops = append(ops, clientv3.OpDelete(o.key, clientv3.WithRange(o.end)))
		default:
			ops = append(ops, clientv3.OpDelete(o.key))
		}
	}
	return ops
}

func startEtcd(t *testing.T, binary string) *clientv3.Client {
	clientURL, peerURL := freeURL(t), freeURL(t)
	dir := t.TempDir()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "--name", "e", "--data-dir", filepath.Join(dir, "data"),
		"--listen-client-urls", clientURL, "--advertise-client-urls", clientURL,
		"--listen-peer-urls", peerURL, "--initial-advertise-peer-urls", peerURL, "--initial-cluster", "e="+peerURL, "--unsafe-no-fsync")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		log.Close()
	})
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{clientURL}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := client.Get(ctx, "x"); err != nil {
		text, _ := os.ReadFile(log.Name())
		t.Fatalf("etcd does not answer: %v\n%s", err, text)
	}
	for id := range int64(etcdLeases) {
		if _, err := pb.NewLeaseClient(client.ActiveConnection()).LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id + 1, TTL: 3600}); err != nil {
			t.Fatal(err)
		}
	}
	return client
}

func freeURL(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}
