package rpc

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	encodingproto "google.golang.org/grpc/encoding/proto"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// TestProtocolErrors: what ends a connection, and with which code.
func TestProtocolErrors(t *testing.T) {
	t.Parallel()
	addr := serve(t, ours(testOptions()), &echo{})
	setting := func(id http2.SettingID, v uint32) func(*raw) {
		return func(r *raw) { r.write(r.fr.WriteSettings(http2.Setting{ID: id, Val: v})) }
	}
	frame := func(kind http2.FrameType, flags http2.Flags, id uint32, p ...byte) func(*raw) {
		return func(r *raw) { r.write(r.fr.WriteRawFrame(kind, flags, id, p)) }
	}
	open := func(r *raw) uint32 { return r.begin(callFields("FullDuplexCall"), false) }
	for _, c := range []struct {
		name string
		send func(r *raw)
		want string
	}{
		{"DATA on stream 0", frame(http2.FrameData, 0, 0, 1), "PROTOCOL_ERROR"},
		{"DATA on an idle stream", frame(http2.FrameData, 0, 1, 1), "PROTOCOL_ERROR"},
		{"padding beyond the frame", func(r *raw) { frame(http2.FrameData, http2.FlagDataPadded, open(r), 9, 1)(r) }, "PROTOCOL_ERROR"},
		{"HEADERS on an even stream", frame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 2, 0x82), "PROTOCOL_ERROR"},
		{"HEADERS with half a priority", frame(http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersPriority, 1, 1), "FRAME_SIZE_ERROR"},
		{"damaged block", frame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, 0xff, 0xff, 0xff, 0xff), "COMPRESSION_ERROR"},
		{"block that ends amid a field", frame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, 0x40), "COMPRESSION_ERROR"},
		{"CONTINUATION alone", frame(http2.FrameContinuation, 0, 1), "PROTOCOL_ERROR"},
		{"block interrupted", func(r *raw) {
			frame(http2.FrameHeaders, 0, 1, 0x82)(r)
			frame(http2.FramePing, 0, 0, make([]byte, 8)...)(r)
		}, "PROTOCOL_ERROR"},
		{"RST_STREAM on an idle stream", frame(http2.FrameRSTStream, 0, 7, 0, 0, 0, 0), "PROTOCOL_ERROR"},
		{"RST_STREAM too short", func(r *raw) { frame(http2.FrameRSTStream, 0, open(r), 0)(r) }, "FRAME_SIZE_ERROR"},
		{"SETTINGS on a stream", frame(http2.FrameSettings, 0, 1), "PROTOCOL_ERROR"},
		{"SETTINGS too short", frame(http2.FrameSettings, 0, 0, 1), "FRAME_SIZE_ERROR"},
		{"SETTINGS ack with content", frame(http2.FrameSettings, http2.FlagSettingsAck, 0, 0, 0, 0, 0, 0, 0), "FRAME_SIZE_ERROR"},
		{"push of 2", setting(http2.SettingEnablePush, 2), "PROTOCOL_ERROR"},
		{"window too large", setting(http2.SettingInitialWindowSize, 1<<31), "FLOW_CONTROL_ERROR"},
		{"frames too small", setting(http2.SettingMaxFrameSize, 100), "PROTOCOL_ERROR"},
		{"PING on a stream", frame(http2.FramePing, 0, 1, make([]byte, 8)...), "PROTOCOL_ERROR"},
		{"PING too short", frame(http2.FramePing, 0, 0, 1), "FRAME_SIZE_ERROR"},
		{"WINDOW_UPDATE of 0", frame(http2.FrameWindowUpdate, 0, 0, 0, 0, 0, 0), "PROTOCOL_ERROR"},
		{"WINDOW_UPDATE too large", frame(http2.FrameWindowUpdate, 0, 0, 0x7f, 0xff, 0xff, 0xff), "FLOW_CONTROL_ERROR"},
		{"WINDOW_UPDATE too short", frame(http2.FrameWindowUpdate, 0, 0, 1), "FRAME_SIZE_ERROR"},
		{"WINDOW_UPDATE on an idle stream", frame(http2.FrameWindowUpdate, 0, 9, 0, 0, 0, 1), "PROTOCOL_ERROR"},
		{"DATA on a stream that would be ours", func(r *raw) { open(r); open(r); frame(http2.FrameData, 0, 2, 1)(r) }, "PROTOCOL_ERROR"},
		{"RST_STREAM on a stream that would be ours", func(r *raw) { open(r); open(r); frame(http2.FrameRSTStream, 0, 2, 0, 0, 0, 0)(r) }, "PROTOCOL_ERROR"},
		{"WINDOW_UPDATE on a stream that would be ours", func(r *raw) { open(r); open(r); frame(http2.FrameWindowUpdate, 0, 2, 0, 0, 0, 1)(r) }, "PROTOCOL_ERROR"},
		{"PRIORITY on stream 0", frame(http2.FramePriority, 0, 0, 0, 0, 0, 1, 1), "PROTOCOL_ERROR"},
		{"PRIORITY too short", frame(http2.FramePriority, 0, 1, 0), "FRAME_SIZE_ERROR"},
		{"PUSH_PROMISE", frame(http2.FramePushPromise, 0, 1, 0, 0, 0, 2), "PROTOCOL_ERROR"},
		{"GOAWAY on a stream", frame(http2.FrameGoAway, 0, 1, make([]byte, 8)...), "PROTOCOL_ERROR"},
		{"GOAWAY too short", frame(http2.FrameGoAway, 0, 0, 1, 2, 3), "FRAME_SIZE_ERROR"},
		{"a frame too large", func(r *raw) { r.write(r.fr.WriteData(open(r), false, make([]byte, maxFrameBytes+1))) }, "FRAME_SIZE_ERROR"},
		{"the connection's window exceeded", func(r *raw) {
			id := r.begin(callFields("None"), false) // refused at once: its DATA counts all the same
			for range connWindow/maxFrameBytes/2 + 2 {
				r.write(r.fr.WriteData(id, false, make([]byte, maxFrameBytes)))
			}
			frame(http2.FrameSettings, 0, 1)(r) // below half the window nothing is wrong
		}, "PROTOCOL_ERROR"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := connect(t, addr)
			c.send(r)
			r.until(func() bool { return len(r.goAways) > 0 })
			if len(r.goAways) != 1 || !strings.HasPrefix(r.goAways[0], c.want+" ") {
				t.Errorf("%s, want %s", r.describe(), c.want)
			}
			r.until(func() bool { return r.ended })
		})
	}
}

// TestStreamErrors: what resets a stream and leaves its connection alone.
func TestStreamErrors(t *testing.T) {
	t.Parallel()
	addr := serve(t, ours(testOptions()), &echo{})
	for _, c := range []struct {
		name string
		send func(r *raw) uint32
		want string
	}{
		{"no :scheme", func(r *raw) uint32 { return r.begin(callFields("UnaryCall", ":scheme", "-"), false) }, "PROTOCOL_ERROR"},
		{"te of something", func(r *raw) uint32 { return r.begin(callFields("UnaryCall", "te", "gzip"), false) }, "PROTOCOL_ERROR"},
		{"too long for its content-length", func(r *raw) uint32 {
			id := r.begin(callFields("FullDuplexCall", "content-length", "2"), false)
			r.data(id, make([]byte, 3), false)
			return id
		}, "PROTOCOL_ERROR"},
		{"too short for its content-length", func(r *raw) uint32 {
			id := r.begin(callFields("FullDuplexCall", "content-length", "2"), false)
			r.data(id, make([]byte, 1), true)
			return id
		}, "PROTOCOL_ERROR"},
		{"its window exceeded", func(r *raw) uint32 {
			id := r.begin(callFields("FullDuplexCall"), false)
			r.data(id, make([]byte, maxFrameBytes), false) // empty messages, which the handler takes
			r.data(id, message(0, make([]byte, 0)), false)
			r.data(id, append([]byte{0, 0x7f, 0xff, 0xff, 0xff}, make([]byte, 5*maxFrameBytes)...), false) // nothing is given back
			return id
		}, "-"},
		{"window of 0", func(r *raw) uint32 {
			id := r.begin(callFields("FullDuplexCall"), false)
			r.write(r.fr.WriteWindowUpdate(id, 0))
			return id
		}, "PROTOCOL_ERROR"},
		{"window too large", func(r *raw) uint32 {
			id := r.begin(callFields("FullDuplexCall"), false)
			r.write(r.fr.WriteWindowUpdate(id, 1<<31-1))
			return id
		}, "FLOW_CONTROL_ERROR"},
		{"a window that is too large for a moment", func(r *raw) uint32 {
			id := r.begin(callFields("FullDuplexCall"), false)
			r.write(r.fr.WriteWindowUpdate(id, 100))
			r.write(r.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: defaultWindow}))
			r.write(r.fr.WriteWindowUpdate(id, 0))
			return id
		}, "PROTOCOL_ERROR"},
		{"HEADERS again", func(r *raw) uint32 {
			id := r.begin(callFields("FullDuplexCall"), false)
			r.write(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: r.encode(callFields("UnaryCall")), EndHeaders: true, EndStream: true}))
			return id
		}, "PROTOCOL_ERROR"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := connect(t, addr)
			a := r.answer(c.send(r))
			if c.want != "-" && a.reset != c.want || c.want == "-" && a.reset == "" && a.status() == "0 " {
				t.Errorf("%s, want a reset with %s", a, c.want)
			}
			id := r.begin(callFields("UnaryCall"), false)
			r.data(id, framed(&testpb.SimpleRequest{}), true)
			if got := r.answer(id).status(); got != "0 " || len(r.goAways) > 0 {
				t.Errorf("the next call: %q %v", got, r.goAways)
			}
		})
	}
}

// TestClosedStreams: frames on a stream that the client knows to be closed are errors; those that may
// have been under way when this side closed it are not.
func TestClosedStreams(t *testing.T) {
	t.Parallel()
	addr := serve(t, ours(testOptions()), &echo{})
	for _, c := range []struct {
		name   string
		fields []hpack.HeaderField
		ends   bool   // the client's side, with the headers
		then   string // DATA, HEADERS or WINDOW, and RST before it
		want   string // of a reset or a GOAWAY; "": neither
	}{
		{"DATA behind the end", callFields("UnaryCall"), true, "DATA", "STREAM_CLOSED"},
		{"DATA behind the end of what is refused", callFields("UnaryCall", "content-type", "x"), true, "DATA", "STREAM_CLOSED"},
		{"HEADERS behind the end of what is refused", callFields("UnaryCall", "content-type", "x"), true, "HEADERS", "STREAM_CLOSED"},
		{"DATA behind the end of an unknown method", callFields("None"), true, "DATA", "STREAM_CLOSED"},
		{"DATA of what was refused", callFields("UnaryCall", "content-type", "x"), false, "DATA", ""},
		{"HEADERS of what was refused", callFields("UnaryCall", "content-type", "x"), false, "HEADERS", ""},
		{"DATA behind the client's reset", callFields("UnaryCall", "content-type", "x"), false, "RST DATA", "STREAM_CLOSED"},
		{"HEADERS behind the client's reset", callFields("UnaryCall"), false, "RST HEADERS", "STREAM_CLOSED"},
		{"no window for what was refused", callFields("UnaryCall", "content-type", "x"), false, "WINDOW", "PROTOCOL_ERROR"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := connect(t, addr)
			id := r.begin(c.fields, c.ends)
			a := r.answers[id]
			if c.ends || c.fields[4].Value == "x" {
				r.answer(id)
			}
			if strings.HasPrefix(c.then, "RST ") {
				r.write(r.fr.WriteRSTStream(id, http2.ErrCodeCancel))
			}
			a.reset = ""
			switch strings.TrimPrefix(c.then, "RST ") {
			case "DATA":
				r.write(r.fr.WriteData(id, false, []byte{1}))
			case "HEADERS":
				r.write(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: r.encode(callFields("UnaryCall")), EndHeaders: true, EndStream: true}))
			case "WINDOW":
				r.write(r.fr.WriteWindowUpdate(id, 0))
			}
			r.write(r.fr.WritePing(false, [8]byte{1}))
			r.until(func() bool { return r.acks == 1 })
			got := a.reset
			if got == "NO_ERROR" { // of the refusal
				got = ""
			}
			if len(r.goAways) > 0 {
				got, _, _ = strings.Cut(r.goAways[0], " ")
			}
			if got != c.want {
				t.Errorf("%q, want %q: %s", got, c.want, r.describe())
			}
		})
	}
}

// TestFloods: frames without end or sense end the connection, and its memory is bounded.
func TestFloods(t *testing.T) {
	t.Parallel()
	addr := serve(t, ours(testOptions()), &echo{})
	for _, c := range []struct {
		name string
		send func(r *raw) error
		want string
	}{
		{"settings", func(r *raw) error { return r.fr.WriteSettings() }, "ENHANCE_YOUR_CALM"},
		{"priorities", func(r *raw) error { return r.fr.WritePriority(1, http2.PriorityParam{StreamDep: 3}) }, "ENHANCE_YOUR_CALM"},
		{"unknown frames", func(r *raw) error { return r.fr.WriteRawFrame(77, 0, 0, nil) }, "ENHANCE_YOUR_CALM"},
		{"pings", func(r *raw) error { return r.fr.WritePing(false, [8]byte{}) }, "ENHANCE_YOUR_CALM too_many_pings"},
		{"empty DATA", func(r *raw) error {
			if r.next == 1 {
				r.begin(callFields("FullDuplexCall"), false)
			}
			return r.fr.WriteData(1, false, nil)
		}, "ENHANCE_YOUR_CALM"},
		{"CONTINUATION", func(r *raw) error {
			if r.next == 1 {
				r.next += 2
				return r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1})
			}
			return r.fr.WriteContinuation(1, false, nil)
		}, "ENHANCE_YOUR_CALM"},
		{"CONTINUATION of fields", func(r *raw) error {
			if r.next == 1 {
				r.next += 2
				return r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1})
			}
			return r.fr.WriteContinuation(1, false, bytes.Repeat([]byte{0x82}, 1000))
		}, "ENHANCE_YOUR_CALM"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := connect(t, addr)
			r.auto = false // what is read must not write beside the flood
			_ = c.send(r)  // the first may open a stream
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				for range 20 * maxIdleFrames {
					if c.send(r) != nil {
						return
					}
				}
			}()
			r.until(func() bool { return len(r.goAways) > 0 })
			if len(r.goAways) != 1 || !strings.HasPrefix(r.goAways[0], c.want) {
				t.Errorf("%s, want %s", r.describe(), c.want)
			}
			r.nc.Close()
			<-sent
		})
	}
}

// TestHeaderBomb: a block that unpacks to much more than it is, is refused, and the connection goes on.
func TestHeaderBomb(t *testing.T) {
	t.Parallel()
	addr := serve(t, ours(testOptions()), &echo{})
	r := connect(t, addr)
	block := bytes.Clone(r.encode(callFields("UnaryCall", "x-bomb", strings.Repeat("b", 3000))))
	block = append(block, bytes.Repeat([]byte{0x80 | 62}, 16000-len(block))...) // the youngest entry of the table, again and again
	r.answers[1], r.next = &answer{}, 3
	r.write(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true, EndStream: true}))
	if a := r.answer(1); a.reset != "FRAME_SIZE_ERROR" {
		t.Errorf("a bomb: %s", a)
	}
	id := r.begin(callFields("UnaryCall"), false)
	r.data(id, framed(&testpb.SimpleRequest{}), true)
	if got := r.answer(id).status(); got != "0 " {
		t.Errorf("the next call: %q", got)
	}
}

// stuck is a handler that does not look at its context.
type stuck struct {
	echo
	leave   chan struct{}
	mu      sync.Mutex
	running int
}

func (s *stuck) EmptyCall(context.Context, *testpb.Empty) (*testpb.Empty, error) {
	s.mu.Lock()
	s.running++
	s.mu.Unlock()
	<-s.leave
	return &testpb.Empty{}, nil
}

// TestRapidReset: calls that are reset as soon as they are made count while their handlers run.
func TestRapidReset(t *testing.T) {
	t.Parallel()
	s := &stuck{leave: make(chan struct{})}
	addr := serve(t, ours(testOptions()), s)
	r := connect(t, addr)
	for range maxOrphans {
		id := r.begin(callFields("EmptyCall"), false)
		r.data(id, framed(&testpb.Empty{}), true)
	}
	eventually(t, "all handlers run", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.running == maxOrphans
	})
	for id := uint32(1); id < r.next; id += 2 {
		r.write(r.fr.WriteRSTStream(id, http2.ErrCodeCancel))
	}
	refused := r.begin(callFields("EmptyCall"), true)
	if a := r.answer(refused); a.reset != "REFUSED_STREAM" {
		t.Errorf("beside handlers whose calls were reset: %s", a)
	}
	close(s.leave)
	for end := time.Now().Add(30 * time.Second); ; {
		id := r.begin(callFields("EmptyCall"), false)
		r.data(id, framed(&testpb.Empty{}), true)
		if r.answer(id).status() == "0 " {
			return
		}
		if time.Now().After(end) {
			t.Fatal("still refused when the handlers have ended")
		}
	}
}

// TestSlowReader: of a client that reads nothing only so much is kept.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	s := New(testOptions())
	addr := serve(t, s, &echo{})
	t.Run("frames to answer", func(t *testing.T) {
		r := connect(t, addr)
		written := make(chan error, 1)
		go func() {
			for { // ends when the test closes the connection: the server stops reading
				if err := r.fr.WriteRawFrame(http2.FramePriority, 0, 1, []byte{0, 0, 0, 1, 1}); err != nil { // each is answered with RST_STREAM
					written <- err
					return
				}
			}
		}()
		eventually(t, "the server closes it, or stops reading", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			for c := range s.conns {
				c.mu.Lock()
				done := c.stalled
				tooMuch := len(c.out) > stallLimit+largeBuffer*2
				c.mu.Unlock()
				if tooMuch {
					t.Error("too much is kept")
				}
				return done
			}
			return true
		})
		r.nc.Close()
		<-written
	})
	t.Run("a stream of answers", func(t *testing.T) {
		const answers = 600 // more than the kernel takes on the way
		r := connect(t, addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
		r.write(r.fr.WriteWindowUpdate(0, 1<<31-1-defaultWindow))
		in := &testpb.StreamingOutputCallRequest{}
		for range answers {
			in.ResponseParameters = append(in.ResponseParameters, &testpb.ResponseParameters{Size: 50000})
		}
		id := r.begin(callFields("StreamingOutputCall"), false)
		r.data(id, framed(in), true)
		full := func() (kept int) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for c := range s.conns {
				c.mu.Lock()
				kept = len(c.out) + c.queued
				c.mu.Unlock()
			}
			return kept
		}
		eventually(t, "the handler waits", func() bool { return full() > queueLimit })
		if n := full(); n > outLimit+queueLimit+2*maxSendFrame+50000 {
			t.Errorf("%d bytes are kept", n)
		}
		a := r.answers[id]
		r.auto = false
		r.until(func() bool { return a.closed }) // and it goes on when the client reads
		if len(a.data) < answers*50000 {
			t.Errorf("%d bytes of the answer", len(a.data))
		}
	})
}

// TestLongMessagesShareABudget: many long requests at a time on one connection all complete.
func TestLongMessagesShareABudget(t *testing.T) {
	t.Parallel()
	o := testOptions()
	o.MaxRecvBytes = 16 << 20
	client := dial(t, serve(t, ours(o), &echo{}))
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			_, err := client.UnaryCall(context.Background(), &testpb.SimpleRequest{Payload: &testpb.Payload{Body: make([]byte, 12<<20)}})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// TestKeepalive: a client that does not answer the server's ping is closed, one that does is kept.
func TestKeepalive(t *testing.T) {
	t.Parallel()
	o := testOptions()
	o.Keepalive, o.pingOften = keepalive.ServerParameters{Time: 20 * time.Millisecond, Timeout: 50 * time.Millisecond}, true
	addr := serve(t, ours(o), &echo{})
	silent := connect(t, addr)
	silent.auto = false
	silent.until(func() bool { return silent.ended })
	o.Keepalive = keepalive.ServerParameters{MaxConnectionIdle: 20 * time.Millisecond}
	idle := connect(t, serve(t, ours(o), &echo{}))
	idle.until(func() bool { return idle.ended })
	if want := "[NO_ERROR max_idle NO_ERROR max_idle]"; fmt.Sprint(idle.goAways) != want {
		t.Errorf("idle: %v", idle.goAways)
	}
	o.Keepalive = keepalive.ServerParameters{MaxConnectionAge: 20 * time.Millisecond, MaxConnectionAgeGrace: 50 * time.Millisecond}
	aged := connect(t, serve(t, ours(o), &echo{}))
	id := aged.begin(callFields("FullDuplexCall"), false)
	aged.until(func() bool { return aged.ended })
	// The second GOAWAY comes with the answer to a ping, or the grace is over before.
	if len(aged.goAways) == 0 || aged.goAways[0] != "NO_ERROR max_age" || aged.answers[id].closed {
		t.Errorf("aged: %v", aged.goAways)
	}
	if s := New(Options{Keepalive: keepalive.ServerParameters{Time: time.Millisecond}}); s.opts.Keepalive.Time != time.Second {
		t.Errorf("a client is pinged each %v", s.opts.Keepalive.Time)
	}
}

// TestReadyStreamsEnd: a client that never opens the connection's window, and resets each call whose
// answer waits for it, leaves nothing behind.
func TestReadyStreamsEnd(t *testing.T) {
	t.Parallel()
	s := New(testOptions())
	r := connect(t, serve(t, s, &echo{}))
	r.auto = false
	r.data(r.begin(callFields("UnaryCall"), false), framed(&testpb.SimpleRequest{ResponseSize: 2 * defaultWindow}), true)
	sent := 0
	r.until(func() bool {
		sent = len(r.answers[1].data)
		return sent == defaultWindow
	})
	waiting := func(id uint32) (ready int, waits bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := range s.conns {
			c.mu.Lock()
			for st := c.ready.first; st != nil; st = st.next {
				ready++
				waits = waits || st.id == id
			}
			c.mu.Unlock()
		}
		return ready, waits
	}
	for range 20 {
		id := r.begin(callFields("UnaryCall"), false)
		r.data(id, framed(&testpb.SimpleRequest{ResponseSize: 100}), true)
		eventually(t, "its answer waits", func() bool { _, waits := waiting(id); return waits })
		r.write(r.fr.WriteRSTStream(id, http2.ErrCodeCancel))
	}
	eventually(t, "only the answer that is left is kept", func() bool { ready, _ := waiting(0); return ready <= 1 })
	r.write(r.fr.WriteWindowUpdate(0, 1<<20)) // and it goes on
	r.write(r.fr.WriteWindowUpdate(1, 1<<20))
	if a := r.answer(1); a.status() != "0 " {
		t.Errorf("the answer that was left: %s", a.status())
	}
}

// silentCredentials wait for a word of the client.
type silentCredentials struct {
	credentials.TransportCredentials
}

func (silentCredentials) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	_, err := c.Read(make([]byte, 1))
	return c, nil, err
}

// TestStopBesideHandshakes: clients that have said nothing do not hold up the end.
func TestStopBesideHandshakes(t *testing.T) {
	t.Parallel()
	for _, graceful := range []bool{true, false} {
		o := testOptions()
		o.Credentials = silentCredentials{}
		s := New(o)
		nc, err := net.Dial("tcp", serve(t, s, &echo{}))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		eventually(t, "it is being greeted", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return len(s.shaking) == 1
		})
		stopped := stopping(s, graceful)
		select {
		case <-stopped:
		case <-time.After(60 * time.Second): // half of a handshake's time
			t.Fatalf("graceful %v: it waits for a handshake", graceful)
		}
	}
}

// TestClientThatGoesOn: a client that keeps sending when its connection has been drained, and takes no
// answers, does not hold up a graceful stop.
func TestClientThatGoesOn(t *testing.T) {
	t.Parallel()
	s := New(testOptions())
	r := connect(t, serve(t, s, &echo{}))
	id := r.begin(callFields("UnaryCall", "content-type", "x"), true)
	r.answer(id)
	stopped := stopping(s, true)
	r.until(func() bool { return len(r.goAways) == 2 })
	// Each pair is answered with a reset, which the client knows at once.
	var flood bytes.Buffer
	fr := http2.NewFramer(&flood, nil)
	for range 1000 {
		_ = fr.WriteData(id, false, []byte{1})
		_ = fr.WriteRSTStream(id, http2.ErrCodeCancel)
	}
	go func() {
		for range 1000 {
			if _, err := r.nc.Write(flood.Bytes()); err != nil {
				return
			}
		}
	}()
	select {
	case <-stopped:
	case <-time.After(30 * time.Second):
		t.Fatal("a client that goes on holds up the stop")
	}
}

// TestStop: handlers hear of it, and no goroutine is left.
func TestStop(t *testing.T) {
	before := runtime.NumGoroutine()
	s := New(Options{Codec: encoding.GetCodecV2(encodingproto.Name)})
	testpb.RegisterTestServiceServer(s, &echo{block: make(chan struct{})})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	client := dial(t, l.Addr().String())
	failed := make(chan error, 10)
	for range cap(failed) {
		go func() {
			_, err := client.EmptyCall(context.Background(), &testpb.Empty{})
			failed <- err
		}()
	}
	eventually(t, "ten calls", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := range s.conns {
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(c.streams) == cap(failed)
		}
		return false
	})
	silent, err := net.Dial("tcp", l.Addr().String()) // has not said a word
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	s.Stop()
	for range cap(failed) {
		if err := <-failed; status.Code(err) != codes.Unavailable {
			t.Errorf("a call under way: %v", err)
		}
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	s.GracefulStop()                                                                                 // once more does nothing but wait for the handlers
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before+4 }) // the client's own
}

// FuzzFrames: whatever a client sends, the connection ends with it, and so do its goroutines.
func FuzzFrames(f *testing.F) {
	frame := func(kind http2.FrameType, flags http2.Flags, id uint32, p []byte) []byte {
		return append(appendFrame(nil, len(p), kind, flags, id), p...)
	}
	r := &raw{t: f, next: 1}
	r.enc = hpack.NewEncoder(&r.block)
	begin := func(name string, id uint32) []byte {
		return frame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, id, bytes.Clone(r.encode(callFields(name))))
	}
	f.Add(bytes.Join([][]byte{begin("UnaryCall", 1), frame(http2.FrameData, http2.FlagDataEndStream, 1, framed(&testpb.SimpleRequest{ResponseSize: 70000})),
		begin("FullDuplexCall", 3), frame(http2.FrameData, 0, 3, framed(&testpb.StreamingOutputCallRequest{ResponseParameters: []*testpb.ResponseParameters{{Size: 9}}})),
		frame(http2.FrameRSTStream, 0, 3, make([]byte, 4)), frame(http2.FrameWindowUpdate, 0, 0, []byte{0, 0, 1, 0}),
		frame(http2.FramePing, 0, 0, make([]byte, 8)), frame(http2.FrameGoAway, 0, 0, make([]byte, 8))}, nil))
	one := framed(&testpb.StreamingOutputCallRequest{ResponseParameters: []*testpb.ResponseParameters{{Size: 9}}})
	f.Add(bytes.Join([][]byte{begin("FullDuplexCall", 1), frame(http2.FrameData, 0, 1, one), frame(http2.FrameData, 0, 1, one), frame(http2.FrameData, 0, 1, one[:7]),
		frame(http2.FrameData, 0, 1, one[7:]), frame(http2.FrameData, 0, 1, one), begin("UnaryCall", 3), frame(http2.FrameData, http2.FlagDataEndStream, 3, framed(&testpb.SimpleRequest{ResponseSize: 1})),
		frame(http2.FrameRSTStream, 0, 3, make([]byte, 4)), frame(http2.FrameData, http2.FlagDataEndStream, 1, one)}, nil))
	f.Add(frame(http2.FrameSettings, 0, 0, []byte{0, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 5, 0, 1, 0, 0}))
	f.Add(bytes.Join([][]byte{frame(http2.FrameHeaders, 0, 1, []byte{0x83}), frame(http2.FrameContinuation, 4, 1, []byte{0x86})}, nil))
	plain, hot := New(testOptions()), hotServer{New(testOptions())}
	for _, s := range []*Server{plain, hot.Server} {
		testpb.RegisterTestServiceServer(s, &echo{})
	}
	hot.begin()
	f.Fuzz(func(t *testing.T, sent []byte) {
		for _, s := range []*Server{plain, hot.Server} {
			here, there := net.Pipe()
			done := make(chan struct{})
			go func() { s.serveConn(there); close(done) }()
			go func() { _, _ = io.Copy(io.Discard, here) }()
			_, _ = here.Write([]byte(http2.ClientPreface))
			_, _ = here.Write(frame(http2.FrameSettings, 0, 0, nil))
			_, _ = here.Write(sent)
			here.Close()
			select {
			case <-done:
			case <-time.After(30 * time.Second):
				t.Fatal("the connection has not ended")
			}
		}
	})
}

// FuzzTimeout: a timeout is refused or lies between 0 and what fits.
func FuzzTimeout(f *testing.F) {
	for _, s := range []string{"1S", "99999999H", "0n", "", "x", "18446744073709551615n", "-1S", "+1S"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := parseTimeout(s)
		if err == nil && (d < 0 || len(s) < 2 || len(s) > 9) || err != nil && d != 0 {
			t.Errorf("%q: %v %v", s, d, err)
		}
	})
}

// FuzzPercent: a message is printable ASCII on the wire, and comes back but for what is not UTF-8.
func FuzzPercent(f *testing.F) {
	f.Add("plain")
	f.Add("% ä \x00\xff 世")
	f.Fuzz(func(t *testing.T, s string) {
		encoded := percentEncoded(s)
		var back []byte
		for i := 0; i < len(encoded); i++ {
			c := encoded[i]
			if c < ' ' || c > '~' {
				t.Fatalf("%q has %q", encoded, c)
			}
			if c == '%' {
				var b byte
				if _, err := fmt.Sscanf(encoded[i+1:i+3], "%02X", &b); err != nil {
					t.Fatalf("%q: %v", encoded, err)
				}
				c, i = b, i+2
			}
			back = append(back, c)
		}
		want := ""
		for _, r := range s { // each byte that is no UTF-8 is U+FFFD
			want += string(r)
		}
		if string(back) != want {
			t.Errorf("%q: %q", s, back)
		}
	})
}

// FuzzBlock: any block of headers is refused or read within its bound.
func FuzzBlock(f *testing.F) {
	r := &raw{t: f}
	r.enc = hpack.NewEncoder(&r.block)
	f.Add(bytes.Clone(r.encode(callFields("UnaryCall", "x-bin", "AAE", "content-length", "3", "grpc-timeout", "1S"))))
	f.Fuzz(func(t *testing.T, block []byte) {
		s := New(testOptions())
		here, there := net.Pipe()
		here.Close()
		c := newConn(s, there, peer.Peer{})
		c.settled = true
		r := newReader(c)
		if err := r.frame(http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersEndStream, 1, block); err != nil {
			return
		}
		for _, k := range r.known {
			if k.req != nil && (k.req.size > s.opts.MaxHeaderBytes || k.req.malformed) {
				t.Errorf("%x is remembered", block)
			}
		}
	})
}
