package upstream

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// A fake is a member that answers as a test says.
type fake struct {
	pb.UnimplementedKVServer
	pb.UnimplementedMaintenanceServer
	address string
	server  *grpc.Server

	puts, ranges atomic.Int64
	answer       atomic.Pointer[func(ctx context.Context) error]
	revision     atomic.Int64
	leader       atomic.Uint64
	cluster      atomic.Uint64
}

func newFake(t *testing.T, answer func(ctx context.Context) error) *fake {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{address: l.Addr().String(), server: grpc.NewServer()}
	f.answer.Store(&answer)
	f.leader.Store(1)
	f.revision.Store(1)
	pb.RegisterKVServer(f.server, f)
	pb.RegisterMaintenanceServer(f.server, f)
	go f.server.Serve(l)
	t.Cleanup(f.server.Stop)
	return f
}

// will is what it answers from now on.
func (f *fake) will(answer func(ctx context.Context) error) { f.answer.Store(&answer) }

func (f *fake) Put(ctx context.Context, _ *pb.PutRequest) (*pb.PutResponse, error) {
	f.puts.Add(1)
	return &pb.PutResponse{Header: &pb.ResponseHeader{Revision: f.revision.Load()}}, (*f.answer.Load())(ctx)
}

func (f *fake) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	f.ranges.Add(1)
	return &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: f.revision.Load()}, More: r.Serializable}, (*f.answer.Load())(ctx)
}

func (f *fake) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	return &pb.StatusResponse{Header: &pb.ResponseHeader{ClusterId: f.cluster.Load()}, Leader: f.leader.Load()}, nil
}

func well(context.Context) error { return nil }

func newSet(t *testing.T, fakes ...*fake) *Set {
	t.Helper()
	var endpoints []string
	for _, f := range fakes {
		endpoints = append(endpoints, f.address)
	}
	s, err := New(Config{Patience: 30 * time.Second}, endpoints)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	until(t, func() bool { return s.Fit() == len(fakes) })
	return s
}

func until(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not come to be")
		}
	}
}

func request(t *testing.T, method string, m proto.Message) Request {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return Request{Method: "/etcdserverpb.KV/" + method, Frame: &Frame{Head: b}, Read: method == "Range", Ordered: true}
}

// TestWritesOnce: a write that reached a member is never sent to another, whatever became of it, and
// one that did not is.
func TestWritesOnce(t *testing.T) {
	t.Parallel()
	var fakes []*fake
	for range 2 {
		fakes = append(fakes, newFake(t, func(context.Context) error { return status.Error(codes.Unavailable, "etcdserver: leader changed") }))
	}
	s := newSet(t, fakes...)
	client := NewClient(nil)
	if _, err := s.Call(t.Context(), client, request(t, "Put", &pb.PutRequest{})); status.Convert(err).Message() != "etcdserver: leader changed" {
		t.Errorf("the member's error is %v", err)
	}
	if n := fakes[0].puts.Load() + fakes[1].puts.Load(); n != 1 {
		t.Errorf("a write came %d times", n)
	}
	// A connection that breaks while a write runs.
	for _, f := range fakes {
		f.puts.Store(0)
		f.will(func(ctx context.Context) error { go f.server.Stop(); <-ctx.Done(); return ctx.Err() })
	}
	if _, err := s.Call(t.Context(), client, request(t, "Put", &pb.PutRequest{})); status.Code(err) != codes.Unavailable {
		t.Errorf("a member that dies: %v", err)
	}
	if n := fakes[0].puts.Load() + fakes[1].puts.Load(); n != 1 {
		t.Errorf("a write came %d times", n)
	}
	fakes[0].will(well)
	fakes[1].will(well)
	// Whichever has died, writes that were not sent go to the other.
	for range 20 {
		if _, err := s.Call(t.Context(), client, request(t, "Put", &pb.PutRequest{})); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAnswersOutOfOrder: calls of one client that are under way together are answered in any order; one
// that is answered after another with a newer revision is not asked again, least of all a write.
func TestAnswersOutOfOrder(t *testing.T) {
	t.Parallel()
	f := newFake(t, well)
	s := newSet(t, f)
	for _, r := range []Request{request(t, "Put", &pb.PutRequest{}), request(t, "Range", &pb.RangeRequest{})} {
		f.puts.Store(0)
		f.ranges.Store(0)
		f.revision.Store(5)
		client, came, goOn := NewClient(nil), make(chan struct{}, 10), make(chan struct{})
		f.will(func(context.Context) error { came <- struct{}{}; <-goOn; return nil })
		done := make(chan error, 1)
		go func() {
			_, err := s.Call(t.Context(), client, r)
			done <- err
		}()
		<-came // its answer is made, at revision 5
		f.will(well)
		f.revision.Store(9)
		if _, err := s.Call(t.Context(), client, request(t, "Put", &pb.PutRequest{})); err != nil || client.Seen() != 9 {
			t.Fatalf("%v; seen is revision %d", err, client.Seen())
		}
		close(goOn)
		if err := <-done; err != nil {
			t.Errorf("%s: %v", r.Method, err)
		}
		if n := f.puts.Load() + f.ranges.Load(); n != 2 {
			t.Errorf("%s and a put came as %d calls", r.Method, n)
		}
	}
}

// TestReadsGoOn: reads are asked elsewhere when a member dies, refuses or does not answer.
func TestReadsGoOn(t *testing.T) {
	t.Parallel()
	hung := newFake(t, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	good := newFake(t, well)
	s := newSet(t, hung, good)
	client := NewClient(nil)
	for hung.ranges.Load() == 0 { // in turn
		done := make(chan error, 1)
		go func() {
			_, err := s.Call(t.Context(), NewClient(nil), request(t, "Range", &pb.RangeRequest{}))
			done <- err
		}()
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(10 * time.Millisecond):
		}
	}
	hung.leader.Store(0)
	until(t, func() bool { return s.Fit() == 1 })
	for range 10 {
		if _, err := s.Call(t.Context(), client, request(t, "Range", &pb.RangeRequest{})); err != nil {
			t.Fatal(err)
		}
	}
	hung.leader.Store(1)
	leaderless := func(context.Context) error { return status.Error(codes.Unavailable, "etcdserver: no leader") }
	hung.will(leaderless)
	until(t, func() bool { return s.Fit() == 2 })
	for range 10 {
		if _, err := s.Call(t.Context(), NewClient(nil), request(t, "Range", &pb.RangeRequest{})); err != nil {
			t.Fatal(err)
		}
	}
	good.will(leaderless) // everywhere: then it is the client's
	if _, err := s.Call(t.Context(), client, request(t, "Range", &pb.RangeRequest{})); status.Convert(err).Message() != "etcdserver: no leader" {
		t.Errorf("an error of all members: %v", err)
	}
}

// TestReadsOfUnfit: where no member is fit for calls, as without a quorum, one is asked all the same:
// it answers serializable reads, in its own time.
func TestReadsOfUnfit(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	f := newFake(t, func(ctx context.Context) error {
		asked.Add(1)
		select {
		case <-time.After(50 * time.Millisecond):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	s := newSet(t, f)
	f.leader.Store(0)
	until(t, func() bool { return s.Fit() == 0 })
	if _, err := s.Call(t.Context(), NewClient(nil), request(t, "Range", &pb.RangeRequest{Serializable: true})); err != nil {
		t.Error(err)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

// TestNeverBack: a connection that has read a revision does not read an older one from another member:
// the read becomes linearizable.
func TestNeverBack(t *testing.T) {
	t.Parallel()
	ahead, behind := newFake(t, well), newFake(t, well)
	ahead.revision.Store(10)
	s := newSet(t, ahead, behind)
	client := NewClient(nil)
	r := request(t, "Range", &pb.RangeRequest{Serializable: true})
	fresh := request(t, "Range", &pb.RangeRequest{})
	r.Fresh = func() *Frame { return fresh.Frame }
	for client.seen.Load() < 10 {
		client.member.Store(nil)
		if _, err := s.Call(t.Context(), client, r); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range s.Members() { // prefer the one that is behind
		if m.Endpoint == behind.address {
			client.member.Store(m)
		}
	}
	resp, err := s.Call(t.Context(), client, r)
	if err != nil || resp.Frame.Revision() != 10 {
		t.Fatalf("%v, revision %d", err, resp.Frame.Revision())
	}
	answer := &pb.RangeResponse{}
	if err := proto.Unmarshal(resp.Frame.Head, answer); err != nil || answer.More {
		t.Errorf("it was asked for a serializable read again: %v, %v", answer, err)
	}
	ahead.server.Stop()
	until(t, func() bool { return s.Fit() == 1 })
	if _, err := s.Call(t.Context(), client, r); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "behind what this connection has read") {
		t.Errorf("only a member that is behind is left: %v", err)
	}
}

// TestOtherCluster: of endpoints of two clusters those are asked that most are of. Calls went to both,
// so that a client read nothing of what it had written, and nothing was said. A member that was
// started again on an empty directory as a cluster of its own is the usual reason.
func TestOtherCluster(t *testing.T) {
	t.Parallel()
	var fakes []*fake
	var endpoints []string
	for i := range 3 {
		f := newFake(t, well)
		f.cluster.Store(7)
		if i == 0 {
			f.cluster.Store(8)
		}
		fakes, endpoints = append(fakes, f), append(endpoints, f.address)
	}
	s, err := New(Config{Patience: 30 * time.Second}, endpoints)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	other := func(i int) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.members[i].other
	}
	until(t, func() bool { return other(0) && s.Fit() == 2 })
	put := func() (first int64) {
		before := fakes[0].puts.Load()
		for range 20 {
			if _, err := s.Call(t.Context(), NewClient(nil), request(t, "Put", &pb.PutRequest{})); err != nil {
				t.Fatal(err)
			}
		}
		return fakes[0].puts.Load() - before
	}
	if n := put(); n != 0 {
		t.Errorf("%d of 20 puts went to another cluster", n)
	}

	// With the others just gone, it is still not asked.
	for _, f := range fakes[1:] {
		f.server.Stop()
	}
	until(t, func() bool { return s.Fit() == 0 })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if m, _, err := s.Pick(ctx, nil); err == nil {
		t.Errorf("%s is asked", m.Endpoint)
	}

	// They do not come back: it was restored from a backup, say.
	s.mu.Lock()
	s.forget = 0
	s.mu.Unlock()
	until(t, func() bool { return s.Fit() == 1 && !other(0) })
	if n := put(); n != 20 {
		t.Errorf("%d of 20 puts went to a member", n)
	}

	// Of two that differ the first counts, and one that is alone is not of another cluster.
	fakes[0].cluster.Store(9)
	if err := s.Update(endpoints[:1]); err != nil {
		t.Fatal(err)
	}
	until(t, func() bool { return s.Fit() == 1 && !other(0) })
}

// TestLost: a stream at a member that is taken out of the Set ends as when the member ends, and not as
// if its client had given up.
func TestLost(t *testing.T) {
	t.Parallel()
	came := make(chan struct{})
	one := newFake(t, func(ctx context.Context) error { close(came); <-ctx.Done(); return ctx.Err() })
	two := newFake(t, well)
	s := newSet(t, one)
	stream, _, err := s.Open(t.Context(), NewClient(nil), &grpc.StreamDesc{ServerStreams: true}, "/etcdserverpb.KV/Put")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.SendMsg(&Frame{}); err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	<-came
	if err := s.Update([]string{two.address}); err != nil {
		t.Fatal(err)
	}
	if err := Lost(stream.RecvMsg(&Frame{})); status.Code(err) != codes.Unavailable {
		t.Errorf("at a member that is not one any more: %v", err)
	}
}

// TestUpdate: members come and go.
func TestUpdate(t *testing.T) {
	t.Parallel()
	one, two := newFake(t, well), newFake(t, well)
	s := newSet(t, one)
	kept := s.Members()[0]
	if err := s.Update([]string{one.address, two.address}); err != nil {
		t.Fatal(err)
	}
	until(t, func() bool { return s.Fit() == 2 })
	if s.Members()[0] != kept {
		t.Error("the connection that was there is not kept")
	}
	if err := s.Update([]string{two.address}); err != nil {
		t.Fatal(err)
	}
	if got := s.Endpoints(); len(got) != 1 || got[0] != two.address {
		t.Errorf("endpoints %q", got)
	}
	for range 5 {
		if _, err := s.Call(t.Context(), NewClient(nil), request(t, "Put", &pb.PutRequest{})); err != nil {
			t.Fatal(err)
		}
	}
	if one.puts.Load() > 0 {
		t.Error("a member that is gone got a call")
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]endpoint{
		"127.0.0.1:2379":   {"tcp", "127.0.0.1:2379", "127.0.0.1", false},
		"http://h:1":       {"tcp", "h:1", "h", false},
		"https://h:1":      {"tcp", "h:1", "h", true},
		"[::1]:1":          {"tcp", "[::1]:1", "::1", false},
		"unix:///a/b.sock": {"unix", "/a/b.sock", "b.sock", false},
		"unixs://b:0":      {"unix", "b:0", "b", true},
		"unix:b":           {"unix", "b", "b", false},
	} {
		if got, err := parse(text, false); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	if got, err := parse("h:1", true); err != nil || !got.secure {
		t.Errorf("with files for TLS: %v, %v", got, err)
	}
	for _, text := range []string{"", "h", "h:", "ftp://h:1", "unix:"} {
		if got, err := parse(text, false); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

// TestTooLarge: only the transport's word for an answer beyond the bound that was given is taken
// for it.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want int64
	}{
		{nil, 0},
		{status.Error(codes.ResourceExhausted, "grpc: received message larger than max (70000 vs. 65536)"), 70000},
		{status.Error(codes.ResourceExhausted, "grpc: received message larger than max (70000 vs. 65537)"), 0},
		{status.Error(codes.ResourceExhausted, "etcdserver: too many requests"), 0},
		{status.Error(codes.Unavailable, "grpc: received message larger than max (70000 vs. 65536)"), 0},
	} {
		if size, ok := TooLarge(c.err, 65536); size != c.want || ok != (c.want > 0) {
			t.Errorf("%v: %d, %v", c.err, size, ok)
		}
	}
}
