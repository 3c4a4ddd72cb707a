package transport

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// drain takes what a member has got so far.
func drain(h *member) (indexes []uint64) {
	synctest.Wait()
	for {
		select {
		case m := <-h.messages:
			indexes = append(indexes, m.GetIndex())
		default:
			return indexes
		}
	}
}

// pair is a network of members 1 and 2. It must be closed inside the bubble.
func pair(seed int64) (n *Memory, a, b *Endpoint, ha, hb *member) {
	n = NewMemory(seed)
	ha, hb = newBubbleMember(), newBubbleMember()
	a, b = n.Join(1, ha, ha), n.Join(2, hb, hb)
	a.AddPeer(2, nil)
	b.AddPeer(1, nil)
	return n, a, b, ha, hb
}

func newBubbleMember() *member {
	h := newMember()
	h.messages = make(chan *raftpb.Message, 1<<12)
	return h
}

func heartbeats(from, to uint64, n int) (msgs []*raftpb.Message) {
	for i := range n {
		msgs = append(msgs, message(raftpb.MsgHeartbeat, from, to, uint64(i)))
	}
	return msgs
}

func TestMemoryDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, _, _, hb := pair(1)
		defer n.Close()
		n.SetLink(1, 2, Link{Delay: 30 * time.Millisecond, Jitter: 20 * time.Millisecond})
		a.Send(heartbeats(1, 2, 100))
		time.Sleep(30*time.Millisecond - 1)
		if got := drain(hb); len(got) != 0 {
			t.Fatalf("%d messages before their delay", len(got))
		}
		time.Sleep(20*time.Millisecond + 1)
		got := drain(hb)
		if len(got) != 100 || !slices.IsSorted(got) {
			t.Fatalf("%d of 100 came, in order %v", len(got), slices.IsSorted(got))
		}
		n.SetLink(1, 2, Link{Jitter: 20 * time.Millisecond, Reorder: true})
		a.Send(heartbeats(1, 2, 100))
		time.Sleep(20 * time.Millisecond)
		if got := drain(hb); len(got) != 100 || slices.IsSorted(got) {
			t.Fatalf("%d of 100 came, in order %v", len(got), slices.IsSorted(got))
		}
		if got := a.RTT(2); got != 10*time.Millisecond {
			t.Fatalf("RTT %v", got)
		}
	})
}

// TestMemorySeed: what is lost follows from the seed alone.
func TestMemorySeed(t *testing.T) {
	run := func(seed int64) (got []uint64) {
		synctest.Test(t, func(t *testing.T) {
			n, a, _, _, hb := pair(seed)
			defer n.Close()
			n.SetDefault(Link{Loss: 0.3})
			a.Send(heartbeats(1, 2, 200))
			got = drain(hb)
		})
		return got
	}
	one, again, two := run(1), run(1), run(2)
	if !slices.Equal(one, again) {
		t.Fatalf("seed 1 gave %v and then %v", one, again)
	}
	if slices.Equal(one, two) || len(one) < 100 || len(one) > 180 {
		t.Fatalf("seed 1 let %d of 200 pass, seed 2 %d", len(one), len(two))
	}
}

func TestMemoryPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, ha, hb := pair(1)
		defer n.Close()
		if a.ActiveSince(2) != time.Now() {
			t.Fatal("not active from the start")
		}
		n.Cut(1, 2) // one way
		a.Send(heartbeats(1, 2, 3))
		b.Send(heartbeats(2, 1, 3))
		if x, y := drain(ha), drain(hb); len(x) != 3 || len(y) != 0 {
			t.Fatalf("%d and %d messages came", len(x), len(y))
		}
		if len(ha.unreachable) == 0 || len(hb.unreachable) != 0 || !a.ActiveSince(2).IsZero() || !b.ActiveSince(1).IsZero() {
			t.Fatal("the cut is not seen, or from the wrong side")
		}
		time.Sleep(time.Second)
		n.Heal()
		if a.ActiveSince(2) != time.Now() {
			t.Fatal("not active again from now on")
		}
		n.Isolate(2)
		a.Send(heartbeats(1, 2, 1))
		if got := drain(hb); len(got) != 0 {
			t.Fatal("an isolated member got a message")
		}
		n.Partition([]uint64{1, 2})
		a.Send(heartbeats(1, 2, 1))
		if got := drain(hb); len(got) != 1 {
			t.Fatal("members of one group are apart")
		}
		n.Partition([]uint64{1}, []uint64{2})
		a.Send(heartbeats(1, 2, 1))
		if got := drain(hb); len(got) != 0 {
			t.Fatal("members of two groups are together")
		}
	})
}

// TestMemoryLanes: a large append on a thin link holds up no heartbeat, and nothing is shared.
func TestMemoryLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, _, _, hb := pair(1)
		defer n.Close()
		n.SetDefault(Link{BytesPerSecond: 1 << 20})
		big := message(raftpb.MsgApp, 1, 2, 5, bytes.Repeat([]byte("x"), 1<<20))
		a.Send([]*raftpb.Message{big})
		a.Send(heartbeats(1, 2, 1))
		time.Sleep(10 * time.Millisecond)
		if got := drain(hb); !slices.Equal(got, []uint64{0}) {
			t.Fatalf("%v came first", got)
		}
		time.Sleep(990 * time.Millisecond)
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		m := <-hb.messages
		if &m.Entries[0].Data[0] == &big.Entries[0].Data[0] {
			t.Fatal("members share an entry's memory")
		}
	})
}

// TestMemoryRestart: a member that joins again gets what is sent from then on; the old endpoint is
// dead.
func TestMemoryRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, ha, hb := pair(1)
		defer n.Close()
		b.Stop()
		a.Send(heartbeats(1, 2, 1))
		synctest.Wait()
		if len(ha.unreachable) != 1 {
			t.Fatal("a stopped member is not unreachable")
		}
		time.Sleep(time.Second)
		h2 := newBubbleMember()
		b2 := n.Join(2, h2, h2)
		b2.AddPeer(1, nil)
		a.Send(heartbeats(1, 2, 2))
		b.Send(heartbeats(2, 1, 1))
		if x, y, z := drain(ha), drain(hb), drain(h2); len(x) != 0 || len(y) != 0 || len(z) != 2 {
			t.Fatalf("%d, %d and %d messages came", len(x), len(y), len(z))
		}
		if a.ActiveSince(2) != time.Now() {
			t.Fatal("active since before the restart")
		}
		removed := false
		a.OnRemoved(func(error) { removed = true })
		h2.remove(1)
		a.Send(heartbeats(1, 2, 1))
		synctest.Wait()
		if !removed || len(h2.messages) != 0 {
			t.Fatal("a removed member was heard, or not told")
		}
	})
}

func TestMemorySnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, _, ha, hb := pair(1)
		defer n.Close()
		n.SetDefault(Link{BytesPerSecond: 1 << 20, Delay: time.Millisecond})
		var opened error
		ha.open = func(m *raftpb.Message, _ Software) (io.ReadCloser, error) {
			m.Snapshot.Metadata.Index = new(uint64(12))
			return io.NopCloser(io.LimitReader(zeros{}, 2<<20)), opened
		}
		got := ""
		hb.receive = func(m *raftpb.Message, r io.Reader, kind string) error {
			n, err := io.Copy(io.Discard, r)
			got = fmt.Sprint(m.GetSnapshot().GetMetadata().GetIndex(), " ", n, " ", kind, " ", err)
			return err
		}
		send := func() {
			m := message(raftpb.MsgSnap, 1, 2, 0)
			m.Snapshot = &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(10)), Term: new(uint64(1))}}
			a.Send([]*raftpb.Message{m})
		}
		start := time.Now()
		send()
		if ok := <-ha.reports; !ok || got != "12 2097152 belay <nil>" {
			t.Fatalf("report %v, received %s", ok, got)
		}
		if took := time.Since(start); took < 2*time.Second || took > 2100*time.Millisecond {
			t.Fatalf("2 MiB at 1 MiB/s took %v", took)
		}
		send()
		time.Sleep(time.Second)
		n.Cut(1, 2)
		if ok := <-ha.reports; ok || got != "12 "+got[3:len(got)-len("transport: the link is down")]+"transport: the link is down" {
			t.Fatalf("report %v, received %s", ok, got)
		}
		n.Heal()
		opened = errors.New("no view")
		send()
		if ok := <-ha.reports; ok {
			t.Fatal("a snapshot that did not open was reported as success")
		}
	})
}

// TestMemorySnapshotStop: a member that stops ends the snapshot that it sends, also while the other
// one is busy with what has come, and so does the other one.
func TestMemorySnapshotStop(t *testing.T) {
	for name, stop := range map[string]func(a, b *Endpoint){"sender": func(a, _ *Endpoint) { a.Stop() }, "receiver": func(_, b *Endpoint) { b.Stop() }} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, a, b, ha, hb := pair(1)
				defer n.Close()
				written := make(chan error, 1)
				ha.open = func(*raftpb.Message, Software) (io.ReadCloser, error) {
					r, w := io.Pipe()
					go func() {
						_, err := io.Copy(w, zeros{})
						written <- err
					}()
					return r, nil
				}
				hung := make(chan struct{})
				hb.receive = func(_ *raftpb.Message, r io.Reader, _ string) error {
					_, err := io.ReadFull(r, make([]byte, 10))
					<-hung
					return err
				}
				m := message(raftpb.MsgSnap, 1, 2, 0)
				m.Snapshot = &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(10)), Term: new(uint64(1))}}
				a.Send([]*raftpb.Message{m})
				synctest.Wait()
				stop(a, b)
				select {
				case err := <-written:
					if !errors.Is(err, io.ErrClosedPipe) {
						t.Errorf("the sender's copy ended with %v", err)
					}
				case <-time.After(time.Hour):
					t.Error("the sender's view of its store stays open")
				}
				close(hung)
			})
		})
	}
}
