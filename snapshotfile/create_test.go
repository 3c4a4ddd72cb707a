package snapshotfile

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
)

// content has n keys of valueBytes each, a deleted key, two leases and everything else once.
func content(n, valueBytes int) Content {
	return Content{
		Index: 42, Term: 7,
		ConfState:      &raftpb.ConfState{Voters: []uint64{0x8e9e05c52164694d}},
		Members:        []*command.Member{{ID: 0x8e9e05c52164694d, PeerURLs: []string{"http://127.0.0.1:2380"}, Name: "a", ClientURLs: []string{"http://127.0.0.1:2379"}}},
		Removed:        []uint64{0x1234},
		Alarms:         []*pb.AlarmMember{{MemberID: 5, Alarm: pb.AlarmType_NOSPACE}},
		ClusterVersion: "3.7.0",
		CompactRev:     -1,
		Leases: func(each func(id, ttl, remaining int64) error) error {
			return errors.Join(each(7, 600, 0), each(8, 1200, 300))
		},
		Revisions: func(_ context.Context, each func(main, sub int64, tombstone bool, value []byte) error) error {
			value := bytes.Repeat([]byte("v"), valueBytes)
			for i := range n {
				rev := int64(i + 2)
				kv := &mvccpb.KeyValue{Key: fmt.Appendf(nil, "key%08d", i), Value: value, CreateRevision: rev, ModRevision: rev, Version: 1}
				if i == 0 {
					kv.Lease = 7
				}
				b, err := proto.Marshal(kv)
				if err == nil {
					err = each(rev, 0, false, b)
				}
				if err != nil {
					return err
				}
			}
			b, err := proto.Marshal(&mvccpb.KeyValue{Key: []byte("key00000001")})
			if err != nil {
				return err
			}
			return each(int64(n+2), 0, true, b)
		},
	}
}

// save writes the file as etcdctl does: database and trailer.
func save(t *testing.T, f *File) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "snap.db")
	var all []byte
	if err := f.Send(func(chunk []byte, remaining int64) error {
		if len(chunk) > 32<<10 {
			t.Fatalf("a chunk of %d bytes", len(chunk))
		}
		all = append(all, chunk...)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(all)%512 != 32 {
		t.Fatalf("%d bytes: modulo 512 must be 32", len(all))
	}
	sum := sha256.Sum256(all[:len(all)-32])
	if !bytes.Equal(sum[:], all[len(all)-32:]) {
		t.Fatal("the trailer is not the hash of the database")
	}
	if err := os.WriteFile(path, all, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBuckets(t *testing.T) {
	dir := t.TempDir()
	c := content(3, 5)
	c.CompactRev = 3
	f, err := Create(t.Context(), dir, c)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Fatalf("%s still has a name", left[0].Name())
	}
	db, err := bolt.Open(save(t, f), 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var got []string
	err = db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			t.Error(err)
		}
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error {
				got = append(got, fmt.Sprintf("%s %q %q", name, k, v))
				return nil
			})
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`alarm "\b\x05\x10\x01" ""`,
		`auth "authRevision" "\x00\x00\x00\x00\x00\x00\x00\x01"`,
		`cluster "clusterVersion" "3.7.0"`,
		`key "\x00\x00\x00\x00\x00\x00\x00\x02_\x00\x00\x00\x00\x00\x00\x00\x00" "\n\vkey00000000\x10\x02\x18\x02 \x01*\x05vvvvv0\a"`,
		`key "\x00\x00\x00\x00\x00\x00\x00\x03_\x00\x00\x00\x00\x00\x00\x00\x00" "\n\vkey00000001\x10\x03\x18\x03 \x01*\x05vvvvv"`,
		`key "\x00\x00\x00\x00\x00\x00\x00\x04_\x00\x00\x00\x00\x00\x00\x00\x00" "\n\vkey00000002\x10\x04\x18\x04 \x01*\x05vvvvv"`,
		`key "\x00\x00\x00\x00\x00\x00\x00\x05_\x00\x00\x00\x00\x00\x00\x00\x00t" "\n\vkey00000001"`,
		`lease "\x00\x00\x00\x00\x00\x00\x00\a" "\b\a\x10\xd8\x04"`,
		`lease "\x00\x00\x00\x00\x00\x00\x00\b" "\b\b\x10\xb0\t\x18\xac\x02"`,
		`members "8e9e05c52164694d" "{\"id\":10276657743932975437,\"peerURLs\":[\"http://127.0.0.1:2380\"],\"name\":\"a\",\"clientURLs\":[\"http://127.0.0.1:2379\"]}"`,
		`members_removed "1234" "removed"`,
		`meta "confState" "{\"voters\":[10276657743932975437]}"`,
		`meta "consistent_index" "\x00\x00\x00\x00\x00\x00\x00*"`,
		`meta "finishedCompactRev" "\x00\x00\x00\x00\x00\x00\x00\x03_\x00\x00\x00\x00\x00\x00\x00\x00"`,
		`meta "scheduledCompactRev" "\x00\x00\x00\x00\x00\x00\x00\x03_\x00\x00\x00\x00\x00\x00\x00\x00"`,
		`meta "storageVersion" "3.7.0"`,
		`meta "term" "\x00\x00\x00\x00\x00\x00\x00\a"`,
	}
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Fatalf("got\n%s\nwant\n%s", g, w)
	}
}

func TestCreateRemovesItsFileOnError(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Create(ctx, dir, content(1, 1)); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	boom := errors.New("boom")
	c := content(1, 1)
	c.Revisions = func(_ context.Context, each func(main, sub int64, tombstone bool, value []byte) error) error {
		return errors.Join(each(2, 0, false, []byte("x")), boom)
	}
	if _, err := Create(t.Context(), dir, c); !errors.Is(err, boom) {
		t.Fatalf("error %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Fatalf("%s is left behind", left[0].Name())
	}
}

func TestRemoveLeftovers(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"etcd-snapshot-123.db.tmp", "other"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := RemoveLeftovers(dir); err != nil {
		t.Fatal(err)
	}
	left, _ := os.ReadDir(dir)
	if len(left) != 1 || left[0].Name() != "other" {
		t.Fatalf("left: %v", left)
	}
}

// Memory must follow the batch, not the database.
func TestBoundedMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 200 MB")
	}
	runtime.GC()
	var before, during runtime.MemStats
	runtime.ReadMemStats(&before)
	c := content(0, 0)
	value := make([]byte, 100<<10)
	peak := uint64(0)
	c.Revisions = func(_ context.Context, each func(main, sub int64, tombstone bool, value []byte) error) error {
		for i := range int64(2000) {
			if i%100 == 0 {
				runtime.GC()
				runtime.ReadMemStats(&during)
				peak = max(peak, during.HeapAlloc)
			}
			if err := each(i+2, 0, false, bytes.Clone(value)); err != nil {
				return err
			}
		}
		return nil
	}
	f, err := Create(t.Context(), t.TempDir(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if grown := int64(peak) - int64(before.HeapAlloc); grown > 32<<20 {
		t.Fatalf("the heap grew by %d bytes for a database of %d", grown, f.Size())
	}
}

// etcd itself is the judge: it must restore the file and serve from it. Needs
// BELAY_ETCD and BELAY_ETCDUTL, the paths of real binaries.
func TestEtcdStartsFromFile(t *testing.T) {
	etcd, etcdutl := os.Getenv("BELAY_ETCD"), os.Getenv("BELAY_ETCDUTL")
	if etcd == "" || etcdutl == "" {
		t.Skip("BELAY_ETCD and BELAY_ETCDUTL name no binaries")
	}
	const n = 25_000
	f, err := Create(t.Context(), t.TempDir(), content(n, 300))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	snap := save(t, f)
	serveFromEtcd(t, etcd, etcdutl, snap, func(c *clientv3.Client) {
		resp, err := c.Get(t.Context(), "key", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil || resp.Count != n-1 {
			t.Fatalf("%d keys (%v), want %d: one was deleted", resp.Count, err, n-1)
		}
		resp, err = c.Get(t.Context(), "key00000002")
		if err != nil || len(resp.Kvs) != 1 || resp.Kvs[0].ModRevision != 4 || len(resp.Kvs[0].Value) != 300 {
			t.Fatalf("key00000002: %v, %v", resp, err)
		}
		ttl, err := c.TimeToLive(t.Context(), 7, clientv3.WithAttachedKeys())
		if err != nil || ttl.GrantedTTL != 600 || len(ttl.Keys) != 1 {
			t.Fatalf("lease 7: %+v, %v", ttl, err)
		}
	})
}

// serveFromEtcd restores a snapshot file with etcdutl, starts a real etcd from
// it on free loopback ports and hands a client of it to check.
func serveFromEtcd(t *testing.T, etcd, etcdutl, snap string, check func(*clientv3.Client)) {
	t.Helper()
	out, err := exec.Command(etcdutl, "snapshot", "status", "-w", "json", snap).CombinedOutput()
	if err != nil {
		t.Fatalf("status: %v\n%s", err, out)
	}
	var status struct {
		TotalKey int64 `json:"totalKey"`
		Revision int64 `json:"revision"`
	}
	if err := json.Unmarshal(out, &status); err != nil || status.TotalKey == 0 {
		t.Fatalf("status: %v\n%s", err, out)
	}
	t.Logf("status: %s", out)
	client, peer := "http://"+freeAddr(t), "http://"+freeAddr(t)
	dir := filepath.Join(t.TempDir(), "restored")
	out, err = exec.Command(etcdutl, "snapshot", "restore", snap, "--data-dir", dir, "--name", "r",
		"--initial-cluster", "r="+peer, "--initial-advertise-peer-urls", peer).CombinedOutput()
	if err != nil {
		t.Fatalf("restore: %v\n%s", err, out)
	}
	var logs bytes.Buffer
	cmd := exec.Command(etcd, "--name", "r", "--data-dir", dir, "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer)
	cmd.Stdout, cmd.Stderr = &logs, &logs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("etcd:\n%s", logs.String())
		}
	}()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{client}, DialTimeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := c.Get(ctx, "x"); err != nil {
		t.Fatalf("the restored etcd does not serve: %v", err)
	}
	check(c)
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// The database file of an etcd that runs is locked by it.
func TestReadOfAFileInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = Read(path, true, func(*Reader) error { return nil })
	if err == nil || !strings.Contains(err.Error(), path+" is in use") {
		t.Errorf("%v", err)
	}
}
