package command

import (
	"fmt"
	"sync"
	"unicode/utf8"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Check reports whether Decode will accept the payload of a normal entry. It builds no message of
// what members write today, so it is cheap enough for every entry before anything is promised about
// it.
func Check(data []byte) error {
	if !requestShape().accepts(data, 0) {
		// Decode has the last word: it says what is wrong, handles messages nested deeper than we
		// look, and knows requests of the API of version 2.
		if _, err := Decode(data); err != nil {
			return fmt.Errorf("command: %w", err)
		}
	}
	return nil
}

// maxCheckedDepth is how deep accepts follows nested messages; package proto goes to 10,000.
const maxCheckedDepth = 100

// shape is the part of a message type that can make decoding fail: its fields with inner structure.
type shape struct {
	fields map[protowire.Number]*fieldShape
	low    [64]*fieldShape // the same, of small numbers
}

// fieldShape is one field. At most one of its members is set; with none, only the wire format
// counts.
type fieldShape struct {
	message *shape
	text    bool // must be UTF-8
	// packed is the type of the numbers in a repeated field, which may come in one piece.
	packed   protowire.Type
	isPacked bool
}

// requestShape is that of InternalRaftRequest, from its descriptor.
var requestShape = sync.OnceValue(func() *shape {
	return shapeOf((*pb.InternalRaftRequest)(nil).ProtoReflect().Descriptor(), make(map[protoreflect.FullName]*shape))
})

func shapeOf(d protoreflect.MessageDescriptor, known map[protoreflect.FullName]*shape) *shape {
	if s := known[d.FullName()]; s != nil {
		return s
	}
	s := &shape{fields: make(map[protowire.Number]*fieldShape)}
	known[d.FullName()] = s
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		shape := &fieldShape{}
		switch kind := f.Kind(); {
		case kind == protoreflect.GroupKind || f.IsMap():
			panic(fmt.Sprintf("command: field %s is of a kind that Check does not know", f.FullName()))
		case kind == protoreflect.MessageKind:
			shape.message = shapeOf(f.Message(), known)
		case kind == protoreflect.StringKind:
			shape.text = true
		case kind == protoreflect.BytesKind || !f.IsList():
			continue
		default:
			shape.packed, shape.isPacked = wireType(kind), true
		}
		s.fields[f.Number()] = shape
		if int(f.Number()) < len(s.low) {
			s.low[f.Number()] = shape
		}
	}
	return s
}

// wireType is how one number of a kind is written.
func wireType(kind protoreflect.Kind) protowire.Type {
	switch kind {
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return protowire.Fixed32Type
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return protowire.Fixed64Type
	}
	return protowire.VarintType
}

// accepts is false for what cannot be decoded, and where it cannot decide.
func (s *shape) accepts(data []byte, depth int) bool {
	if depth > maxCheckedDepth {
		return false
	}
	for len(data) > 0 {
		num, typ, n := protowire.ConsumeTag(data)
		if n < 0 || num > protowire.MaxValidNumber {
			return false
		}
		data = data[n:]
		if typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, typ, data); n < 0 {
				return false
			}
			data = data[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(data)
		if n < 0 {
			return false
		}
		data = data[n:]
		var f *fieldShape
		if int(num) < len(s.low) {
			f = s.low[num]
		} else {
			f = s.fields[num]
		}
		switch {
		case depth == 0 && num == fieldRequestV2:
			return false // Decode looks into it
		case f == nil:
		case f.message != nil && !f.message.accepts(value, depth+1), f.text && !utf8.Valid(value):
			return false
		case f.isPacked:
			for len(value) > 0 {
				if n = protowire.ConsumeFieldValue(1, f.packed, value); n < 0 {
					return false
				}
				value = value[n:]
			}
		}
	}
	return true
}
