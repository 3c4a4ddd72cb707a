package replica

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/command"
)

// testDoor is a raft that does what the test says, and notes what it is given.
type testDoor struct {
	leader, shut, leads, drops, flushing bool
	applied                              uint64
	meanwhile                            func() // happens while raft drops a message; nil: nothing

	given   []string // each message, as its entries' data
	copied  []*proposal
	refused []string
}

func (d *testDoor) leaderKnown() bool { return d.leader }
func (d *testDoor) closed() bool      { return d.shut }
func (d *testDoor) full() bool        { return d.flushing }
func (d *testDoor) id() uint64        { return 1 }

func (d *testDoor) mayChange(_ *raftpb.Entry, barrier uint64) bool {
	return !d.leads || d.applied >= barrier
}

func (d *testDoor) propose(m *raftpb.Message) (leads bool, err error) {
	if d.drops || !d.leader {
		if d.meanwhile != nil {
			d.meanwhile()
		}
		return false, raft.ErrProposalDropped
	}
	d.given = append(d.given, text(m))
	return d.leads, nil
}

func (d *testDoor) proposed(p *proposal) { d.copied = append(d.copied, p) }

func (d *testDoor) refuse(m *raftpb.Message) { d.refused = append(d.refused, text(m)) }

// text is the data of a message's entries.
func text(m *raftpb.Message) string {
	var all []string
	for _, e := range m.GetEntries() {
		all = append(all, string(e.GetData()[:min(8, len(e.GetData()))]))
	}
	return strings.Join(all, "+")
}

// took is what raft was given since it was last asked.
func (d *testDoor) took() string {
	all := strings.Join(d.given, " ")
	d.given = nil
	return all
}

func testProposal(name string) *proposal {
	return &proposal{entry: &raftpb.Entry{Data: []byte(name)}}
}

func testChange(name string) *proposal {
	p := testProposal(name)
	p.change = &command.Change{}
	return p
}

func forwardedProposal(name string, size int) *raftpb.Message {
	return &raftpb.Message{
		Type: raftpb.MsgProp.Enum(), From: new(uint64(2)),
		Entries: []*raftpb.Entry{{Data: append([]byte(name), make([]byte, size)...)[:max(size, len(name))]}},
	}
}

func wantTaken(t *testing.T, d *testDoor, want string) {
	t.Helper()
	if got := d.took(); got != want {
		t.Errorf("raft was given %q, want %q", got, want)
	}
}

func TestHeldUntilALeaderIsKnown(t *testing.T) {
	d := &testDoor{leads: true}
	p := &pending{door: d, timeout: time.Second}
	a, b, c := testProposal("a"), testProposal("b"), testProposal("c")
	p.propose([]*proposal{a, b})
	p.retry()
	wantTaken(t, d, "")
	if !b.abandon() {
		t.Error("a held proposal can be abandoned")
	}
	d.leader = true
	p.propose([]*proposal{c}) // behind those that came before it
	wantTaken(t, d, "a+c")
	if len(d.copied) != 3 || len(p.held) != 0 { // b's too: nobody needs it
		t.Errorf("%d of 3 buffers are free; %d are held", len(d.copied), len(p.held))
	}
	if a.abandon() || c.abandon() {
		t.Error("what raft has was abandoned")
	}
	d.leads = false
	p.propose([]*proposal{testProposal("d")})
	wantTaken(t, d, "d")
	if len(d.copied) != 3 {
		t.Error("the buffer of a proposal that is on its way to the leader is not free")
	}
}

// What is given up while raft drops it is not proposed later, when nobody would expect it any more.
func TestGivenUpWhileRaftDrops(t *testing.T) {
	d := &testDoor{leader: true, leads: true, drops: true}
	p := &pending{door: d, timeout: time.Second}
	a := testProposal("a")
	d.meanwhile = func() { // as proposer.cancel
		a.gone.Store(true)
		if a.abandon() {
			t.Error("what is being proposed was abandoned")
		}
	}
	p.propose([]*proposal{a, testProposal("b")})
	d.drops, d.meanwhile = false, nil
	p.retry()
	wantTaken(t, d, "b")
}

func TestHeldWhenRaftDrops(t *testing.T) {
	d := &testDoor{leader: true, leads: true, drops: true}
	p := &pending{door: d, timeout: time.Second}
	a := testProposal("a")
	p.propose([]*proposal{a, testProposal("b")})
	if len(p.held) != 2 || a.state.Load() != proposalWaiting {
		t.Fatalf("%d of 2 are held, in state %d", len(p.held), a.state.Load())
	}
	d.drops, d.shut = false, true // its own removal is in its log
	p.retry()
	p.take(forwardedProposal("f", 0), time.Now())
	wantTaken(t, d, "")
	d.shut = false
	p.retry()
	wantTaken(t, d, "a+b f")
	if len(p.held)+len(p.forwarded) != 0 || p.forwardedBytes != 0 {
		t.Errorf("%d and %d are held, %d bytes", len(p.held), len(p.forwarded), p.forwardedBytes)
	}
}

func TestChangesGoOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &testDoor{leader: true, leads: true, applied: 7}
		p := &pending{door: d, timeout: time.Second}
		p.changeProposed() // as a new leader does
		p.propose([]*proposal{testProposal("a"), testChange("X"), testProposal("b")})
		wantTaken(t, d, "a b") // a change waits, what follows it does not
		p.settle(9)
		p.retry()
		wantTaken(t, d, "")
		d.applied = 9
		p.takeChange(forwardedProposal("Y", 0), time.Now())
		p.retry()
		p.proposeChanges()
		wantTaken(t, d, "X") // alone; and Y only when it is applied
		if !p.unsettled() {
			t.Error("the change's index counts as known")
		}
		p.settle(10)
		d.applied = 10
		p.proposeChanges()
		wantTaken(t, d, "Y")
		p.settle(11)
		p.takeChange(forwardedProposal("Z", 0), time.Now())
		time.Sleep(time.Second) // its proposer has given up
		d.applied = 11
		p.proposeChanges()
		wantTaken(t, d, "")
		if len(p.changes) != 0 {
			t.Errorf("%d changes wait", len(p.changes))
		}
	})
}

func TestForwardedIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &testDoor{}
		p := &pending{door: d, timeout: time.Second}
		const size = 1 << 20
		for i := range 70 {
			p.take(forwardedProposal(fmt.Sprint(i), size), time.Now())
		}
		if p.forwardedBytes > maxForwardedBytes || len(p.forwarded) != 63 || len(d.refused) != 7 || d.refused[0][:2] != "63" {
			t.Errorf("%d proposals with %d bytes are held; refused: %q", len(p.forwarded), p.forwardedBytes, d.refused)
		}
		time.Sleep(500 * time.Millisecond)
		p.take(forwardedProposal("late", 0), time.Now())
		time.Sleep(500 * time.Millisecond)
		d.leader = true
		p.retry()
		wantTaken(t, d, "late") // the others' proposers have given up
		if len(p.forwarded) != 0 || p.forwardedBytes != 0 {
			t.Errorf("%d are held, %d bytes", len(p.forwarded), p.forwardedBytes)
		}
	})
}

// Whatever raft does, each proposal that nobody abandons is given to it once, and those of this
// member in order.
func TestPendingLosesAndDoublesNothing(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		d := &testDoor{leads: true}
		p := &pending{door: d, timeout: time.Hour}
		given := map[string]int{}
		var order []int
		note := func() {
			for _, m := range d.given {
				for name := range strings.SplitSeq(m, "+") {
					given[name]++
					if n := 0; name[0] == 'p' {
						fmt.Sscan(name[1:], &n)
						order = append(order, n)
					}
				}
			}
			d.given = nil
		}
		abandoned, all := map[string]bool{}, 0
		var proposals []*proposal
		for range 100 {
			d.leader, d.drops, d.shut, d.leads = rng.IntN(4) > 0, rng.IntN(4) == 0, rng.IntN(6) == 0, rng.IntN(2) == 0
			switch rng.IntN(5) {
			case 0, 1:
				var fresh []*proposal
				for range 1 + rng.IntN(3) {
					fresh = append(fresh, testProposal(fmt.Sprint("p", all)))
					all++
				}
				proposals = append(proposals, fresh...)
				p.propose(fresh)
			case 2:
				p.take(forwardedProposal(fmt.Sprint("f", all), 0), time.Now())
				all++
			case 3:
				if len(proposals) > 0 {
					if q := proposals[rng.IntN(len(proposals))]; q.abandon() {
						abandoned[string(q.entry.Data)] = true
					}
				}
				p.dropAbandoned()
			default:
				p.retry()
			}
			note()
		}
		d.leader, d.drops, d.shut = true, false, false
		p.retry()
		note()
		for i := range all {
			name, other := fmt.Sprint("p", i), fmt.Sprint("f", i)
			if n := given[name] + given[other]; (n != 1) != abandoned[name] || n > 1 {
				t.Fatalf("proposal %d was given to raft %d times; abandoned: %v", i, n, abandoned[name])
			}
		}
		for i := range order[1:] {
			if order[i] >= order[i+1] {
				t.Fatalf("proposal %d came before proposal %d", order[i], order[i+1])
			}
		}
	}
}

// Large proposals that others forwarded wait for the leader's store, in order; small ones, of the same
// message too, do not.
func TestLargeOnesOfOthersWaitForTheFlush(t *testing.T) {
	d := &testDoor{leader: true, leads: true, flushing: true}
	p := &pending{door: d, timeout: time.Second, mostLarge: 5 * LargeProposal}
	now := time.Now()
	mixed := forwardedProposal("large-1", LargeProposal)
	mixed.Entries = append(mixed.Entries, forwardedProposal("small-1", 0).Entries...)
	p.take(mixed, now)
	p.take(forwardedProposal("small-2", 0), now)
	p.take(forwardedProposal("large-2", LargeProposal), now.Add(-2*time.Second)) // long ago
	wantTaken(t, d, "small-1 small-2")
	p.retryLarge(now)
	wantTaken(t, d, "")
	d.flushing = false
	p.take(forwardedProposal("large-3", LargeProposal), now) // behind those that wait
	wantTaken(t, d, "")
	p.retryLarge(now)
	wantTaken(t, d, "large-1\x00 large-3\x00")
	p.take(forwardedProposal("large-4", LargeProposal), now)
	wantTaken(t, d, "large-4\x00")
	if d.flushing = true; p.largeBytes != 0 {
		t.Errorf("%d bytes of none", p.largeBytes)
	}
	for range 6 {
		p.take(forwardedProposal("large", LargeProposal), now)
	}
	if wantTaken(t, d, ""); len(p.large) != 4 || len(d.refused) != 2 {
		t.Errorf("%d wait and %d are refused", len(p.large), len(d.refused))
	}
}
