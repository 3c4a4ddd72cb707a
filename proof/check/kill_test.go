package check

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
)

// killArgs keep elections short and make members drop their log and send snapshots within a run.
var killArgs = []string{"--heartbeat-interval", "50", "--election-timeout", "500", "--snapshot-count", "1000"}

// TestKillThree kills each of three members in turn, then all at once, under
// load, round after round.
func TestKillThree(t *testing.T) { killRounds(t, 3) }

// TestKillOne does the same to a cluster of one.
func TestKillOne(t *testing.T) { killRounds(t, 1) }

func killRounds(t *testing.T, size int) {
	rounds := envInt(t, "BELAY_KILL_ROUNDS", 6)
	if testing.Short() {
		rounds = min(rounds, 2)
	}
	k := newKill(t, checkKind(t), size, seedOf(t, t.Name()))
	for round := range rounds {
		victims := k.c.Members
		if size > 1 && round%(size+1) != size {
			victims = victims[round%(size+1):][:1]
		}
		if err := k.round(t, round, func(ctx context.Context, l *load) error { return k.killAndRestart(ctx, l, victims) }); err != nil {
			t.Fatalf("round %d, %d of %d members killed: %v", round, len(victims), size, err)
		}
	}
	if err := k.verifyAll(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d rounds: %d acknowledged writes, %d requests of unknown outcome, %d operations judged, revision %d, watchers resumed %v times, %v",
		rounds, len(k.writes), k.unknown, k.judged, k.rev, k.resumes(), time.Since(k.start).Round(time.Millisecond))
}

// TestPauseLeader stops the leader's process for longer than an election and lets it continue: it
// must not answer from what it believed before.
func TestPauseLeader(t *testing.T) {
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	k := newKill(t, checkKind(t), 3, seedOf(t, t.Name()))
	// Each client stays with one member: those of the paused one wait, and are the first to ask it
	// when it wakes; the others continue.
	for i := range k.clients {
		k.clients[i] = newClient(t, k.c.Endpoints()[i%3:][:1])
	}
	for round := range rounds {
		err := k.round(t, round, func(ctx context.Context, l *load) error {
			if err := waitAcked(ctx, l, 200); err != nil {
				return err
			}
			leader, err := k.leader(ctx)
			if err != nil {
				return err
			}
			if err := leader.Signal(syscall.SIGSTOP); err != nil {
				return err
			}
			err = waitAcked(ctx, l, l.acked.Load()+200)
			if e := leader.Signal(syscall.SIGCONT); err == nil {
				err = e
			}
			if err != nil {
				return fmt.Errorf("with the leader paused: %w", err)
			}
			return waitAcked(ctx, l, l.acked.Load()+100)
		})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	if err := k.verifyAll(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d acknowledged writes, %d of unknown outcome, %d operations judged", len(k.writes), k.unknown, k.judged)
}

// TestKillCanFail gives etcd back a data directory from some writes ago and requires that the loss
// is found.
func TestKillCanFail(t *testing.T) {
	if testing.Short() {
		t.Skip("validates the harness, not Belay")
	}
	k := newKill(t, cluster.Etcd, 1, 7)
	m := k.c.Members[0]
	old := m.DataDir + ".old"
	err := k.round(t, 0, func(ctx context.Context, l *load) error {
		if err := waitAcked(ctx, l, 100); err != nil {
			return err
		}
		m.Kill()
		if err := os.CopyFS(old, os.DirFS(m.DataDir)); err != nil {
			return err
		}
		if err := m.Start(); err != nil {
			return err
		}
		if err := waitAcked(ctx, l, l.acked.Load()+100); err != nil {
			return err
		}
		m.Kill()
		if err := errors.Join(os.RemoveAll(m.DataDir), os.Rename(old, m.DataDir)); err != nil {
			return err
		}
		return m.Start()
	})
	if err == nil || !strings.Contains(err.Error(), "acknowledged") && !strings.Contains(err.Error(), "watcher") && !strings.Contains(err.Error(), "not linearizable") {
		t.Fatalf("a hundred lost writes were not found: %v", err)
	}
	t.Logf("found: %s", strings.SplitN(err.Error(), "\n", 2)[0])
}

// kill is a cluster, its watchers and everything it has acknowledged.
type kill struct {
	c         *cluster.Cluster
	seed      uint64
	clients   []*clientv3.Client
	followers []*follower
	start     time.Time

	writes  []ackedWrite
	tried   map[string]string
	rev     int64
	unknown int
	judged  int
}

func newKill(t *testing.T, kind cluster.Kind, size int, seed uint64) *kill {
	return newKillOf(t, cluster.Config{Kind: kind, Size: size, Args: killArgs}, seed)
}

func newKillOf(t *testing.T, cfg cluster.Config, seed uint64) *kill {
	k := &kill{seed: seed, start: time.Now(), tried: make(map[string]string)}
	k.c = startCluster(t, cfg)
	for range 6 {
		k.clients = append(k.clients, newClient(t, k.c.Endpoints()))
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	for _, m := range k.c.Members {
		f, err := follow(ctx, m)
		if err != nil {
			t.Fatal(err)
		}
		k.followers = append(k.followers, f)
	}
	return k
}

func (k *kill) resumes() (n []int) {
	for _, f := range k.followers {
		f.mu.Lock()
		n = append(n, f.resumes)
		f.mu.Unlock()
	}
	return n
}

// roundAtMost is when a round has come to a stop. Some write 100 MB and have a member fetch it, under
// the race detector and beside other tests: one took over 90 s and went on.
const roundAtMost = 8 * time.Minute

// round loads the cluster while disturb does its worst, then verifies.
func (k *kill) round(t testing.TB, round int, disturb func(context.Context, *load) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), roundAtMost)
	defer cancel()
	l := &load{round: round, clients: k.clients, epoch: k.start}
	busy, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { l.run(busy, k.seed) })
	err := disturb(ctx, l)
	stop()
	wg.Wait()
	if err != nil {
		return err
	}
	if err := k.c.WaitReady(ctx); err != nil {
		return err
	}
	// The last reads of each register are part of the history.
	for i := range contendedKeys {
		l.do(0, k.clients[0], regInput{kind: opGet, key: fmt.Sprintf("c/%d/%d", round, i)})
	}
	k.writes = append(k.writes, l.writes...)
	for key, value := range l.tried {
		k.tried[key] = value
	}
	k.unknown += l.unknown
	k.judged += len(l.history)
	if err := k.verify(ctx, round, l.writes); err != nil {
		return err
	}
	return checkLinearizable(t, l.history)
}

func (k *kill) killAndRestart(ctx context.Context, l *load, victims []*cluster.Member) error {
	if err := waitAcked(ctx, l, 150); err != nil {
		return err
	}
	var wg sync.WaitGroup
	for _, m := range victims {
		wg.Go(func() { m.Kill() })
	}
	wg.Wait()
	if len(victims) <= (len(k.c.Members)-1)/2 {
		// A quorum lives: writes must continue.
		if err := waitAcked(ctx, l, l.acked.Load()+150); err != nil {
			return fmt.Errorf("without %s: %w", victims[0].Name, err)
		}
	}
	for _, m := range victims {
		if err := m.Start(); err != nil {
			return err
		}
	}
	if err := k.c.WaitReady(ctx); err != nil {
		return err
	}
	return waitAcked(ctx, l, l.acked.Load()+100)
}

// waitAcked waits until the load has n acknowledged writes.
func waitAcked(ctx context.Context, l *load, n int64) error {
	ctx, cancel := context.WithTimeout(ctx, 45*time.Second)
	defer cancel()
	for l.acked.Load() < n {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d writes were acknowledged, waiting for %d: %w", l.acked.Load(), n, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// leader is the member that says that it leads. While none does it asks again: there may be an
// election, since timeouts are short and the machine is busy.
func (k *kill) leader(ctx context.Context) (leader *cluster.Member, err error) {
	err = eventually(ctx, func() error {
		failed := errors.New("no member says that it leads")
		for _, m := range k.c.Members {
			leads, err := leads(ctx, m)
			if leads {
				leader = m
				return nil
			}
			failed = errors.Join(failed, err)
		}
		return failed
	})
	return leader, err
}

func leads(ctx context.Context, m *cluster.Member) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := m.Dial()
	if err != nil {
		return false, err
	}
	defer conn.Close()
	st, err := pb.NewMaintenanceClient(conn).Status(ctx, &pb.StatusRequest{})
	return err == nil && st.Leader == st.Header.MemberId, err
}

// verify asks every member about the writes of one round, with no load on.
func (k *kill) verify(ctx context.Context, round int, writes []ackedWrite) error {
	var hashes []string
	for _, m := range k.c.Members {
		conn, err := m.Dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		kv := pb.NewKVClient(conn)
		// Linearizable, so this member has applied all that was acknowledged.
		head, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte("x")})
		if err != nil {
			return fmt.Errorf("%s: %w", m.Name, err)
		}
		k.rev = max(k.rev, head.Header.Revision)
		if err := k.verifyKeys(ctx, m, kv, fmt.Sprintf("u/%d/", round), writes); err != nil {
			return err
		}
	}
	for _, m := range k.c.Members {
		conn, err := m.Dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("x")}); err != nil {
			return err
		}
		h, err := pb.NewMaintenanceClient(conn).HashKV(ctx, &pb.HashKVRequest{Revision: k.rev})
		if err != nil {
			return fmt.Errorf("HashKV at %d of %s: %w", k.rev, m.Name, err)
		}
		hashes = append(hashes, fmt.Sprintf("%08x", h.Hash))
	}
	if slices.ContainsFunc(hashes, func(h string) bool { return h != hashes[0] }) {
		return fmt.Errorf("at revision %d the members have the hashes %v", k.rev, hashes)
	}
	return k.verifyWatchers(ctx, writes)
}

// verifyKeys wants each acknowledged unique write under prefix, at its
// revision, and nothing there that was never sent.
func (k *kill) verifyKeys(ctx context.Context, m *cluster.Member, kv pb.KVClient, prefix string, writes []ackedWrite) error {
	type there struct {
		value       string
		rev, create int64
	}
	got := make(map[string]there)
	end := append([]byte(prefix[:len(prefix)-1]), prefix[len(prefix)-1]+1)
	for from := []byte(prefix); ; {
		resp, err := kv.Range(ctx, &pb.RangeRequest{Key: from, RangeEnd: end, Limit: 5000, Serializable: true, Revision: k.rev})
		if err != nil {
			return fmt.Errorf("%s: read back %q: %w", m.Name, prefix, err)
		}
		for _, e := range resp.Kvs {
			got[string(e.Key)] = there{string(e.Value), e.ModRevision, e.CreateRevision}
			if want, ok := k.tried[string(e.Key)]; !ok || want != string(e.Value) {
				return fmt.Errorf("%s has %q=%.100q, which nobody wrote", m.Name, e.Key, e.Value)
			}
			if e.ModRevision != e.CreateRevision || e.Version != 1 {
				return fmt.Errorf("%s: %q was written %d times, by revision %d and %d", m.Name, e.Key, e.Version, e.CreateRevision, e.ModRevision)
			}
		}
		if !resp.More {
			break
		}
		from = append(resp.Kvs[len(resp.Kvs)-1].Key, 0)
	}
	for _, w := range writes {
		if !strings.HasPrefix(w.key, prefix) {
			continue
		}
		if e, ok := got[w.key]; !ok {
			return fmt.Errorf("%s has lost an acknowledged write: %s, revision %d", m.Name, w.key, w.rev)
		} else if e.rev != w.rev {
			return fmt.Errorf("%s has %s at revision %d; it was acknowledged at %d", m.Name, w.key, e.rev, w.rev)
		}
	}
	return nil
}

// verifyWatchers wants each watcher to have seen every revision once and in
// order, all of them the same, and the acknowledged writes among them.
func (k *kill) verifyWatchers(ctx context.Context, writes []ackedWrite) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for _, f := range k.followers {
		if err := f.waitFor(ctx, k.rev); err != nil {
			return err
		}
		f.mu.Lock()
		faults := strings.Join(f.faults, "\n")
		f.mu.Unlock()
		if faults != "" {
			return fmt.Errorf("the watcher of %s saw:\n%s", f.member.Name, faults)
		}
	}
	first := k.followers[0]
	for _, f := range k.followers[1:] {
		for rev := int64(2); rev <= k.rev; rev++ {
			if a, b := first.at(rev), f.at(rev); !slices.Equal(a, b) {
				return fmt.Errorf("revision %d as the watcher of %s saw it: %v, and that of %s: %v", rev, first.member.Name, a, f.member.Name, b)
			}
		}
	}
	for _, w := range writes {
		events := first.at(w.rev)
		if !slices.ContainsFunc(events, func(e seenEvent) bool { return e.key == w.key && e.value == w.value }) {
			return fmt.Errorf("the acknowledged write %+v is not among the events of its revision: %v", w, events)
		}
	}
	return nil
}

// verifyAll checks the writes of all rounds on every member once more.
func (k *kill) verifyAll() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, m := range k.c.Members {
		conn, err := m.Dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := k.verifyKeys(ctx, m, pb.NewKVClient(conn), "u/", k.writes); err != nil {
			return err
		}
	}
	return nil
}
