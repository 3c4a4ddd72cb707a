package check

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
)

// TestMembersChange replaces each of three members under load, the leader last: removed while it
// runs, its data thrown away, added again as a learner, promoted, made the leader. Between them one
// loses its data without having been removed, which must not let it vote again under its old name.
func TestMembersChange(t *testing.T) {
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	k := newKill(t, checkKind(t), 3, seedOf(t, t.Name()))
	for round := range rounds {
		err := k.round(t, round, func(ctx context.Context, l *load) error {
			leader, err := k.leader(ctx)
			if err != nil {
				return err
			}
			others := slices.DeleteFunc(slices.Clone(k.c.Members), func(m *cluster.Member) bool { return m == leader })
			m := others[round%2]
			if round == rounds-1 {
				m = leader
			}
			if round == 1 {
				if err := k.loseData(ctx, m); err != nil {
					return err
				}
			}
			if err := waitAcked(ctx, l, 100); err != nil {
				return err
			}
			return k.replace(ctx, l, m)
		})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	if err := k.verifyAll(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d acknowledged writes, %d of unknown outcome, %d operations judged, revision %d, %v",
		len(k.writes), k.unknown, k.judged, k.rev, time.Since(k.start).Round(time.Millisecond))
}

// loseData wipes a member that still belongs to the cluster. Started as it was
// the first time it must refuse: it would vote again in terms it has voted in.
func (k *kill) loseData(ctx context.Context, m *cluster.Member) error {
	m.Kill()
	if err := os.RemoveAll(m.DataDir); err != nil {
		return err
	}
	if err := m.Start(); err != nil {
		return err
	}
	select {
	case <-m.Exited():
	case <-time.After(20 * time.Second):
		return fmt.Errorf("%s lost its data and joined again as if nothing had happened", m.Name)
	case <-ctx.Done():
		return ctx.Err()
	}
	if tail := m.LogTail(20); m.ExitErr() == nil || !strings.Contains(tail, "has already been bootstrapped") {
		return fmt.Errorf("%s lost its data, ended with %v and this log:\n%s", m.Name, m.ExitErr(), tail)
	}
	m.Kill() // it may be started again
	return nil
}

// askOthers makes a client of all members but one, and asks them for the list of members.
func askOthers(ctx context.Context, c *cluster.Cluster, m *cluster.Member) (admin *clientv3.Client, list []*pb.Member, err error) {
	var rest []string
	for _, o := range c.Members {
		if o != m {
			rest = append(rest, o.Endpoint())
		}
	}
	if admin, err = clientv3.New(clientv3.Config{Endpoints: rest}); err != nil {
		return nil, nil, err
	}
	resp, err := admin.MemberList(ctx)
	if err != nil {
		return nil, nil, errors.Join(err, admin.Close())
	}
	return admin, resp.Members, nil
}

// replace takes a member out of the cluster and puts an empty one in its place.
func (k *kill) replace(ctx context.Context, l *load, m *cluster.Member) error {
	admin, list, err := askOthers(ctx, k.c, m)
	if err != nil {
		return err
	}
	defer admin.Close()
	i := slices.IndexFunc(list, func(e *pb.Member) bool { return e.Name == m.Name })
	if i < 0 {
		return fmt.Errorf("%s is not in the member list %v", m.Name, list)
	}
	running := m.PID() != 0
	if err := eventually(ctx, func() error {
		// Refused until the others have been connected for five seconds.
		_, err := admin.MemberRemove(ctx, list[i].ID)
		return err
	}); err != nil {
		return fmt.Errorf("remove %s: %w", m.Name, err)
	}
	if running {
		select {
		case <-m.Exited(): // by itself
		case <-time.After(20 * time.Second):
			return fmt.Errorf("%s still runs 20 s after its removal:\n%s", m.Name, m.LogTail(10))
		}
		m.Kill()
		if err := os.RemoveAll(m.DataDir); err != nil {
			return err
		}
	}
	if err := waitAcked(ctx, l, l.acked.Load()+100); err != nil {
		return fmt.Errorf("with two members: %w", err)
	}
	var added *clientv3.MemberAddResponse
	if err := eventually(ctx, func() (err error) {
		// Refused until the remaining two are known to be connected.
		added, err = admin.MemberAddAsLearner(ctx, []string{m.PeerURL})
		return err
	}); err != nil {
		return fmt.Errorf("add %s: %w", m.Name, err)
	}
	m.SetArgs(func(args []string) []string {
		for i, a := range args {
			if a == "--initial-cluster-state" {
				args[i+1] = "existing"
				return args
			}
		}
		return append(args, "--initial-cluster-state", "existing")
	})
	if err := m.Start(); err != nil {
		return err
	}
	if err := eventually(ctx, func() error {
		_, err := admin.MemberPromote(ctx, added.Member.ID)
		return err
	}); err != nil {
		return fmt.Errorf("promote %s: %w", m.Name, err)
	}
	if err := k.c.WaitReady(ctx); err != nil {
		return err
	}
	if err := eventually(ctx, func() error {
		leader, err := k.leader(ctx)
		if err != nil || leader == m {
			return err
		}
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{leader.Endpoint()}})
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err = c.MoveLeader(ctx, added.Member.ID); err == nil {
			err = errors.New("moved a moment ago")
		}
		return err // seen to lead the next time
	}); err != nil {
		return fmt.Errorf("make %s the leader: %w", m.Name, err)
	}
	return waitAcked(ctx, l, l.acked.Load()+100)
}

// eventually tries until it works, for a minute at most; it returns the last error.
func eventually(ctx context.Context, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// TestLag leaves a member so far behind that the log no longer has what it
// misses: once dead, once only paused, so that its process wakes up to an old
// world. It must come back by a snapshot from the leader, under load.
func TestLag(t *testing.T) {
	// More than the leader keeps of its log in memory (32 MiB), and on disk for a dead member.
	// Nothing is on its way to that, so it must need a snapshot; to a paused one there may be 128
	// MiB and more, so it may catch up without, unless BELAY_LAG_ENTRIES asks for a lag beyond
	// that.
	entries, valueBytes := envInt(t, "BELAY_LAG_ENTRIES", 3000), envInt(t, "BELAY_LAG_VALUE_BYTES", 16<<10)
	beyond := entries*valueBytes > 192<<20
	if testing.Short() {
		t.Skip("writes 100 MB")
	}
	k := newKill(t, checkKind(t), 3, seedOf(t, t.Name()))
	for round, paused := range []bool{false, true} {
		err := k.round(t, round, func(ctx context.Context, l *load) error {
			if err := waitAcked(ctx, l, 100); err != nil {
				return err
			}
			leader, err := k.leader(ctx)
			if err != nil {
				return err
			}
			others := slices.DeleteFunc(slices.Clone(k.c.Members), func(m *cluster.Member) bool { return m == leader })
			m := others[round]
			if paused {
				err = m.Signal(syscall.SIGSTOP)
			} else {
				err = m.Kill()
			}
			if err != nil {
				return err
			}
			bulk := func(entries int) error {
				return k.bulk(ctx, round, []string{leader.Endpoint(), others[1-round].Endpoint()}, entries, valueBytes)
			}
			err = bulk(entries)
			if err == nil && !paused && checkKind(t) == cluster.Belay {
				err = outrun(ctx, t, k.c, func() error { return bulk(1<<20/valueBytes + 1) })
			}
			if paused {
				err = errors.Join(err, m.Signal(syscall.SIGCONT))
			} else {
				err = errors.Join(err, m.Start())
			}
			if err != nil {
				return err
			}
			if err := k.c.WaitReady(ctx); err != nil {
				return err
			}
			if paused && !beyond {
				return waitAcked(ctx, l, l.acked.Load()+100)
			}
			if err := eventually(ctx, func() error {
				log, err := os.ReadFile(m.LogPath)
				if err == nil && checkKind(t) == cluster.Belay && !strings.Contains(string(log), "applied snapshot") {
					err = errors.New("no snapshot in its log")
				}
				return err
			}); err != nil {
				return fmt.Errorf("%s caught up without a snapshot: the check proves too little (%v)", m.Name, err)
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
	t.Logf("%d acknowledged writes, %d of unknown outcome, %d operations judged, revision %d, %v",
		len(k.writes), k.unknown, k.judged, k.rev, time.Since(k.start).Round(time.Millisecond))
}

// TestOneSnapshotUnderLoad: while a member gets a snapshot of 200 MB, more is written than the
// leader keeps of its log in memory (32 MiB). It must not need another one.
func TestOneSnapshotUnderLoad(t *testing.T) {
	onlyBelay(t)
	t.Parallel()
	if testing.Short() {
		t.Skip("writes 400 MB")
	}
	c := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 3, Args: []string{"--unsafe-no-fsync"}})
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	client := newClient(t, c.Endpoints())
	leader := leaderOf(ctx, t, c, client)
	behind := c.Members[(slices.Index(c.Members, leader)+1)%3]
	if err := behind.Kill(); err != nil {
		t.Fatal(err)
	}
	writer := newClient(t, []string{leader.Endpoint()})
	// write writes one key after the other, in four goroutines, until it is stopped.
	var written atomic.Int64
	var unused int64 // each hand takes one number when it ends
	write := func(pace time.Duration, end func(n int64) bool) {
		t.Helper()
		unused += 4
		var running sync.WaitGroup
		errs := make([]error, 4)
		for hand := range errs {
			running.Go(func() {
				value := make([]byte, 64<<10)
				noise := rand.NewChaCha8([32]byte{byte(hand)}) // nothing that compresses
				for next := time.Now(); errs[hand] == nil; next = next.Add(pace) {
					time.Sleep(time.Until(next))
					n := written.Add(1)
					if end(n) {
						return
					}
					_, _ = noise.Read(value) // never fails
					errs[hand] = eventually(ctx, func() error {
						_, err := writer.Put(ctx, fmt.Sprint("k", n), string(value))
						return err
					})
				}
			})
		}
		running.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	write(0, func(n int64) bool { return n > 3200 })
	if err := outrun(ctx, t, c, func() error {
		limit := written.Load() + 16
		write(0, func(n int64) bool { return n > limit })
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := behind.Start(); err != nil {
		t.Fatal(err)
	}
	joined := make(chan error, 1)
	go func() { joined <- behind.WaitReady(ctx) }()
	before := written.Load()
	write(25*time.Millisecond, func(int64) bool { return len(joined) > 0 }) // 10 MB/s at most
	if err := <-joined; err != nil {
		t.Fatal(err)
	}
	one := newClient(t, []string{behind.Endpoint()})
	if got, err := one.Get(ctx, "k", clientv3.WithPrefix(), clientv3.WithCountOnly()); err != nil || got.Count < written.Load()-unused { // once it has caught up
		t.Fatal(got, err)
	}
	log, err := os.ReadFile(leader.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	sent := strings.Count(string(log), `"sending database snapshot"`)
	meanwhile := (written.Load() - before) >> 4 // MB
	t.Logf("%d MB written meanwhile, %d snapshots", meanwhile, sent)
	if sent != 1 {
		t.Errorf("%d snapshots were sent", sent)
	}
}

// bulk overwrites a few keys again and again.
func (k *kill) bulk(ctx context.Context, round int, endpoints []string, entries, valueBytes int) error {
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints})
	if err != nil {
		return err
	}
	defer c.Close()
	var next atomic.Int64
	errs := make([]error, 64)
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			for {
				n := next.Add(1)
				if n > int64(entries) {
					return
				}
				value := fmt.Sprintf("%d.%d", round, n)
				value += strings.Repeat(".", max(0, valueBytes-len(value)))
				if err := eventually(ctx, func() error { // an election may be on
					_, err := c.Put(ctx, fmt.Sprintf("bulk/%d", n%100), value)
					return err
				}); err != nil {
					errs[w] = fmt.Errorf("bulk write %d: %w", n, err)
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
