package load

import (
	"bytes"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// Codec sends a Request, or bytes, as they are and drops answers undecoded, except into a *[]byte,
// which gets a copy. The content type stays that of protobuf.
type Codec struct{}

// Name is the content subtype.
func (Codec) Name() string { return "proto" }

// Marshal takes []byte and *Request.
func (Codec) Marshal(v any) (mem.BufferSlice, error) {
	switch v := v.(type) {
	case []byte:
		return mem.BufferSlice{mem.SliceBuffer(v)}, nil
	case *Request:
		return v.pieces, nil
	}
	return nil, fmt.Errorf("load: %T is not encoded", v)
}

// Unmarshal copies into a *[]byte; v may be nil.
func (Codec) Unmarshal(data mem.BufferSlice, v any) error {
	if out, ok := v.(*[]byte); ok && out != nil {
		*out = append((*out)[:0], data.Materialize()...)
	}
	return nil
}

// Raw makes a call one of Codec.
func Raw() grpc.CallOption { return grpc.ForceCodecV2(Codec{}) }

// Methods that are called with encoded requests.
const (
	MethodPut       = "/etcdserverpb.KV/Put"
	MethodRange     = "/etcdserverpb.KV/Range"
	MethodTxn       = "/etcdserverpb.KV/Txn"
	MethodDelete    = "/etcdserverpb.KV/DeleteRange"
	MethodWatch     = "/etcdserverpb.Watch/Watch"
	MethodKeepAlive = "/etcdserverpb.Lease/LeaseKeepAlive"
)

// Encode is a message's bytes.
func Encode(m proto.Message) ([]byte, error) {
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("load: encode: %w", err)
	}
	return b, nil
}

// A Template is an encoded message with places for keys of one size. It does not change, so any
// number of clients share it: a value of 1 MB is in memory once.
type Template struct {
	whole   []byte
	places  []int // where the keys are, ascending
	keySize int
}

// NewTemplate finds the places by encoding the message with two keys that differ in every byte.
// REQUIRES: keySize > 0, and message puts its argument where a key belongs and nothing else in its
// place.
func NewTemplate(keySize int, message func(key []byte) proto.Message) (*Template, error) {
	whole, err := Encode(message(make([]byte, keySize)))
	if err != nil {
		return nil, err
	}
	other, err := Encode(message(bytes.Repeat([]byte{0xff}, keySize)))
	if err != nil {
		return nil, err
	}
	t := &Template{whole: whole, keySize: keySize}
	if len(whole) != len(other) {
		return nil, fmt.Errorf("load: a message of %d and %d bytes", len(whole), len(other))
	}
	for i := 0; i < len(whole); i++ {
		if whole[i] != other[i] {
			t.places = append(t.places, i)
			i += keySize - 1
		}
	}
	return t, nil
}

// Keys is how many keys the message has.
func (t *Template) Keys() int { return len(t.places) }

// A Request is one client's: the shared pieces of a Template and between them its own keys.
type Request struct {
	t      *Template
	keys   [][]byte
	pieces mem.BufferSlice
}

// Request makes a client's own one; its keys are zeros.
func (t *Template) Request() *Request {
	r := &Request{t: t}
	r.Renew()
	return r
}

// Key is the place of key i, to be written before the request is sent.
func (r *Request) Key(i int) []byte { return r.keys[i] }

// Renew gives the request new places for its keys. It is called after a call that failed: the
// transport may still be reading the old ones.
func (r *Request) Renew() {
	own := make([]byte, len(r.t.places)*r.t.keySize)
	r.keys, r.pieces = make([][]byte, len(r.t.places)), make(mem.BufferSlice, 0, 2*len(r.t.places)+1)
	from := 0
	for i, at := range r.t.places {
		r.keys[i] = own[i*r.t.keySize:][:r.t.keySize:r.t.keySize]
		r.pieces = append(r.pieces, mem.SliceBuffer(r.t.whole[from:at]), mem.SliceBuffer(r.keys[i]))
		from = at + r.t.keySize
	}
	if from < len(r.t.whole) {
		r.pieces = append(r.pieces, mem.SliceBuffer(r.t.whole[from:]))
	}
}
