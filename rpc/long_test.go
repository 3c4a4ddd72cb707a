package rpc

import (
	"bytes"
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

// lookingCodec counts how requests come, and checks what is in them: what filled makes of its length.
type lookingCodec struct {
	encoding.CodecV2
	owned, pieces, wrong atomic.Int64
}

func (c *lookingCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if len(data) == 1 {
		if _, ok := data[0].(Owned); ok {
			c.owned.Add(1)
		}
	} else if len(data) > 1 {
		c.pieces.Add(1)
	}
	err := c.CodecV2.Unmarshal(data, v)
	if in, ok := v.(*testpb.SimpleRequest); ok {
		if body := in.GetPayload().GetBody(); !bytes.Equal(body, filled(len(body), byte(len(body)))) {
			c.wrong.Add(1)
		}
	}
	return err
}

// TestLongMessages: what comes of a long message lies in one piece of memory, and is what was sent,
// however many calls share the connection, packed or not.
func TestLongMessages(t *testing.T) {
	o := testOptions()
	codec := &lookingCodec{CodecV2: o.Codec}
	o.Codec = codec
	client := dial(t, serve(t, ours(o), &echo{}))
	call := func(n int, opts ...grpc.CallOption) {
		_, err := client.UnaryCall(context.Background(), &testpb.SimpleRequest{Payload: &testpb.Payload{Body: filled(n, byte(n))}}, opts...)
		if err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for _, n := range []int{0, 1, 16379, 16380, 40_000, 65_500, 65_535, 65_536, 70_001, 300_000, 1<<20 - 1000} {
				call(n + i)
			}
		})
	}
	wg.Wait()
	if n := codec.owned.Load(); n < 16*3 {
		t.Errorf("%d messages came in one piece of memory", n)
	}
	before := codec.owned.Load()
	call(60_000)
	if codec.owned.Load() != before {
		t.Error("a message that no window was granted for was gathered")
	}
	call(500_000, grpc.UseCompressor("gzip"))
	if n := codec.wrong.Load(); n > 0 {
		t.Errorf("%d messages are not what was sent", n)
	}
}

// gated serves a UnaryCall when it may, and counts those that wait.
type gated struct {
	echo
	waits, most atomic.Int64
	may         chan struct{}
	mu          sync.Mutex
	order       []string // of the calls' names, as they were let in
}

func (g *gated) UnaryCall(ctx context.Context, in *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	n := g.waits.Add(1)
	defer g.waits.Add(-1)
	for most := g.most.Load(); n > most && !g.most.CompareAndSwap(most, n); most = g.most.Load() {
	}
	g.mu.Lock()
	g.order = append(g.order, string(in.GetPayload().GetBody()[:1]))
	g.mu.Unlock()
	select {
	case <-g.may:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return g.echo.UnaryCall(ctx, in)
}

// longOptions let four long messages in at once, one of each connection.
func longOptions() Options {
	o := testOptions()
	o.StreamWindow, o.LongBytes = maxFrameBytes, 4*longBody
	return o
}

const longBody = 500_000

func longMessage(of byte) *testpb.SimpleRequest {
	return &testpb.SimpleRequest{Payload: &testpb.Payload{Body: bytes.Repeat([]byte{of}, longBody)}}
}

// idleWindows waits until nothing is given any more: what is taken is returned, however calls end.
func idleWindows(t *testing.T, s *Server) {
	t.Helper()
	eventually(t, "the windows are returned", func() bool {
		used, waiting := s.LongWindows()
		s.long.mu.Lock()
		defer s.long.mu.Unlock()
		return used == 0 && waiting == 0 && len(s.long.due) == 0 && len(s.long.waiting) == 0 && !s.long.serving
	})
}

// TestLongWindows: of many clients with long messages no more are let in than there is room for, each
// connection has its turn, and all are answered.
func TestLongWindows(t *testing.T) {
	g := &gated{may: make(chan struct{})}
	s := New(longOptions())
	addr := serve(t, s, g)
	var wg sync.WaitGroup
	call := func(client testpb.TestServiceClient, of byte) {
		wg.Go(func() {
			if _, err := client.UnaryCall(context.Background(), longMessage(of)); err != nil {
				t.Error(err)
			}
		})
	}
	greedy := dial(t, addr)
	const many = 40 // of whose first windows there is room
	for range many {
		call(greedy, 'g')
	}
	eventually(t, "one is let in, the others wait", func() bool { _, waiting := s.LongWindows(); return g.waits.Load() == 1 && waiting == many-1 })
	for range 6 {
		call(dial(t, addr), 'o')
	}
	eventually(t, "the room is full", func() bool { _, waiting := s.LongWindows(); return g.waits.Load() == 4 && waiting == many-1+6-3 })
	if used, _ := s.LongWindows(); used > 4*longBody {
		t.Errorf("%d bytes are given, of %d", used, 4*longBody)
	}
	for range many + 6 {
		g.may <- struct{}{}
	}
	wg.Wait()
	if most := g.most.Load(); most > 4 {
		t.Errorf("%d calls were served at once, of messages of which 4 fit", most)
	}
	if last := strings.LastIndex(strings.Join(g.order, ""), "o"); last > many/2+6 { // their clients need not be as quick as the windows
		t.Errorf("a connection with one message was served after %d others: %v", last, g.order)
	}
	idleWindows(t, s)
}

// TestLongNotSent: clients that were given a window and do not use it hold the others up for a while
// only, whether bytes, or the end of the request, are missing; those who leave do not hold anything.
// What they send late is answered.
func TestLongNotSent(t *testing.T) {
	o := longOptions()
	o.patience = 50 * time.Millisecond
	s := New(o)
	addr := serve(t, s, &echo{})
	body := framed(longMessage('x'))
	var clients []*raw
	var ids []uint32
	begin := func() {
		r := connect(t, addr)
		id := r.begin(callFields("UnaryCall"), false)
		r.data(id, body[:10], false)
		clients, ids = append(clients, r), append(ids, id)
	}
	for range 4 {
		begin()
	}
	eventually(t, "the windows are given", func() bool { used, _ := s.LongWindows(); return used >= 4*(longBody-defaultWindow) })
	clients[0].data(ids[0], body[10:], false) // but not the end
	clients[1].write(clients[1].fr.WriteRSTStream(ids[1], http2.ErrCodeCancel))
	clients[2].nc.Close()
	for range 5 { // they have not sent anything yet, and may have what there is
		begin()
	}
	honest := dial(t, addr)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := honest.UnaryCall(context.Background(), longMessage('h')); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i, r := range clients {
		switch i {
		case 0:
			r.data(ids[i], nil, true)
		case 1, 2:
			continue
		default:
			r.data(ids[i], body[10:], true)
		}
		if got := r.answer(ids[i]).status(); got != "0 " {
			t.Errorf("client %d: %s", i, got)
		}
		r.nc.Close()
	}
	idleWindows(t, s)
}

// TestLongEnds: however calls end that hold a window, or wait for one, it is returned.
func TestLongEnds(t *testing.T) {
	s := New(longOptions())
	addr := serve(t, s, &echo{})
	body := framed(longMessage('x'))
	ends := []func(r *raw, id uint32){
		func(r *raw, id uint32) { r.write(r.fr.WriteRSTStream(id, http2.ErrCodeCancel)) },
		func(r *raw, _ uint32) { r.nc.Close() },
		func(r *raw, id uint32) { r.data(id, nil, true) },       // amid its message
		func(r *raw, id uint32) { r.data(id, body[10:], true) }, // in time, or beyond its window
		func(r *raw, id uint32) { r.begin(callFields("Nothing"), false); r.data(id, body[10:200], true) },
	}
	methods := []string{"UnaryCall", "StreamingInputCall", "FullDuplexCall", "StreamingOutputCall"}
	for range 3 {
		type opened struct {
			r  *raw
			id uint32
		}
		var all []opened
		for range 4 {
			r := connect(t, addr)
			r.until(func() bool { return r.settled }) // so that its windows are small
			for _, m := range methods {
				for range len(ends) {
					id := r.begin(callFields(m, "+grpc-timeout", "20S"), false)
					r.data(id, body[:10], false)
					all = append(all, opened{r, id})
				}
			}
		}
		eventually(t, "some wait", func() bool { _, waiting := s.LongWindows(); return waiting > 50 })
		for i, o := range all {
			ends[i%len(ends)](o.r, o.id)
			if i%7 == 0 {
				slices.Reverse(ends)
			}
		}
		for _, o := range all {
			o.r.nc.Close()
		}
		idleWindows(t, s)
	}
}

// TestStreamWindow: a server whose streams have a smaller window than HTTP/2's allows the latter until
// the client has said that it knows, and gives nothing away then.
func TestStreamWindow(t *testing.T) {
	addr := serve(t, ours(longOptions()), &echo{})
	r := connect(t, addr)
	r.auto = false
	body := framed(longMessage('x'))
	streaming := r.begin(callFields("StreamingInputCall"), false)
	early := r.begin(callFields("UnaryCall"), false)
	r.data(early, body[:defaultWindow], false)
	r.until(func() bool { return r.settled })
	r.write(r.fr.WriteSettingsAck())
	r.data(streaming, make([]byte, maxFrameBytes), false) // 3,276 empty messages and some of another
	r.data(early, body[defaultWindow:], true)
	if got := r.answer(early).status(); got != "0 " {
		t.Errorf("a message within the window that was given is answered with %q", got)
	}
	r.data(r.begin(callFields("StreamingInputCall"), false), body[:10], false) // it has the connection's share
	late := r.begin(callFields("StreamingInputCall"), false)
	r.data(late, body[:maxFrameBytes+1], false)
	if got := r.answer(late).reset; got != http2.ErrCodeFlowControl.String() {
		t.Errorf("a client that sends more than the window: %s", r.answers[late])
	}
	r.data(streaming, nil, true)
	if got := r.answer(streaming); got.reset != "" {
		t.Errorf("a client that sends what the window allows: %s", got)
	}
}

// TestLongRefused: of more long messages than may wait on a connection some are refused, with the
// error that clients know, and the others are answered.
func TestLongRefused(t *testing.T) {
	o := longOptions()
	var told atomic.Int64
	o.LongRefused = func(net.Addr) { told.Add(1) }
	g := &gated{may: make(chan struct{})}
	s := New(o)
	client := dial(t, serve(t, s, g))
	room := int64(4 * longBody / longWaitShare / maxFrameBytes)
	var wg sync.WaitGroup
	var refused, served atomic.Int64
	for range room + 20 {
		wg.Go(func() {
			switch _, err := client.UnaryCall(context.Background(), longMessage('x')); {
			case err == nil:
				served.Add(1)
			case status.Code(err) == codes.ResourceExhausted && status.Convert(err).Message() == "etcdserver: too many requests":
				refused.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	eventually(t, "all wait or are refused", func() bool { _, waiting := s.LongWindows(); return g.waits.Load()+waiting+refused.Load() == room+20 })
	close(g.may)
	wg.Wait()
	if refused.Load() != 19 || told.Load() != 19 || served.Load() != room+1 {
		t.Errorf("%d of %d were refused, %d told, %d served", refused.Load(), room+20, told.Load(), served.Load())
	}
	idleWindows(t, s)
}

// TestLongBehind: connections with a late message are served behind the others, but not never; and a
// long one that waits for room is not passed by shorter ones.
func TestLongBehind(t *testing.T) {
	l := newLongWindows(100, time.Hour)
	l.serving, l.all = true, 1 // by this test
	var late, others []*stream
	for range 24 {
		late, others = append(late, &stream{}), append(others, &stream{})
		l.wait(longWait{late[len(late)-1], 1}, true)
		l.wait(longWait{others[len(others)-1], 1}, false)
	}
	order := ""
	for range 48 {
		w, _, _ := l.next()
		if slices.Contains(late, w.st) {
			order += "l"
		} else {
			order += "o"
		}
	}
	if want := strings.Repeat("ooooooo"+"l", 3) + "ooo" + strings.Repeat("l", 21); order != want {
		t.Errorf("served in the order %s, want %s", order, want)
	}
	l.served = longBehind - 1
	l.wait(longWait{&stream{}, 60}, true)
	l.wait(longWait{&stream{}, 60}, false)
	l.wait(longWait{&stream{}, 1}, false)
	if w, _, due := l.next(); w.st != nil || due.IsZero() {
		t.Errorf("a message of %d bytes is let in where there is no room, or before its turn", w.n)
	}
	l.count(late[0], -10, 0)
	if w, _, _ := l.next(); w.n != 60 {
		t.Errorf("a message of %d bytes is next", w.n)
	}
}

// TestLongCalls: calls with long requests that do not end hold the others up for a while only.
func TestLongCalls(t *testing.T) {
	o := longOptions()
	o.patience = 10 * time.Millisecond
	g := &gated{may: make(chan struct{})}
	s := New(o)
	addr := serve(t, s, g)
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	client := dial(t, addr)
	for i := range 12 { // three times as many as there is room for, and some of one connection
		if i < 8 {
			client = dial(t, addr)
		}
		own := client
		wg.Go(func() { _, _ = own.UnaryCall(ctx, longMessage('x')) })
	}
	eventually(t, "all are let in", func() bool { return g.waits.Load() == 12 })
	cancel()
	wg.Wait()
	idleWindows(t, s)
}

// TestLongSecondMessage: a call of one message that sends a late one and begins another leaves nothing
// behind.
func TestLongSecondMessage(t *testing.T) {
	o := longOptions()
	o.patience, o.LongBytes = 10*time.Millisecond, 8*longBody
	s := New(o)
	addr := serve(t, s, &echo{})
	body := framed(longMessage('x'))
	var all []*raw
	announce := func() (*raw, uint32) {
		r := connect(t, addr)
		id := r.begin(callFields("UnaryCall"), false)
		r.data(id, body[:10], false)
		all = append(all, r)
		return r, id
	}
	sees := func(what string, is func(st *stream) bool) {
		t.Helper()
		eventually(t, what, func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			for c := range s.conns {
				c.mu.Lock()
				st := c.streams[1]
				found := st != nil && is(st)
				c.mu.Unlock()
				if found {
					return true
				}
			}
			return false
		})
	}
	first, id := announce()
	sees("it has a window", func(st *stream) bool { return st.granted > 0 })
	for range 12 {
		announce()
	}
	sees("one is late, since others wait", func(st *stream) bool { return st.late })
	first.data(id, body[10:], false)
	sees("the first message has been taken", func(st *stream) bool { return st.granted > 0 && st.need == 0 && st.recvWindow > 10 })
	first.data(id, body[:10], false) // which is against gRPC's rules
	sees("the second has a window", func(st *stream) bool { return st.granted > longBody })
	for _, r := range all {
		r.nc.Close()
	}
	idleWindows(t, s)
}
