package server

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// The keys of a range in order are encoded as they are read, from the store's iterator into the
// pieces that are sent: no message is made of them, so there is little to collect, and what a long
// answer takes is what is sent of it. A message has a length before it, so all of it is there before
// any of it leaves, and an error after the first key is still an error of the call.

// rangeReply is an answer of Range, which is encoded once. The zero value is none.
type rangeReply struct {
	message *pb.RangeResponse
	encoded *encodedKeys // the keys, which message does not have; nil: it has them
}

// replyOf is what a call of Range was answered, in either form.
func replyOf(resp any) rangeReply {
	switch r := resp.(type) {
	case *pb.RangeResponse:
		return rangeReply{message: r}
	case *rangeReply:
		if r != nil {
			return *r
		}
	}
	return rangeReply{}
}

// keys is how many keys the answer has.
func (r rangeReply) keys() int {
	if r.encoded != nil {
		return r.encoded.keys
	}
	return len(r.message.GetKvs())
}

// bytes are those of the keys and their values.
func (r rangeReply) bytes() int {
	if r.encoded != nil {
		return r.encoded.bytes
	}
	return sizeOf(r.message.GetKvs())
}

// size is that of the answer, encoded.
func (r rangeReply) size() int {
	if r.encoded != nil {
		return r.encoded.answerSize(r.message)
	}
	return proto.Size(r.message)
}

// encodedKeys are the keys of an answer as they are sent. It belongs to the call's goroutine.
type encodedKeys struct {
	pieceWriter
	keys, bytes int // how many; of them and their values
}

// add appends a key, which may change afterwards.
func (e *encodedKeys) add(kv *mvccpb.KeyValue) {
	e.keys++
	e.bytes += len(kv.Key) + len(kv.Value)
	e.keyValue(kv)
}

// length is that of the keys, encoded.
func (e *encodedKeys) length() int { return e.size + len(e.buf) }

// answerSize is that of the answer of which rest is what is not keys.
func (e *encodedKeys) answerSize(rest *pb.RangeResponse) int {
	return rangeResponseSize(rest) + e.length()
}

// answer is the whole answer. The keys are its own from now on.
func (e *encodedKeys) answer(rest *pb.RangeResponse) mem.BufferSlice {
	size := e.answerSize(rest)
	if len(e.out) == 0 && len(e.buf) <= pieceBytes/2 {
		// A piece that is mostly empty would be held until the client reads.
		data := written(size, func(b []byte) []byte {
			return appendRangeEnd(append(appendHeader(b, rest.Header), e.buf...), rest)
		})
		e.drop()
		return data
	}
	e.scratch = appendRangeEnd(e.scratch[:0], rest)
	e.write(e.scratch)
	e.flush()
	header := appendHeader(nil, rest.Header)
	if len(header)+e.size != size {
		panic("server: a response was encoded in another size than foretold")
	}
	data := append(make(mem.BufferSlice, 0, 1+len(e.out)), mem.SliceBuffer(header))
	data = append(data, e.out...)
	e.pieceWriter = pieceWriter{}
	return data
}
