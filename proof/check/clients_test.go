package check

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/namespace"

	"github.com/belaydb/belay/proof/cluster"
)

// ctl runs the real etcdctl against a cluster.
type ctl struct {
	t         *testing.T
	program   string
	endpoints string
}

func newCtl(t *testing.T, endpoints []string) ctl {
	return ctl{t, EtcdTools(t).Etcdctl, strings.Join(endpoints, ",")}
}

func (c ctl) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, c.program, append([]string{"--endpoints", c.endpoints}, args...)...)
}

// run runs one command and returns its output; it fails the test unless the command succeeds.
func (c ctl) run(stdin string, args ...string) string {
	c.t.Helper()
	out, err := c.try(stdin, args...)
	if err != nil {
		c.t.Fatalf("etcdctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (c ctl) try(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := c.command(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// want runs one command and matches its whole output.
func (c ctl) want(pattern, stdin string, args ...string) []string {
	c.t.Helper()
	out := c.run(stdin, args...)
	m := regexp.MustCompile(`^(?s:` + pattern + `)$`).FindStringSubmatch(strings.TrimRight(out, "\n"))
	if m == nil {
		c.t.Fatalf("etcdctl %s printed\n%s\nwant a match of\n%s", strings.Join(args, " "), out, pattern)
	}
	return m
}

func TestEtcdctl(t *testing.T) {
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d", size), func(t *testing.T) {
			cl := startCluster(t, cluster.Config{Kind: checkKind(t), Size: size})
			c := newCtl(t, cl.Endpoints())
			t.Run("keys", func(t *testing.T) { etcdctlKeys(newCtl(t, cl.Endpoints())) })
			t.Run("watch", func(t *testing.T) { etcdctlWatch(newCtl(t, cl.Endpoints())) })
			t.Run("lease", func(t *testing.T) { etcdctlLease(newCtl(t, cl.Endpoints())) })
			t.Run("cluster", func(t *testing.T) { etcdctlCluster(newCtl(t, cl.Endpoints()), size) })
			t.Run("lock", func(t *testing.T) {
				c := newCtl(t, cl.Endpoints())
				c.want("held", "", "lock", "a-lock", "echo", "held")
			})
			t.Run("snapshot", func(t *testing.T) { etcdctlSnapshot(newCtl(t, cl.Endpoints()[:1]), cl) })
			c.run("", "endpoint", "health")
		})
	}
}

func etcdctlKeys(c ctl) {
	c.want("OK", "", "put", "foo", "bar")
	c.want("foo\nbar", "", "get", "foo")
	c.want("bar", "", "get", "foo", "--print-value-only")
	c.want("OK\nfoo\nbar", "", "put", "foo", "bar2", "--prev-kv")
	c.want("OK", "from stdin", "put", "foo/in")
	for i := range 5 {
		c.want("OK", "", "put", fmt.Sprintf("p/%d", i), fmt.Sprint(i))
	}
	c.want("p/0\n0\np/1\n1", "", "get", "p/", "--prefix", "--limit", "2")
	c.want("p/4\n\np/3", "", "get", "p/", "--prefix", "--keys-only", "--order", "DESCEND", "--limit", "2")
	c.want(".*\"Count\" : 5.*", "", "get", "p/", "--prefix", "--count-only", "-w", "fields")
	c.want("p/3\n3\np/4\n4", "", "get", "p/3", "p/9")
	c.want("foo/in\nfrom stdin\np/0\n0.*", "", "get", "foo/", "--from-key")
	out := c.run("", "get", "foo", "-w", "json")
	var got struct {
		Header struct{ Revision, Cluster_id, Member_id json.Number }
		Kvs    []struct{ Mod_revision, Version int64 }
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || len(got.Kvs) != 1 || got.Kvs[0].Version != 2 || got.Header.Cluster_id == "" {
		c.t.Fatalf("get -w json: %v\n%s", err, out)
	}
	old := strconv.FormatInt(got.Kvs[0].Mod_revision-1, 10)
	c.want("foo\nbar", "", "get", "foo", "--rev", old)
	c.want("SUCCESS\n\nOK\n\nfoo\nbar2", "value(\"foo\") = \"bar2\"\nver(\"foo\") > \"1\"\n\nput tx 1\nget foo\n\nput tx 2\n\n", "txn")
	c.want("FAILURE\n\n1", "mod(\"tx\") = \"1\"\n\nput tx 9\n\ndel tx\n\n", "txn")
	c.want("2\np/3\n3\np/4\n4", "", "del", "p/3", "p/9", "--prev-kv", "--range")
	c.want("0", "", "del", "nothing")
	rev := c.want(`.*"Revision" : (\d+).*`, "", "get", "foo", "-w", "fields")[1]
	c.want("compacted revision "+rev, "", "compaction", rev)
	if out, err := c.try("", "get", "foo", "--rev", "2"); err == nil || !strings.Contains(out, "etcdserver: mvcc: required revision has been compacted") {
		c.t.Fatalf("get of a compacted revision: %v\n%s", err, out)
	}
	if out, err := c.try("", "put", "x", "1", "--lease", "1234"); err == nil || !strings.Contains(out, "etcdserver: requested lease not found") {
		c.t.Fatalf("put with an unknown lease: %v\n%s", err, out)
	}
}

func etcdctlWatch(c ctl) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	rev := c.want(`.*"Revision" : (\d+).*`, "", "put", "w/0", "before", "-w", "fields")[1]
	cmd := c.command(ctx, "watch", "w/", "--prefix", "--rev", rev, "--prev-kv")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.want("OK", "", "put", "w/1", "one")
	c.want("OK", "", "put", "w/1", "two")
	c.want("1", "", "del", "w/1")
	want := "PUT\nw/0\nbefore\nPUT\nw/1\none\nPUT\nw/1\none\nw/1\ntwo\nDELETE\nw/1\ntwo\nw/1\n"
	var got bytes.Buffer
	for lines := bufio.NewScanner(stdout); got.Len() < len(want) && lines.Scan(); {
		if lines.Text() != "" { // the empty value of a delete
			fmt.Fprintln(&got, lines.Text())
		}
	}
	cancel()
	_ = cmd.Wait() // killed
	if got.String() != want {
		c.t.Fatalf("etcdctl watch printed\n%s\nwant\n%s", got.String(), want)
	}
}

func etcdctlLease(c ctl) {
	id := c.want(`lease ([0-9a-f]{16}) granted with TTL\(300s\)`, "", "lease", "grant", "300")[1]
	c.want("OK", "", "put", "leased", "v", "--lease", id)
	c.want(`lease `+id+` granted with TTL\(300s\), remaining\((300|29\d)s\), attached keys\(\[leased\]\)`, "", "lease", "timetolive", id, "--keys")
	c.want(`lease `+id+` keepalived with TTL\(300\)`, "", "lease", "keep-alive", "--once", id)
	c.want(`found 1 leases\n`+id, "", "lease", "list")
	c.want(`lease `+id+` revoked`, "", "lease", "revoke", id)
	c.want(``, "", "get", "leased")
	c.want(`lease `+id+` already expired`, "", "lease", "timetolive", id)
	// The server deletes the key when the lease runs out.
	id = c.want(`lease ([0-9a-f]{16}) granted with TTL\(5s\)`, "", "lease", "grant", "5")[1]
	c.want("OK", "", "put", "short", "v", "--lease", id)
	deadline := time.Now().Add(20 * time.Second)
	for c.run("", "get", "short") != "" {
		if time.Now().After(deadline) {
			c.t.Fatal("a lease of 5 s has not expired after 20 s")
		}
		time.Sleep(100 * time.Millisecond) // each poll starts a process
	}
}

func etcdctlCluster(c ctl, size int) {
	one := `[0-9a-f]+, started, m\d, http://127.0.0.1:\d+, http://127.0.0.1:\d+, false`
	c.want(strings.TrimSuffix(strings.Repeat(one+"\n", size), "\n"), "", "member", "list")
	healthy := `http://127.0.0.1:\d+ is healthy: successfully committed proposal: took = \S+|127.0.0.1:\d+ is healthy: successfully committed proposal: took = \S+`
	c.want(`((`+healthy+`)\n?){`+strconv.Itoa(size)+`}`, "", "endpoint", "health")
	var status []struct {
		Status struct {
			Header              struct{ Member_id uint64 }
			Version             string
			DbSize, Leader      uint64
			RaftTerm, RaftIndex uint64
		}
	}
	out := c.run("", "endpoint", "status", "-w", "json")
	if err := json.Unmarshal([]byte(out), &status); err != nil || len(status) != size {
		c.t.Fatalf("endpoint status: %v\n%s", err, out)
	}
	for _, s := range status {
		if !strings.HasPrefix(s.Status.Version, "3.7.") || s.Status.DbSize == 0 || s.Status.Leader != status[0].Status.Leader || s.Status.RaftIndex == 0 {
			c.t.Fatalf("endpoint status: %s", out)
		}
	}
	c.run("", "endpoint", "status", "-w", "table")
	hashes := regexp.MustCompile(`, (\d+), \d+`).FindAllStringSubmatch(c.run("", "endpoint", "hashkv"), -1)
	for _, h := range hashes {
		if len(hashes) != size || h[1] != hashes[0][1] {
			c.t.Fatalf("endpoint hashkv: %v", hashes)
		}
	}
	c.want(``, "", "alarm", "list")
	c.want(`(Finished defragmenting etcd member\[\S+\]. took \S+\n?){`+strconv.Itoa(size)+`}`, "", "defrag")
	if size == 1 {
		id := c.want(`Member ([0-9a-f ]+) added as learner to cluster.*`, "", "member", "add", "learner", "--learner", "--peer-urls", "http://127.0.0.1:1")[1]
		if out, err := c.try("", "member", "promote", strings.TrimSpace(id)); err == nil || !strings.Contains(out, "in sync with leader") {
			c.t.Fatalf("promotion of a learner that never started: %v\n%s", err, out)
		}
		c.want(`Member [0-9a-f ]+ removed from cluster.*`, "", "member", "remove", strings.TrimSpace(id))
		return
	}
	var leader string
	for i, s := range status {
		if s.Status.Header.Member_id == s.Status.Leader {
			leader = strings.Split(c.endpoints, ",")[i]
		}
	}
	for _, s := range status {
		if id := s.Status.Header.Member_id; id != s.Status.Leader {
			c.endpoints = leader
			c.want(`Leadership transferred from [0-9a-f]+ to [0-9a-f]+`, "", "move-leader", strconv.FormatUint(id, 16))
			break
		}
	}
}

// etcdctlSnapshot saves a snapshot, has the real etcdutl check and restore it
// and a real etcd serve it, and wants the same hash of all keys.
func etcdctlSnapshot(c ctl, cl *cluster.Cluster) {
	t := c.t
	tools := EtcdTools(t)
	for i := range 50 {
		c.want("OK", "", "put", fmt.Sprintf("snap/%02d", i), strings.Repeat("x", i*20))
	}
	c.want("1", "", "del", "snap/49")
	lease := c.want(`lease ([0-9a-f]{16}) granted.*`, "", "lease", "grant", "3000")[1]
	c.want("OK", "", "put", "snap/leased", "v", "--lease", lease)
	file := filepath.Join(t.TempDir(), "snapshot.db")
	c.want(`.*Snapshot saved at .*`, "", "snapshot", "save", file)
	hash, rev := hashKV(t, cl.Members[0], 0)

	out, err := exec.Command(tools.Etcdutl, "snapshot", "status", file, "-w", "json").CombinedOutput()
	if err != nil {
		t.Fatalf("etcdutl snapshot status: %v\n%s", err, out)
	}
	var status struct{ Revision, TotalKey, TotalSize int64 }
	if err := json.Unmarshal(out, &status); err != nil || status.Revision != rev || status.TotalKey == 0 {
		t.Fatalf("etcdutl snapshot status: %v, revision %d wanted\n%s", err, rev, out)
	}
	restored := newCluster(t, cluster.Config{Kind: cluster.Etcd, Size: 1})
	m := restored.Members[0]
	out, err = exec.Command(tools.Etcdutl, "snapshot", "restore", file, "--data-dir", m.DataDir, "--name", m.Name,
		"--initial-cluster", m.Name+"="+m.PeerURL, "--initial-advertise-peer-urls", m.PeerURL, "--initial-cluster-token", "check").CombinedOutput()
	if err != nil {
		t.Fatalf("etcdutl snapshot restore: %v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := restored.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if got, _ := hashKV(t, m, rev); got != hash {
		t.Fatalf("at revision %d etcd, restored from the snapshot, has the hash %08x; the server it was taken from had %08x", rev, got, hash)
	}
	r := newCtl(t, restored.Endpoints())
	r.want("snap/leased\nv", "", "get", "snap/leased")
	r.want(`lease `+lease+` granted with TTL\(3000s\), remaining\(\d+s\), attached keys\(\[snap/leased\]\)`, "", "lease", "timetolive", lease, "--keys")
	r.want("OK", "", "put", "after", "restore")
}

func hashKV(t testing.TB, m *cluster.Member, rev int64) (hash uint32, at int64) {
	t.Helper()
	conn, err := m.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	resp, err := pb.NewMaintenanceClient(conn).HashKV(ctx, &pb.HashKVRequest{Revision: rev})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Hash, resp.Header.Revision
}

// TestRecipes runs what applications build on clientv3.
func TestRecipes(t *testing.T) {
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d", size), func(t *testing.T) {
			cl := startCluster(t, cluster.Config{Kind: checkKind(t), Size: size})
			clients := make([]*clientv3.Client, 4)
			// One member each: a serializable STM reads at a revision that another
			// member may not have reached.
			for i := range clients {
				clients[i] = newClient(t, cl.Endpoints()[i%size:][:1])
			}
			for name, recipe := range map[string]func(context.Context, []*clientv3.Client) error{
				"mutex": recipeMutex, "election": recipeElection, "stm": recipeSTM,
				"session": recipeSession, "leasing": recipeLeasing, "namespace": recipeNamespace,
			} {
				t.Run(name, func(t *testing.T) {
					ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
					defer cancel()
					if err := recipe(ctx, clients); err != nil {
						t.Fatal(err)
					}
				})
			}
		})
	}
}

// each runs fn once for each client, at the same time.
func each(clients []*clientv3.Client, fn func(i int, c *clientv3.Client) error) error {
	errs := make([]error, len(clients))
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() { errs[i] = fn(i, c) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// recipeMutex counts with read and write under a mutex: a lost count is two holders.
func recipeMutex(ctx context.Context, clients []*clientv3.Client) error {
	const times = 8
	err := each(clients, func(_ int, c *clientv3.Client) error {
		s, err := concurrency.NewSession(c)
		if err != nil {
			return err
		}
		defer s.Close()
		m := concurrency.NewMutex(s, "mutex/")
		for range times {
			if err := m.Lock(ctx); err != nil {
				return err
			}
			resp, err := c.Get(ctx, "mutex-count")
			if err != nil {
				return err
			}
			n := 0
			if len(resp.Kvs) > 0 {
				n, _ = strconv.Atoi(string(resp.Kvs[0].Value))
			}
			if _, err := c.Put(ctx, "mutex-count", strconv.Itoa(n+1)); err != nil {
				return err
			}
			if err := m.Unlock(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return wantValue(ctx, clients[0], "mutex-count", strconv.Itoa(times*len(clients)))
}

func wantValue(ctx context.Context, kv clientv3.KV, key, want string) error {
	resp, err := kv.Get(ctx, key)
	if err != nil {
		return err
	}
	got := ""
	if len(resp.Kvs) > 0 {
		got = string(resp.Kvs[0].Value)
	}
	if got != want {
		return fmt.Errorf("%s is %q, want %q", key, got, want)
	}
	return nil
}

// recipeElection has every client win once, and an observer see each of them.
func recipeElection(ctx context.Context, clients []*clientv3.Client) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := concurrency.NewSession(clients[0])
	if err != nil {
		return err
	}
	defer s.Close()
	seen := make(map[string]bool)
	observed := concurrency.NewElection(s, "election").Observe(ctx)
	first := make(chan struct{}) // closed when the observer has seen someone
	all := make(chan struct{})
	go func() {
		defer close(all)
		for resp := range observed {
			if len(seen) == 0 {
				close(first)
			}
			seen[string(resp.Kvs[0].Value)] = true
			if len(seen) == len(clients) {
				return
			}
		}
	}()
	var order sync.Mutex
	err = each(clients, func(i int, c *clientv3.Client) error {
		s, err := concurrency.NewSession(c)
		if err != nil {
			return err
		}
		defer s.Close()
		e := concurrency.NewElection(s, "election")
		if err := e.Campaign(ctx, strconv.Itoa(i)); err != nil {
			return err
		}
		if !order.TryLock() {
			return errors.New("two leaders at once")
		}
		defer order.Unlock()
		select {
		case <-first:
		case <-ctx.Done():
			return ctx.Err()
		}
		if leader, err := e.Leader(ctx); err != nil || string(leader.Kvs[0].Value) != strconv.Itoa(i) {
			return fmt.Errorf("the leader is %v (%v), not %d", leader, err, i)
		}
		if err := e.Proclaim(ctx, strconv.Itoa(i)); err != nil {
			return err
		}
		order.Unlock()
		err = e.Resign(ctx)
		order.Lock()
		return err
	})
	return err
}

// recipeSTM moves money between accounts: the sum stays.
func recipeSTM(ctx context.Context, clients []*clientv3.Client) error {
	const accounts, each0 = 5, 100
	for i := range accounts {
		if _, err := clients[0].Put(ctx, fmt.Sprintf("stm/%d", i), strconv.Itoa(each0)); err != nil {
			return err
		}
	}
	err := each(clients, func(i int, c *clientv3.Client) error {
		for n := range 20 {
			from, to := fmt.Sprintf("stm/%d", (i+n)%accounts), fmt.Sprintf("stm/%d", (i*3+n*2+1)%accounts)
			if from == to {
				continue
			}
			if _, err := concurrency.NewSTM(c, func(s concurrency.STM) error {
				a, _ := strconv.Atoi(s.Get(from))
				b, _ := strconv.Atoi(s.Get(to))
				s.Put(from, strconv.Itoa(a-n))
				s.Put(to, strconv.Itoa(b+n))
				return nil
			}, concurrency.WithAbortContext(ctx)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	resp, err := clients[0].Get(ctx, "stm/", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	sum := 0
	for _, kv := range resp.Kvs {
		n, err := strconv.Atoi(string(kv.Value))
		if err != nil {
			return err
		}
		sum += n
	}
	if sum != accounts*each0 {
		return fmt.Errorf("the accounts hold %d, want %d", sum, accounts*each0)
	}
	return nil
}

// recipeSession loses a session and wants its key deleted, seen by a watch.
func recipeSession(ctx context.Context, clients []*clientv3.Client) error {
	s, err := concurrency.NewSession(clients[0], concurrency.WithTTL(3))
	if err != nil {
		return err
	}
	put, err := clients[0].Put(ctx, "session/key", "v", clientv3.WithLease(s.Lease()))
	if err != nil {
		return err
	}
	w := clients[1].Watch(ctx, "session/key", clientv3.WithRev(put.Header.Revision+1))
	s.Orphan() // no more keepalives
	for resp := range w {
		if err := resp.Err(); err != nil {
			return err
		}
		for _, ev := range resp.Events {
			if ev.Type == clientv3.EventTypeDelete {
				return nil
			}
		}
	}
	return fmt.Errorf("the key of an orphaned session stays: %w", ctx.Err())
}

// recipeLeasing caches reads and must see the writes of others.
func recipeLeasing(ctx context.Context, clients []*clientv3.Client) error {
	a, closeA, err := leasing.NewKV(clients[0], "leasing/")
	if err != nil {
		return err
	}
	defer closeA()
	b, closeB, err := leasing.NewKV(clients[1], "leasing/")
	if err != nil {
		return err
	}
	defer closeB()
	for i := range 5 {
		want := strconv.Itoa(i)
		if _, err := a.Put(ctx, "cached", want); err != nil {
			return err
		}
		for _, kv := range []clientv3.KV{a, b, b, a} {
			if err := wantValue(ctx, kv, "cached", want); err != nil {
				return err
			}
		}
		want += "b"
		if _, err := b.Put(ctx, "cached", want); err != nil {
			return err
		}
		if err := wantValue(ctx, a, "cached", want); err != nil {
			return err
		}
	}
	return nil
}

func recipeNamespace(ctx context.Context, clients []*clientv3.Client) error {
	kv := namespace.NewKV(clients[0].KV, "ns/")
	put, err := kv.Put(ctx, "k", "v")
	if err != nil {
		return err
	}
	if err := wantValue(ctx, clients[1], "ns/k", "v"); err != nil {
		return err
	}
	watch := namespace.NewWatcher(clients[0].Watcher, "ns/")
	for resp := range watch.Watch(ctx, "k", clientv3.WithRev(put.Header.Revision)) {
		if err := resp.Err(); err != nil {
			return err
		}
		for _, ev := range resp.Events {
			if string(ev.Kv.Key) != "k" || string(ev.Kv.Value) != "v" {
				return fmt.Errorf("the watch saw %s=%s", ev.Kv.Key, ev.Kv.Value)
			}
			return nil
		}
	}
	return ctx.Err()
}
