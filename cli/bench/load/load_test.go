package load

import (
	"bytes"
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// TestOpenLoopShowsAStall: for half a second nothing is answered. In a closed loop that is one slow
// operation of each client; in an open one every request that was due meanwhile is late.
func TestOpenLoopShowsAStall(t *testing.T) {
	t.Parallel()
	const stall = 500 * time.Millisecond
	run := func(open bool) *Counts {
		until := sync.OnceValue(func() time.Time { return time.Now().Add(stall) })
		r, err := Run(t.Context(), Options{Clients: 2, Total: 1000, Rate: 1000, Open: open}, func(int) (Operation, error) {
			return func(ctx context.Context, _ int64) (int, error) {
				time.Sleep(time.Until(until())) // the server stalls
				return 0, nil
			}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if n := r.N(); n != 1000 {
			t.Errorf("%d operations, want 1000", n)
		}
		return r.Classes[0].Counts
	}
	// 500 of 1,000 were due in the stall, on average half of it late.
	if c := run(true); c.Quantile(0.70) < stall/10 || c.Slowest() < stall*9/10 {
		t.Errorf("open loop: p70 %v, slowest %v", c.Quantile(0.70), c.Slowest())
	}
	if c := run(false); c.Quantile(0.5) > stall/2 || c.Slowest() < stall*9/10 {
		t.Errorf("closed loop: p50 %v, slowest %v", c.Quantile(0.5), c.Slowest())
	}
}

// TestUnanswered: what was due and never answered is told.
func TestUnanswered(t *testing.T) {
	t.Parallel()
	r, err := Run(t.Context(), Options{Clients: 3, Duration: 300 * time.Millisecond, Rate: 100, Open: true}, func(int) (Operation, error) {
		return func(ctx context.Context, _ int64) (int, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.N() != 0 || r.Whole().Failed() != 0 || r.Unanswered < 25 || r.Oldest < 200*time.Millisecond {
		t.Errorf("%d answered, %d failed, %d unanswered, the oldest for %v", r.N(), r.Whole().Failed(), r.Unanswered, r.Oldest)
	}
}

func TestClosedLoop(t *testing.T) {
	t.Parallel()
	odd := errors.New("odd")
	var begun, ended atomic.Bool
	var ticks atomic.Int64
	o := Options{Clients: 4, Total: 1000, Classes: []string{"even", "odd"}, WarmUp: 50 * time.Millisecond,
		Begin: func(context.Context) error { begun.Store(true); return nil }, End: func(context.Context) { ended.Store(true) },
		Tick: func(Second, int64) { ticks.Add(1) }}
	var sequence atomic.Int64
	r, err := Run(t.Context(), o, func(int) (Operation, error) {
		return func(_ context.Context, n int64) (int, error) {
			time.Sleep(time.Millisecond)
			if sequence.Add(1)%2 == 1 {
				return 1, odd
			}
			return 0, nil
		}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	even, bad := r.Classes[0].Counts, r.Classes[1].Counts
	if n := even.N() + bad.Failed(); n != 1000 || bad.N() != 0 || bad.Errors()["odd"] != bad.Failed() {
		t.Errorf("%d counted, of them %d and %d", n, even.N(), bad.Failed())
	}
	if even.Fastest() < time.Millisecond || even.Quantile(0.5) < time.Millisecond || even.Mean() < time.Millisecond {
		t.Errorf("fastest %v, p50 %v, mean %v", even.Fastest(), even.Quantile(0.5), even.Mean())
	}
	var ops, failed int64
	for _, s := range r.Seconds {
		ops, failed = ops+s.Ops, failed+s.Failed
	}
	if !begun.Load() || !ended.Load() || ticks.Load() == 0 || ops != even.N() || failed != bad.Failed() {
		t.Errorf("begun %v, ended %v, %d ticks, %d and %d in the seconds", begun.Load(), ended.Load(), ticks.Load(), ops, failed)
	}
}

// TestRate: no more operations than the rate allows.
func TestRate(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	if _, err := Run(t.Context(), Options{Clients: 8, Total: 101, Rate: 500}, func(int) (Operation, error) {
		return func(context.Context, int64) (int, error) { return 0, nil }, nil
	}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < 190*time.Millisecond {
		t.Errorf("101 operations at 500 a second took %v", took)
	}
}

func TestHopelessRunEnds(t *testing.T) {
	t.Parallel()
	no := errors.New("no")
	r, err := Run(t.Context(), Options{Clients: 3, Duration: time.Hour}, func(int) (Operation, error) {
		return func(context.Context, int64) (int, error) { return 0, no }, nil
	})
	if err != nil || !errors.Is(r.GaveUp, no) || r.Whole().Errors()["no"] < hopeless {
		t.Errorf("%v, gave up for %v, %v", err, r.GaveUp, r.Whole().Errors())
	}
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	r, err := Run(t.Context(), Options{Clients: 1, Total: 3, Timeout: 10 * time.Millisecond}, func(int) (Operation, error) {
		return func(ctx context.Context, _ int64) (int, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		}, nil
	})
	if err != nil || r.Whole().Errors()["context deadline exceeded"] != 3 {
		t.Errorf("%v, %v", err, r.Whole().Errors())
	}
}

func TestValidate(t *testing.T) {
	for _, o := range []Options{{}, {Clients: 1}, {Clients: 1, Total: -1}, {Clients: 1, Total: 1, Open: true}, {Clients: 1, Total: 1, Rate: -1}} {
		if _, err := Run(t.Context(), o, nil); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
}

// TestCounts holds quantiles and moments against exact ones.
func TestCounts(t *testing.T) {
	c := NewCounts()
	for i := 1; i <= 1000; i++ {
		c.Add(time.Duration(i) * time.Millisecond)
	}
	near := func(got, want time.Duration) bool { return got > want*998/1000 && got < want*1002/1000 }
	for q, want := range map[float64]time.Duration{0.5: 500 * time.Millisecond, 0.99: 990 * time.Millisecond, 0.999: 999 * time.Millisecond, 1: time.Second} {
		if got := c.Quantile(q); !near(got, want) {
			t.Errorf("quantile %v: %v, want %v", q, got, want)
		}
	}
	if !near(c.Mean(), 500500*time.Microsecond) || !near(c.Deviation(), 288675*time.Microsecond) || c.Fastest() != time.Millisecond || c.Slowest() != time.Second {
		t.Errorf("mean %v, deviation %v, %v to %v", c.Mean(), c.Deviation(), c.Fastest(), c.Slowest())
	}
	bounds := []time.Duration{time.Millisecond, 250 * time.Millisecond, time.Second}
	if got := c.Spread(bounds); got[0] != 1 || got[1] < 248 || got[1] > 250 || got[0]+got[1]+got[2] != 1000 {
		t.Errorf("spread %v", got)
	}
	for i := range 2 * maxKinds {
		c.Fail("error " + strconv.Itoa(i))
	}
	if errs := c.Errors(); len(errs) != maxKinds+1 || errs[OtherErrors] != maxKinds || c.Failed() != 2*maxKinds {
		t.Errorf("%d kinds, %d others, %d in all", len(errs), errs[OtherErrors], c.Failed())
	}
	c.Add(2 * time.Duration(longest))
	c.Add(-time.Second)
	if c.N() != 1002 || c.Slowest() != 2*time.Duration(longest) {
		t.Errorf("%d, slowest %v", c.N(), c.Slowest())
	}
}

// TestTemplate: what a request sends is what protobuf makes of the message with its keys.
func TestTemplate(t *testing.T) {
	for _, size := range []int{1, 2, 8, 300} {
		message := func(a, b []byte) proto.Message {
			put := func(key []byte) *pb.RequestOp {
				return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: []byte("v\x00\xffv")}}}
			}
			return &pb.TxnRequest{Success: []*pb.RequestOp{put(a), put(b)}}
		}
		template, err := NewTemplate(size, func(key []byte) proto.Message { return message(key, key) })
		if err != nil {
			t.Fatal(err)
		}
		if template.Keys() != 2 {
			t.Fatalf("keys of %d bytes: %d places", size, template.Keys())
		}
		r, other := template.Request(), template.Request()
		a, b := bytes.Repeat([]byte{7}, size), bytes.Repeat([]byte{0}, size)
		copy(other.Key(0), bytes.Repeat([]byte{9}, size))
		copy(r.Key(0), a)
		copy(r.Key(1), b)
		want, err := proto.Marshal(message(a, b))
		if err != nil {
			t.Fatal(err)
		}
		sent, err := Codec{}.Marshal(r)
		if err != nil || !bytes.Equal(sent.Materialize(), want) {
			t.Errorf("keys of %d bytes: %x, %v, want %x", size, sent.Materialize(), err, want)
		}
		r.Renew()
		copy(r.Key(1), a)
		if !bytes.Equal(sent.Materialize(), want) {
			t.Errorf("keys of %d bytes: what was sent has changed", size)
		}
	}
	if _, err := (Codec{}).Marshal(3); err == nil {
		t.Error("a number is encoded")
	}
}

func TestReadWatch(t *testing.T) {
	event := func(key string, rev int64) *mvccpb.Event {
		return &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte(key), CreateRevision: 1, ModRevision: rev, Version: 3, Value: []byte("value")}, PrevKv: &mvccpb.KeyValue{Key: []byte("no"), ModRevision: 1}}
	}
	text, err := proto.Marshal(&pb.WatchResponse{Header: &pb.ResponseHeader{Revision: 9}, WatchId: 4, Created: true, Canceled: true, CompactRevision: 5, CancelReason: "because", Events: []*mvccpb.Event{event("a", 7), event("b", 8)}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	a := ReadWatch(text, func(key []byte, rev int64) { got = append(got, string(key)+strconv.FormatInt(rev, 10)) })
	if want := (WatchAnswer{ID: 4, Created: true, Canceled: true, Compacted: 5, Reason: "because", Events: 2}); a != want || len(got) != 2 || got[0] != "a7" || got[1] != "b8" {
		t.Errorf("%+v, events %v", a, got)
	}
	for i := range text {
		ReadWatch(text[:i], nil) // cut off anywhere: no panic
	}
	put, err := proto.Marshal(&pb.PutResponse{Header: &pb.ResponseHeader{ClusterId: 1, Revision: 42}})
	if err != nil || Revision(put) != 42 {
		t.Errorf("revision %d, %v", Revision(put), err)
	}
	if string(BytesField(text, respReason)) != "because" {
		t.Errorf("%q", BytesField(text, respReason))
	}
}
