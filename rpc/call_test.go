package rpc

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// A keeper is a Hot that keeps its calls, and hears of their ends.
type keeper struct {
	then  func(i int, c *keptCall) // what it does with each besides; nil: nothing
	mu    sync.Mutex
	calls []*keptCall
}

type keptCall struct {
	*Call
	told  atomic.Int32
	cause error // set before told is raised
}

// Ended is Ender's.
func (k *keptCall) Ended(cause error) {
	k.cause = cause
	k.told.Add(1)
}

func (k *keeper) serve(c *Call, _ []byte) bool {
	call := &keptCall{Call: c}
	k.mu.Lock()
	i := len(k.calls)
	k.calls = append(k.calls, call)
	k.mu.Unlock()
	c.Notify(call)
	if k.then != nil {
		k.then(i, call)
	}
	return true
}

// wait returns the calls when there are n.
func (k *keeper) wait(t *testing.T, n int) []*keptCall {
	t.Helper()
	var calls []*keptCall
	eventually(t, fmt.Sprint(n, " calls"), func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		calls = slices.Clone(k.calls)
		return len(calls) >= n
	})
	return calls
}

// serveKept serves UnaryCall by a keeper.
func serveKept(t *testing.T) (*keeper, string) {
	t.Helper()
	k, s := &keeper{}, New(testOptions())
	addr := serve(t, s, &echo{})
	s.Hot("/grpc.testing.TestService/UnaryCall", k.serve)
	return k, addr
}

// TestKeptCallsEnd: who keeps a call is told once when nobody waits for it any longer, and why.
func TestKeptCallsEnd(t *testing.T) {
	t.Parallel()
	call := func(r *raw, more ...string) uint32 {
		id := r.begin(callFields("UnaryCall", more...), false)
		r.data(id, framed(&testpb.SimpleRequest{}), true)
		return id
	}
	ends := func(t *testing.T, c *keptCall, want error) {
		t.Helper()
		eventually(t, "it is told", func() bool { return c.told.Load() > 0 })
		if c.cause != want {
			t.Errorf("told %v, want %v", c.cause, want)
		}
		c.Reply(protoMessage{&testpb.SimpleResponse{Username: "too late"}})
		if n := c.told.Load(); n != 1 {
			t.Errorf("told %d times", n)
		}
	}
	t.Run("reset", func(t *testing.T) {
		k, addr := serveKept(t)
		r := connect(t, addr)
		id := call(r)
		c := k.wait(t, 1)[0]
		r.write(r.fr.WriteRSTStream(id, http2.ErrCodeCancel))
		ends(t, c, context.Canceled)
	})
	t.Run("connection lost", func(t *testing.T) {
		k, addr := serveKept(t)
		r := connect(t, addr)
		for range 50 {
			call(r, "grpc-timeout", "1H")
		}
		calls := k.wait(t, 50)
		r.nc.Close()
		for _, c := range calls {
			ends(t, c, context.Canceled)
		}
	})
	t.Run("deadlines", func(t *testing.T) {
		k, addr := serveKept(t)
		r := connect(t, addr)
		var ids []uint32
		for _, timeout := range []string{"1H", "300m", "20m", "40m", "20m"} {
			ids = append(ids, call(r, "grpc-timeout", timeout))
		}
		silent := r.begin(callFields("UnaryCall", "grpc-timeout", "30m"), false)
		begun := time.Now()
		for _, id := range append(ids[1:], silent) {
			if a := r.answer(id); a.reset != "CANCEL" {
				t.Errorf("behind its deadline: %s", a)
			}
		}
		if time.Since(begun) < 250*time.Millisecond {
			t.Error("a call was reset before its deadline")
		}
		calls := k.wait(t, len(ids))
		for _, c := range calls[1:] {
			if !c.Late() {
				t.Error("not late")
			}
			ends(t, c, context.DeadlineExceeded)
		}
		calls[0].Reply(protoMessage{&testpb.SimpleResponse{}})
		if a := r.answer(ids[0]); a.status() != "0 " {
			t.Errorf("long before its deadline: %s", a)
		}
		if n := calls[0].told.Load(); n != 0 {
			t.Error("told of the end of a call that was answered")
		}
	})
}

// TestKeptCallsCount: calls that are reset count until their Hot has done with them.
func TestKeptCallsCount(t *testing.T) {
	t.Parallel()
	k, addr := serveKept(t)
	r := connect(t, addr)
	call := func() uint32 {
		id := r.begin(callFields("UnaryCall"), false)
		r.data(id, framed(&testpb.SimpleRequest{}), true)
		return id
	}
	for range maxOrphans {
		r.write(r.fr.WriteRSTStream(call(), http2.ErrCodeCancel))
	}
	calls := k.wait(t, maxOrphans)
	if a := r.answer(call()); a.reset != "REFUSED_STREAM" {
		t.Errorf("beside calls that were reset: %s", a)
	}
	for i, c := range calls {
		if c.Call.Ended() != context.Canceled {
			t.Error("a call that was reset has not ended")
		}
		switch i % 3 {
		case 0:
			c.Reply(protoMessage{&testpb.SimpleResponse{}})
		case 1:
			c.Fail(context.Canceled)
		default:
			c.Delegate(nil)
		}
	}
	id := call()
	k.wait(t, maxOrphans+1)[maxOrphans].Reply(protoMessage{&testpb.SimpleResponse{}})
	if a := r.answer(id); a.status() != "0 " {
		t.Errorf("when all have been answered: %s", a)
	}
}

// TestAnswersRaceEnds: answers, resets and deadlines of many calls meet; each call is answered or
// reset, and its end told at most once.
func TestAnswersRaceEnds(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	k, addr := serveKept(t)
	const n = 400
	var answering sync.WaitGroup
	k.then = func(i int, c *keptCall) {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		answer := func() {
			for range rng.IntN(200) {
				runtime.Gosched()
			}
			reply := func() { c.Reply(protoMessage{&testpb.SimpleResponse{Username: "kept"}}) }
			switch rng.IntN(4) {
			case 0:
				reply()
			case 1:
				c.Fail(context.Canceled)
			case 2:
				c.Delegate(nil)
			default:
				c.Go(reply)
			}
		}
		if rng.IntN(2) == 0 {
			answer()
		} else {
			answering.Go(answer)
		}
	}
	r := connect(t, addr)
	for range n {
		timeout := []string{"1H", "1m", "5m", "400u"}[rng.IntN(4)]
		id := r.begin(callFields("UnaryCall", "grpc-timeout", timeout), false)
		r.data(id, framed(&testpb.SimpleRequest{}), true)
		if rng.IntN(3) == 0 {
			r.write(r.fr.WriteRSTStream(id, http2.ErrCodeCancel))
			r.answers[id].closed = true
		}
	}
	for id := uint32(1); id < r.next; id += 2 {
		if a := r.answer(id); !a.closed {
			t.Fatalf("stream %d has not ended: %s", id, a)
		}
	}
	answering.Wait()
	for i, c := range k.wait(t, 1) {
		if told := c.told.Load(); told > 1 {
			t.Errorf("the end of call %d was told %d times", i, told)
		}
	}
}

// TestHotMessages: messages that a HotMessage answers and others take turns on one stream, and the
// answers are in their order.
func TestHotMessages(t *testing.T) {
	t.Parallel()
	s := New(testOptions())
	addr := serve(t, s, &echo{})
	var hot atomic.Int32
	s.HotMessages("/grpc.testing.TestService/FullDuplexCall", func(ctx context.Context, message []byte) (Message, bool) {
		answer, ok := hotDuplex(ctx, message)
		if ok {
			hot.Add(1)
		}
		return answer, ok
	})
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	stream, err := dial(t, addr).FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ask := func(sizes ...int32) {
		r := &testpb.StreamingOutputCallRequest{}
		for _, size := range sizes {
			r.ResponseParameters = append(r.ResponseParameters, &testpb.ResponseParameters{Size: size})
		}
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	var want []int32
	for range 300 {
		sizes := []int32{1 + rng.Int32N(100)}
		switch rng.IntN(10) {
		case 0:
			sizes = append(sizes, 5, 6)
		case 1:
			sizes[0] = rng.Int32N(200 << 10) // more than a window
		}
		ask(sizes...)
		want = append(want, sizes...)
		for len(want) > 0 && (rng.IntN(3) > 0 || len(want) > 20) {
			got, err := stream.Recv()
			if err != nil || int32(len(got.GetPayload().GetBody())) != want[0] {
				t.Fatalf("an answer of %d bytes, want %d: %v", len(got.GetPayload().GetBody()), want[0], err)
			}
			want = want[1:]
		}
	}
	for i := 0; hot.Load() == 0; i++ { // on a slow machine the handler may never have waited
		if i == 10000 {
			t.Fatal("no message was answered without the handler")
		}
		for range want {
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
		}
		want = []int32{1}
		ask(want...)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for range want {
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := stream.Recv(); err != io.EOF {
		t.Errorf("after the last answer: %v", err)
	}
}

// TestStopBesideKeptCalls: a graceful stop lets a call be answered that a Hot has, and a stop ends it.
func TestStopBesideKeptCalls(t *testing.T) {
	t.Parallel()
	for _, graceful := range []bool{true, false} {
		k, s := &keeper{}, New(testOptions())
		addr := serve(t, s, &echo{})
		s.Hot("/grpc.testing.TestService/UnaryCall", k.serve)
		r := connect(t, addr)
		id := r.begin(callFields("UnaryCall", "grpc-timeout", "1H"), false)
		r.data(id, framed(&testpb.SimpleRequest{}), true)
		c := k.wait(t, 1)[0]
		stopped := stopping(s, graceful)
		if graceful {
			r.until(func() bool { return len(r.goAways) > 0 })
			c.Reply(protoMessage{&testpb.SimpleResponse{}})
			if a := r.answer(id); a.status() != "0 " {
				t.Errorf("during a graceful stop: %s", a)
			}
			if n := c.told.Load(); n != 0 {
				t.Error("a call that was answered was told of its end")
			}
		} else {
			eventually(t, "it is told", func() bool { return c.told.Load() > 0 })
			if c.cause != context.Canceled {
				t.Errorf("told %v", c.cause)
			}
			c.Fail(c.cause)
		}
		r.nc.Close()
		<-stopped
	}
}

// TestStopWaitsForGo: a graceful stop waits for the goroutine of a call, also when its client has left.
func TestStopWaitsForGo(t *testing.T) {
	t.Parallel()
	k, s := &keeper{}, New(testOptions())
	addr := serve(t, s, &echo{})
	s.Hot("/grpc.testing.TestService/UnaryCall", k.serve)
	r := connect(t, addr)
	id := r.begin(callFields("UnaryCall"), false)
	r.data(id, framed(&testpb.SimpleRequest{}), true)
	c := k.wait(t, 1)[0]
	goOn, answered := make(chan struct{}), atomic.Bool{}
	c.Go(func() {
		<-goOn
		answered.Store(true)
		c.Reply(protoMessage{&testpb.SimpleResponse{}})
	})
	r.nc.Close()
	eventually(t, "its end is told", func() bool { return c.told.Load() > 0 })
	stopped := make(chan bool, 1)
	go func() {
		s.GracefulStop()
		stopped <- answered.Load()
	}()
	time.Sleep(20 * time.Millisecond)
	close(goOn)
	if !<-stopped {
		t.Error("stopped before the goroutine of a call had ended")
	}
}

// TestWorkersStay: goroutines are used again, and not all of them stay.
func TestWorkersStay(t *testing.T) {
	t.Parallel()
	s := New(testOptions())
	defer s.Stop()
	idle := func(n int32) {
		t.Helper()
		eventually(t, fmt.Sprint(n, " workers are left"), func() bool { return s.idle.Load() == n })
	}
	goOn := make(chan struct{})
	for range 2 * keptWorkers {
		s.run(func() { <-goOn })
	}
	close(goOn)
	idle(keptWorkers)
	s.run(func() {})
	idle(keptWorkers)
}

// busy is echo whose FullDuplexCall is held up by each message.
type busy struct {
	echo
	has, goOn chan struct{}
}

func (b *busy) FullDuplexCall(s grpc.BidiStreamingServer[testpb.StreamingOutputCallRequest, testpb.StreamingOutputCallResponse]) error {
	for {
		if _, err := s.Recv(); err != nil {
			return nil
		}
		b.has <- struct{}{}
		<-b.goOn
		if err := s.Send(&testpb.StreamingOutputCallResponse{Payload: &testpb.Payload{Body: []byte("the handler's")}}); err != nil {
			return err
		}
	}
}

// TestHotMessagesDoNotOvertake: while the handler is busy with a message, the next one waits for it.
func TestHotMessagesDoNotOvertake(t *testing.T) {
	t.Parallel()
	impl := &busy{has: make(chan struct{}), goOn: make(chan struct{})}
	client := dial(t, serve(t, hot(testOptions()), impl))
	stream, err := client.FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&testpb.StreamingOutputCallRequest{}); err != nil { // not for the HotMessage
		t.Fatal(err)
	}
	<-impl.has
	if err := stream.Send(&testpb.StreamingOutputCallRequest{ResponseParameters: []*testpb.ResponseParameters{{Size: 1}}}); err != nil {
		t.Fatal(err)
	}
	// The connection's reader has seen it when it answers this.
	if _, err := client.EmptyCall(t.Context(), &testpb.Empty{}); err != nil {
		t.Fatal(err)
	}
	impl.goOn <- struct{}{}
	got, err := stream.Recv()
	if err != nil || string(got.GetPayload().GetBody()) != "the handler's" {
		t.Fatalf("first comes %q: %v", got.GetPayload().GetBody(), err)
	}
	<-impl.has // the second is the handler's, too: it was there before the handler waited
	impl.goOn <- struct{}{}
	if got, err = stream.Recv(); err != nil || string(got.GetPayload().GetBody()) != "the handler's" {
		t.Errorf("then comes %q: %v", got.GetPayload().GetBody(), err)
	}
}
