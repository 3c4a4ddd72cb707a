package rpc

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// both runs a scenario against grpc-go's server and ours, with a Hot too, and compares what it
// returns.
func both(t *testing.T, o Options, scenario func(t *testing.T, addr string) string) {
	t.Helper()
	want := scenario(t, serve(t, theirs(o), &echo{}))
	if got := scenario(t, serve(t, ours(o), &echo{})); got != want {
		t.Errorf("ours:\n%s\ngrpc-go:\n%s", got, want)
	}
	if got := scenario(t, serve(t, hot(o), &echo{})); got != want {
		t.Errorf("ours, with a Hot:\n%s\ngrpc-go:\n%s", got, want)
	}
}

// bare leaves out of an answer what means nothing to a client: grpc-message where there is none.
func (a *answer) bare() string {
	var blocks []string
	for _, b := range a.blocks {
		lines := strings.Split(b, "\n")
		blocks = append(blocks, strings.Join(slices.DeleteFunc(lines, func(l string) bool { return l == "grpc-message: " }), "\n"))
	}
	return fmt.Sprintf("blocks %q data %x reset %q", blocks, a.data, a.reset)
}

func message(flag byte, b []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{flag}, uint32(len(b))), b...)
}

func gzipped(b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, _ = z.Write(b)
	_ = z.Close()
	return out.Bytes()
}

// TestAnswersLikeGRPC sends what clients send, and what they should not, to both servers.
func TestAnswersLikeGRPC(t *testing.T) {
	t.Parallel()
	ask := framed(&testpb.SimpleRequest{ResponseSize: 10})
	statusOf := func(code int32, text string) []byte {
		return framed(&testpb.SimpleRequest{ResponseStatus: &testpb.EchoStatus{Code: code, Message: text}})
	}
	large := make([]byte, 1<<20+1)
	for _, c := range []struct {
		name   string
		fields []hpack.HeaderField
		body   []byte // nil: the stream ends with its headers
	}{
		{"a call", callFields("UnaryCall"), ask},
		{"subtype", callFields("UnaryCall", "content-type", "application/grpc+proto"), ask},
		{"subtype by semicolon", callFields("UnaryCall", "content-type", "application/grpc;proto"), ask},
		{"another content type", callFields("UnaryCall", "content-type", "text/html"), ask},
		{"content type that begins alike", callFields("UnaryCall", "content-type", "application/grpcx"), ask},
		{"no content type", callFields("UnaryCall", "content-type", "-"), ask},
		{"GET", callFields("UnaryCall", ":method", "GET"), nil},
		{"unknown method", callFields("None"), ask},
		{"unknown service", callFields("", ":path", "/x.Y/Z"), ask},
		{"no method", callFields("", ":path", "/nothing"), ask},
		{"no slash", callFields("", ":path", "nothing"), ask},
		{"host instead of authority", callFields("UnaryCall", ":authority", "-", "host", "h"), ask},
		{"no authority", callFields("UnaryCall", ":authority", "-"), ask},
		{"two hosts", callFields("UnaryCall", "host", "h", "+host", "i"), ask},
		{"timeout", callFields("UnaryCall", "grpc-timeout", "10S"), ask},
		{"timeout of 0", callFields("UnaryCall", "grpc-timeout", "0n"), ask},
		{"timeout without number", callFields("UnaryCall", "grpc-timeout", "S"), ask},
		{"timeout without unit", callFields("UnaryCall", "grpc-timeout", "10"), ask},
		{"timeout of words", callFields("UnaryCall", "grpc-timeout", "abcS"), ask},
		{"timeout too long", callFields("UnaryCall", "grpc-timeout", "1234567890S"), ask},
		{"longest timeout", callFields("UnaryCall", "grpc-timeout", "99999999H"), ask},
		{"bytes", callFields("UnaryCall", "x-trailer-bin", "AAE"), ask},
		{"bytes with padding", callFields("UnaryCall", "x-trailer-bin", "AAE="), ask},
		{"bytes that are none", callFields("UnaryCall", "x-trailer-bin", "!"), ask},
		{"header", callFields("UnaryCall", "x-header", "v"), ask},
		{"long header", callFields("UnaryCall", "x-long-header", "v"), ask},
		{"header and error", callFields("UnaryCall", "x-header", "v"), statusOf(int32(codes.NotFound), "none")},
		{"reserved headers", callFields("UnaryCall", "grpc-status", "1", "grpc-message", "x", "grpc-message-type", "y", "user-agent", "u"), ask},
		{"connection", callFields("UnaryCall", "connection", "close"), ask},
		{"upper case", callFields("UnaryCall", "X-A", "b"), ask},
		{"control character", callFields("UnaryCall", "x-a", "b\x00"), ask},
		{"pseudo-header twice", callFields("UnaryCall", "+:path", "/"), ask},
		{"unknown pseudo-header", append([]hpack.HeaderField{{Name: ":odd", Value: "x"}}, callFields("UnaryCall")...), ask},
		{"pseudo-header last", append(callFields("UnaryCall", ":path", "-"), hpack.HeaderField{Name: ":path", Value: "/x"}), ask},
		{"headers in several frames", callFields("UnaryCall", "x-a", strings.Repeat("a", 60<<10)), ask},
		{"headers too long", callFields("UnaryCall", "x-a", strings.Repeat("a", 64<<10)), ask},
		{"a status", callFields("UnaryCall"), statusOf(int32(codes.AlreadyExists), "there")},
		{"a status beyond ASCII", callFields("UnaryCall"), statusOf(int32(codes.Unknown), "\t100 % ä 世 \n")},
		{"a status with details", callFields("UnaryCall"), statusOf(int32(codes.Aborted), "details %")},
		{"an error without status", callFields("UnaryCall", "x-plain-error", "1"), ask},
		{"no message", callFields("UnaryCall"), nil},
		{"no message, DATA", callFields("UnaryCall"), []byte{}},
		{"two messages", callFields("UnaryCall"), append(slices.Clone(ask), ask...)},
		{"half a prefix", callFields("UnaryCall"), ask[:3]},
		{"half a message", callFields("UnaryCall"), ask[:6]},
		{"message and half", callFields("UnaryCall"), append(slices.Clone(ask), ask[:6]...)},
		{"damaged message", callFields("UnaryCall"), message(0, []byte{0xff, 0xff})},
		{"odd flag", callFields("UnaryCall"), message(2, ask[5:])},
		{"compressed without encoding", callFields("UnaryCall"), message(1, gzipped(ask[5:]))},
		{"compressed as identity", callFields("UnaryCall", "grpc-encoding", "identity"), message(1, gzipped(ask[5:]))},
		{"gzip", callFields("UnaryCall", "grpc-encoding", "gzip"), message(1, gzipped(ask[5:]))},
		{"gzip, not compressed", callFields("UnaryCall", "grpc-encoding", "gzip"), ask},
		{"gzip, damaged", callFields("UnaryCall", "grpc-encoding", "gzip"), message(1, ask[5:])},
		{"gzip, cut", callFields("UnaryCall", "grpc-encoding", "gzip"), message(1, gzipped(ask[5:])[:15])},
		{"gzip bomb", callFields("UnaryCall", "grpc-encoding", "gzip"), message(1, gzipped(large))},
		{"unknown encoding", callFields("UnaryCall", "grpc-encoding", "lzw"), message(1, ask[5:])},
		{"too large", callFields("UnaryCall"), message(0, large)[:9]},
		{"as large as may be", callFields("UnaryCall"), framed(&testpb.SimpleRequest{Payload: &testpb.Payload{Body: make([]byte, 60000)}})},
		{"a large answer", callFields("UnaryCall"), framed(&testpb.SimpleRequest{ResponseSize: 300000})},
		{"stream of answers", callFields("StreamingOutputCall"), framed(&testpb.StreamingOutputCallRequest{
			ResponseParameters: []*testpb.ResponseParameters{{Size: 1}, {Size: 0}, {Size: 100000}}})},
		{"stream of nothing", callFields("FullDuplexCall"), []byte{}},
		{"stream that is not implemented", callFields("HalfDuplexCall"), []byte{}},
		{"stream with a damaged message", callFields("FullDuplexCall"), message(0, []byte{0xff, 0xff})},
		{"stream with half a message", callFields("FullDuplexCall"), ask[:6]},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			both(t, testOptions(), func(t *testing.T, addr string) string {
				r := connect(t, addr)
				id := r.begin(c.fields, c.body == nil)
				if c.body != nil {
					r.data(id, c.body, true)
				}
				got := r.answer(id).bare()
				// What follows on the connection is served.
				next := r.begin(callFields("UnaryCall"), false)
				r.data(next, ask, true)
				return got + "\n" + r.answer(next).bare() + fmt.Sprint(r.goAways)
			})
		})
	}
}

// TestConnectionsLikeGRPC compares what happens to connections.
func TestConnectionsLikeGRPC(t *testing.T) {
	t.Parallel()
	ask := framed(&testpb.SimpleRequest{ResponseSize: 10})
	pings := func(n int, between func(r *raw)) func(*testing.T, string) string {
		return func(t *testing.T, addr string) string {
			r := connect(t, addr)
			for range n {
				r.write(r.fr.WritePing(false, [8]byte{1}))
				between(r)
			}
			r.until(func() bool { return r.acks == n })
			return fmt.Sprint(r.goAways, r.ended)
		}
	}
	nothing := func(*raw) {}
	call := func(r *raw) {
		id := r.begin(callFields("UnaryCall"), false)
		r.data(id, ask, true)
		r.answer(id)
	}
	o := testOptions()
	o.MaxStreams = 2
	for name, scenario := range map[string]func(*testing.T, string) string{
		"three pings":              pings(3, nothing),
		"too many pings":           pings(6, nothing),
		"pings with calls between": pings(6, call),
		"too many streams": func(t *testing.T, addr string) string {
			r := connect(t, addr)
			a, b := r.begin(callFields("FullDuplexCall"), false), r.begin(callFields("FullDuplexCall"), false)
			c := r.begin(callFields("UnaryCall"), false)
			got := r.answer(c).bare()
			r.data(a, nil, true)
			r.answer(a)
			d := r.begin(callFields("UnaryCall"), false)
			r.data(d, ask, true)
			got += r.answer(d).bare()
			r.data(b, nil, true)
			return got + r.answer(b).bare()
		},
		"a smaller header table": func(t *testing.T, addr string) string {
			r := connect(t, addr, http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
			r.fr.ReadMetaHeaders = hpack.NewDecoder(0, nil)
			got := ""
			for range 3 {
				id := r.begin(callFields("UnaryCall"), false)
				r.data(id, ask, true)
				got += r.answer(id).bare()
			}
			return got
		},
		"a small header list": func(t *testing.T, addr string) string {
			r := connect(t, addr, http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 200})
			got := ""
			for _, f := range [][]hpack.HeaderField{callFields("UnaryCall"), callFields("UnaryCall", "x-header", strings.Repeat("v", 100)),
				callFields("UnaryCall", "x-trailer-bin", strings.Repeat("AAAA", 100)), callFields("UnaryCall", "grpc-timeout", strings.Repeat("x", 200))} {
				id := r.begin(f, false)
				r.data(id, ask, true)
				got += r.answer(id).bare()
			}
			return got
		},
		"a deadline": func(t *testing.T, addr string) string {
			r := connect(t, addr)
			id := r.begin(callFields("FullDuplexCall", "grpc-timeout", "30m"), false)
			// Of handler and timer the first ends it, with both servers.
			a := r.answer(id)
			return fmt.Sprint(a.reset == "CANCEL" || a.status() == "4 context deadline exceeded")
		},
		"no preface": func(t *testing.T, addr string) string {
			r := connect(t, addr)
			_, _ = r.nc.Write([]byte(http2.ClientPreface))
			r.until(func() bool { return false })
			return fmt.Sprint(r.ended)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			both(t, o, scenario)
		})
	}
}

// TestFlowControlModel sends random calls over random windows to both servers: a client that keeps
// books of its windows. No server may exceed them, and each call must have the same answer.
func TestFlowControlModel(t *testing.T) {
	t.Parallel()
	for range 6 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			both(t, testOptions(), func(t *testing.T, addr string) string { return runModel(t, addr, seed) })
		})
	}
}

// runModel is one client; what it sends depends on the seed alone, but for when windows are opened.
func runModel(t *testing.T, addr string, seed uint64) string {
	rnd := rand.New(rand.NewPCG(seed, 1))
	initial := int64(rnd.IntN(3) * 5000)
	r := connect(t, addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(initial)})
	r.auto = false
	conn := int64(defaultWindow)
	windows, seen, cancelled := map[uint32]int64{}, map[uint32]int{}, map[uint32]bool{}
	check := func() {
		for id, a := range r.answers {
			n := int64(len(a.data) - seen[id])
			seen[id] = len(a.data)
			if windows[id], conn = windows[id]-n, conn-n; windows[id] < 0 && n > 0 || conn < 0 {
				t.Fatalf("seed %d: stream %d has sent %d bytes too many; connection %d", seed, id, -windows[id], conn)
			}
		}
	}
	read := func() bool {
		ok := r.read()
		check()
		return ok
	}
	_ = r.fr.WriteSettingsAck()
	for !r.settled && read() { // from here on windows are those of our settings
	}
	for range 40 {
		size := rnd.IntN(1000)
		switch rnd.IntN(4) {
		case 0:
			size = rnd.IntN(200000)
		case 1:
			size = 0
		}
		name := "UnaryCall"
		body := framed(&testpb.SimpleRequest{ResponseSize: int32(size), Payload: &testpb.Payload{Body: filled(rnd.IntN(300), 1)}})
		if rnd.IntN(3) == 0 {
			name = "FullDuplexCall"
			body = framed(&testpb.StreamingOutputCallRequest{ResponseParameters: []*testpb.ResponseParameters{{Size: int32(size)}, {Size: 3}, {Size: int32(size / 2)}}})
		}
		id := r.begin(callFields(name), false)
		windows[id] += initial
		for len(body) > 0 { // in pieces, padded here and there
			n := 1 + rnd.IntN(len(body))
			if rnd.IntN(2) == 0 {
				r.write(r.fr.WriteDataPadded(id, false, body[:n], make([]byte, rnd.IntN(20))))
			} else {
				r.write(r.fr.WriteData(id, false, body[:n]))
			}
			body = body[n:]
		}
		r.write(r.fr.WriteData(id, true, nil))
		switch rnd.IntN(6) {
		case 0:
			changed := int64(rnd.IntN(20000))
			for other := range windows {
				windows[other] += changed - initial
			}
			// The server may send by the old windows until it has acknowledged these.
			slack := max(0, initial-changed)
			for other := range windows {
				windows[other] += slack
			}
			r.settled = false
			r.write(r.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(changed)}))
			for !r.settled && read() {
			}
			for other := range windows {
				windows[other] -= slack
			}
			initial = changed
		case 1:
			cancelled[id] = true
			r.write(r.fr.WriteRSTStream(id, http2.ErrCodeCancel))
		case 2:
			add := int64(1 + rnd.IntN(30000))
			conn += add
			r.write(r.fr.WriteWindowUpdate(0, uint32(add)))
		}
	}
	for { // open the windows bit by bit until all is there
		open := 0
		for id := uint32(1); id < r.next; id += 2 {
			if r.answers[id].closed || cancelled[id] {
				continue
			}
			open++
			if need := 20000 - windows[id]; need > 10000 {
				windows[id] += need
				r.write(r.fr.WriteWindowUpdate(id, uint32(need)))
			}
		}
		if need := 50000 - conn; need > 0 {
			conn += need
			r.write(r.fr.WriteWindowUpdate(0, uint32(need)))
		}
		if open == 0 {
			break
		}
		if !read() {
			t.Fatalf("seed %d: the connection has ended: %v", seed, r.goAways)
		}
	}
	var out strings.Builder
	for id := uint32(1); id < r.next; id += 2 {
		if !cancelled[id] {
			fmt.Fprintf(&out, "%d: %s\n", id, r.answers[id].bare())
		}
	}
	return out.String()
}

// TestDrainLikeGRPC: a connection ends in two steps, and the calls that are under way end well.
func TestDrainLikeGRPC(t *testing.T) {
	t.Parallel()
	scenario := func(t *testing.T, newServer func(Options) registrar) string {
		s := newServer(testOptions())
		addr := serve(t, s, &echo{})
		r := connect(t, addr)
		id := r.begin(callFields("FullDuplexCall"), false)
		r.data(id, framed(&testpb.StreamingOutputCallRequest{ResponseParameters: []*testpb.ResponseParameters{{Size: 1}}}), false)
		a := r.answers[id]
		r.until(func() bool { return len(a.data) > 0 })
		stopped := make(chan struct{})
		go func() { s.GracefulStop(); close(stopped) }()
		r.until(func() bool { return len(r.goAways) == 2 })
		late := r.begin(callFields("UnaryCall"), true) // not served any more
		r.data(id, framed(&testpb.StreamingOutputCallRequest{ResponseParameters: []*testpb.ResponseParameters{{Size: 2}}}), true)
		got := r.answer(id).bare()
		r.until(func() bool { return r.ended })
		r.nc.Close()
		select {
		case <-stopped:
		case <-time.After(30 * time.Second):
			t.Fatal("GracefulStop has not returned")
		}
		return got + fmt.Sprint(r.goAways) + r.answers[late].bare()
	}
	want, got := scenario(t, theirs), scenario(t, ours)
	if got != want {
		t.Errorf("ours: %s\ngrpc-go: %s", got, want)
	}
}
