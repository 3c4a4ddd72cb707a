package cache

import (
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// A script is an Env whose other side is written down.
type script struct {
	sent      []*pb.WatchRequest
	questions []*Question
	notices   []string
}

func (s *script) Send(r *pb.WatchRequest)  { s.sent = append(s.sent, r) }
func (s *script) Ask(q *Question)          { s.questions = append(s.questions, q) }
func (s *script) Notice(message, _ string) { s.notices = append(s.notices, message) }
func header(revision int64) *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: 1, Revision: revision}
}
func (s *script) question() (q *Question) { q, s.questions = s.questions[0], s.questions[1:]; return q }
func progress(revision int64) *pb.WatchResponse {
	return &pb.WatchResponse{Header: header(revision), WatchId: noID}
}
func created(id, revision int64) *pb.WatchResponse {
	return &pb.WatchResponse{Header: header(revision), WatchId: id, Created: true}
}

// scripted is a Cache with a key "k" that is kept, read at revision 10.
func scripted(t *testing.T) (*Cache, *script) {
	t.Helper()
	s := &script{}
	c := New(Config{Bytes: 1 << 20, Staleness: time.Second, Named: []Interval{{"k", ""}}}, s)
	c.Up(0)
	c.Answered(0, s.question(), &pb.RangeResponse{Header: header(10), Kvs: []*mvccpb.KeyValue{{Key: []byte("k"), ModRevision: 9}}, Count: 1}, nil, false)
	if len(s.sent) != 1 || s.sent[0].GetCreateRequest().GetStartRevision() != 10 {
		t.Fatalf("asked for %v", s.sent)
	}
	return c, s
}

func (s *script) read(t *testing.T, c *Cache, now time.Duration, serializable bool) (Verdict, *outcome) {
	t.Helper()
	o := &outcome{}
	a, verdict := c.Read(now, &Read{Request: &pb.RangeRequest{Key: []byte("k"), Serializable: serializable}, Done: func(a Answer, ok bool) { o.done, o.ok, o.answer = true, ok, a }})
	if verdict == Hit {
		o.done, o.ok, o.answer = true, true, a
	}
	return verdict, o
}

type outcome struct {
	done, ok bool
	answer   Answer
}

// TestProgressOfBefore: a progress message that was under way when a watch was created says nothing
// about it, though the word that it was created comes first.
func TestProgressOfBefore(t *testing.T) {
	c, s := scripted(t)
	verdict, o := s.read(t, c, 0, false)
	if verdict != Waits {
		t.Fatalf("verdict %v", verdict)
	}
	// The barrier is at 12: the cluster is asked how far it is, before it has the watch.
	c.Answered(0, s.question(), &pb.RangeResponse{Header: header(12)}, nil, false)
	if len(s.sent) != 2 || s.sent[1].GetProgressRequest() == nil {
		t.Fatalf("asked for %v", s.sent)
	}
	for _, r := range []*pb.WatchResponse{created(1, 12), progress(12)} {
		if err := c.Response(0, r); err != nil {
			t.Fatal(err)
		}
	}
	if o.done {
		t.Fatalf("answered by a message that may be from before the watch: %+v", o.answer)
	}
	if err := c.Response(0, progress(13)); err != nil {
		t.Fatal(err)
	}
	if !o.ok || o.answer.Revision != 13 {
		t.Errorf("not answered by one that is not: %+v", o)
	}
}

// TestOneBarrier: reads that came before a barrier was sent share it, and later ones share the
// next.
func TestOneBarrier(t *testing.T) {
	c, s := scripted(t)
	_, first := s.read(t, c, 0, false)
	var rest []*outcome
	for range 100 {
		_, o := s.read(t, c, 0, false)
		rest = append(rest, o)
	}
	answer := func() {
		t.Helper()
		if len(s.questions) != 1 {
			t.Fatalf("%d questions", len(s.questions))
		}
		c.Answered(0, s.question(), &pb.RangeResponse{Header: header(10)}, nil, false)
	}
	answer()
	if !first.ok || rest[0].done {
		t.Fatalf("the first %v, the others %v", first.ok, rest[0].done)
	}
	answer()
	for _, o := range rest {
		if !o.ok {
			t.Fatal("one was not answered")
		}
	}
	if c.Barriers != 2 || len(s.questions) != 0 {
		t.Errorf("%d barriers for %d reads", c.Barriers, 1+len(rest))
	}
}

// TestStaleness: a serializable read is answered within the bound, renewed before it, and waits
// beyond.
func TestStaleness(t *testing.T) {
	c, s := scripted(t)
	if verdict, _ := s.read(t, c, 0, true); verdict != Waits {
		t.Fatalf("before any barrier: %v", verdict)
	}
	c.Answered(100*time.Millisecond, s.question(), &pb.RangeResponse{Header: header(10)}, nil, false)
	if verdict, _ := s.read(t, c, 400*time.Millisecond, true); verdict != Hit || len(s.questions) != 0 {
		t.Errorf("within half of it: %v, %d questions", verdict, len(s.questions))
	}
	if verdict, _ := s.read(t, c, time.Second, true); verdict != Hit || len(s.questions) != 1 {
		t.Errorf("within it: %v, %d questions", verdict, len(s.questions))
	}
	// It counts from when the barrier was sent.
	if verdict, _ := s.read(t, c, time.Second+1, true); verdict != Waits {
		t.Errorf("beyond it: %v", verdict)
	}
	c.Down(time.Second + 2)
	if verdict, _ := s.read(t, c, time.Second+3, true); verdict != Miss {
		t.Errorf("without a stream: %v", verdict)
	}
}

// TestHistoryGoesBack: a cluster that was restored from a backup has another past.
func TestHistoryGoesBack(t *testing.T) {
	c, s := scripted(t)
	_, o := s.read(t, c, 0, false)
	c.Answered(0, s.question(), &pb.RangeResponse{Header: header(5)}, nil, false)
	if !o.done || o.ok || len(s.notices) != 1 {
		t.Errorf("%+v, notices %q", o, s.notices)
	}
	for _, a := range c.areas {
		if a.at == 10 {
			t.Error("the content of before is there")
		}
	}
}

// TestUsers: a cluster that asks who reads has everything be forgotten.
func TestUsers(t *testing.T) {
	c, s := scripted(t)
	_, o := s.read(t, c, 0, false)
	c.Answered(0, s.question(), nil, errWorld, true)
	if !o.done || o.ok || c.Areas() != 0 || c.Bytes() != 0 || len(s.notices) != 1 {
		t.Errorf("%+v, %d areas, %d bytes, notices %q", o, c.Areas(), c.Bytes(), s.notices)
	}
	for range 2 * hotReads {
		if verdict, _ := s.read(t, c, offFor-1, true); verdict != Miss {
			t.Fatalf("verdict %v", verdict)
		}
	}
	c.Tick(offFor)
	if len(s.questions) != 1 {
		t.Errorf("after a while it is asked %d times", len(s.questions))
	}
}

// TestCacheable refuses what the cluster must judge.
func TestCacheable(t *testing.T) {
	key := []byte("k")
	for _, c := range []struct {
		request *pb.RangeRequest
		want    bool
	}{
		{&pb.RangeRequest{Key: key}, true},
		{&pb.RangeRequest{Key: key, RangeEnd: []byte{0}, Limit: -1}, true},
		{&pb.RangeRequest{}, false},
		{&pb.RangeRequest{Key: key, RangeEnd: key}, false},
		{&pb.RangeRequest{Key: key, RangeEnd: []byte("a")}, false},
		{&pb.RangeRequest{Key: key, Revision: 3}, false},
		{&pb.RangeRequest{Key: key, SortOrder: 7}, false},
		{&pb.RangeRequest{Key: key, SortTarget: 7}, false},
		{&pb.RangeRequest{Key: make([]byte, 2000)}, false},
	} {
		if got := Cacheable(c.request); got != c.want {
			t.Errorf("%v: %v", c.request, got)
		}
	}
	unknown := &pb.RangeRequest{Key: key}
	unknown.ProtoReflect().SetUnknown([]byte{0xf8, 0x07, 1})
	if Cacheable(unknown) {
		t.Error("a field of another version")
	}
}

// TestCovers holds which ranges lie in which.
func TestCovers(t *testing.T) {
	for _, c := range []struct {
		area     Interval
		key, end string
		want     bool
	}{
		{Interval{"b", ""}, "b", "", true}, {Interval{"b", ""}, "b", "c", false},
		{Interval{"b", "d"}, "b", "", true}, {Interval{"b", "d"}, "a", "", false}, {Interval{"b", "d"}, "d", "", false},
		{Interval{"b", "d"}, "b", "d", true}, {Interval{"b", "d"}, "c", "d", true}, {Interval{"b", "d"}, "c", "e", false},
		{Interval{"b", "d"}, "b", "\x00", false}, {Interval{"b", "\x00"}, "b", "\x00", true}, {Interval{"b", "\x00"}, "z", "", true},
		{Interval{"b", "\x00"}, "a", "\x00", false},
	} {
		if got := c.area.covers([]byte(c.key), []byte(c.end)); got != c.want {
			t.Errorf("%q covers %q %q: %v", c.area, c.key, c.end, got)
		}
	}
}
