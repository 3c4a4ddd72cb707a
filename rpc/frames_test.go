package rpc

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// TestFramesLikeGRPC sends random sequences of frames, valid ones and broken ones, to grpc-go's
// server, to ours, and to ours with a Hot, step by step: after each step all have answered alike, in
// status, code and data, or the step is one of framesThatDiffer. Such a step is the last of its
// sequence.
//
//	go test ./rpc -run TestFramesLikeGRPC                   60 sequences
//	BELAY_FRAMES_TIME=10m go test ...                       for so long (make frames)
//	BELAY_FRAMES_SEED=n go test ...                         the sequence of a seed again
func TestFramesLikeGRPC(t *testing.T) {
	t.Parallel()
	setting := func(name string) string {
		s := os.Getenv(name)
		if s != "" {
			t.Log(name, s)
		}
		return s
	}
	o := testOptions()
	o.KeepaliveMinTime, o.PermitWithoutStream = time.Nanosecond, true // a ping ends each step
	addrs := [3]string{serve(t, theirs(o), &echo{}), serve(t, ours(o), &echo{}), serve(t, hot(o), &echo{})}
	if s := setting("BELAY_FRAMES_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		framesOf(t, addrs, seed)
		return
	}
	var length time.Duration
	if s := setting("BELAY_FRAMES_TIME"); s != "" {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	steps, met, sequences := 0, map[string]int{}, 0
	var senders sync.WaitGroup
	begun := time.Now()
	for range 4 {
		senders.Go(func() {
			for {
				mu.Lock()
				more := !t.Failed() && (sequences < 60 || time.Since(begun) < length)
				if more {
					sequences++
				}
				mu.Unlock()
				if !more {
					return
				}
				m := framesOf(t, addrs, rand.Uint64())
				mu.Lock()
				for name, n := range m.done {
					met[name] += n
					steps += n
				}
				mu.Unlock()
			}
		})
	}
	senders.Wait()
	t.Logf("%d sequences, %d steps", sequences, steps)
	if length > time.Minute {
		for _, name := range slices.Sorted(maps.Keys(met)) {
			t.Logf("%8d %s", met[name], name)
		}
		for name := range framesThatDiffer {
			if met[name] == 0 {
				t.Errorf("%q differs, it is said, and never came", name)
			}
		}
	}
}

// A difference is how grpc-go answers a step, how we do, and the reason. An answer is that on the
// step's stream, or of the connection.
type difference struct{ theirs, ours, why string }

const (
	// silent: grpc-go closes the connection without a word, where RFC 9113 (5.4.1) asks for a GOAWAY.
	silent = "grpc-go does not say why it closes the connection"
	// lenient: grpc-go does not look at what RFC 9113 has as an error.
	lenient = "grpc-go passes it over, where RFC 9113 has an error"
	// malformed: grpc-go serves requests that RFC 9113 (8.1.1) has as malformed.
	malformed = "grpc-go serves a malformed request"
)

// framesThatDiffer are the steps that grpc-go answers in another way.
var framesThatDiffer = map[string]difference{
	"CONTINUATION alone":                   {"ended", "goaway PROTOCOL_ERROR, ended", silent},
	"DATA of padding alone, too long":      {"ended", "goaway PROTOCOL_ERROR, ended", silent},
	"DATA on stream 0":                     {"ended", "goaway PROTOCOL_ERROR, ended", silent},
	"DATA without its padding's length":    {"ended", "goaway PROTOCOL_ERROR, ended", silent},
	"GOAWAY on a stream":                   {"ended", "goaway PROTOCOL_ERROR, ended", silent},
	"HEADERS on stream 0":                  {"ended", "goaway PROTOCOL_ERROR, ended", silent},
	"PING on a stream":                     {"ended", "goaway PROTOCOL_ERROR, ended", silent},
	"PRIORITY on stream 0":                 {"ended", "goaway PROTOCOL_ERROR, ended", silent},
	"RST_STREAM on stream 0":               {"ended", "goaway PROTOCOL_ERROR, ended", silent},
	"SETTINGS on a stream":                 {"ended", "goaway PROTOCOL_ERROR, ended", silent},
	"WINDOW_UPDATE of 0 on the connection": {"ended", "goaway PROTOCOL_ERROR, ended", silent},
	"a block that goes on elsewhere":       {"ended", "goaway PROTOCOL_ERROR, ended", silent},
	"a block that is interrupted":          {"ended", "goaway PROTOCOL_ERROR, ended", silent},
	"GOAWAY of another length":             {"ended", "goaway FRAME_SIZE_ERROR, ended", silent},
	"HEADERS with half a priority":         {"ended", "goaway FRAME_SIZE_ERROR, ended", silent},
	"PING of another length":               {"ended", "goaway FRAME_SIZE_ERROR, ended", silent},
	"PRIORITY of another length":           {"ended", "goaway FRAME_SIZE_ERROR, ended", silent},
	"RST_STREAM of another length":         {"ended", "goaway FRAME_SIZE_ERROR, ended", silent},
	"SETTINGS of another length":           {"ended", "goaway FRAME_SIZE_ERROR, ended", silent},
	"WINDOW_UPDATE of another length":      {"ended", "goaway FRAME_SIZE_ERROR, ended", silent},
	"a frame too large":                    {"ended", "goaway FRAME_SIZE_ERROR, ended", silent},
	"an acknowledgement with settings":     {"ended", "goaway FRAME_SIZE_ERROR, ended", silent},
	"Huffman's code that is none":          {"ended", "goaway COMPRESSION_ERROR, ended", silent},
	"a field that is cut":                  {"ended", "goaway COMPRESSION_ERROR, ended", silent},
	"a table larger than agreed":           {"ended", "goaway COMPRESSION_ERROR, ended", silent},
	"an index beyond the table":            {"ended", "goaway COMPRESSION_ERROR, ended", silent},
	"an integer without end":               {"ended", "goaway COMPRESSION_ERROR, ended", silent},
	"an initial window beyond the largest": {"ended", "goaway FLOW_CONTROL_ERROR, ended", silent},

	"DATA on an even stream":                                    {"", "goaway PROTOCOL_ERROR, ended", lenient},
	"DATA on an idle stream":                                    {"", "goaway PROTOCOL_ERROR, ended", lenient},
	"PUSH_PROMISE":                                              {"", "goaway PROTOCOL_ERROR, ended", lenient},
	"RST_STREAM on an even stream":                              {"", "goaway PROTOCOL_ERROR, ended", lenient},
	"RST_STREAM on an idle stream":                              {"", "goaway PROTOCOL_ERROR, ended", lenient},
	"WINDOW_UPDATE on an even stream":                           {"", "goaway PROTOCOL_ERROR, ended", lenient},
	"WINDOW_UPDATE on an idle stream":                           {"", "goaway PROTOCOL_ERROR, ended", lenient},
	"a push of 2":                                               {"", "goaway PROTOCOL_ERROR, ended", lenient},
	"frames larger than any may be":                             {"", "goaway PROTOCOL_ERROR, ended", lenient},
	"frames smaller than all must take":                         {"", "goaway PROTOCOL_ERROR, ended", lenient},
	"WINDOW_UPDATE beyond the largest window of the connection": {"", "goaway FLOW_CONTROL_ERROR, ended", lenient},
	"WINDOW_UPDATE beyond the largest window of a stream":       {"", "reset FLOW_CONTROL_ERROR", lenient},
	"DATA on a stream that has ended":                           {"", "reset STREAM_CLOSED", lenient},
	"DATA on a stream that was reset":                           {"", "reset STREAM_CLOSED", lenient},
	"a stream that depends on itself":                           {"", "reset PROTOCOL_ERROR", lenient},

	"a content-length that is none":    {"status 0 ", "reset PROTOCOL_ERROR", malformed},
	"no :scheme":                       {"status 0 ", "reset PROTOCOL_ERROR", malformed},
	"te of something":                  {"status 0 ", "reset PROTOCOL_ERROR", malformed},
	"too long for its content-length":  {"status 0 ", "reset PROTOCOL_ERROR", malformed},
	"too short for its content-length": {"status 0 ", "reset PROTOCOL_ERROR", malformed},
	"transfer-encoding":                {"status 0 ", "reset PROTOCOL_ERROR", malformed},
	"no :path":                         {"status 12 malformed method name: \"\"", "reset PROTOCOL_ERROR", malformed},
	"no :method":                       {"status 13 Received a HEADERS frame with :method \"\" which should be POST", "reset PROTOCOL_ERROR", malformed},

	"HEADERS on a stream that has ended":   {"goaway PROTOCOL_ERROR, ended", "goaway STREAM_CLOSED, ended", "RFC 9113 (5.1) has another code"},
	"HEADERS on a stream that was reset":   {"goaway PROTOCOL_ERROR, ended", "goaway STREAM_CLOSED, ended", "RFC 9113 (5.1) has another code"},
	"HEADERS with too long padding":        {"reset PROTOCOL_ERROR", "goaway PROTOCOL_ERROR, ended", "RFC 9113 (6.2) has an error of the connection"},
	"WINDOW_UPDATE of 0 on an idle stream": {"reset PROTOCOL_ERROR", "goaway PROTOCOL_ERROR, ended", "there is no such stream that could be reset"},
	"trailers":                             {"goaway PROTOCOL_ERROR, ended", "status 0 ", "RFC 9113 (8.1) lets clients end a request so"},
	"PRIORITY_UPDATE on a stream":          {"ended", "", "we do not know RFC 9218, and a frame of an unknown kind is passed over"},
	"trailers that do not end the stream":  {"goaway PROTOCOL_ERROR, ended", "reset PROTOCOL_ERROR", "RFC 9113 (8.1) has an error of the stream"},
}

// A frames is a sequence that is being sent.
type frames struct {
	t     *testing.T
	seed  uint64
	rnd   *rand.Rand
	sides [3]*raw
	ping  int
	done  map[string]int // steps, by name

	bidi    []uint32 // calls that are open on both sides, of FullDuplexCall
	begun   []uint32 // unary calls whose message has not come
	ended   []uint32 // calls that have ended, with the client's side
	dropped []uint32 // that the client has reset
}

// A step is what was sent.
type step struct {
	name string
	id   uint32 // of the stream that it is about; 0: it is about none
	// until is what all servers answer before the next step, unless the stream or the connection
	// ends; nil: a ping.
	until func(*raw) bool
	last  bool // whatever comes of it
}

func framesOf(t *testing.T, addrs [3]string, seed uint64) *frames {
	m := &frames{t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 1)), done: make(map[string]int)}
	for i, addr := range addrs {
		m.sides[i] = connect(t, addr)
		defer m.sides[i].nc.Close()
	}
	for range 5 + m.rnd.IntN(40) {
		if !m.step() {
			break
		}
	}
	return m
}

// each has all sides do the same.
func (m *frames) each(f func(r *raw)) {
	for _, r := range m.sides {
		f(r)
	}
}

// step makes one, and reports whether another may follow.
func (m *frames) step() bool {
	var before [3]map[uint32]string
	for i, r := range m.sides {
		before[i] = r.bare()
	}
	kinds := validSteps
	if m.rnd.IntN(12) == 0 {
		kinds = brokenSteps
	}
	var s step
	for s.name == "" { // it may have no stream to be about
		s = kinds[m.rnd.IntN(len(kinds))](m)
	}
	m.done[s.name]++
	m.ping++
	m.each(func(r *raw) {
		if s.until != nil {
			r.until(func() bool { return s.until(r) || r.answers[s.id].closed })
		}
		r.write(r.fr.WritePing(false, [8]byte{byte(m.ping)}))
		if r.until(func() bool { return r.acks == m.ping || len(r.goAways) > 0 }); r.acks != m.ping {
			_ = r.nc.(*net.TCPConn).CloseWrite() // so that it need not wait for us
			r.until(func() bool { return r.ended })
		}
	})
	outcome := func(i int) (short, long string) { return m.sides[i].since(before[i], s.id) }
	var short, long [3]string
	for i := range m.sides {
		short[i], long[i] = outcome(i)
	}
	alike := func(i int) bool { return long[i] == long[0] || stricter(short[i], short[0]) }
	for end := time.Now().Add(20 * time.Second); s.last && !(alike(1) && alike(2)) && time.Now().Before(end); {
		// Nobody knows what such a step brings about, and when.
		for i, r := range m.sides {
			if !r.ended {
				r.readFor(5 * time.Millisecond)
			}
			short[i], long[i] = outcome(i)
		}
	}
	differ := framesThatDiffer[s.name]
	for i := 1; i < len(m.sides); i++ {
		switch {
		case differ.why != "" && (short[0] != differ.theirs || short[i] != differ.ours):
			m.t.Errorf("BELAY_FRAMES_SEED=%d: step %d, %s: ours %q, grpc-go's %q; it should be %q and %q", m.seed, m.ping, s.name, short[i], short[0], differ.ours, differ.theirs)
		case differ.why == "" && long[i] != long[0] && !(s.last && alike(i)):
			m.t.Errorf("BELAY_FRAMES_SEED=%d: step %d, %s:\nours      %q: %s\ngrpc-go's %q: %s", m.seed, m.ping, s.name, short[i], long[i], short[0], long[0])
		}
	}
	goOn := differ.why == "" && !s.last && !m.t.Failed()
	m.each(func(r *raw) { goOn = goOn && !r.ended && len(r.goAways) == 0 })
	return goOn
}

var elsewhere = regexp.MustCompile(`^on \d+: `)

// stricter reports whether ours refuses what theirs passes over or serves, or says what theirs only
// does, or whether they differ as some step does.
func stricter(ours, theirs string) bool {
	ours, theirs = elsewhere.ReplaceAllString(ours, ""), elsewhere.ReplaceAllString(theirs, "") // the stream's number may be damaged, too
	for _, d := range framesThatDiffer {
		if d.ours == ours && d.theirs == theirs {
			return true
		}
	}
	if strings.HasPrefix(ours, "goaway") {
		return true
	}
	return strings.HasPrefix(ours, "reset ") && !strings.Contains(theirs, "ended")
}

// bare is what has come on each stream.
func (r *raw) bare() map[uint32]string {
	all := make(map[uint32]string)
	for id, a := range r.answers {
		all[id] = a.bare()
	}
	return all
}

// since is what has come since then, in short and as it is.
func (r *raw) since(before map[uint32]string, about uint32) (short, long string) {
	var shorts, longs []string
	for _, id := range slices.Sorted(maps.Keys(r.answers)) {
		a := r.answers[id]
		now := a.bare()
		if now == before[id] || before[id] == "" && now == (&answer{}).bare() {
			continue
		}
		what := "data"
		switch {
		case a.reset != "":
			what = "reset " + a.reset
		case a.closed:
			what = "status " + a.status()
		}
		if id != about {
			what = fmt.Sprintf("on %d: %s", id, what)
		}
		shorts, longs = append(shorts, what), append(longs, fmt.Sprintf("%d: %s", id, now))
	}
	for _, g := range r.goAways { // the first ends the sequence
		code, _, _ := strings.Cut(g, " ")
		shorts, longs = append(shorts, "goaway "+code), append(longs, "goaway "+code)
	}
	if r.ended {
		shorts, longs = append(shorts, "ended"), append(longs, "ended")
	}
	return strings.Join(shorts, ", "), strings.Join(longs, "\n")
}

// some picks one of the streams; 0: there is none.
func (m *frames) some(of []uint32) uint32 {
	if len(of) == 0 {
		return 0
	}
	return of[m.rnd.IntN(len(of))]
}

func without(ids []uint32, id uint32) []uint32 {
	return slices.DeleteFunc(slices.Clone(ids), func(other uint32) bool { return other == id })
}

// begin opens a stream on all sides.
func (m *frames) begin(f []hpack.HeaderField, end bool) (id uint32) {
	m.each(func(r *raw) { id = r.begin(f, end) })
	return id
}

// frame sends one on all sides.
func (m *frames) frame(kind http2.FrameType, flags http2.Flags, id uint32, p ...byte) {
	m.each(func(r *raw) { r.write(r.fr.WriteRawFrame(kind, flags, id, p)) })
}

// pieces sends bytes of a message in some frames.
func (m *frames) pieces(id uint32, b []byte, end bool) {
	for len(b) > 0 {
		n := min(1+m.rnd.IntN(len(b)), maxFrameBytes-300)
		if m.rnd.IntN(3) > 0 {
			n = min(len(b), maxFrameBytes-300)
		}
		last := end && n == len(b) && m.rnd.IntN(2) == 0
		if m.rnd.IntN(4) == 0 {
			pad := make([]byte, m.rnd.IntN(256))
			m.each(func(r *raw) { r.write(r.fr.WriteDataPadded(id, last, b[:n], pad)) })
		} else {
			m.each(func(r *raw) { r.write(r.fr.WriteData(id, last, b[:n])) })
		}
		if b = b[n:]; last {
			return
		}
		if m.rnd.IntN(8) == 0 {
			m.each(func(r *raw) { r.write(r.fr.WriteData(id, false, nil)) })
		}
	}
	if end {
		m.each(func(r *raw) { r.write(r.fr.WriteData(id, true, nil)) })
	}
}

// size is of an answer or a message: mostly small.
func (m *frames) size() int {
	switch m.rnd.IntN(12) {
	case 0:
		return 0
	case 1:
		return m.rnd.IntN(100 << 10)
	}
	return m.rnd.IntN(2000)
}

// windowful is what fits twice into the window that every stream has, with padding.
const windowful = 20 << 10

func (m *frames) unary() []byte {
	in := &testpb.SimpleRequest{ResponseSize: int32(m.size()), Payload: &testpb.Payload{Body: filled(min(m.size(), windowful), 1)}}
	if m.rnd.IntN(4) == 0 {
		in.ResponseStatus = &testpb.EchoStatus{Code: 1 + m.rnd.Int32N(16), Message: "s %é"}
	}
	return framed(in)
}

// closed waits for the end of a stream.
func closed(id uint32) func(*raw) bool { return func(r *raw) bool { return r.answers[id].closed } }

// validSteps are what clients may send.
var validSteps = []func(m *frames) step{
	func(m *frames) step {
		id := m.begin(callFields("UnaryCall"), false)
		m.pieces(id, m.unary(), true)
		m.ended = append(m.ended, id)
		return step{name: "a call", id: id, until: closed(id)}
	},
	func(m *frames) step {
		more := [][]string{
			{"grpc-timeout", "1H"}, {"x-header", "v"}, {"x-trailer-bin", "AAE"}, {"content-type", "application/grpc+proto"},
			{"x-a", strings.Repeat("a", 100), "x-b", "b"}, {":authority", "-", "host", "h"}, {"x-plain-error", "1"}, {"grpc-accept-encoding", "gzip"},
		}
		id := m.begin(callFields("UnaryCall", more[m.rnd.IntN(len(more))]...), false)
		m.pieces(id, m.unary(), true)
		m.ended = append(m.ended, id)
		return step{name: "a call with other headers", id: id, until: closed(id)}
	},
	func(m *frames) step {
		id := m.begin(callFields("UnaryCall", "grpc-encoding", "gzip"), false)
		m.pieces(id, message(1, gzipped(m.unary()[prefixBytes:])), true)
		m.ended = append(m.ended, id)
		return step{name: "a packed call", id: id, until: closed(id)}
	},
	func(m *frames) step {
		body, half := m.unary(), m.unary()
		half = half[:1+m.rnd.IntN(len(half)-1)]
		bodies := [][]byte{
			{}, append(body, m.unary()...), half, append(body, half...), message(0, []byte{0xff}), message(2, body), message(1, gzipped(body)),
			append([]byte{0}, 0x7f, 0xff, 0xff, 0xff, 1),
		}
		id := m.begin(callFields("UnaryCall"), false)
		m.pieces(id, bodies[m.rnd.IntN(len(bodies))], true) // it may be answered before its end
		return step{name: "a call with a broken body", id: id, until: closed(id)}
	},
	func(m *frames) step {
		id := m.begin(callFields([]string{"None", "UnaryCall", "FullDuplexCall"}[m.rnd.IntN(3)]), true)
		m.ended = append(m.ended, id)
		return step{name: "a call of headers alone", id: id, until: closed(id)}
	},
	func(m *frames) step {
		more := [][]string{
			{"content-type", "text/html"}, {":method", "GET"}, {":authority", "-"}, {"grpc-timeout", "x"}, {"grpc-timeout", "0n"}, {"x-bin", "!"},
			{"host", "a", "+host", "b"},
		}
		id := m.begin(callFields("UnaryCall", more[m.rnd.IntN(len(more))]...), true)
		m.ended = append(m.ended, id)
		return step{name: "a call that is refused", id: id, until: closed(id)}
	},
	func(m *frames) step {
		id := m.begin(callFields("FullDuplexCall"), false)
		m.bidi = append(m.bidi, id)
		return step{name: "a stream is opened", id: id}
	},
	func(m *frames) step {
		id := m.begin(callFields("UnaryCall"), false)
		m.begun = append(m.begun, id)
		return step{name: "a call is begun", id: id}
	},
	func(m *frames) step {
		id := m.some(m.begun)
		if id == 0 {
			return step{}
		}
		m.pieces(id, m.unary(), true)
		m.begun, m.ended = without(m.begun, id), append(m.ended, id)
		return step{name: "a call is completed", id: id, until: closed(id)}
	},
	messageOnStream, messageOnStream, messageOnStream,
	func(m *frames) step {
		id := m.some(m.bidi)
		if id == 0 {
			return step{}
		}
		m.frame(http2.FrameData, http2.FlagDataEndStream, id)
		m.bidi, m.ended = without(m.bidi, id), append(m.ended, id)
		return step{name: "a stream is ended", id: id, until: closed(id)}
	},
	func(m *frames) step {
		id := m.some(slices.Concat(m.bidi, m.begun))
		if id == 0 {
			return step{}
		}
		code := http2.ErrCode(m.rnd.IntN(15))
		m.each(func(r *raw) { r.write(r.fr.WriteRSTStream(id, code)) })
		m.bidi, m.begun, m.dropped = without(m.bidi, id), without(m.begun, id), append(m.dropped, id)
		return step{name: "a stream is reset", id: id}
	},
	func(m *frames) step {
		id := m.some(slices.Concat(m.ended, m.dropped))
		if id == 0 {
			return step{}
		}
		m.each(func(r *raw) { r.write(r.fr.WriteRSTStream(id, http2.ErrCodeCancel)) })
		return step{name: "a stream is reset that has ended", id: id}
	},
	func(m *frames) step {
		id := m.some(slices.Concat(m.ended, m.dropped, m.bidi, m.begun, []uint32{0}))
		m.each(func(r *raw) { r.write(r.fr.WriteWindowUpdate(id, 1)) })
		return step{name: "a window is opened", id: id}
	},
	func(m *frames) step {
		settings := []http2.Setting{
			{ID: http2.SettingInitialWindowSize, Val: 1<<20 + m.rnd.Uint32N(1<<20)}, {ID: http2.SettingMaxFrameSize, Val: maxFrameBytes + m.rnd.Uint32N(1<<20)},
			{ID: http2.SettingMaxConcurrentStreams, Val: m.rnd.Uint32N(10)}, {ID: http2.SettingEnablePush, Val: m.rnd.Uint32N(2)},
			{ID: http2.SettingMaxHeaderListSize, Val: 1 << 20}, {ID: 0x99, Val: m.rnd.Uint32()},
		}
		m.rnd.Shuffle(len(settings), func(i, j int) { settings[i], settings[j] = settings[j], settings[i] })
		settings = settings[:m.rnd.IntN(len(settings))]
		m.each(func(r *raw) {
			r.fr.SetMaxReadFrameSize(2 << 20)
			r.write(r.fr.WriteSettings(settings...))
		})
		return step{name: "settings"}
	},
	func(m *frames) step {
		v := []uint32{0, 1, 100, 4096, 1 << 16}[m.rnd.IntN(5)]
		m.each(func(r *raw) { r.write(r.fr.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: v})) })
		return step{name: "another header table"}
	},
	func(m *frames) step {
		m.each(func(r *raw) { r.write(r.fr.WriteSettingsAck()) })
		return step{name: "settings are acknowledged"}
	},
	func(m *frames) step {
		m.frame(http2.FramePing, http2.FlagPingAck, 0, make([]byte, 8)...)
		return step{name: "an answer to no ping"}
	},
	func(m *frames) step {
		id := m.sides[0].next
		if m.rnd.IntN(2) == 0 {
			id = 1
		}
		m.frame(http2.FramePriority, 0, id, 0, 0, 0, byte(id+2), 9)
		return step{name: "a priority", id: id}
	},
	func(m *frames) step {
		kind := http2.FrameType(0x20 + m.rnd.IntN(100))
		m.frame(kind, http2.Flags(m.rnd.IntN(256)), m.rnd.Uint32N(5), make([]byte, m.rnd.IntN(100))...)
		return step{name: "an unknown frame"}
	},
	func(m *frames) step {
		m.frame(http2.FrameGoAway, 0, 0, make([]byte, 8+m.rnd.IntN(10))...)
		return step{name: "a GOAWAY of the client"}
	},
	func(m *frames) step { // in several frames, padded, with a priority
		id := m.next()
		m.each(func(r *raw) {
			block := bytes.Clone(r.encode(callFields("UnaryCall", "x-c", strings.Repeat("c", 300))))
			rnd := rand.New(rand.NewPCG(m.seed, uint64(m.ping)))
			p := append([]byte{3}, 0, 0, 0, 0, 7)
			first := rnd.IntN(len(block))
			p = append(append(p, block[:first]...), 0, 0, 0)
			r.write(r.fr.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersPadded|http2.FlagHeadersPriority, id, p))
			for block = block[first:]; len(block) > 0; {
				n := 1 + rnd.IntN(len(block))
				r.write(r.fr.WriteContinuation(id, n == len(block), block[:n]))
				block = block[n:]
			}
		})
		m.pieces(id, m.unary(), true)
		m.ended = append(m.ended, id)
		return step{name: "a call whose headers come in several frames", id: id, until: closed(id)}
	},
}

// next takes an id for a stream.
func (m *frames) next() (id uint32) {
	m.each(func(r *raw) {
		id = r.next
		r.next += 2
		r.answers[id] = &answer{}
	})
	return id
}

// messageOnStream sends a message on a stream that is open, which is answered with some.
func messageOnStream(m *frames) step {
	id := m.some(m.bidi)
	if id == 0 {
		return step{}
	}
	in, want := &testpb.StreamingOutputCallRequest{}, len(m.sides[0].answers[id].data)
	for range m.rnd.IntN(4) {
		size := m.size()
		in.ResponseParameters = append(in.ResponseParameters, &testpb.ResponseParameters{Size: int32(size)})
		want += len(framed(&testpb.StreamingOutputCallResponse{Payload: &testpb.Payload{Body: make([]byte, size)}}))
	}
	in.Payload = &testpb.Payload{Body: make([]byte, min(m.size(), windowful))}
	m.pieces(id, framed(in), false)
	return step{name: "a message on a stream", id: id, until: func(r *raw) bool { return len(r.answers[id].data) >= want }}
}

// sent is a broken step of one frame.
func sent(name string, kind http2.FrameType, flags http2.Flags, id func(m *frames) uint32, p ...byte) func(m *frames) step {
	return func(m *frames) step {
		s := id(m)
		if s == noStream {
			return step{}
		}
		m.frame(kind, flags, s, p...)
		m.forget(s)
		return step{name: name, id: s}
	}
}

// forget has no further steps be about a stream: nobody keeps books of what has become of it.
func (m *frames) forget(id uint32) {
	for _, of := range []*[]uint32{&m.bidi, &m.begun, &m.ended, &m.dropped} {
		*of = without(*of, id)
	}
}

// Which stream a broken frame is for.
const noStream = 1 << 31

func zero(*frames) uint32        { return 0 }
func idle(m *frames) uint32      { return m.sides[0].next + 2*m.rnd.Uint32N(5) }
func even(m *frames) uint32      { return 2 * (1 + m.rnd.Uint32N(max(1, m.sides[0].next/2))) }
func ofBidi(m *frames) uint32    { return one(m, m.bidi) }
func ofEnded(m *frames) uint32   { return one(m, m.ended) }
func ofDropped(m *frames) uint32 { return one(m, m.dropped) }

func one(m *frames, of []uint32) uint32 {
	if id := m.some(of); id != 0 {
		return id
	}
	return noStream
}

// headersStep begins a call whose headers are wrong.
func headersStep(name string, end bool, fields func() []hpack.HeaderField) func(m *frames) step {
	return func(m *frames) step {
		id := m.begin(fields(), end)
		if !end {
			m.pieces(id, framed(&testpb.SimpleRequest{ResponseSize: 5}), true)
		}
		return step{name: name, id: id, until: closed(id)}
	}
}

// blockStep begins a call with these bytes as headers.
func blockStep(name string, flags http2.Flags, block ...byte) func(m *frames) step {
	return func(m *frames) step {
		id := m.next()
		m.frame(http2.FrameHeaders, flags, id, block...)
		return step{name: name, id: id}
	}
}

// again sends headers on a stream that there has been.
func again(name string, flags http2.Flags, id func(m *frames) uint32) func(m *frames) step {
	return func(m *frames) step {
		s := id(m)
		if s == noStream {
			return step{}
		}
		m.each(func(r *raw) {
			f := []hpack.HeaderField{{Name: "x-trailer", Value: "v"}}
			r.write(r.fr.WriteRawFrame(http2.FrameHeaders, flags|http2.FlagHeadersEndHeaders, s, bytes.Clone(r.encode(f))))
		})
		m.forget(s)
		return step{name: name, id: s, until: closed(s)}
	}
}

func setting(name string, id http2.SettingID, v uint32) func(m *frames) step {
	p := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(nil, uint16(id)), v)
	return sent(name, http2.FrameSettings, 0, zero, p...)
}

// priorityUpdate is a frame of RFC 9218.
const priorityUpdate = 0x10

// brokenSteps are what clients may not send.
var brokenSteps = []func(m *frames) step{
	sent("DATA on stream 0", http2.FrameData, 0, zero, 1),
	sent("DATA on an idle stream", http2.FrameData, 0, idle, 1),
	sent("DATA on an even stream", http2.FrameData, 0, even, 1),
	sent("DATA on a stream that has ended", http2.FrameData, 0, ofEnded, 1),
	sent("DATA on a stream that was reset", http2.FrameData, 0, ofDropped, 1),
	sent("DATA of padding alone, too long", http2.FrameData, http2.FlagDataPadded, ofBidi, 9, 1),
	sent("DATA without its padding's length", http2.FrameData, http2.FlagDataPadded, ofBidi),
	sent("a frame too large", http2.FrameData, 0, ofBidi, make([]byte, maxFrameBytes+1)...),
	sent("HEADERS on stream 0", http2.FrameHeaders, http2.FlagHeadersEndHeaders, zero, 0x82),
	sent("HEADERS on an even stream", http2.FrameHeaders, http2.FlagHeadersEndHeaders, even, 0x82, 0x84, 0x86),
	again("HEADERS on a stream that has ended", http2.FlagHeadersEndStream, ofEnded),
	again("HEADERS on a stream that was reset", http2.FlagHeadersEndStream, ofDropped),
	again("trailers", http2.FlagHeadersEndStream, ofBidi),
	again("trailers that do not end the stream", 0, ofBidi),
	blockStep("HEADERS with half a priority", http2.FlagHeadersEndHeaders|http2.FlagHeadersPriority, 1),
	blockStep("HEADERS with too long padding", http2.FlagHeadersEndHeaders|http2.FlagHeadersPadded, 9, 1),
	blockStep("an index beyond the table", http2.FlagHeadersEndHeaders, 0xff, 0x7f),
	blockStep("an integer without end", http2.FlagHeadersEndHeaders, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff),
	blockStep("a field that is cut", http2.FlagHeadersEndHeaders, 0x40, 5, 'a'),
	blockStep("a table larger than agreed", http2.FlagHeadersEndHeaders, 0x3f, 0xe1, 0xff, 0x03),
	blockStep("Huffman's code that is none", http2.FlagHeadersEndHeaders, 0x00, 0x82, 0xff, 0xff, 0x01, 'a'),
	func(m *frames) step {
		id := m.next()
		m.frame(http2.FrameHeaders, 0, id, 0x82)
		m.frame(http2.FrameData, 0, 1, 0)
		return step{name: "a block that is interrupted", id: id}
	},
	func(m *frames) step {
		id := m.next()
		m.frame(http2.FrameHeaders, 0, id, 0x82)
		m.frame(http2.FrameContinuation, http2.FlagContinuationEndHeaders, id+2, 0x84)
		return step{name: "a block that goes on elsewhere", id: id}
	},
	sent("CONTINUATION alone", http2.FrameContinuation, 0, ofBidi, 0x82),
	sent("RST_STREAM on stream 0", http2.FrameRSTStream, 0, zero, 0, 0, 0, 0),
	sent("RST_STREAM on an idle stream", http2.FrameRSTStream, 0, idle, 0, 0, 0, 0),
	sent("RST_STREAM on an even stream", http2.FrameRSTStream, 0, even, 0, 0, 0, 0),
	sent("RST_STREAM of another length", http2.FrameRSTStream, 0, ofBidi, 0, 0, 0),
	sent("WINDOW_UPDATE of 0 on the connection", http2.FrameWindowUpdate, 0, zero, 0, 0, 0, 0),
	sent("WINDOW_UPDATE of 0 on a stream", http2.FrameWindowUpdate, 0, ofBidi, 0, 0, 0, 0),
	sent("WINDOW_UPDATE of 0 on a stream that has ended", http2.FrameWindowUpdate, 0, ofEnded, 0, 0, 0, 0),
	sent("WINDOW_UPDATE of 0 on an idle stream", http2.FrameWindowUpdate, 0, idle, 0, 0, 0, 0),
	sent("WINDOW_UPDATE beyond the largest window of the connection", http2.FrameWindowUpdate, 0, zero, 0x7f, 0xff, 0xff, 0xff),
	sent("WINDOW_UPDATE beyond the largest window of a stream", http2.FrameWindowUpdate, 0, ofBidi, 0x7f, 0xff, 0xff, 0xff),
	sent("WINDOW_UPDATE of another length", http2.FrameWindowUpdate, 0, zero, 0, 1),
	sent("WINDOW_UPDATE on an idle stream", http2.FrameWindowUpdate, 0, idle, 0, 0, 0, 1),
	sent("WINDOW_UPDATE on an even stream", http2.FrameWindowUpdate, 0, even, 0, 0, 0, 1),
	sent("SETTINGS on a stream", http2.FrameSettings, 0, idle),
	sent("SETTINGS of another length", http2.FrameSettings, 0, zero, 0, 1, 0),
	sent("an acknowledgement with settings", http2.FrameSettings, http2.FlagSettingsAck, zero, 0, 1, 0, 0, 0, 0),
	setting("an initial window beyond the largest", http2.SettingInitialWindowSize, 1<<31),
	setting("a push of 2", http2.SettingEnablePush, 2),
	setting("frames smaller than all must take", http2.SettingMaxFrameSize, maxFrameBytes-1),
	setting("frames larger than any may be", http2.SettingMaxFrameSize, 1<<24),
	sent("PING on a stream", http2.FramePing, 0, idle, make([]byte, 8)...),
	sent("PING of another length", http2.FramePing, 0, zero, 1),
	sent("PRIORITY on stream 0", http2.FramePriority, 0, zero, 0, 0, 0, 1, 1),
	sent("PRIORITY of another length", http2.FramePriority, 0, idle, 0, 0, 0, 1),
	func(m *frames) step {
		id := m.some(m.bidi)
		if id == 0 {
			return step{}
		}
		m.frame(http2.FramePriority, 0, id, append(binary.BigEndian.AppendUint32(nil, id), 1)...)
		return step{name: "a stream that depends on itself", id: id}
	},
	sent("PRIORITY_UPDATE on a stream", priorityUpdate, 0, ofBidi, 0, 0, 0, 0),
	sent("PUSH_PROMISE", http2.FramePushPromise, http2.FlagPushPromiseEndHeaders, ofBidi, 0, 0, 0, 8, 0x82),
	sent("GOAWAY on a stream", http2.FrameGoAway, 0, idle, make([]byte, 8)...),
	sent("GOAWAY of another length", http2.FrameGoAway, 0, zero, make([]byte, 7)...),
	headersStep("upper case", true, func() []hpack.HeaderField { return callFields("UnaryCall", "X-A", "b") }),
	headersStep("a control character", true, func() []hpack.HeaderField { return callFields("UnaryCall", "x-a", "b\n") }),
	headersStep("connection", true, func() []hpack.HeaderField { return callFields("UnaryCall", "connection", "close") }),
	headersStep("transfer-encoding", false, func() []hpack.HeaderField { return callFields("UnaryCall", "transfer-encoding", "chunked") }),
	headersStep("te of something", false, func() []hpack.HeaderField { return callFields("UnaryCall", "te", "gzip") }),
	headersStep("no :scheme", false, func() []hpack.HeaderField { return callFields("UnaryCall", ":scheme", "-") }),
	headersStep("no :path", true, func() []hpack.HeaderField { return callFields("UnaryCall", ":path", "-") }),
	headersStep("no :method", true, func() []hpack.HeaderField { return callFields("UnaryCall", ":method", "-") }),
	headersStep(":path twice", true, func() []hpack.HeaderField { return callFields("UnaryCall", "+:path", "/") }),
	headersStep("another pseudo-header", true, func() []hpack.HeaderField {
		return append([]hpack.HeaderField{{Name: ":odd", Value: "x"}}, callFields("UnaryCall")...)
	}),
	headersStep("a pseudo-header behind others", true, func() []hpack.HeaderField {
		return append(callFields("UnaryCall", ":path", "-"), hpack.HeaderField{Name: ":path", Value: "/x"})
	}),
	headersStep("too short for its content-length", false, func() []hpack.HeaderField { return callFields("UnaryCall", "content-length", "1000") }),
	headersStep("too long for its content-length", false, func() []hpack.HeaderField { return callFields("UnaryCall", "content-length", "1") }),
	headersStep("a content-length that is none", false, func() []hpack.HeaderField { return callFields("UnaryCall", "content-length", "x") }),
	headersStep("headers too long", true, func() []hpack.HeaderField { return callFields("UnaryCall", "x-a", strings.Repeat("a", 64<<10)) }),
	damaged, damaged, damaged, damaged, damaged, damaged,
}

// damaged sends a valid frame of which some bits are not as they were, but for its length.
func damaged(m *frames) step {
	id := m.some(slices.Concat(m.bidi, m.begun))
	headers := id == 0 || m.rnd.IntN(3) == 0
	if headers {
		id = m.next()
	}
	seed := m.rnd.Uint64()
	m.each(func(r *raw) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		p := framed(&testpb.SimpleRequest{ResponseSize: 3})
		frame := appendFrame(nil, len(p), http2.FrameData, http2.Flags(rnd.IntN(2)), id)
		if headers {
			enc := hpack.NewEncoder(&r.block) // without entries of the table, so that all sides send the same
			r.block.Reset()
			for _, f := range callFields("UnaryCall") {
				f.Sensitive = true
				if err := enc.WriteField(f); err != nil {
					m.t.Fatal(err)
				}
			}
			p = bytes.Clone(r.block.Bytes())
			frame = appendFrame(nil, len(p), http2.FrameHeaders, http2.FlagHeadersEndHeaders, id)
		}
		frame = append(frame, p...)
		for range 1 + rnd.IntN(4) {
			frame[3+rnd.IntN(len(frame)-3)] ^= 1 << rnd.IntN(8)
		}
		if frame[3] == priorityUpdate { // which has a step of its own
			frame[3] = byte(http2.FrameData)
		}
		_, _ = r.nc.Write(frame) // an error shows in what is read
	})
	return step{name: "a damaged frame", id: id, last: true}
}
