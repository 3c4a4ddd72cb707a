package state

import (
	"strconv"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/belaydb/belay/logsink"
)

// How requests get into log lines. The text of a whole request may have a hundred megabytes and
// take seconds, in the applier of every member. So it is made from a small copy: long keys and
// names are cut, and only the first few operations are taken. These constants bound the cost,
// whatever the request is.
const (
	logKeyBytes = 256     // of one key or name
	logBytes    = 1 << 10 // of all of them
	logMessages = 24      // operations and whatever else is nested
)

// RequestText describes a request, or a part of one, as etcd does: values and passwords by their
// size or not at all. (Of a simple token etcd shows the letters; the rest of it is an index that
// can be guessed.) Call it only for a line that will be written.
func RequestText(r proto.Message) string {
	if !r.ProtoReflect().IsValid() {
		return ""
	}
	c := clipper{bytes: logBytes, messages: logMessages}
	small := c.clip(r.ProtoReflect()).Interface()
	var text string
	switch r := small.(type) {
	case *pb.InternalRaftRequest:
		if r.Authenticate.GetSimpleToken() != "" {
			r.Authenticate.SimpleToken = "redacted"
		}
		text = (&pb.InternalRaftStringer{Request: r}).String()
	case *pb.TxnRequest:
		text = pb.NewLoggableTxnRequest(r).String()
	case *pb.PutRequest:
		text = pb.NewLoggablePutRequest(r).String()
	case interface{ String() string }:
		text = r.String()
	}
	text = logsink.Cut(text, logsink.MaxFieldBytes-64)
	if c.left > 0 {
		text += " (and " + strconv.Itoa(c.left) + " more)"
	}
	return text
}

// clipper copies messages within its bounds.
type clipper struct {
	bytes, messages int // what there is room for
	left            int // elements of lists that were left out
}

func (c *clipper) clip(m protoreflect.Message) protoreflect.Message {
	c.messages--
	small := m.New()
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap(): // no request has one
		case fd.IsList():
			from, to := v.List(), small.Mutable(fd).List()
			for i := range from.Len() {
				if c.messages <= 0 || c.bytes <= 0 {
					c.left += from.Len() - i
					break
				}
				to.Append(c.value(fd, from.Get(i)))
			}
		case fd.Message() != nil && c.messages <= 0:
			c.left++
		default:
			small.Set(fd, c.value(fd, v))
		}
		return true
	})
	return small
}

func (c *clipper) value(fd protoreflect.FieldDescriptor, v protoreflect.Value) protoreflect.Value {
	switch {
	case fd.Message() != nil:
		return protoreflect.ValueOfMessage(c.clip(v.Message()))
	case fd.Kind() == protoreflect.StringKind:
		return protoreflect.ValueOfString(cut(c, v.String()))
	case fd.Kind() != protoreflect.BytesKind:
		return v
	case fd.FullName() == putValue || fd.FullName() == compareValue:
		return v // only its size is shown, so it need not be copied
	}
	return protoreflect.ValueOfBytes([]byte(cut(c, v.Bytes())))
}

func cut[Text ~string | ~[]byte](c *clipper, s Text) string {
	text := logsink.Cut(s, max(0, min(logKeyBytes, c.bytes)))
	c.bytes -= len(text)
	return text
}

var (
	putValue     = (&pb.PutRequest{}).ProtoReflect().Descriptor().Fields().ByName("value").FullName()
	compareValue = (&pb.Compare{}).ProtoReflect().Descriptor().Fields().ByName("value").FullName()
)
