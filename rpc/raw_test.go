package rpc

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"
)

// A raw client speaks frames, and keeps what comes by stream.
type raw struct {
	t     testing.TB
	nc    net.Conn
	in    *bufio.Reader // what nc says
	fr    *http2.Framer
	block bytes.Buffer
	enc   *hpack.Encoder
	next  uint32

	answers map[uint32]*answer
	goAways []string // code and text
	acks    int      // of pings
	settled bool     // our settings were acknowledged
	ended   bool     // the server has closed the connection
	// auto answers settings and pings, and gives windows back.
	auto bool
}

// An answer is what came on a stream.
type answer struct {
	blocks []string // "name: value" of each block, in lines that are sorted
	data   []byte
	reset  string // the code
	closed bool
}

func connect(t testing.TB, addr string, settings ...http2.Setting) *raw {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	in := bufio.NewReader(nc)
	r := &raw{t: t, nc: nc, in: in, fr: http2.NewFramer(nc, in), next: 1, answers: make(map[uint32]*answer), auto: true}
	r.fr.AllowIllegalWrites = true
	r.enc = hpack.NewEncoder(&r.block)
	r.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := nc.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	r.write(r.fr.WriteSettings(settings...))
	return r
}

// write ignores errors: the server may have closed the connection, which reading shows.
func (r *raw) write(error) {}

// fields are those of a call, followed and replaced by others: name, value, ...; a value "-" leaves
// a field out.
func callFields(method string, more ...string) []hpack.HeaderField {
	f := []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/grpc.testing.TestService/" + method},
		{Name: ":authority", Value: "here"}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"}}
	for i := 0; i < len(more); i += 2 {
		at := slices.IndexFunc(f, func(h hpack.HeaderField) bool { return h.Name == more[i] })
		switch {
		case more[i+1] == "-":
			f = slices.Delete(f, at, at+1)
		case at >= 0:
			f[at].Value = more[i+1]
		default:
			f = append(f, hpack.HeaderField{Name: strings.TrimPrefix(more[i], "+"), Value: more[i+1]})
		}
	}
	return f
}

func (r *raw) encode(f []hpack.HeaderField) []byte {
	r.block.Reset()
	for _, h := range f {
		if err := r.enc.WriteField(h); err != nil {
			r.t.Fatal(err)
		}
	}
	return r.block.Bytes()
}

// begin opens a stream.
func (r *raw) begin(f []hpack.HeaderField, end bool) uint32 {
	id := r.next
	r.next += 2
	r.answers[id] = &answer{}
	block := r.encode(f)
	n := min(len(block), maxFrameBytes)
	r.write(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block[:n], EndStream: end, EndHeaders: n == len(block)}))
	for block = block[n:]; len(block) > 0; block = block[n:] {
		n = min(len(block), maxFrameBytes)
		r.write(r.fr.WriteContinuation(id, n == len(block), block[:n]))
	}
	return id
}

// framed is a message with its prefix.
func framed(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
}

func (r *raw) data(id uint32, b []byte, end bool) {
	for len(b) > maxFrameBytes {
		r.write(r.fr.WriteData(id, false, b[:maxFrameBytes]))
		b = b[maxFrameBytes:]
	}
	r.write(r.fr.WriteData(id, end, b))
}

// read takes the next frame; false: there is none any more.
func (r *raw) read() bool {
	more, late := r.readFor(30 * time.Second)
	if late {
		r.t.Fatalf("nothing has come for 30 s; so far %+v", r.describe())
	}
	return more
}

// readFor is read that may come too late, between two frames.
func (r *raw) readFor(d time.Duration) (more, late bool) {
	timedOut := func(err error) bool { ne, ok := err.(net.Error); return ok && ne.Timeout() }
	_ = r.nc.SetReadDeadline(time.Now().Add(d))
	if _, err := r.in.Peek(1); timedOut(err) {
		return false, true
	}
	_ = r.nc.SetReadDeadline(time.Now().Add(30 * time.Second)) // a frame that has begun is read
	f, err := r.fr.ReadFrame()
	if err != nil {
		if timedOut(err) {
			return false, true
		}
		if se, ok := err.(http2.StreamError); ok {
			r.t.Fatalf("the server's frame is an error: %v", se)
		}
		r.ended = true
		return false, false
	}
	id := f.Header().StreamID
	a := r.answers[id]
	if a == nil {
		a = new(answer)
		if id != 0 {
			r.answers[id] = a
		}
	}
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		var lines []string
		for _, h := range f.Fields {
			lines = append(lines, h.Name+": "+h.Value)
		}
		slices.Sort(lines)
		a.blocks = append(a.blocks, strings.Join(lines, "\n"))
		a.closed = a.closed || f.StreamEnded()
	case *http2.DataFrame:
		a.data = append(a.data, f.Data()...)
		a.closed = a.closed || f.StreamEnded()
		if r.auto && len(f.Data()) > 0 {
			r.write(r.fr.WriteWindowUpdate(0, uint32(len(f.Data()))))
			if !a.closed {
				r.write(r.fr.WriteWindowUpdate(f.StreamID, uint32(len(f.Data()))))
			}
		}
	case *http2.RSTStreamFrame:
		if a.closed && f.ErrCode == http2.ErrCodeNo {
			break // the client need not go on
		}
		a.reset, a.closed = f.ErrCode.String(), true
	case *http2.GoAwayFrame:
		r.goAways = append(r.goAways, fmt.Sprintf("%v %s", f.ErrCode, f.DebugData()))
	case *http2.SettingsFrame:
		if f.IsAck() {
			r.settled = true
		} else if r.auto {
			r.write(r.fr.WriteSettingsAck())
		}
	case *http2.PingFrame:
		if f.IsAck() {
			r.acks++
		} else if r.auto {
			r.write(r.fr.WritePing(true, f.Data))
		}
	}
	return true, false
}

// until reads until a condition holds; the end of the connection ends it, too.
func (r *raw) until(ok func() bool) {
	r.t.Helper()
	for !ok() && r.read() {
	}
}

// answer waits for the end of a stream.
func (r *raw) answer(id uint32) *answer {
	r.t.Helper()
	a := r.answers[id]
	r.until(func() bool { return a.closed })
	return a
}

func (r *raw) describe() string {
	var b strings.Builder
	for id := uint32(1); id < r.next; id += 2 {
		if a := r.answers[id]; a != nil && (len(a.blocks) > 0 || a.closed || id+20 > r.next) {
			fmt.Fprintf(&b, "%d: %s\n", id, a)
		}
	}
	fmt.Fprintf(&b, "goaways %q ended %v", r.goAways, r.ended)
	return b.String()
}

func (a *answer) String() string {
	return fmt.Sprintf("blocks %q data %s reset %q", a.blocks, base64.StdEncoding.EncodeToString(a.data), a.reset)
}

// status is grpc-status and grpc-message of the last block.
func (a *answer) status() string {
	if len(a.blocks) == 0 {
		return "reset " + a.reset
	}
	code, text := "", ""
	for _, l := range strings.Split(a.blocks[len(a.blocks)-1], "\n") {
		if v, ok := strings.CutPrefix(l, "grpc-status: "); ok {
			code = v
		}
		if v, ok := strings.CutPrefix(l, "grpc-message: "); ok {
			text = v
		}
	}
	return code + " " + text
}
