package costs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"
)

// window is what the client lets the server send before it is asked again, bytes.
const window = math.MaxInt32

// patience is how long the client waits for an answer; a test that waits longer has found something.
const patience = time.Minute

// A client is one connection. One goroutine uses it.
type client struct {
	t      *testing.T
	conn   net.Conn
	out    bytes.Buffer // frames that leave in one write
	frames *http2.Framer
	block  bytes.Buffer
	hpack  *hpack.Encoder
	next   uint32 // stream

	room    int64            // what may be sent on the connection, bytes
	rooms   map[uint32]int64 // on each stream that lives longer than a call
	initial int64            // on a new one
	since   int64            // what the server has sent since it was given room, bytes

	body     map[uint32][]byte // of streams, what has come of their next message
	messages []received
	ended    int // calls
}

// received is a message on a stream.
type received struct {
	stream uint32
	body   []byte
}

func dial(t *testing.T, address string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &client{t: t, conn: conn, next: 1, room: 65535, initial: 65535, rooms: map[uint32]int64{}, body: map[uint32][]byte{}}
	c.frames = http2.NewFramer(&c.out, conn)
	c.frames.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.frames.SetMaxReadFrameSize(1 << 24)
	c.hpack = hpack.NewEncoder(&c.block)
	c.out.WriteString(http2.ClientPreface)
	c.must(c.frames.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window}))
	c.must(c.frames.WriteWindowUpdate(0, window-65535))
	c.flush()
	return c
}

func (c *client) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// flush writes all frames at once.
func (c *client) flush() {
	c.t.Helper()
	if c.out.Len() == 0 {
		return
	}
	c.must(c.conn.SetDeadline(time.Now().Add(patience)))
	_, err := c.conn.Write(c.out.Bytes())
	c.must(err)
	c.out.Reset()
}

// open begins a call with its first message; last: it is the only one.
func (c *client) open(method string, message []byte, last bool) uint32 {
	c.t.Helper()
	id := c.next
	c.next += 2
	c.block.Reset()
	for _, f := range []hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: method}, {Name: ":authority", Value: "costs"},
		{Name: "content-type", Value: "application/grpc"}, {Name: "user-agent", Value: "belay-costs"}, {Name: "te", Value: "trailers"},
	} {
		c.must(c.hpack.WriteField(f))
	}
	c.must(c.frames.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block.Bytes(), EndHeaders: true}))
	if !last {
		c.rooms[id] = c.initial
	}
	c.send(id, message, last)
	return id
}

// send puts a message of a call into the burst.
func (c *client) send(stream uint32, message []byte, last bool) {
	c.t.Helper()
	body := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
	n := int64(len(body))
	for c.room < n || !last && c.rooms[stream] < n {
		c.flush()
		c.read()
	}
	c.room -= n
	if !last {
		c.rooms[stream] -= n
	}
	c.must(c.frames.WriteData(stream, last, body))
}

// read takes one frame.
func (c *client) read() {
	c.t.Helper()
	frame, err := c.frames.ReadFrame()
	if err == io.EOF {
		err = fmt.Errorf("the server has closed the connection")
	}
	c.must(err)
	switch f := frame.(type) {
	case *http2.SettingsFrame:
		if f.IsAck() {
			return
		}
		if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
			for id := range c.rooms {
				c.rooms[id] += int64(v) - c.initial
			}
			c.initial = int64(v)
		}
		c.must(c.frames.WriteSettingsAck())
	case *http2.PingFrame:
		if !f.IsAck() {
			c.must(c.frames.WritePing(true, f.Data))
			c.flush()
		}
	case *http2.WindowUpdateFrame:
		if f.StreamID == 0 {
			c.room += int64(f.Increment)
		} else if _, open := c.rooms[f.StreamID]; open {
			c.rooms[f.StreamID] += int64(f.Increment)
		}
	case *http2.MetaHeadersFrame:
		for _, h := range f.Fields {
			if h.Name == "grpc-status" && h.Value != "0" {
				c.t.Fatalf("a call was answered with %v", f.Fields)
			}
		}
		if f.StreamEnded() {
			c.ended++
		}
	case *http2.DataFrame:
		c.data(f)
	case *http2.GoAwayFrame:
		c.t.Fatalf("the server wants no more: %v %s", f.ErrCode, f.DebugData())
	case *http2.RSTStreamFrame:
		c.t.Fatalf("the server has reset a stream: %v", f.ErrCode)
	}
}

func (c *client) data(f *http2.DataFrame) {
	if c.since += int64(f.Length); c.since > window/2 {
		c.must(c.frames.WriteWindowUpdate(0, uint32(c.since)))
		c.since = 0
	}
	if _, open := c.rooms[f.StreamID]; !open {
		return // of a call that is over when its trailers are here
	}
	all := append(c.body[f.StreamID], f.Data()...)
	for len(all) >= 5 {
		n := int(binary.BigEndian.Uint32(all[1:])) + 5
		if len(all) < n {
			break
		}
		c.messages = append(c.messages, received{f.StreamID, bytes.Clone(all[5:n])})
		all = all[n:]
	}
	c.body[f.StreamID] = all
}

// calls sends a burst of calls and waits until all are answered.
func (c *client) calls(method string, messages [][]byte) {
	c.t.Helper()
	c.ended = 0
	for _, m := range messages {
		c.open(method, m, true)
	}
	c.flush()
	for c.ended < len(messages) {
		c.read()
	}
}

// receive waits for a message of a stream.
func (c *client) receive() received {
	c.t.Helper()
	c.flush()
	for len(c.messages) == 0 {
		c.read()
	}
	m := c.messages[0]
	c.messages = c.messages[1:]
	return m
}

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
