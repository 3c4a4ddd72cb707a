package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/peers"
)

// leaderID is the leader's as its follower knows it; the follower is testMember.
const leaderID = 2

// following makes a follower of a leader, whose peer port is at url.
func following(t *testing.T, leader *member, url string) *member {
	f := newMember(t)
	f.addMember(leaderID, url, false, true)
	f.replica.setLeader(leaderID, 0)
	f.cfg.Leases.Demote(f.replica.Term())
	for _, id := range []int64{7, 9} {
		_, err := leader.lease.LeaseGrant(t.Context(), &pb.LeaseGrantRequest{ID: id, TTL: 100})
		must(t, err)
	}
	return f
}

// opens has a follower open connections under a URL; it counts them.
func (m *member) opens(url string) *atomic.Int64 {
	n := new(atomic.Int64)
	m.peers.mu.Lock()
	defer m.peers.mu.Unlock()
	m.peers.open = func(ctx context.Context, id uint64, path, protocol string) (io.ReadWriteCloser, error) {
		n.Add(1)
		return openLine(ctx, url+path, testMember, testMember, protocol)
	}
	return n
}

func openLine(ctx context.Context, url string, from, to uint64, protocol string) (io.ReadWriteCloser, error) {
	h := http.Header{}
	h.Set(peers.HeaderFrom, command.IDText(from))
	h.Set(peers.HeaderTo, command.IDText(to))
	return peers.Open(ctx, http.DefaultTransport, url, h, protocol)
}

// forwards are the renewals that were forwarded, by way.
func (m *member) forwards() (connection, request float64) {
	counted := m.counted()
	for name, v := range counted {
		switch {
		case !strings.HasPrefix(name, "belay_lease_renewals_forwarded_total"):
		case strings.Contains(name, `"connection"`):
			connection = v
		default:
			request = v
		}
	}
	return connection, request
}

func (m *member) renews(id lease.ID) (int64, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	return m.Server.lease.renew(ctx, id)
}

// connected renews until it goes over a connection.
func (m *member) connected(t *testing.T) {
	t.Helper()
	waitUntil(t, "a renewal over a connection", func() bool {
		if ttl, err := m.renews(7); err != nil || ttl != 100 {
			t.Fatalf("%d %v", ttl, err)
		}
		c, _ := m.forwards()
		return c > 0
	})
}

// standing waits for the connection to the leader.
func (m *member) standing(t *testing.T) (l *leaderLine) {
	t.Helper()
	waitUntil(t, "a connection", func() bool { l = m.Server.lease.leader.renewals.to(leaderID); return l != nil })
	return l
}

// TestRenewalsOverOneConnection: all renewals of a follower share a connection, and are answered as
// requests are; without a quorum that confirms the leader, by the slow way.
func TestRenewalsOverOneConnection(t *testing.T) {
	t.Parallel()
	leader := newMember(t)
	port := httptest.NewServer(peerPort(leader))
	defer port.Close()
	follower := following(t, leader, port.URL)
	opened := follower.opens(port.URL)
	follower.connected(t)
	_, requests := follower.forwards()
	var clients sync.WaitGroup
	for c := range 50 {
		clients.Go(func() {
			stream, err := follower.lease.LeaseKeepAlive(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			for i := range 40 {
				id, want := int64(7), int64(100)
				if (c+i)%8 == 0 {
					id, want = 8, 0
				}
				if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
					t.Error(err)
					return
				}
				if alive, err := stream.Recv(); err != nil || alive.TTL != want || alive.ID != id {
					t.Errorf("lease %d: %v %v", id, alive, err)
					return
				}
			}
		})
	}
	clients.Wait()
	_, now := follower.forwards()
	if now != requests || opened.Load() != 1 {
		t.Errorf("%v requests more, %d connections", now-requests, opened.Load())
	}
	// A leader that cannot tell whether it leads says so, and is asked again.
	leader.replica.set(func(r *solo) { r.barrierErr = errors.New("no quorum") })
	leader.Server.lease.confirmed.store(time.Time{})
	answer := make(chan error, 1)
	go func() { _, err := follower.renews(7); answer <- err }()
	before := leader.replica.barriers.Load()
	waitUntil(t, "the leader is asked again", func() bool { return leader.replica.barriers.Load() > before+2 })
	leader.replica.set(func(r *solo) { r.barrierErr = nil })
	must(t, <-answer)
}

// TestRenewalsFallBack: what a leader does not speak is not asked of it all the time, and one that
// cannot be reached over a connection is asked by requests.
func TestRenewalsFallBack(t *testing.T) {
	t.Parallel()
	leader := newMember(t)
	port := httptest.NewServer(peerPort(leader))
	defer port.Close()
	follower := following(t, leader, port.URL)
	opened := follower.opens(port.URL + "/of-an-etcd")
	for range 20 {
		if ttl, err := follower.renews(7); err != nil || ttl != 100 {
			t.Fatalf("%d %v", ttl, err)
		}
	}
	if c, r := follower.forwards(); c != 0 || r != 20 || opened.Load() > 1 {
		t.Errorf("%v over a connection, %v requests, %d attempts", c, r, opened.Load())
	}
	// Started anew as one that does.
	follower.opens(port.URL)
	way := follower.Server.lease.leader.renewals
	waitUntil(t, "the attempt ends", func() bool { way.mu.Lock(); defer way.mu.Unlock(); return !way.opening })
	way.mu.Lock()
	if wait := time.Until(way.notBefore); wait < time.Second || wait > unspokenPause {
		t.Errorf("it is asked again after %s", wait)
	}
	way.notBefore = time.Now()
	way.mu.Unlock()
	follower.connected(t)
}

// TestRenewalsAreAskedAgain: of what waits when its connection breaks, or when the leader hangs and
// another one leads, nothing is lost and nothing waits for ever.
func TestRenewalsAreAskedAgain(t *testing.T) {
	t.Parallel()
	leader := newMember(t)
	port := httptest.NewServer(peerPort(leader))
	defer port.Close()
	follower := following(t, leader, port.URL)
	hanging := make(chan net.Conn, 10)
	hang := func(context.Context, uint64, string, string) (io.ReadWriteCloser, error) {
		near, far := net.Pipe()
		hanging <- far
		return near, nil
	}
	set := func(open func(context.Context, uint64, string, string) (io.ReadWriteCloser, error)) {
		follower.peers.mu.Lock()
		defer follower.peers.mu.Unlock()
		follower.peers.open = open
	}
	// asked waits for a connection that hangs, with a question on it.
	asked := func(answer chan<- error) net.Conn {
		set(hang)
		follower.standing(t)
		go func() {
			ttl, err := follower.renews(7)
			if err == nil && ttl != 100 {
				err = fmt.Errorf("TTL %d", ttl)
			}
			answer <- err
		}()
		far := <-hanging
		if _, err := io.ReadFull(far, make([]byte, peers.RenewalQuestionBytes)); err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.Copy(io.Discard, far) }()
		return far
	}
	answer := make(chan error, 1)
	far := asked(answer)
	follower.opens(port.URL)
	_ = far.Close()
	must(t, <-answer)

	// The connection before is a good one: have it end.
	good := follower.standing(t)
	good.line.Close(io.EOF)
	waitUntil(t, "its end", good.hasEnded)
	far = asked(answer)
	select {
	case err := <-answer:
		t.Fatalf("the leader hangs, and the answer is %v", err)
	default:
	}
	// Another member leads: that this one has become the leader itself says it most clearly.
	_, err := follower.Server.log.propose(t.Context(), kindLeaseGrant, &pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: 7, TTL: 100}}, smallRequest)
	must(t, err)
	follower.replica.setLeader(testMember, 1)
	if !follower.cfg.Leases.Promote(follower.replica.Term(), 0) {
		t.Fatal("the lease table did not become primary")
	}
	must(t, <-answer)
	_ = far.Close()
}

// TestRenewalsAreBounded: a leader that takes questions and answers none holds no more than the
// bound, and nothing once their calls have ended; the line's end is told to all that wait.
func TestRenewalsAreBounded(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	go func() { _, _ = io.Copy(io.Discard, far) }()
	l := newLeaderLine(leaderID, near)
	ended := make(chan error, 1)
	go func() { ended <- l.run(func() bool { return true }) }()
	for i := range maxRenewals {
		if _, _, err := l.ask(lease.ID(i), time.Minute); err != nil {
			t.Fatalf("question %d: %v", i, err)
		}
		l.line.Flush()
	}
	if _, err := l.renew(t.Context(), nil, 7); err != errRenewalsFull {
		t.Errorf("one more: %v", err)
	}
	l.mu.Lock()
	delete(l.waiting, 1)
	l.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.renew(ctx, nil, 7); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that has ended: %v", err)
	}
	moved := make(chan struct{})
	close(moved)
	if _, err := l.renew(t.Context(), moved, 7); err != errLeaderMoved {
		t.Errorf("with another leader: %v", err)
	}
	_, answer, err := l.ask(7, time.Minute)
	if err != nil {
		t.Fatalf("what has ended still counts: %v", err)
	}
	_ = far.Close()
	<-ended
	if a, ok := <-answer; ok {
		t.Errorf("an answer from nowhere: %v", a)
	}
	if _, err := l.renew(t.Context(), nil, 7); err != errLineLost {
		t.Errorf("after the end: %v", err)
	}
}

// TestWhoMayAskOverAConnection: who is let in, and that a member that was removed is not answered.
func TestWhoMayAskOverAConnection(t *testing.T) {
	t.Parallel()
	leader := newMember(t)
	port := httptest.NewServer(peerPort(leader))
	defer port.Close()
	leader.addMember(5, "http://127.0.0.1:5", false, true)
	url := port.URL + peers.PathRenewals
	for _, c := range []struct {
		from, to uint64
		protocol string
		want     string
	}{
		{5, 6, peers.ProtocolRenewals, "412"},
		{6, testMember, peers.ProtocolRenewals, "404"},
		{5, testMember, "belay-renewals/0", "426"},
		{5, testMember, peers.ProtocolRenewals, ""},
	} {
		conn, err := openLine(t.Context(), url, c.from, c.to, c.protocol)
		if c.want == "" {
			must(t, err)
			_ = conn.Close()
		} else if !errors.Is(err, peers.ErrNotUpgraded) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	ask := func() (io.ReadWriteCloser, func() error) {
		conn, err := openLine(t.Context(), url, 5, testMember, peers.ProtocolRenewals)
		must(t, err)
		return conn, func() error {
			if _, err := conn.Write(peers.RenewalQuestion{Number: 1, Lease: 1, Patience: 1000}.AppendTo(nil)); err != nil {
				return err
			}
			for b := make([]byte, peers.RenewalAnswerBytes); ; {
				if _, err := io.ReadFull(conn, b); err != nil {
					return err
				}
				if a, err := peers.ReadRenewalAnswer(b); err != nil || a.Number != 0 {
					return err
				}
			}
		}
	}
	first, question := ask()
	defer first.Close()
	must(t, question())
	second, question2 := ask() // which takes the first one's place
	defer second.Close()
	must(t, question2())
	if err := question(); err == nil {
		t.Error("a member has two connections")
	}
	leader.configure(&command.Change{Type: raftpb.ConfChangeRemoveNode, MemberID: 5})
	if err := question2(); err == nil {
		t.Error("a removed member is answered")
	}
	leader.Server.peers.renewals.mu.Lock()
	defer leader.Server.peers.renewals.mu.Unlock()
	if n := len(leader.Server.peers.renewals.lines); n > 1 {
		t.Errorf("%d connections are kept", n)
	}
}

// FuzzRenewalQuestions sends a leader what may come over a connection: it takes all that members
// send, ends the connection for all else, and keeps nothing.
func FuzzRenewalQuestions(f *testing.F) {
	f.Add(peers.RenewalQuestion{Number: 1, Lease: 7, Patience: 100}.AppendTo(nil))
	f.Add(append(peers.RenewalQuestion{}.AppendTo(nil), 0xff))
	m := newMember(f)
	f.Fuzz(func(t *testing.T, sent []byte) {
		near, far := net.Pipe()
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			got, _ := io.ReadAll(near)
			for ; len(got) >= peers.RenewalAnswerBytes; got = got[peers.RenewalAnswerBytes:] {
				if _, err := peers.ReadRenewalAnswer(got); err != nil {
					t.Error(err)
				}
			}
		}()
		go func() { _, _ = near.Write(sent); _ = near.Close() }()
		if err := m.Server.peers.renewals.answer(testMember, far); err == nil {
			t.Error("it ended without a reason")
		}
		<-answered
		if n := len(m.Server.peers.renewals.lines); n != 0 {
			t.Errorf("%d connections are kept", n)
		}
	})
}
