package server

import (
	"math/bits"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/belaydb/belay/rpc"
)

// The wire forms of the hot messages, by hand. Each function either does
// exactly what proto would, or says that it does not want to (unknown fields,
// several times the same field, damage) and leaves it to proto.
//
// What is saved for a request is proto's table walk, and for one with a large value a copy: proto
// wants one piece of memory, while a message of 1 MB comes from grpc-go in 64 pieces; and where it
// comes in one (rpc.Owned), its value stays where it is.

// A field's key on the wire: number<<3 | type.
const (
	wireVarint = 0
	wireBytes  = 2
)

// wireReader reads a message that lies in several pieces of memory.
type wireReader struct {
	rest   []byte          // of the present piece
	pieces mem.BufferSlice // after it
	left   int             // bytes of both
	owned  bool            // the memory may be kept: see rpc.Owned
	failed bool
}

func newWireReader(data mem.BufferSlice) wireReader {
	r := wireReader{pieces: data, left: data.Len()}
	if len(data) == 1 {
		_, r.owned = data[0].(rpc.Owned)
	}
	return r
}

// fill makes rest non-empty. REQUIRES: left > 0.
func (r *wireReader) fill() {
	for len(r.rest) == 0 {
		r.rest, r.pieces = r.pieces[0].ReadOnlyData(), r.pieces[1:]
	}
}

func (r *wireReader) varint() (v uint64) {
	if n := len(r.rest); n >= protowireMaxVarint || n == r.left {
		v, n := protowire.ConsumeVarint(r.rest)
		if n < 0 {
			r.failed = true
			return 0
		}
		r.rest = r.rest[n:]
		r.left -= n
		return v
	}
	var whole [protowireMaxVarint]byte
	n := 0
	for n < len(whole) && r.left > 0 {
		r.fill()
		b := r.rest[0]
		r.rest = r.rest[1:]
		r.left--
		whole[n] = b
		n++
		if b < 0x80 {
			break
		}
	}
	v, used := protowire.ConsumeVarint(whole[:n])
	r.failed = r.failed || used < 0
	return v
}

const protowireMaxVarint = 10

// largeField is from which size on memory is worth having without clearing it.
const largeField = 4 << 10

// bytes returns a field's content, a copy unless it is large and the message's memory may be kept; nil
// if it is empty.
func (r *wireReader) bytes() []byte {
	size := r.varint()
	if r.failed || size == 0 || size > uint64(r.left) {
		// proto gives an empty field that is written out some meaning of its own.
		r.failed = true
		return nil
	}
	n := int(size)
	r.left -= n
	if n <= len(r.rest) && n < largeField {
		b := make([]byte, n)
		copy(b, r.rest)
		r.rest = r.rest[n:]
		return b
	}
	if r.owned {
		r.fill()
		b := r.rest[:n:n]
		r.rest = r.rest[n:]
		return b
	}
	// A strings.Builder is the way to memory that is not cleared before it is
	// written. Nobody else has the string, and nobody changes a request's bytes.
	var to strings.Builder
	to.Grow(n)
	for left := n; left > 0; {
		r.fill()
		k := min(left, len(r.rest))
		to.Write(r.rest[:k])
		r.rest = r.rest[k:]
		left -= k
	}
	s := to.String()
	return unsafe.Slice(unsafe.StringData(s), n)
}

// readPut reads a PutRequest into r, which is fresh. If it returns false, r must be reset.
func readPut(data mem.BufferSlice, r *pb.PutRequest) bool {
	in := newWireReader(data)
	last := uint64(0)
	for in.left > 0 && !in.failed {
		in.skipEmpty()
		key := in.varint()
		if key <= last {
			return false // twice or out of order: proto allows it, nobody does it
		}
		last = key
		switch key {
		case 1<<3 | wireBytes:
			r.Key = in.bytes()
		case 2<<3 | wireBytes:
			r.Value = in.bytes()
		case 3<<3 | wireVarint:
			r.Lease = int64(in.varint())
		case 4<<3 | wireVarint:
			r.PrevKv = in.varint() != 0
		case 5<<3 | wireVarint:
			r.IgnoreValue = in.varint() != 0
		case 6<<3 | wireVarint:
			r.IgnoreLease = in.varint() != 0
		default:
			return false
		}
	}
	return !in.failed
}

// readRange is readPut for a RangeRequest.
func readRange(data mem.BufferSlice, r *pb.RangeRequest) bool {
	in := newWireReader(data)
	last := uint64(0)
	for in.left > 0 && !in.failed {
		in.skipEmpty()
		key := in.varint()
		if key <= last {
			return false
		}
		last = key
		switch key {
		case 1<<3 | wireBytes:
			r.Key = in.bytes()
		case 2<<3 | wireBytes:
			r.RangeEnd = in.bytes()
		case 3<<3 | wireVarint:
			r.Limit = int64(in.varint())
		case 4<<3 | wireVarint:
			r.Revision = int64(in.varint())
		case 5<<3 | wireVarint:
			r.SortOrder = pb.RangeRequest_SortOrder(int32(in.varint()))
		case 6<<3 | wireVarint:
			r.SortTarget = pb.RangeRequest_SortTarget(int32(in.varint()))
		case 7<<3 | wireVarint:
			r.Serializable = in.varint() != 0
		case 8<<3 | wireVarint:
			r.KeysOnly = in.varint() != 0
		case 9<<3 | wireVarint:
			r.CountOnly = in.varint() != 0
		case 10<<3 | wireVarint:
			r.MinModRevision = int64(in.varint())
		case 11<<3 | wireVarint:
			r.MaxModRevision = int64(in.varint())
		case 12<<3 | wireVarint:
			r.MinCreateRevision = int64(in.varint())
		case 13<<3 | wireVarint:
			r.MaxCreateRevision = int64(in.varint())
		default:
			return false
		}
	}
	return !in.failed
}

// skipEmpty goes on to the next piece if this one is used up.
func (r *wireReader) skipEmpty() {
	if len(r.rest) == 0 {
		r.fill()
	}
}

// Below are the responses. size functions give the bytes of the content, 0 for
// what is left out. All fields have numbers below 16: their keys are one byte.

func varintSize(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }

func fieldSize(v uint64) int {
	if v == 0 {
		return 0
	}
	return 1 + varintSize(v)
}

func bytesSize(n int) int {
	if n == 0 {
		return 0
	}
	return 1 + varintSize(uint64(n)) + n
}

func appendField(b []byte, number byte, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(append(b, number<<3|wireVarint), v)
}

func appendBytesField(b []byte, number byte, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	b = protowire.AppendVarint(append(b, number<<3|wireBytes), uint64(len(v)))
	return append(b, v...)
}

func headerSize(h *pb.ResponseHeader) int {
	return fieldSize(h.ClusterId) + fieldSize(h.MemberId) + fieldSize(uint64(h.Revision)) + fieldSize(h.RaftTerm)
}

func appendHeader(b []byte, h *pb.ResponseHeader) []byte {
	b = append(b, 1<<3|wireBytes, byte(headerSize(h))) // at most 44 bytes
	b = appendField(b, 1, h.ClusterId)
	b = appendField(b, 2, h.MemberId)
	b = appendField(b, 3, uint64(h.Revision))
	return appendField(b, 4, h.RaftTerm)
}

func keyValueSize(kv *mvccpb.KeyValue) int {
	return bytesSize(len(kv.Key)) + fieldSize(uint64(kv.CreateRevision)) + fieldSize(uint64(kv.ModRevision)) +
		fieldSize(uint64(kv.Version)) + bytesSize(len(kv.Value)) + fieldSize(uint64(kv.Lease))
}

// appendKeyValue appends a field of a message, which in the answers of puts and gets is 2.
func appendKeyValue(b []byte, number byte, kv *mvccpb.KeyValue) []byte {
	return appendSizedKeyValue(b, number, kv, keyValueSize(kv))
}

// appendSizedKeyValue is appendKeyValue of one whose size is known.
func appendSizedKeyValue(b []byte, number byte, kv *mvccpb.KeyValue, size int) []byte {
	b = protowire.AppendVarint(append(b, number<<3|wireBytes), uint64(size))
	b = appendKeyValueHead(b, kv)
	b = appendBytesField(b, 5, kv.Value)
	return appendField(b, 6, uint64(kv.Lease))
}

// appendKeyValueHead appends the fields of a key-value before its value.
func appendKeyValueHead(b []byte, kv *mvccpb.KeyValue) []byte {
	b = appendBytesField(b, 1, kv.Key)
	b = appendField(b, 2, uint64(kv.CreateRevision))
	b = appendField(b, 3, uint64(kv.ModRevision))
	return appendField(b, 4, uint64(kv.Version))
}

func putResponseSize(r *pb.PutResponse) int {
	n := 2 + headerSize(r.Header)
	if r.PrevKv != nil {
		k := keyValueSize(r.PrevKv)
		n += 1 + varintSize(uint64(k)) + k
	}
	return n
}

func appendPutResponse(b []byte, r *pb.PutResponse) []byte {
	b = appendHeader(b, r.Header)
	if r.PrevKv != nil {
		b = appendKeyValue(b, 2, r.PrevKv)
	}
	return b
}

// messageSize is that of a message within another, with its key.
func messageSize(n int) int { return 1 + varintSize(uint64(n)) + n }

func flagSize(set bool) int {
	if set {
		return 2
	}
	return 0
}

func appendFlag(b []byte, number byte, set bool) []byte {
	if !set {
		return b
	}
	return append(b, number<<3|wireVarint, 1)
}

func rangeResponseSize(r *pb.RangeResponse) int {
	n := 2 + headerSize(r.Header) + fieldSize(uint64(r.Count))
	if r.More {
		n += 2
	}
	for _, kv := range r.Kvs {
		k := keyValueSize(kv)
		n += 1 + varintSize(uint64(k)) + k
	}
	return n
}

func appendRangeResponse(b []byte, r *pb.RangeResponse) []byte {
	b = appendHeader(b, r.Header)
	for _, kv := range r.Kvs {
		b = appendKeyValue(b, 2, kv)
	}
	return appendRangeEnd(b, r)
}

// appendRangeEnd appends what follows the keys.
func appendRangeEnd(b []byte, r *pb.RangeResponse) []byte {
	if r.More {
		b = append(b, 3<<3|wireVarint, 1)
	}
	return appendField(b, 4, uint64(r.Count))
}

// rangeResponsePieces is appendRangeResponse for a large one. Memory for all of
// it at once would be fresh, cleared, and garbage afterwards; pieces of this size
// come from a pool, where each of them is again as soon as it has been sent.
func rangeResponsePieces(r *pb.RangeResponse, size int) mem.BufferSlice {
	w := pieceWriter{out: make(mem.BufferSlice, 0, size/pieceBytes+1)}
	w.write(appendHeader(nil, r.Header))
	for i, kv := range r.Kvs {
		if i%paceEncoding == 0 {
			runtime.Gosched()
		}
		w.keyValue(kv)
	}
	w.write(appendRangeEnd(nil, r))
	w.flush()
	if w.size != size {
		panic("server: a response was encoded in another size than foretold")
	}
	return w.out
}

// paceEncoding is after how many keys others may have the processor.
const paceEncoding = 512

// pieceBytes is how much a piece of a large answer holds.
const pieceBytes = 32 << 10

// pieces are those that nobody uses. grpc's own pool would clear each: here nothing is sent of a piece
// but what was written into it.
var pieces = piecePool{free: sync.Pool{New: func() any { b := make([]byte, 0, pieceBytes); return &b }}}

type piecePool struct{ free sync.Pool }

var _ mem.BufferPool = (*piecePool)(nil)

// Get is mem.BufferPool's. REQUIRES: length is at most pieceBytes.
func (p *piecePool) Get(length int) *[]byte {
	b := p.free.Get().(*[]byte)
	*b = (*b)[:length]
	return b
}

// Put is mem.BufferPool's.
func (p *piecePool) Put(b *[]byte) { p.free.Put(b) }

// pieceWriter fills pieces, one after the other.
type pieceWriter struct {
	out     mem.BufferSlice
	piece   *[]byte // the one that is filled; nil: none
	buf     []byte  // what is in it
	size    int     // of out
	scratch []byte
}

func (w *pieceWriter) write(b []byte) {
	for len(b) > 0 {
		if len(w.buf) == cap(w.buf) {
			w.flush()
			w.piece = pieces.Get(0)
			w.buf = *w.piece
		}
		n := min(len(b), cap(w.buf)-len(w.buf))
		w.buf = append(w.buf, b[:n]...)
		b = b[n:]
	}
}

// keyValue writes one as the answer of a get has it.
func (w *pieceWriter) keyValue(kv *mvccpb.KeyValue) {
	k := keyValueSize(kv)
	if n := 1 + varintSize(uint64(k)) + k; n <= cap(w.buf)-len(w.buf) {
		w.buf = appendSizedKeyValue(w.buf, 2, kv, k)
		return
	}
	// Across pieces: the value by itself, what is around it through scratch.
	b := protowire.AppendVarint(append(w.scratch[:0], 2<<3|wireBytes), uint64(k))
	b = appendKeyValueHead(b, kv)
	if len(kv.Value) > 0 {
		b = protowire.AppendVarint(append(b, 5<<3|wireBytes), uint64(len(kv.Value)))
	}
	w.write(b)
	w.write(kv.Value)
	b = appendField(b[:0], 6, uint64(kv.Lease))
	w.write(b)
	w.scratch = b
}

// flush adds the piece that is filled to out.
func (w *pieceWriter) flush() {
	if w.piece == nil {
		return
	}
	*w.piece = w.buf
	w.size += len(w.buf)
	w.out = append(w.out, mem.NewBuffer(w.piece, &pieces))
	w.piece, w.buf = nil, nil
}

// drop gives back what was written.
func (w *pieceWriter) drop() {
	w.out.Free()
	if w.piece != nil {
		pieces.Put(w.piece)
	}
	*w = pieceWriter{}
}
