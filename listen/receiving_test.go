package listen

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// scripted is a connection whose reader gets given bytes in pieces.
type scripted struct {
	net.Conn
	in     *bytes.Buffer
	most   int // bytes of one read
	closed bool
}

func (c *scripted) Read(p []byte) (int, error) { return c.in.Read(p[:min(len(p), c.most)]) }

func (c *scripted) Write(p []byte) (int, error) { return len(p), nil }
func (c *scripted) Close() error                { c.closed = true; return nil }
func (c *scripted) RemoteAddr() net.Addr        { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

// What is counted is what has come of messages that are not complete, however frames and reads cut
// them.
func TestReceivingCounts(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		recv := NewReceiving(1<<40, nil)
		conn := &scripted{in: &bytes.Buffer{}, most: 1 + r.IntN(40)}
		c := recv.watch(conn).(*receivingConn)
		read := func() {
			t.Helper()
			if n, err := io.Copy(io.Discard, struct{ io.Reader }{c}); err != nil {
				t.Fatal(n, err)
			}
		}
		conn.in.WriteString(http2.ClientPreface)
		framer := http2.NewFramer(conn.in, nil)
		framer.AllowIllegalWrites = true
		type sender struct {
			rest []byte // of the message that it sends
			half int64  // what has come of it, with its frames
		}
		streams := map[uint32]*sender{}
		for range 60 {
			id := uint32(1 + 2*r.IntN(5))
			s := streams[id]
			if s == nil {
				s = &sender{}
				streams[id] = s
			}
			var err error
			switch what := r.IntN(20); {
			case what == 0:
				err = framer.WriteRSTStream(id, http2.ErrCodeCancel)
				delete(streams, id)
			case what == 1:
				err = framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
			case what == 2:
				err = framer.WritePing(false, [8]byte{0, 0, 0, 9, 1})
			case what == 3:
				err = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte("block"), EndHeaders: true, EndStream: true})
				delete(streams, id)
			default: // some bytes of the messages of the stream
				var data []byte
				for range 1 + r.IntN(3) {
					if len(s.rest) == 0 {
						n := []int{0, 1, 3, 50, 500}[r.IntN(5)]
						s.rest = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(n)), make([]byte, n)...)
						s.half = 0
					}
					n := r.IntN(len(s.rest) + 1)
					data, s.rest = append(data, s.rest[:n]...), s.rest[n:]
					s.half += int64(n)
					if len(s.rest) > 0 {
						break
					}
				}
				end := r.IntN(8) == 0
				if r.IntN(3) == 0 {
					err = framer.WriteDataPadded(id, end, data, make([]byte, r.IntN(20)))
				} else {
					err = framer.WriteData(id, end, data)
				}
				if end {
					delete(streams, id)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			read()
			want, halves := int64(0), 0
			for _, s := range streams {
				if len(s.rest) > 0 && s.half > 0 {
					want += s.half
					halves++
				}
			}
			got := recv.Held()
			if got < want || (halves == 0 && got != 0) || got > want+60*frameOverhead {
				t.Fatalf("%d are counted, %d have come", got, want)
			}
			if len(c.halves) != halves {
				t.Fatalf("%d half messages, want %d", len(c.halves), halves)
			}
		}
		_ = c.Close()
		if recv.Held() != 0 || len(recv.conns) != 0 {
			t.Fatal("something is left")
		}
	}
}

// A stream that the server has reset holds nothing, and what still comes of it is no message.
func TestReceivingSeesResets(t *testing.T) {
	recv := NewReceiving(1<<40, nil)
	conn := &scripted{in: &bytes.Buffer{}, most: 1 << 20}
	c := recv.watch(conn).(*receivingConn)
	conn.in.WriteString(http2.ClientPreface)
	framer := http2.NewFramer(conn.in, nil)
	send := func(id uint32, data []byte) {
		t.Helper()
		if err := framer.WriteData(id, false, data); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, struct{ io.Reader }{c}); err != nil {
			t.Fatal(err)
		}
	}
	message := append([]byte{0, 0, 0, 0x40, 0}, make([]byte, 100)...)
	send(1, message)
	send(3, message)
	if held := recv.Held(); held < 210 {
		t.Fatalf("%d are counted", held)
	}
	var out bytes.Buffer
	answers := http2.NewFramer(&out, nil)
	for _, err := range []error{
		answers.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("trailers"), EndHeaders: true, EndStream: true}),
		answers.WriteData(3, false, make([]byte, 1000)),
		answers.WriteRSTStream(1, http2.ErrCodeNo),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for b := out.Bytes(); len(b) > 0; b = b[min(len(b), 7):] { // as it comes
		if _, err := c.Write(b[:min(len(b), 7)]); err != nil {
			t.Fatal(err)
		}
	}
	send(1, bytes.Repeat([]byte{1}, 1000)) // was on its way
	if held := recv.Held(); held < 105 || held > 105+2*frameOverhead {
		t.Errorf("%d are counted", held)
	}
}

// receivingServer answers each call with nothing, when its request is whole.
func receivingServer(t *testing.T, recv *Receiving) *Front {
	f := serveFront(t, FrontOptions{GRPC: true, HTTP: true, Receiving: recv})
	s := grpc.NewServer(grpc.Creds(Credentials()), grpc.InTapHandle(recv.Tap), grpc.MaxRecvMsgSize(2<<20),
		grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
			if err := stream.RecvMsg(&wrapperspb.BytesValue{}); err != nil {
				return err
			}
			return stream.SendMsg(&emptypb.Empty{})
		}))
	go s.Serve(f.GRPC())
	t.Cleanup(s.Stop)
	return f
}

func client(t *testing.T, f *Front) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///"+f.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func call(c *grpc.ClientConn, size int) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return c.Invoke(ctx, "/t.T/Call", &wrapperspb.BytesValue{Value: make([]byte, size)}, &emptypb.Empty{})
}

// halfSender opens streams with messages of which the last byte does not come.
type halfSender struct {
	conn   net.Conn
	framer *http2.Framer
	next   uint32
	block  []byte

	mu    sync.Mutex
	codes []string // of the calls that have ended
}

func newHalfSender(t *testing.T, f *Front) *halfSender {
	t.Helper()
	conn, err := net.Dial("tcp", f.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	h := &halfSender{conn: conn, framer: http2.NewFramer(conn, conn), next: 1}
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, field := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/t.T/Call"}, {":authority", "t"},
		{"content-type", "application/grpc"}, {"te", "trailers"}} {
		if err := enc.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}); err != nil {
			t.Fatal(err)
		}
	}
	h.block = block.Bytes()
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := h.framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	go func() { // takes whatever the server says, until the end
		dec := hpack.NewDecoder(4096, func(field hpack.HeaderField) {
			if field.Name == "grpc-message" {
				h.mu.Lock()
				h.codes = append(h.codes, field.Value)
				h.mu.Unlock()
			}
		})
		for {
			frame, err := h.framer.ReadFrame()
			if err != nil {
				return
			}
			if headers, ok := frame.(*http2.HeadersFrame); ok {
				_, _ = dec.Write(headers.HeaderBlockFragment())
			}
		}
	}()
	return h
}

// open begins a call and sends one window of a message of 1.9 MiB; false: the connection is gone.
func (h *halfSender) open() bool {
	id := h.next
	h.next += 2
	if h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h.block, EndHeaders: true}) != nil {
		return false
	}
	message := append(binary.BigEndian.AppendUint32([]byte{0}, 1_900_000), make([]byte, 60_000)...)
	for len(message) > 0 {
		n := min(len(message), 16<<10)
		if h.framer.WriteData(id, false, message[:n]) != nil {
			return false
		}
		message = message[n:]
	}
	return true
}

func (h *halfSender) refusals() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, text := range h.codes {
		if strings.Contains(text, "--max-receive-bytes") {
			n++
		}
	}
	return n
}

// Half messages from many streams and connections stay under the bound, and nobody else notices.
func TestHalfMessagesAreBounded(t *testing.T) {
	const bound = 16 << 20
	var calls, conns atomic.Int64
	recv := NewReceiving(bound, func(closed bool, held int64, remote string) {
		if closed {
			conns.Add(1)
		} else {
			calls.Add(1)
		}
	})
	f := receivingServer(t, recv)
	light := client(t, f)
	if err := call(light, 100); err != nil {
		t.Fatal(err)
	}
	var attack sync.WaitGroup
	var senders []*halfSender
	for range 12 {
		h := newHalfSender(t, f)
		senders = append(senders, h)
		attack.Go(func() {
			for range 400 {
				if !h.open() {
					return
				}
			}
		})
	}
	over := make(chan struct{})
	go func() { attack.Wait(); close(over) }()
	for begun := false; !begun || recv.Held() > 0; {
		if held := recv.Held(); held > bound {
			t.Fatalf("%d bytes are held", held)
		}
		if err := call(light, 1000); err != nil {
			t.Fatalf("a light client: %v", err)
		}
		select {
		case <-over:
			begun = true
			for _, h := range senders {
				h.conn.Close()
			}
		default:
		}
	}
	if calls.Load() == 0 {
		t.Error("no call was refused")
	}
	refused := 0
	for _, h := range senders {
		refused += h.refusals()
	}
	if refused == 0 && conns.Load() == 0 {
		t.Error("nobody was told")
	}
	if err := call(light, 1<<20); err != nil {
		t.Errorf("a large request, afterwards: %v", err)
	}
}

// A client that sends much at once is told which flag it has met; when less is on its way it is
// served again.
func TestTooMuchIsTold(t *testing.T) {
	recv := NewReceiving(2<<20, func(bool, int64, string) {})
	f := receivingServer(t, recv)
	h := newHalfSender(t, f)
	for range 9 { // a quarter of the bound is 512 KiB
		if !h.open() {
			t.Fatal("the connection is gone")
		}
	}
	eventually(t, "half messages to be held", func() bool { return recv.Held() > 512<<10 })
	h.open()
	eventually(t, "a call to be refused", func() bool { return h.refusals() > 0 })
	for id := uint32(1); id < h.next; id += 2 {
		if err := h.framer.WriteRSTStream(id, http2.ErrCodeCancel); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all to be given back", func() bool { return recv.Held() == 0 && recv.pressed.Load() == 0 })
	if !h.open() {
		t.Error("the connection is gone")
	}
	eventually(t, "the next half message", func() bool { return recv.Held() > 0 })
}

// A stream that the server resets while one of its frames is arriving leaves nothing behind.
func TestResetAmidAFrame(t *testing.T) {
	for _, padding := range []int{0, 7} {
		for cut := 1; cut < 2*(frameHeaderBytes+40); cut++ {
			var in bytes.Buffer
			framer := http2.NewFramer(&in, nil)
			message := append(binary.BigEndian.AppendUint32([]byte{0}, 1000), make([]byte, 75)...)
			for _, part := range [][]byte{message[:40], message[40:]} {
				if err := framer.WriteDataPadded(1, false, part, make([]byte, padding)); err != nil {
					t.Fatal(err)
				}
			}
			if err := framer.WriteRSTStream(1, http2.ErrCodeCancel); err != nil {
				t.Fatal(err)
			}
			r := NewReceiving(1<<20, nil)
			c := r.watch(&scripted{}).(*receivingConn)
			c.skip = 0
			c.follow(in.Bytes()[:cut])
			c.reset = append(c.reset, 1)
			c.takeResets()
			c.follow(in.Bytes()[cut:])
			if held := r.Held(); held != 0 || len(c.halves) > 0 || c.skip != 0 || c.data != 0 || c.heads != 0 {
				t.Fatalf("padding %d, reset after %d bytes: %d held, %d streams", padding, cut, held, len(c.halves))
			}
		}
	}
}

// Honest clients: many large requests at once, and some that are too large, leave nothing behind.
func TestLargeRequestsAreServed(t *testing.T) {
	recv := NewReceiving(512<<20, func(closed bool, held int64, remote string) { t.Errorf("refused with %d held", held) })
	f := receivingServer(t, recv)
	c := client(t, f)
	var calls sync.WaitGroup
	for i := range 40 {
		calls.Go(func() {
			size := 1_500_000
			if i%10 == 0 {
				size = 3 << 20
			}
			switch err := call(c, size); {
			case size > 2<<20 && status.Code(err) != codes.ResourceExhausted:
				t.Errorf("one that is too large: %v", err)
			case size < 2<<20 && err != nil:
				t.Error(err)
			}
		})
	}
	calls.Wait()
	// The next frames tell of the calls that were given up.
	eventually(t, "nothing to be held", func() bool { return call(c, 10) == nil && recv.Held() == 0 })
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 30 s for %s", what)
		}
	}
}

func BenchmarkFollow(b *testing.B) {
	for _, size := range []int{100, 16 << 10, 1 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			var in bytes.Buffer
			framer := http2.NewFramer(&in, nil)
			message := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(size)), make([]byte, size)...)
			for len(message) > 0 {
				n := min(len(message), 16<<10)
				if err := framer.WriteData(1, n == len(message), message[:n]); err != nil {
					b.Fatal(err)
				}
				message = message[n:]
			}
			c := NewReceiving(1<<40, nil).watch(&scripted{}).(*receivingConn)
			c.skip = 0
			b.SetBytes(int64(in.Len()))
			for b.Loop() {
				c.follow(in.Bytes())
			}
		})
	}
}
