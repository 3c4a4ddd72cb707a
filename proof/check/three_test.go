package check

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/proof/cluster"
)

// TestDifferentialThree is TestDifferential on three members of each kind, asked in turn: leaders
// and followers must answer alike, also after kills, stops and moves of leadership, at which both
// sides have the same member down. BELAY_THREE is how many requests.
func TestDifferentialThree(t *testing.T) {
	if os.Getenv("BELAY_THREE") == "" {
		t.Skip("runs with BELAY_THREE, a number of requests, as in make three")
	}
	requests := envInt(t, "BELAY_THREE", 3000)
	seed := seedOf(t, "TestDifferentialThree")
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute)
	defer cancel()
	d := &threeDifferential{
		differential: differential{gen: newGenerator(rand.New(rand.NewPCG(seed, 1)))},
		t:            t, ctx: ctx, rng: rand.New(rand.NewPCG(seed, 2)), home: make(map[int]int),
	}
	for i, kind := range []cluster.Kind{cluster.Etcd, checkKind(t)} {
		d.trios[i] = newTrio(ctx, t, kind)
		d.must(d.trios[i].lead(ctx, 0))
	}
	for n := 0; n < requests; {
		switch {
		case n > 0 && d.rng.IntN(250) == 0:
			n += d.restart(n)
		case d.rng.IntN(200) == 0:
			to := d.rng.IntN(3)
			d.both(func(r *trio) error { return r.lead(ctx, to) })
		}
		member := d.rng.IntN(3)
		for _, st := range d.gen.next() {
			n += d.ask(n, member, st)
		}
		if n%50 == 0 || d.gen.wantSync {
			d.must(d.sync(n))
		}
	}
	for member := range 3 {
		for _, st := range d.gen.finish() {
			d.ask(requests, member, st)
		}
	}
	t.Logf("%d answers compared, %d errors among them, %d watch events, %d hashes, %d restarts, last revision %d",
		d.compared, d.refused, d.watched, d.hashes, d.restarts, d.gen.rev)
}

// A trio is a cluster of three. Its sides share the names of ids and the watch streams.
type trio struct {
	members []*cluster.Member
	sides   [3]*side
}

func newTrio(ctx context.Context, t *testing.T, kind cluster.Kind) *trio {
	r := &trio{members: startCluster(t, cluster.Config{Kind: kind, Size: 3, Args: differentialArgs}).Members}
	var ids names[uint64]
	var leases names[int64]
	leases.add(-1, -1) // makes the maps that all share
	streams := make(map[int]*watchStream)
	for i, m := range r.members {
		s, err := newSide(m)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.close)
		st, err := s.maint.Status(ctx, &pb.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		ids.add(symSelf+10*uint64(i), st.Header.MemberId)
		s.ids, s.leases, s.streams = ids, leases, streams
		r.sides[i] = s
	}
	for _, s := range r.sides {
		s.ids = ids
	}
	return r
}

// lead makes a member the leader.
func (r *trio) lead(ctx context.Context, to int) error {
	return eventually(ctx, func() error {
		st, err := r.sides[to].maint.Status(ctx, &pb.StatusRequest{})
		if err != nil || st.Leader == st.Header.MemberId {
			return err
		}
		for _, s := range r.sides {
			if _, err := s.maint.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: st.Header.MemberId}); err == nil {
				return errors.New("leadership was moved just now")
			}
		}
		return errors.New("no leader hands over")
	})
}

// catchUp waits until a member has applied what was committed: serializable reads are compared, too.
func (r *trio) catchUp(ctx context.Context, member int) error {
	return eventually(ctx, func() error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err := r.sides[member].kv.Range(ctx, &pb.RangeRequest{Key: []byte("x"), CountOnly: true})
		return err
	})
}

// threeDifferential sends each step to the same member of both.
type threeDifferential struct {
	differential
	t        *testing.T
	ctx      context.Context
	rng      *rand.Rand
	trios    [2]*trio
	home     map[int]int // the member that each watch stream is at
	restarts int
}

func (d *threeDifferential) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *threeDifferential) both(do func(*trio) error) {
	d.t.Helper()
	for _, r := range d.trios {
		d.must(do(r))
	}
}

// ask sends a step to a member, or to that of the step's watch stream. It returns 0 for a step that
// it leaves out: what each kind of member tells of itself.
func (d *threeDifferential) ask(n, member int, st step) int {
	d.t.Helper()
	for _, own := range []string{"Status", "Member", "MoveLeader", "Downgrade", "Alarm", "Defragment"} {
		if strings.HasPrefix(st.name, own) {
			return 0
		}
	}
	if stream, ok := streamOf(st.name); ok {
		if at, open := d.home[stream]; open {
			member = at
		} else {
			d.home[stream] = member
		}
	}
	switch st.name {
	case "LeaseTimeToLive":
		st.adjust = func(a, b proto.Message) {
			x, y := a.(*pb.LeaseTimeToLiveResponse), b.(*pb.LeaseTimeToLiveResponse)
			if x.TTL > 0 && y.TTL > 0 {
				y.TTL = x.TTL // each new leader gives leases their full time, when it is elected
			}
			sortBytes(x.Keys)
			sortBytes(y.Keys)
		}
	case "LeaseLeases": // followers know no clocks: in etcd they have them in a map's order
		st.adjust = func(a, b proto.Message) {
			for _, m := range []proto.Message{a, b} {
				slices.SortFunc(m.(*pb.LeaseLeasesResponse).Leases, func(x, y *pb.LeaseStatus) int { return int(x.ID - y.ID) })
			}
		}
	}
	d.both(func(r *trio) error { return r.catchUp(d.ctx, member) })
	for i, r := range d.trios {
		d.sides[i] = r.sides[member]
	}
	if err := d.step(n, st); err != nil {
		if d.etcdFell(d.t) {
			d.t.Skip("take another seed")
		}
		d.t.Fatalf("at m%d: %v", member+1, err)
	}
	if compact, ok := st.request.(*pb.CompactionRequest); ok {
		d.compactedEverywhere(compact.Revision)
	}
	return 1
}

// compactedEverywhere waits until each member has removed what a compaction, if it was one, lets go:
// HashKV answers with its hash only then.
func (d *threeDifferential) compactedEverywhere(rev int64) {
	d.both(func(r *trio) error {
		for i, s := range r.sides {
			if err := r.catchUp(d.ctx, i); err != nil {
				return err
			}
			_, _ = s.kv.Compact(d.ctx, &pb.CompactionRequest{Revision: rev, Physical: true}) // refused, when it is done
		}
		return nil
	})
}

// streamOf is the watch stream that a step names.
func streamOf(name string) (stream int, ok bool) {
	i := strings.LastIndex(name, "stream ")
	if i < 0 {
		return 0, false
	}
	_, err := fmt.Sscanf(name[i:], "stream %d", &stream)
	return stream, err == nil
}

// restart ends a member of each, sends writes to the others, and starts it again. It returns how many
// requests that were. The watch streams at the member end.
func (d *threeDifferential) restart(n int) (requests int) {
	d.t.Helper()
	d.must(d.sync(n))
	d.restarts++
	victim, kill := d.rng.IntN(3), d.rng.IntN(2) == 0
	for stream, at := range d.home {
		if at != victim {
			continue
		}
		for _, r := range d.trios {
			if w := r.sides[0].streams[stream]; w != nil {
				w.cancel()
			}
			delete(r.sides[0].streams, stream)
		}
		delete(d.home, stream)
		delete(d.gen.streams, stream)
		d.gen.live = slices.DeleteFunc(d.gen.live, func(l int) bool { return l == stream })
	}
	d.both(func(r *trio) error {
		if kill {
			return r.members[victim].Kill()
		}
		return r.members[victim].Stop(d.ctx)
	})
	for range 20 {
		member := (victim + 1 + d.rng.IntN(2)) % 3
		requests += d.ask(n+requests, member, unary("Put", d.gen.put(), (*side).put))
		requests += d.ask(n+requests, member, unary("Txn", d.gen.txn(0), (*side).txn))
	}
	d.both(func(r *trio) error {
		if err := r.members[victim].Start(); err != nil {
			return err
		}
		return r.members[victim].WaitReady(d.ctx)
	})
	return requests
}
