package server

import (
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	encodingproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"

	"github.com/belaydb/belay/admission"
	"github.com/belaydb/belay/rpc"
)

// countingCodec is grpc's own protobuf codec that counts the bytes of messages as etcd does:
// payload alone, without frames, headers and compression. Counting here costs one atomic add; a
// stats.Handler for the same numbers costs an allocation and four calls for each request. The
// messages of puts, gets and watches it reads and writes itself; see wire.go.
type countingCodec struct {
	encoding.CodecV2
	metrics *Metrics
}

func newCountingCodec(m *Metrics) *countingCodec {
	return &countingCodec{CodecV2: encoding.GetCodecV2(encodingproto.Name), metrics: m}
}

// encodedMessage is a message as Marshal has already made it.
type encodedMessage struct{ data mem.BufferSlice }

func (c *countingCodec) Marshal(v any) (data mem.BufferSlice, err error) {
	if done, ok := v.(*encodedMessage); ok {
		data, done.data = done.data, nil // grpc frees it, once
		return data, nil
	}
	switch r := v.(type) {
	case *rangeReply:
		if r.encoded == nil {
			return c.Marshal(r.message)
		}
		data = r.encoded.answer(r.message)
	case *watchAnswer:
		data = written(r.size, r.AppendTo)
	case *pb.PutResponse:
		if r.GetHeader() != nil {
			data = written(putResponseSize(r), func(b []byte) []byte { return appendPutResponse(b, r) })
		}
	case *pb.RangeResponse:
		if r.GetHeader() != nil {
			if size := rangeResponseSize(r); size > freeBytes {
				data = rangeResponsePieces(r, size)
			} else {
				data = written(size, func(b []byte) []byte { return appendRangeResponse(b, r) })
			}
		}
	}
	if data == nil {
		data, err = c.CodecV2.Marshal(v)
	}
	c.metrics.sentBytes.Add(float64(data.Len()))
	return data, err
}

// Direct is what package rpc asks for messages that write themselves; they are counted here.
func (c *countingCodec) Direct(v any) (rpc.Message, bool) {
	a, ok := v.(*watchAnswer)
	if ok {
		c.metrics.sentBytes.Add(float64(a.size))
	}
	return a, ok
}

// encode turns a message into a form that the stream can send directly.
func (c *countingCodec) encode(stream grpc.ServerStream, message any) (any, error) {
	sent, ok := grpc.ServerTransportStreamFromContext(stream.Context()).(interface{ SendCompress() string })
	if !ok || sent.SendCompress() != "" && sent.SendCompress() != "identity" {
		// grpc's own way copies everything once more, so it is used only for compressed answers.
		prepared := new(grpc.PreparedMsg)
		return prepared, prepared.Encode(stream, message)
	}
	data, err := c.Marshal(message)
	return &encodedMessage{data}, err
}

// sending is an encoded answer that holds room until grpc frees its pieces, which it does as they
// are sent. What it forgets when a connection breaks, the collector finds.
type sending struct {
	hold   *admission.Hold
	pieces atomic.Int64 // not freed yet
}

// sendingPiece stands in for one buffer: it is the pool to which grpc gives it back.
type sendingPiece struct {
	answer *sending
	inner  mem.Buffer
}

var _ mem.BufferPool = (*sendingPiece)(nil)

func (p *sendingPiece) Get(n int) *[]byte { return mem.DefaultBufferPool().Get(n) }

func (p *sendingPiece) Put(*[]byte) {
	n := int64(p.inner.Len())
	p.inner.Free()
	if p.answer.pieces.Add(-1) == 0 {
		p.answer.hold.Release()
	} else {
		p.answer.hold.Less(n)
	}
}

// holding gives back the room that an answer holds as its buffers are freed.
func holding(h *admission.Hold, data mem.BufferSlice) mem.BufferSlice {
	h.Set(int64(data.Len()))
	answer := &sending{hold: h}
	answer.pieces.Store(1)
	out := make(mem.BufferSlice, len(data))
	for i, b := range data {
		bytes := b.ReadOnlyData()
		if mem.IsBelowBufferPoolingThreshold(cap(bytes)) {
			out[i] = b // grpc would not give it back
			continue
		}
		answer.pieces.Add(1)
		out[i] = mem.NewBuffer(&bytes, &sendingPiece{answer, b})
	}
	if answer.pieces.Add(-1) == 0 {
		h.Release()
	} else {
		admission.ReleaseWith(h, answer)
	}
	return out
}

// written is the memory that add appends size bytes to.
func written(size int, add func([]byte) []byte) mem.BufferSlice {
	if mem.IsBelowBufferPoolingThreshold(size) {
		return mem.BufferSlice{mem.SliceBuffer(filled(add(make([]byte, 0, size)), size))}
	}
	pool := mem.DefaultBufferPool()
	buf := pool.Get(size)
	filled(add((*buf)[:0]), size)
	return mem.BufferSlice{mem.NewBuffer(buf, pool)}
}

func filled(b []byte, size int) []byte {
	if len(b) != size {
		panic("server: a response was encoded in another size than foretold") // the size and append functions disagree
	}
	return b
}

func (c *countingCodec) Unmarshal(data mem.BufferSlice, v any) error {
	c.metrics.receivedBytes.Add(float64(data.Len()))
	switch r := v.(type) {
	case *pb.PutRequest:
		if readPut(data, r) {
			return nil
		}
		r.Reset()
	case *pb.RangeRequest:
		if readRange(data, r) {
			return nil
		}
		r.Reset()
	}
	return c.CodecV2.Unmarshal(data, v)
}
