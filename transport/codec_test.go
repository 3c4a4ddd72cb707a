package transport

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/datadriven"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

func randomEntry(r *rand.Rand, index, term uint64) *raftpb.Entry {
	e := &raftpb.Entry{Index: new(index), Term: new(term)}
	if r.IntN(4) > 0 {
		e.Type = raftpb.EntryType(r.IntN(3)).Enum()
	}
	switch r.IntN(5) {
	case 0: // a leader's empty entry
	case 1:
		e.Data = []byte{}
	case 2:
		e.Data = make([]byte, borrowBytes+r.IntN(1<<16))
	default:
		e.Data = make([]byte, r.IntN(300))
	}
	for i := range e.Data {
		e.Data[i] = byte(i * 7)
	}
	return e
}

func randomMessage(r *rand.Rand) *raftpb.Message {
	num := func() *uint64 {
		if r.IntN(4) == 0 {
			return nil
		}
		return new(r.Uint64() >> r.IntN(64))
	}
	m := &raftpb.Message{To: num(), From: num(), Term: num(), LogTerm: num(), Index: num(), Commit: num(), Vote: num(), RejectHint: num()}
	m.Type = raftpb.MessageType(r.IntN(24)).Enum()
	if r.IntN(3) == 0 {
		m.Reject = new(r.IntN(2) == 0)
	}
	if r.IntN(3) == 0 {
		m.Context = make([]byte, r.IntN(20))
	}
	for i := range r.IntN(5) {
		m.Entries = append(m.Entries, randomEntry(r, uint64(i), r.Uint64()))
	}
	if r.IntN(8) == 0 {
		m.Snapshot = &raftpb.Snapshot{Data: []byte("x"), Metadata: &raftpb.SnapshotMetadata{Index: num(), Term: num(), ConfState: &raftpb.ConfState{Voters: []uint64{1, 2}}}}
	}
	return m
}

// TestMessageWire holds the hand-written encoding against protobuf's own, both ways.
func TestMessageWire(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 2000 {
		m := randomMessage(r)
		data := marshalMessage(m)
		if len(data) != messageSize(m) || len(data) != proto.Size(m) {
			t.Fatalf("%d: %d bytes, messageSize %d, proto %d", i, len(data), messageSize(m), proto.Size(m))
		}
		var want raftpb.Message
		if err := proto.Unmarshal(data, &want); err != nil {
			t.Fatalf("%d: proto does not read what we wrote: %v", i, err)
		}
		if !proto.Equal(&want, m) {
			t.Fatalf("%d: proto reads %v\nwe wrote %v", i, prototext.Format(&want), prototext.Format(m))
		}
		theirs, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := unmarshalMessage(theirs)
		if err != nil || !proto.Equal(got, m) {
			t.Fatalf("%d: we read %v (%v)\nproto wrote %v", i, got, err, m)
		}
	}
}

// throughStream encodes messages and decodes them again through small reads.
func throughStream(t *testing.T, enc frameEncoder, newDec func(io.Reader) frameDecoder, msgs []*raftpb.Message) []*raftpb.Message {
	t.Helper()
	var b batch
	for _, m := range msgs {
		enc.encode(&b, m)
		enc.linkHeartbeat(&b)
	}
	var wire []byte
	b.pieces(func(p []byte) { wire = append(wire, p...) })
	if len(wire) != b.bytes() {
		t.Fatalf("batch says %d bytes and writes %d", b.bytes(), len(wire))
	}
	dec := newDec(bytes.NewReader(wire))
	var got []*raftpb.Message
	total := 0
	for {
		m, n, err := dec.decode()
		total += n
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if m != nil {
			got = append(got, m)
		}
	}
	if total != len(wire) {
		t.Fatalf("decoder counted %d bytes of %d", total, len(wire))
	}
	return got
}

func sameMessages(t *testing.T, got, want []*raftpb.Message) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d messages came out, %d went in", len(got), len(want))
	}
	for i := range got {
		if !proto.Equal(got[i], want[i]) {
			t.Fatalf("message %d: got %v\nwant %v", i, prototext.Format(got[i]), prototext.Format(want[i]))
		}
	}
}

// TestEmptySnapshotOfOldEtcd: etcd 3.5 writes an empty snapshot into each of its messages. They are
// what they would be without it: package replica refuses a heartbeat that holds a snapshot.
func TestEmptySnapshotOfOldEtcd(t *testing.T) {
	empty := &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		ConfState: &raftpb.ConfState{AutoLeave: new(false)}, Index: new(uint64(0)), Term: new(uint64(0)),
	}}
	for _, typ := range []raftpb.MessageType{raftpb.MsgHeartbeat, raftpb.MsgApp, raftpb.MsgVote} {
		m := message(typ, 1, 2, 7)
		m.Snapshot = empty
		got, err := unmarshalMessage(marshalMessage(m))
		if m.Snapshot = nil; err != nil || !proto.Equal(got, m) {
			t.Errorf("%v, %v; want %v", got, err, m)
		}
	}
	for what, s := range map[string]*raftpb.Snapshot{"data": {Data: []byte("x")}, "an index": {Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(3))}}} {
		m := message(raftpb.MsgHeartbeat, 1, 2, 7)
		m.Snapshot = s
		if got, err := unmarshalMessage(marshalMessage(m)); err != nil || got.Snapshot == nil {
			t.Errorf("a snapshot with %s is gone: %v, %v", what, got, err)
		}
	}
}

func TestMessageStream(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var msgs []*raftpb.Message
	for range 300 {
		m := randomMessage(r)
		if m.GetType() == raftpb.MsgHeartbeat {
			m.From, m.To = new(uint64(1)), new(uint64(2)) // 0 to 0 is the link's own heartbeat
		}
		msgs = append(msgs, m)
	}
	got := throughStream(t, messageEncoder{}, func(r io.Reader) frameDecoder { return &messageDecoder{r: r, limit: maxMessageBytes} }, msgs)
	sameMessages(t, got, msgs)
}

// TestMsgappStream sends appends as raft does: mostly in sequence, sometimes going back, with other
// terms, and with proposals between them.
func TestMsgappStream(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	var msgs []*raftpb.Message
	index, term := uint64(7), uint64(2)
	for range 500 {
		switch r.IntN(10) {
		case 0:
			index -= min(index, r.Uint64N(5))
		case 1:
			term++
		case 2:
			msgs = append(msgs, &raftpb.Message{Type: raftpb.MsgProp.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(uint64(0)), Entries: []*raftpb.Entry{{Data: []byte("p")}}})
			continue
		}
		m := &raftpb.Message{Type: raftpb.MsgApp.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(term), LogTerm: new(term - r.Uint64N(2)), Index: new(index), Commit: new(index)}
		for range r.IntN(6) {
			index++
			m.Entries = append(m.Entries, randomEntry(r, index, term))
		}
		msgs = append(msgs, m)
	}
	got := throughStream(t, &msgappEncoder{}, func(r io.Reader) frameDecoder { return &msgappDecoder{r: r, local: 1, remote: 2} }, msgs)
	sameMessages(t, got, msgs)
}

// TestFrames shows the bytes of the streams.
func TestFrames(t *testing.T) {
	datadriven.RunTest(t, "testdata/frames", func(t *testing.T, d *datadriven.TestData) string {
		var b batch
		var enc frameEncoder = messageEncoder{}
		if d.Cmd == "msgapp" {
			enc = &msgappEncoder{}
		}
		out := ""
		for _, line := range bytes.Split([]byte(d.Input), []byte("\n")) {
			at := len(b.buf)
			if string(line) == "heartbeat" {
				enc.linkHeartbeat(&b)
			} else {
				m := &raftpb.Message{}
				if err := prototext.Unmarshal(line, m); err != nil {
					d.Fatalf(t, "%v", err)
				}
				enc.encode(&b, m)
			}
			out += fmt.Sprintf("%s\n", hex.EncodeToString(b.buf[at:]))
		}
		return out
	})
}

// TestLimits gives every decoder an absurd length.
func TestLimits(t *testing.T) {
	huge := binary.BigEndian.AppendUint64(nil, 1<<62)
	over := binary.BigEndian.AppendUint64(nil, maxMessageBytes+1)
	just := binary.BigEndian.AppendUint64(nil, maxMessageBytes)
	for _, c := range []struct {
		name string
		dec  frameDecoder
		want error
	}{
		{"message", &messageDecoder{r: bytes.NewReader(huge), limit: maxMessageBytes}, errTooLarge},
		{"message, one over", &messageDecoder{r: bytes.NewReader(over), limit: maxMessageBytes}, errTooLarge},
		{"message, cut short", &messageDecoder{r: bytes.NewReader(append(just, 1, 2, 3)), limit: maxMessageBytes}, io.ErrUnexpectedEOF},
		{"whole append", &msgappDecoder{r: bytes.NewReader(append([]byte{2}, huge...))}, errTooLarge},
		{"entries", &msgappDecoder{r: bytes.NewReader(append([]byte{1}, huge...))}, errTooLarge},
		{"entry", &msgappDecoder{r: bytes.NewReader(append([]byte{1, 0, 0, 0, 0, 0, 0, 0, 1}, huge...))}, errTooLarge},
		{"many entries, cut short", &msgappDecoder{r: bytes.NewReader([]byte{1, 0, 0, 0, 0, 0, 0x10, 0, 0, 1})}, io.ErrUnexpectedEOF},
	} {
		if _, _, err := c.dec.decode(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	out := &msgappDecoder{r: bytes.NewReader(append([]byte{1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2}, 3<<3, 9)), index: 4}
	if _, _, err := out.decode(); err == nil {
		t.Error("an entry out of step was taken")
	}
}

func FuzzUnmarshalMessage(f *testing.F) {
	r := rand.New(rand.NewPCG(7, 8))
	for range 50 {
		m := randomMessage(r)
		if proto.Size(m) < 1000 {
			f.Add(marshalMessage(m))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var want raftpb.Message
		wantErr := proto.Unmarshal(data, &want)
		got, err := unmarshalMessage(bytes.Clone(data))
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("we say %v, proto says %v", err, wantErr)
		}
		dropEmptySnapshot(&want)
		if err == nil && !proto.Equal(got, &want) {
			t.Fatalf("we read %v\nproto reads %v", prototext.Format(got), prototext.Format(&want))
		}
	})
}

func FuzzStreams(f *testing.F) {
	r := rand.New(rand.NewPCG(9, 10))
	for i := range 40 {
		var b batch
		var enc frameEncoder = messageEncoder{}
		if i%2 == 0 {
			enc = &msgappEncoder{}
		}
		for range 4 {
			if m := randomMessage(r); proto.Size(m) < 1000 {
				enc.encode(&b, m)
			}
		}
		f.Add(i%2 == 0, b.buf)
	}
	f.Fuzz(func(t *testing.T, msgapp bool, data []byte) {
		var dec frameDecoder = &messageDecoder{r: bytes.NewReader(data), limit: maxMessageBytes}
		if msgapp {
			dec = &msgappDecoder{r: bytes.NewReader(data), local: 1, remote: 2}
		}
		total := 0
		for {
			m, n, err := dec.decode()
			if err != nil {
				return
			}
			if total += n; total > len(data) {
				t.Fatalf("counted %d bytes of %d", total, len(data))
			}
			if m != nil {
				marshalMessage(m)
			}
		}
	})
}

// appendOf is a MsgApp as the leader sends it under load.
func appendOf(entries, size int) *raftpb.Message {
	m := &raftpb.Message{Type: raftpb.MsgApp.Enum(), To: new(uint64(1)), From: new(uint64(2)), Term: new(uint64(5)), LogTerm: new(uint64(5)), Index: new(uint64(1000)), Commit: new(uint64(990))}
	for i := range entries {
		m.Entries = append(m.Entries, &raftpb.Entry{Term: new(uint64(5)), Index: new(uint64(1001 + i)), Data: make([]byte, size)})
	}
	return m
}

func BenchmarkEncodeAppend(b *testing.B) {
	for _, size := range []int{256, 100_000} {
		m := appendOf(32, size)
		b.Run(fmt.Sprintf("hand/%d", size), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(32 * size))
			var out batch
			for b.Loop() {
				enc := msgappEncoder{term: 5, index: 1000}
				enc.encode(&out, m)
				out.reset()
			}
		})
		b.Run(fmt.Sprintf("proto/%d", size), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(32 * size))
			var buf []byte
			for b.Loop() {
				buf = buf[:0]
				for _, e := range m.Entries {
					buf = binary.BigEndian.AppendUint64(buf, uint64(proto.Size(e)))
					buf, _ = proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(buf, e)
				}
			}
		})
	}
}

func BenchmarkDecodeAppend(b *testing.B) {
	var out batch
	enc := msgappEncoder{term: 5, index: 1000}
	enc.encode(&out, appendOf(32, 256))
	b.Run("hand", func(b *testing.B) {
		b.ReportAllocs()
		r := bytes.NewReader(nil)
		for b.Loop() {
			r.Reset(out.buf)
			dec := msgappDecoder{r: r, term: 5, index: 1000}
			if _, _, err := dec.decode(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("proto", func(b *testing.B) {
		b.ReportAllocs()
		data := marshalMessage(appendOf(32, 256))
		for b.Loop() {
			if err := proto.Unmarshal(data, &raftpb.Message{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
