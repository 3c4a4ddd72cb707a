package upstream

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/rpc"
)

// A Frame is a message as it is on the wire: Head and then Body. A message is split where its
// second part is the same for many receivers.
type Frame struct {
	Head, Body []byte
	// Pool, if not nil, gets Body back when it was sent, or will not be. Body must be too large for
	// the transport to copy it: see mem.IsBelowBufferPoolingThreshold.
	Pool mem.BufferPool
}

// Size is what AppendTo appends, in bytes.
func (f *Frame) Size() int { return len(f.Head) + len(f.Body) }

// AppendTo appends the message. REQUIRES: there is no Pool.
func (f *Frame) AppendTo(b []byte) []byte { return append(append(b, f.Head...), f.Body...) }

// Buffers is the message as a transport keeps it.
func (f *Frame) Buffers() mem.BufferSlice {
	if len(f.Body) == 0 {
		return mem.BufferSlice{mem.SliceBuffer(f.Head)}
	}
	return mem.BufferSlice{mem.SliceBuffer(f.Head), mem.NewBuffer(&f.Body, f.Pool)}
}

// Codec encodes Frames as they are, and other messages as protobuf. It is a rpc.DirectCodec.
func Codec() encoding.CodecV2 { return codec{} }

type codec struct{}

// directBytes is up to which size a Frame is copied into what leaves next rather than kept for it.
const directBytes = 16 << 10

// Direct is as in rpc.DirectCodec.
func (codec) Direct(v any) (rpc.Message, bool) {
	f, ok := v.(*Frame)
	if !ok {
		return nil, false
	}
	return Direct(f)
}

// Direct is a Frame that package rpc is to copy; false: it is to keep the Frame's Buffers until they
// have been sent.
func Direct(f *Frame) (rpc.Message, bool) { return f, f.Pool == nil && f.Size() <= directBytes }

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case *Frame:
		return m.Buffers(), nil
	case proto.Message:
		b, err := proto.Marshal(m)
		return mem.BufferSlice{mem.SliceBuffer(b)}, err
	}
	return nil, fmt.Errorf("upstream: %T is no message", v)
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	switch m := v.(type) {
	case *Frame:
		m.Body = nil
		if len(data) == 1 {
			if whole, ok := data[0].(rpc.Owned); ok {
				m.Head = whole.ReadOnlyData()
				return nil
			}
		}
		m.Head = data.Materialize()
		return nil
	case proto.Message:
		return proto.Unmarshal(data.Materialize(), m)
	}
	return fmt.Errorf("upstream: %T is no message", v)
}

// Revision is the revision in the header of a response; 0 if it has none. Of all responses of
// etcd's API the header is field 1.
func (f *Frame) Revision() int64 {
	header := field(f.Head, 1)
	for len(header) > 0 {
		number, kind, n := protowire.ConsumeTag(header)
		if n < 0 {
			return 0
		}
		header = header[n:]
		if number == 3 && kind == protowire.VarintType {
			v, _ := protowire.ConsumeVarint(header)
			return int64(v)
		}
		if n = protowire.ConsumeFieldValue(number, kind, header); n < 0 {
			return 0
		}
		header = header[n:]
	}
	return 0
}

// Nested is the revision of a response that holds another one, as RangeStreamResponse does, whose
// header it is.
func (f *Frame) Nested() int64 { return (&Frame{Head: field(f.Head, 1)}).Revision() }

// field is the bytes of the first field of this number, which every encoder writes in order.
func field(message []byte, want protowire.Number) []byte {
	number, kind, n := protowire.ConsumeTag(message)
	if n < 0 || number != want || kind != protowire.BytesType {
		return nil
	}
	b, n := protowire.ConsumeBytes(message[n:])
	if n < 0 {
		return nil
	}
	return b
}
