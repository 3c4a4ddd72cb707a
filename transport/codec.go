package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

const (
	// maxMessageBytes bounds one raft message on a stream or a pipeline, as etcd bounds it.
	maxMessageBytes = 512 << 20
	// maxEnvelopeBytes bounds the MsgSnap before a snapshot's body.
	maxEnvelopeBytes = 64 << 20
	// maxFrameEntries bounds the entries of one AppEntries frame. raft cuts an append at 1 MiB of
	// entries, and the smallest entry is counted with more than 4 bytes.
	maxFrameEntries = 1 << 20
	// readAtOnce is the most that a length prefix alone can make us allocate: a longer body grows
	// its buffer only as the bytes really arrive.
	readAtOnce = 4 << 20
	// borrowBytes is the size from which a payload is written from where it lies (writev) and not
	// copied into the batch buffer.
	borrowBytes = 16 << 10
)

const (
	frameLinkHeartbeat = 0
	frameAppEntries    = 1
	frameMessage       = 2
)

// errTooLarge says that a length prefix is beyond the limit of its kind.
var errTooLarge = errors.New("transport: message exceeds the size limit")

// A batch collects the encoded frames of one flush. Small parts are copied into buf; payloads of
// borrowBytes and more stay where they are and are only referred to, so that a 1 MB value is not
// copied on its way to the socket.
//
// INVARIANT: borrowed slices belong to raft entries, which never change after they were appended.
type batch struct {
	buf  []byte
	cuts []cut
}

type cut struct {
	at   int // offset in buf before which data goes out
	data []byte
}

func (b *batch) reset() {
	if cap(b.buf) > 1<<20 {
		b.buf = nil // do not keep the memory of one huge batch
	}
	b.buf = b.buf[:0]
	clear(b.cuts)
	b.cuts = b.cuts[:0]
}

func (b *batch) borrow(data []byte) {
	b.cuts = append(b.cuts, cut{at: len(b.buf), data: data})
}

func (b *batch) bytes() int {
	n := len(b.buf)
	for _, c := range b.cuts {
		n += len(c.data)
	}
	return n
}

// pieces calls fn with the batch's bytes in order, without copying.
func (b *batch) pieces(fn func([]byte)) {
	at := 0
	for _, c := range b.cuts {
		if c.at > at {
			fn(b.buf[at:c.at])
			at = c.at
		}
		fn(c.data)
	}
	if at < len(b.buf) {
		fn(b.buf[at:])
	}
}

// entrySize is the length of e in protobuf's wire format.
func entrySize(e *raftpb.Entry) int {
	n := 0
	if e.Type != nil {
		n += 1 + protowire.SizeVarint(uint64(*e.Type))
	}
	if e.Term != nil {
		n += 1 + protowire.SizeVarint(*e.Term)
	}
	if e.Index != nil {
		n += 1 + protowire.SizeVarint(*e.Index)
	}
	if e.Data != nil {
		n += 1 + protowire.SizeBytes(len(e.Data))
	}
	return n
}

// entry appends e. Data goes last, so that it can be borrowed.
func (b *batch) entry(e *raftpb.Entry) {
	buf := b.buf
	if e.Type != nil {
		buf = append(buf, 1<<3|byte(protowire.VarintType))
		buf = protowire.AppendVarint(buf, uint64(*e.Type))
	}
	if e.Term != nil {
		buf = append(buf, 2<<3|byte(protowire.VarintType))
		buf = protowire.AppendVarint(buf, *e.Term)
	}
	if e.Index != nil {
		buf = append(buf, 3<<3|byte(protowire.VarintType))
		buf = protowire.AppendVarint(buf, *e.Index)
	}
	if e.Data != nil {
		buf = append(buf, 4<<3|byte(protowire.BytesType))
		buf = protowire.AppendVarint(buf, uint64(len(e.Data)))
		if len(e.Data) >= borrowBytes {
			b.buf = buf
			b.borrow(e.Data)
			return
		}
		buf = append(buf, e.Data...)
	}
	b.buf = buf
}

func scalarSize(v *uint64) int {
	if v == nil {
		return 0
	}
	return 1 + protowire.SizeVarint(*v) // every field number of raftpb.Message is below 16
}

func appendScalar(buf []byte, field int, v *uint64) []byte {
	if v == nil {
		return buf
	}
	buf = append(buf, byte(field<<3)|byte(protowire.VarintType))
	return protowire.AppendVarint(buf, *v)
}

// byHand reports whether the hand-written encoder knows all of m's fields. Snapshots are rare;
// responses never leave a member.
func byHand(m *raftpb.Message) bool { return m.Snapshot == nil && len(m.Responses) == 0 }

// messageSize is the length of m in protobuf's wire format.
func messageSize(m *raftpb.Message) int {
	if !byHand(m) {
		return proto.Size(m)
	}
	n := scalarSize(m.To) + scalarSize(m.From) + scalarSize(m.Term) + scalarSize(m.LogTerm) +
		scalarSize(m.Index) + scalarSize(m.Commit) + scalarSize(m.RejectHint) + scalarSize(m.Vote)
	if m.Type != nil {
		n += 1 + protowire.SizeVarint(uint64(*m.Type))
	}
	for _, e := range m.Entries {
		n += 1 + protowire.SizeBytes(entrySize(e))
	}
	if m.Reject != nil {
		n += 2
	}
	if m.Context != nil {
		n += 1 + protowire.SizeBytes(len(m.Context))
	}
	return n
}

// message appends m.
func (b *batch) message(m *raftpb.Message) {
	if !byHand(m) {
		// The error can only be a missing required field or invalid UTF-8; raftpb has neither.
		b.buf, _ = proto.MarshalOptions{}.MarshalAppend(b.buf, m)
		return
	}
	buf := b.buf
	if m.Type != nil {
		buf = append(buf, 1<<3|byte(protowire.VarintType))
		buf = protowire.AppendVarint(buf, uint64(*m.Type))
	}
	buf = appendScalar(buf, 2, m.To)
	buf = appendScalar(buf, 3, m.From)
	buf = appendScalar(buf, 4, m.Term)
	buf = appendScalar(buf, 5, m.LogTerm)
	buf = appendScalar(buf, 6, m.Index)
	for _, e := range m.Entries {
		buf = append(buf, 7<<3|byte(protowire.BytesType))
		buf = protowire.AppendVarint(buf, uint64(entrySize(e)))
		b.buf = buf
		b.entry(e)
		buf = b.buf
	}
	buf = appendScalar(buf, 8, m.Commit)
	if m.Reject != nil {
		v := byte(0)
		if *m.Reject {
			v = 1
		}
		buf = append(buf, 10<<3|byte(protowire.VarintType), v)
	}
	buf = appendScalar(buf, 11, m.RejectHint)
	if m.Context != nil {
		buf = append(buf, 12<<3|byte(protowire.BytesType))
		buf = protowire.AppendBytes(buf, m.Context)
	}
	buf = appendScalar(buf, 13, m.Vote)
	b.buf = buf
}

// marshalMessage is m alone, in one slice.
func marshalMessage(m *raftpb.Message) []byte {
	var b batch
	b.buf = make([]byte, 0, 64)
	b.message(m)
	if len(b.cuts) == 0 {
		return b.buf
	}
	out := make([]byte, 0, b.bytes())
	b.pieces(func(p []byte) { out = append(out, p...) })
	return out
}

// A frameEncoder appends messages to a batch in the format of its stream. An encoder belongs to one
// connection: msgappv2 remembers what the other end can predict.
type frameEncoder interface {
	encode(b *batch, m *raftpb.Message)
	linkHeartbeat(b *batch)
}

// messageEncoder writes stream/message:
//
//	+------------------+-----------------+
//	| length, 8 B BE   | raftpb.Message  |   repeated
//	+------------------+-----------------+
//
// The link heartbeat is a MsgHeartbeat from 0 to 0.
type messageEncoder struct{}

func (messageEncoder) encode(b *batch, m *raftpb.Message) {
	b.buf = binary.BigEndian.AppendUint64(b.buf, uint64(messageSize(m)))
	b.message(m)
}

func (messageEncoder) linkHeartbeat(b *batch) {
	b.buf = append(b.buf, 0, 0, 0, 0, 0, 0, 0, 2, 1<<3, byte(raftpb.MsgHeartbeat))
}

// msgappEncoder writes stream/msgapp, which etcd calls msgappv2:
//
//	link heartbeat  | 00 |
//	AppEntries      | 01 | count, 8 B BE | { length, 8 B BE | raftpb.Entry } * count | commit, 8 B BE |
//	whole message   | 02 | length, 8 B BE | raftpb.Message |
//
// AppEntries leaves out what the receiver can predict from the previous frame: the append directly
// follows the entries sent last, in the same term.
type msgappEncoder struct {
	term, index uint64 // what the receiver holds after the frames so far
}

func (enc *msgappEncoder) encode(b *batch, m *raftpb.Message) {
	// A message with anything that AppEntries cannot carry is sent whole, even if it is
	// predictable.
	if m.GetType() == raftpb.MsgApp && enc.index == m.GetIndex() && enc.term == m.GetLogTerm() &&
		m.GetLogTerm() == m.GetTerm() && len(m.Entries) <= maxFrameEntries && enc.term != 0 &&
		consecutive(m.GetIndex(), m.Entries) {
		b.buf = append(b.buf, frameAppEntries)
		b.buf = binary.BigEndian.AppendUint64(b.buf, uint64(len(m.Entries)))
		for _, e := range m.Entries {
			b.buf = binary.BigEndian.AppendUint64(b.buf, uint64(entrySize(e)))
			b.entry(e)
		}
		b.buf = binary.BigEndian.AppendUint64(b.buf, m.GetCommit())
		enc.index += uint64(len(m.Entries))
		return
	}
	b.buf = append(b.buf, frameMessage)
	b.buf = binary.BigEndian.AppendUint64(b.buf, uint64(messageSize(m)))
	b.message(m)
	enc.term, enc.index = foreseen(m)
}

func (enc *msgappEncoder) linkHeartbeat(b *batch) { b.buf = append(b.buf, frameLinkHeartbeat) }

// consecutive reports whether entries continue index. The receiver counts entries rather than
// reading their index, so a gap would put both ends out of step.
func consecutive(index uint64, entries []*raftpb.Entry) bool {
	return len(entries) == 0 || entries[len(entries)-1].GetIndex() == index+uint64(len(entries))
}

// foreseen returns the term and index that both ends remember after a whole message.
func foreseen(m *raftpb.Message) (term, index uint64) {
	index = m.GetIndex()
	if n := len(m.Entries); n > 0 {
		index = m.Entries[n-1].GetIndex()
	}
	return m.GetTerm(), index
}

// A frameDecoder reads one message; nil without an error is a link heartbeat. n is the number of
// bytes it took from the stream.
type frameDecoder interface {
	decode() (m *raftpb.Message, n int, err error)
}

type messageDecoder struct {
	r       io.Reader
	limit   uint64 // longest message accepted, bytes
	scratch [8]byte
}

func (dec *messageDecoder) decode() (*raftpb.Message, int, error) {
	if _, err := io.ReadFull(dec.r, dec.scratch[:]); err != nil {
		return nil, 0, err
	}
	size := binary.BigEndian.Uint64(dec.scratch[:])
	if size > dec.limit {
		return nil, 8, fmt.Errorf("%w: %d bytes, limit %d", errTooLarge, size, dec.limit)
	}
	buf, err := readBytes(dec.r, int(size))
	if err != nil {
		return nil, 8, err
	}
	m, err := unmarshalMessage(buf)
	if err != nil {
		return nil, 8 + len(buf), err
	}
	if m.GetType() == raftpb.MsgHeartbeat && m.GetFrom() == 0 && m.GetTo() == 0 {
		m = nil
	}
	return m, 8 + len(buf), nil
}

type msgappDecoder struct {
	r             io.Reader
	local, remote uint64
	term, index   uint64 // as in msgappEncoder
	scratch       [8]byte
}

func (dec *msgappDecoder) uint64() (uint64, error) {
	if _, err := io.ReadFull(dec.r, dec.scratch[:]); err != nil {
		return 0, unexpected(err)
	}
	return binary.BigEndian.Uint64(dec.scratch[:]), nil
}

func (dec *msgappDecoder) decode() (*raftpb.Message, int, error) {
	if _, err := io.ReadFull(dec.r, dec.scratch[:1]); err != nil {
		return nil, 0, err
	}
	switch typ := dec.scratch[0]; typ {
	case frameLinkHeartbeat:
		return nil, 1, nil
	case frameAppEntries:
		return dec.appEntries()
	case frameMessage:
		size, err := dec.uint64()
		if err != nil {
			return nil, 1, err
		}
		if size > maxMessageBytes {
			return nil, 9, fmt.Errorf("%w: %d bytes, limit %d", errTooLarge, size, uint64(maxMessageBytes))
		}
		buf, err := readBytes(dec.r, int(size))
		if err != nil {
			return nil, 9, err
		}
		m, err := unmarshalMessage(buf)
		if err != nil {
			return nil, 9 + len(buf), err
		}
		dec.term, dec.index = foreseen(m)
		return m, 9 + len(buf), nil
	default:
		return nil, 1, fmt.Errorf("transport: unknown frame type %d in msgapp stream", typ)
	}
}

// appMessage is a MsgApp with its numbers beside it: one allocation, where pointers to scalars
// would take seven.
type appMessage struct {
	m                              raftpb.Message
	typ                            raftpb.MessageType
	from, to, term, logTerm, index uint64
	commit                         uint64
}

// entryBox is an entry with its numbers beside it. Boxes are allocated in slabs: the entries of a
// message leave the log together, so a slab pins nothing for long. Data has its own allocation,
// because a cache may keep one value for ever.
type entryBox struct {
	e           raftpb.Entry
	typ         raftpb.EntryType
	term, index uint64
}

func (dec *msgappDecoder) appEntries() (*raftpb.Message, int, error) {
	n := 9
	count, err := dec.uint64()
	if err != nil {
		return nil, n, err
	}
	if count > maxFrameEntries {
		return nil, n, fmt.Errorf("%w: %d entries, limit %d", errTooLarge, count, maxFrameEntries)
	}
	am := &appMessage{typ: raftpb.MsgApp, from: dec.remote, to: dec.local, term: dec.term, logTerm: dec.term, index: dec.index}
	m := &am.m
	m.Type, m.From, m.To, m.Term, m.LogTerm, m.Index = &am.typ, &am.from, &am.to, &am.term, &am.logTerm, &am.index
	var slab []entryBox
	if count > 0 {
		m.Entries = make([]*raftpb.Entry, 0, min(count, 4096))
	}
	total := uint64(0)
	for i := range count {
		size, err := dec.uint64()
		if err != nil {
			return nil, n, err
		}
		n += 8
		if total += size; size > maxMessageBytes || total > maxMessageBytes {
			return nil, n, fmt.Errorf("%w: more than %d bytes of entries", errTooLarge, uint64(maxMessageBytes))
		}
		buf, err := readBytes(dec.r, int(size))
		if err != nil {
			return nil, n, err
		}
		n += len(buf)
		if len(slab) == 0 {
			slab = make([]entryBox, min(count-i, 256))
		}
		if err := unmarshalEntry(buf, &slab[0]); err != nil {
			return nil, n, err
		}
		dec.index++
		if got := slab[0].e.GetIndex(); got != dec.index {
			return nil, n, fmt.Errorf("transport: msgapp stream out of step: entry %d where %d was expected", got, dec.index)
		}
		m.Entries = append(m.Entries, &slab[0].e)
		slab = slab[1:]
	}
	if am.commit, err = dec.uint64(); err != nil {
		return nil, n, err
	}
	m.Commit = &am.commit
	return m, n + 8, nil
}

// readBytes reads exactly size bytes into a new slice.
func readBytes(r io.Reader, size int) ([]byte, error) {
	buf := make([]byte, min(size, readAtOnce))
	at := 0
	for {
		if _, err := io.ReadFull(r, buf[at:]); err != nil {
			return nil, unexpected(err)
		}
		if at = len(buf); at == size {
			return buf, nil
		}
		grown := make([]byte, min(size, 4*at))
		copy(grown, buf)
		buf = grown
	}
}

// unexpected turns the end of a stream in the middle of a frame into the error that says so.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// unmarshalEntry decodes buf, which the entry then owns. Unknown fields are left to proto.
func unmarshalEntry(buf []byte, box *entryBox) error {
	e := &box.e
	for rest := buf; len(rest) > 0; {
		tag := rest[0]
		if tag&0x80 != 0 {
			return slowEntry(buf, e)
		}
		rest = rest[1:]
		switch tag {
		case 1<<3 | byte(protowire.VarintType), 2<<3 | byte(protowire.VarintType), 3<<3 | byte(protowire.VarintType):
			v, k := protowire.ConsumeVarint(rest)
			if k < 0 {
				return fmt.Errorf("transport: entry: %w", protowire.ParseError(k))
			}
			rest = rest[k:]
			switch tag >> 3 {
			case 1:
				box.typ = raftpb.EntryType(v)
				e.Type = &box.typ
			case 2:
				box.term = v
				e.Term = &box.term
			case 3:
				box.index = v
				e.Index = &box.index
			}
		case 4<<3 | byte(protowire.BytesType):
			v, k := protowire.ConsumeBytes(rest)
			if k < 0 {
				return fmt.Errorf("transport: entry: %w", protowire.ParseError(k))
			}
			rest = rest[k:]
			e.Data = v[:len(v):len(v)]
		default:
			return slowEntry(buf, e)
		}
	}
	return nil
}

func slowEntry(buf []byte, e *raftpb.Entry) error {
	e.Reset()
	if err := proto.Unmarshal(buf, e); err != nil {
		return fmt.Errorf("transport: entry: %w", err)
	}
	return nil
}

// messageBox is a message with its numbers beside it.
type messageBox struct {
	m      raftpb.Message
	typ    raftpb.MessageType
	num    [16]uint64 // by field number
	reject bool
}

// unmarshalMessage decodes buf, which the message then owns: data and context point into it.
func unmarshalMessage(buf []byte) (*raftpb.Message, error) {
	box := &messageBox{}
	m := &box.m
	var slab []entryBox
	for rest := buf; len(rest) > 0; {
		tag := rest[0]
		if tag&0x80 != 0 {
			return slowMessage(buf)
		}
		rest = rest[1:]
		field := tag >> 3
		switch tag & 7 {
		case byte(protowire.VarintType):
			v, k := protowire.ConsumeVarint(rest)
			if k < 0 {
				return nil, fmt.Errorf("transport: message: %w", protowire.ParseError(k))
			}
			rest = rest[k:]
			p := &box.num[field]
			*p = v
			switch field {
			case 1:
				box.typ = raftpb.MessageType(v)
				m.Type = &box.typ
			case 2:
				m.To = p
			case 3:
				m.From = p
			case 4:
				m.Term = p
			case 5:
				m.LogTerm = p
			case 6:
				m.Index = p
			case 8:
				m.Commit = p
			case 10:
				box.reject = v != 0
				m.Reject = &box.reject
			case 11:
				m.RejectHint = p
			case 13:
				m.Vote = p
			default:
				return slowMessage(buf)
			}
		case byte(protowire.BytesType):
			v, k := protowire.ConsumeBytes(rest)
			if k < 0 {
				return nil, fmt.Errorf("transport: message: %w", protowire.ParseError(k))
			}
			rest = rest[k:]
			v = v[:len(v):len(v)]
			switch field {
			case 7:
				if len(slab) == 0 {
					slab = make([]entryBox, min(max(1, 2*len(m.Entries)), 256))
				}
				data := v
				if len(v) < len(buf)/2 { // an entry may live long: it must not keep much more than itself alive
					data = append(make([]byte, 0, len(v)), v...)
				}
				if err := unmarshalEntry(data, &slab[0]); err != nil {
					return nil, err
				}
				m.Entries = append(m.Entries, &slab[0].e)
				slab = slab[1:]
			case 12:
				m.Context = v
			default:
				return slowMessage(buf) // a snapshot
			}
		default:
			return slowMessage(buf)
		}
	}
	return m, nil
}

func slowMessage(buf []byte) (*raftpb.Message, error) {
	m := &raftpb.Message{}
	if err := proto.Unmarshal(buf, m); err != nil {
		return nil, fmt.Errorf("transport: message: %w", err)
	}
	dropEmptySnapshot(m)
	return m, nil
}

// dropEmptySnapshot removes what etcd before 3.6 writes into each message: there the field is no
// pointer.
func dropEmptySnapshot(m *raftpb.Message) {
	if s := m.GetSnapshot(); s != nil && m.GetType() != raftpb.MsgSnap && s.GetMetadata().GetIndex() == 0 && len(s.GetData()) == 0 {
		m.Snapshot = nil
	}
}
