package relay

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/cli/proxy/upstream"
)

// ask is a request of a unary method for the members. Some reads are answered with what the one member
// has, so that another one may be behind what the client has seen: a serializable Range, and a Txn that
// has nothing but such.
func (m *method) ask(f *upstream.Frame) upstream.Request {
	r := upstream.Request{Method: m.full, Frame: f, Read: m.read}
	switch m.full {
	case rangeMethod:
		r.Ordered = true
		if serializable(f.Head) {
			r.Fresh = func() *upstream.Frame { return linearizable(f) }
		}
	case txnMethod:
		if serializableTxn(f.Head) {
			r.Read, r.Ordered = true, true
			r.Fresh = func() *upstream.Frame { return linearizableTxn(f) }
		}
	}
	return r
}

// eachField calls each with the fields of a message, in their order, until it says false. It reports
// whether all were seen and the message is whole.
func eachField(b []byte, each func(number protowire.Number, kind protowire.Type, value []byte) bool) bool {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 || !each(number, kind, b[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

const serializableField = 7 // of a RangeRequest

// serializable reports whether a RangeRequest is one.
func serializable(b []byte) bool { return flagged(b, serializableField) }

// flagged reports whether a message has a flag. Of a field that comes twice the last one counts.
func flagged(b []byte, flag protowire.Number) (yes bool) {
	eachField(b, func(number protowire.Number, kind protowire.Type, value []byte) bool {
		if number == flag && kind == protowire.VarintType {
			v, _ := protowire.ConsumeVarint(value)
			yes = v != 0
		}
		return true
	})
	return yes
}

// ofMany reports whether a RangeRequest is of more than one key.
func ofMany(b []byte) (yes bool) {
	const rangeEnd = 2
	eachField(b, func(number protowire.Number, kind protowire.Type, value []byte) bool {
		if number == rangeEnd && kind == protowire.BytesType {
			end, _ := protowire.ConsumeBytes(value)
			yes = len(end) > 0
		}
		return true
	})
	return yes
}

// linearizable is the same RangeRequest as a linearizable one.
func linearizable(f *upstream.Frame) *upstream.Frame {
	b := append([]byte(nil), f.Head...)
	b = protowire.AppendTag(b, serializableField, protowire.VarintType)
	return &upstream.Frame{Head: protowire.AppendVarint(b, 0)}
}

// serializableTxn reports whether a member answers a TxnRequest from what it has: its operations are
// serializable ranges, or there are none. One with a Txn in it goes through the log.
func serializableTxn(b []byte) bool {
	const success, failure, requestRange = 2, 3, 1
	return eachField(b, func(number protowire.Number, kind protowire.Type, value []byte) bool {
		if number != success && number != failure {
			return true
		}
		op, n := protowire.ConsumeBytes(value)
		if kind != protowire.BytesType || n < 0 || len(op) == 0 {
			return false
		}
		return eachField(op, func(number protowire.Number, kind protowire.Type, value []byte) bool {
			r, n := protowire.ConsumeBytes(value)
			return number == requestRange && kind == protowire.BytesType && n >= 0 && serializable(r)
		})
	})
}

// linearizableTxn is the same with linearizable ranges; f itself if it has none.
func linearizableTxn(f *upstream.Frame) *upstream.Frame {
	r := &pb.TxnRequest{}
	if proto.Unmarshal(f.Head, r) != nil {
		return f
	}
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			if g := op.GetRequestRange(); g != nil {
				g.Serializable = false
			}
		}
	}
	fresh, err := encode(r)
	if err != nil {
		return f
	}
	return fresh
}
