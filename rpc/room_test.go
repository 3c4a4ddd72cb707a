package rpc

import (
	"context"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// A sizer answers with as many bytes as it is asked for, and asks for room first.
type sizer struct {
	echo
	made atomic.Int64 // answers
}

func (s *sizer) UnaryCall(ctx context.Context, in *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	if err := AwaitRoom(ctx, int64(in.GetResponseSize())); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	s.made.Add(1)
	return sized(in), nil
}

func sized(in *testpb.SimpleRequest) *testpb.SimpleResponse {
	return &testpb.SimpleResponse{Payload: &testpb.Payload{Body: make([]byte, in.GetResponseSize())}}
}

// hot is UnaryCall as a Hot.
func (s *sizer) hot(c *Call, message []byte) bool {
	in := new(testpb.SimpleRequest)
	if err := proto.Unmarshal(message, in); err != nil {
		return false
	}
	answer := func() {
		s.made.Add(1)
		c.Reply(protoMessage{sized(in)})
	}
	if c.Reserve(int64(in.GetResponseSize()), func() {
		if err := c.Ended(); err != nil {
			c.Fail(err)
			return
		}
		answer()
	}) {
		answer()
	}
	return true
}

// serveSized serves a sizer, whose UnaryCall is a Hot, or not. Answers are looked at so often.
func serveSized(t *testing.T, o Options, hot bool, every time.Duration) (*sizer, *Server, string) {
	z, s := new(sizer), New(o)
	s.room.every = every
	addr := serve(t, registrar(sizedServer{s, z, hot}), z)
	return z, s, addr
}

type sizedServer struct {
	*Server
	z   *sizer
	hot bool
}

func (s sizedServer) Serve(l net.Listener) error {
	if s.hot {
		s.Hot("/grpc.testing.TestService/UnaryCall", s.z.hot)
	}
	return s.Server.Serve(l)
}

// ask begins a call for so many bytes.
func (r *raw) ask(size int, more ...string) uint32 {
	id := r.begin(callFields("UnaryCall", more...), false)
	r.data(id, framed(&testpb.SimpleRequest{ResponseSize: int32(size)}), true)
	return id
}

const mib = 1 << 20

// roomOptions let one connection hold 24 answers of 1 MiB: half of three quarters.
func roomOptions() Options {
	o := testOptions()
	o.AnswerBytes = 2 * 24 * mib / 3 * 4
	return o
}

func bothWays(t *testing.T, test func(t *testing.T, hot bool)) {
	for _, hot := range []bool{false, true} {
		t.Run(map[bool]string{false: "handler", true: "hot"}[hot], func(t *testing.T) {
			t.Parallel()
			test(t, hot)
		})
	}
}

// empty waits until nothing is held and nobody waits.
func empty(t *testing.T, s *Server) {
	t.Helper()
	eventually(t, "the room is empty", func() bool { return s.UnreadBytes() == 0 && s.room.waits.Load() == 0 })
}

// TestAnswersWaitForTheirClient: a client that reads nothing has no more made for it than a connection
// holds, others are answered, and it gets all when it reads.
func TestAnswersWaitForTheirClient(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, hot bool) {
		z, s, addr := serveSized(t, roomOptions(), hot, time.Hour)
		r := connect(t, addr)
		const calls = 40
		for range calls {
			r.ask(mib)
		}
		eventually(t, "answers wait", func() bool { return s.UnreadBytes() >= 24*mib && s.room.waits.Load() >= calls-24-1 })
		if most := int64(26 * mib); s.UnreadBytes() > most {
			t.Errorf("%d bytes are held for one connection", s.UnreadBytes())
		}
		if made := z.made.Load(); made > 24+1 {
			t.Errorf("%d answers were made", made)
		}
		if _, err := dial(t, addr).UnaryCall(t.Context(), &testpb.SimpleRequest{ResponseSize: mib}); err != nil {
			t.Errorf("another client: %v", err)
		}
		for id := uint32(1); id < r.next; id += 2 {
			if a := r.answer(id); a.status() != "0 " || len(a.data) < mib {
				t.Fatalf("call %d: %s", id, a)
			}
		}
		empty(t, s)
	})
}

// TestUnreadAnswersEnd: when clients that read nothing hold all that there is for answers, their calls
// are ended, and one that waits is answered; so is one that waits for others of its own connection.
func TestUnreadAnswersEnd(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, hot bool) {
		o := testOptions()
		o.AnswerBytes = 8 * mib
		var told atomic.Int64
		o.Unread = func(client net.Addr, bytes int64) {
			if client == nil || bytes < mib/2 {
				t.Errorf("told of %v with %d bytes", client, bytes)
			}
			told.Add(1)
		}
		z, s, addr := serveSized(t, o, hot, 30*time.Millisecond)
		conns := make([]*raw, 10)
		for i := range conns {
			conns[i] = connect(t, addr)
			conns[i].ask(mib)
			conns[i].ask(mib)
		}
		eventually(t, "all is held", func() bool { return s.UnreadBytes() >= o.AnswerBytes || told.Load() > 0 })
		if _, err := dial(t, addr).UnaryCall(t.Context(), &testpb.SimpleRequest{ResponseSize: mib}); err != nil {
			t.Errorf("a client that reads: %v", err)
		}
		if told.Load() == 0 {
			t.Error("no call was ended")
		}
		for _, r := range conns {
			r.nc.Close()
		}
		empty(t, s)
		before := z.made.Load()
		r := connect(t, addr)
		for range 10 {
			r.ask(mib)
		}
		eventually(t, "all of one client's are made that takes nothing", func() bool { return z.made.Load() == before+10 })
		reset := 0
		for id := uint32(1); id < r.next; id += 2 {
			if a := r.answer(id); a.reset == "ENHANCE_YOUR_CALM" {
				reset++
			} else if a.status() != "0 " {
				t.Errorf("%d: %s", id, a)
			}
		}
		if reset == 0 {
			t.Error("none was given up")
		}
		empty(t, s)
	})
}

// TestSlowAnswersStay: an answer that is taken slowly is not given up because calls of its own
// connection wait; those are of which nothing is taken.
func TestSlowAnswersStay(t *testing.T) {
	t.Parallel()
	_, s, addr := serveSized(t, roomOptions(), true, time.Hour) // it looks when the test says so
	r := connect(t, addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	for range 30 {
		r.ask(mib)
	}
	eventually(t, "calls wait", func() bool { return s.room.waits.Load() >= 5 })
	for range 2 * stillLooks {
		held := s.UnreadBytes()
		r.write(r.fr.WriteWindowUpdate(1, 1000))
		eventually(t, "some of it is taken", func() bool { return s.UnreadBytes() != held })
		s.giveUp()
	}
	r.write(r.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 2 * mib}))
	reset := 0
	for id := uint32(1); id < r.next; id += 2 {
		switch a := r.answer(id); {
		case a.reset != "":
			reset++
		case a.status() != "0 ":
			t.Errorf("%d: %s", id, a)
		}
	}
	if reset == 0 || r.answers[1].reset != "" {
		t.Errorf("%d were given up, the first: %q", reset, r.answers[1].reset)
	}
	r.nc.Close()
	empty(t, s)
}

// TestWaitingCallsEnd: calls that wait for room end when their client takes them back, with their
// deadlines, and with their connections.
func TestWaitingCallsEnd(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, hot bool) {
		z, s, addr := serveSized(t, roomOptions(), hot, time.Hour)
		r := connect(t, addr)
		for range 2 * 24 {
			r.ask(mib)
		}
		eventually(t, "calls wait", func() bool { return s.room.waits.Load() >= 24-1 })
		before := s.room.waits.Load()
		late := r.ask(mib, "grpc-timeout", "20m")
		reset := r.ask(mib)
		eventually(t, "they wait, too", func() bool { return s.room.waits.Load() >= before+1 })
		r.write(r.fr.WriteRSTStream(reset, http2.ErrCodeCancel))
		eventually(t, "they wait no more", func() bool { return s.room.waits.Load() == before })
		_ = late
		r.nc.Close()
		empty(t, s)
		if made := z.made.Load(); made > 24+1 {
			t.Errorf("%d answers were made", made)
		}
	})
}

// TestTooManyCallsWait: a client that goes on to ask while calls of it wait is refused at some point,
// and only then.
func TestTooManyCallsWait(t *testing.T) {
	t.Parallel()
	_, s, addr := serveSized(t, roomOptions(), true, time.Hour)
	const most = 300
	s.room.calls = most
	r := connect(t, addr)
	for range 24 + 2 { // a part of the first one leaves
		r.ask(mib)
	}
	eventually(t, "calls wait", func() bool { return s.room.waits.Load() == 1 })
	for n := s.room.waits.Load(); n < most; n++ {
		r.ask(FreeAnswer + 1)
	}
	eventually(t, "all that may wait do", func() bool { return s.room.waits.Load() == most })
	if a := r.answer(r.ask(FreeAnswer + 1)); a.reset != "REFUSED_STREAM" {
		t.Errorf("beyond the bound: %s", a)
	}
	if a := r.answer(1); a.status() != "0 " {
		t.Errorf("the first call: %s", a)
	}
	r.nc.Close()
	empty(t, s)
}

// TestLongAnswerRefusesNothing: a client that takes a long answer may go on with other calls meanwhile.
func TestLongAnswerRefusesNothing(t *testing.T) {
	t.Parallel()
	_, s, addr := serveSized(t, roomOptions(), true, time.Hour)
	s.room.small = mib
	r := connect(t, addr)
	r.ask(4 * mib)
	eventually(t, "it waits for its client", func() bool { return s.UnreadBytes() > 3*mib })
	if a := r.answer(r.ask(1)); a.status() != "0 " {
		t.Errorf("a small one: %s", a)
	}
	if a := r.answer(1); a.status() != "0 " {
		t.Errorf("the long one: %s", a)
	}
	empty(t, s)
}

// TestStillAnswers: an answer is still when its client takes nothing of it, and not when it waits for
// its turn behind others that its client takes.
func TestStillAnswers(t *testing.T) {
	t.Parallel()
	_, s, addr := serveSized(t, roomOptions(), true, time.Hour)
	r := connect(t, addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 16 << 10}) // two are less than the connection's
	r.ask(mib)
	r.ask(mib)
	eventually(t, "it is connected", func() bool { return oneConn(s) != nil })
	c := oneConn(s)
	eventually(t, "the windows of both are used up", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		used := 0
		for _, st := range c.streams {
			if st.queued > 0 && st.sendWindow == 0 {
				used++
			}
		}
		return used == 2
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	looked := func(took int64) (still, slow int) {
		for _, st := range c.streams {
			st.room.seen = st.room.queued
			st.room.still, st.room.slow = 0, 0
		}
		c.room.seenTaken = c.room.taken - took
		c.room.look()
		for _, st := range c.streams {
			still, slow = still+st.room.still, slow+st.room.slow
		}
		return still, slow
	}
	expect := func(took int64, still, slow int) {
		t.Helper()
		if a, b := looked(took); a != still || b != slow {
			t.Errorf("%d are still, and %d slow", a, b)
		}
	}
	expect(slowTaking, 2, 2) // the windows are shut
	for _, st := range c.streams {
		st.sendWindow = mib
		c.makeReady(st)
	}
	expect(slowTaking, 0, 0)
	expect(1, 0, 2)
	expect(0, 2, 2)
}

// oneConn is the only connection of a server.
func oneConn(s *Server) *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		return c
	}
	return nil
}

// TestRoomOfOthers: a call that waits for what other connections hold gets it as soon as they give it
// back.
func TestRoomOfOthers(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, hot bool) {
		o := testOptions()
		o.AnswerBytes = 8 * mib
		_, s, addr := serveSized(t, o, hot, time.Hour)
		s.room.often = time.Hour
		var holding []*raw
		for s.UnreadBytes() < o.AnswerBytes {
			r := connect(t, addr)
			r.ask(mib)
			holding = append(holding, r)
			eventually(t, "it is queued", func() bool { return s.UnreadBytes() > int64(len(holding))*mib*7/8 })
		}
		r := connect(t, addr)
		r.ask(mib)
		eventually(t, "another one waits", func() bool { return s.room.waits.Load() == 1 })
		holding[0].answer(1)
		if a := r.answer(1); a.status() != "0 " {
			t.Errorf("it got %s", a)
		}
	})
}

// TestReturnRoom: a handler that waits for other clients gives back what it had for what it has read.
func TestReturnRoom(t *testing.T) {
	t.Parallel()
	z := &returner{goOn: make(chan struct{})}
	s := New(roomOptions())
	addr := serve(t, s, z)
	r := connect(t, addr)
	for range 5 {
		r.ask(mib)
	}
	eventually(t, "they wait", func() bool { return z.waiting.Load() == 5 })
	if n := s.UnreadBytes(); n != 0 {
		t.Errorf("they hold %d bytes", n)
	}
	close(z.goOn)
	for id := uint32(1); id < r.next; id += 2 {
		if a := r.answer(id); a.status() != "0 " {
			t.Errorf("call %d: %s", id, a)
		}
	}
	empty(t, s)
}

type returner struct {
	echo
	waiting atomic.Int64
	goOn    chan struct{}
}

func (z *returner) UnaryCall(ctx context.Context, in *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	if err := AwaitRoom(ctx, int64(in.GetResponseSize())); err != nil {
		return nil, err
	}
	ReturnRoom(ctx)
	z.waiting.Add(1)
	<-z.goOn
	return &testpb.SimpleResponse{}, nil
}

// TestSharedAnswers: answers that lie in memory which is counted elsewhere take no room, but that of
// their calls.
func TestSharedAnswers(t *testing.T) {
	t.Parallel()
	s := New(testOptions())
	addr := serve(t, s, &echo{})
	answer := protoMessage{&testpb.SimpleResponse{Payload: &testpb.Payload{Body: make([]byte, mib)}}}
	s.Hot("/grpc.testing.TestService/UnaryCall", func(c *Call, _ []byte) bool {
		c.Share()
		c.Reply(answer)
		return true
	})
	r := connect(t, addr)
	for range 20 {
		r.ask(0)
	}
	eventually(t, "answers wait", func() bool { return s.UnreadBytes() == 20*callBytes })
	for id := uint32(1); id < r.next; id += 2 {
		if a := r.answer(id); a.status() != "0 " || len(a.data) < mib {
			t.Fatalf("call %d: %s", id, a)
		}
	}
	empty(t, s)
}

// TestRoomRaces: calls of many clients, which are given up at random, share little room. All others
// are answered, and nothing is left.
func TestRoomRaces(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	bothWays(t, func(t *testing.T, hot bool) {
		o := testOptions()
		o.AnswerBytes = 4 * mib
		_, s, addr := serveSized(t, o, hot, time.Hour) // nothing is given up
		var all sync.WaitGroup
		for i := range 8 {
			client := dial(t, addr)
			for j := range 8 {
				all.Go(func() {
					rng := rand.New(rand.NewPCG(seed, uint64(8*i+j)))
					for range 15 {
						ctx, cancel := context.WithCancel(t.Context())
						give := rng.IntN(3) == 0
						if give {
							time.AfterFunc(time.Duration(rng.IntN(20_000))*time.Microsecond, cancel)
						}
						size := rng.IntN(mib)
						resp, err := client.UnaryCall(ctx, &testpb.SimpleRequest{ResponseSize: int32(size)})
						if err != nil && (!give || status.Code(err) != codes.Canceled) {
							t.Errorf("%s bytes: %v", strconv.Itoa(size), err)
						}
						if n := len(resp.GetPayload().GetBody()); err == nil && n != size {
							t.Errorf("%d bytes rather than %d", n, size)
						}
						cancel()
					}
				})
			}
		}
		all.Wait()
		empty(t, s)
	})
}
