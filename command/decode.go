package command

import (
	"unicode/utf8"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Decode reads the payload of a normal entry. The request may refer to data, which must not change
// afterwards. It accepts what proto.Unmarshal accepts, and gives an equal message; and requests of
// the API of version 2, which etcd 3.5 still writes, as what they mean (FromV2). It is nil for one
// of these that has no effect.
func Decode(data []byte) (*pb.InternalRaftRequest, error) {
	if req := decodePlainPut(data); req != nil {
		return req, nil
	}
	req := new(pb.InternalRaftRequest)
	err := proto.Unmarshal(data, req)
	if err == nil && len(req.ProtoReflect().GetUnknown()) == 0 {
		return req, nil
	}
	if old, ok, oldErr := FromV2(data); ok {
		return old, oldErr
	}
	if err != nil {
		return nil, err
	}
	return req, nil
}

// RequestID returns the id by which a proposer waits for the entry: that of the request itself
// (field 1, older etcd), or else that of its header (field 100.1). It looks at nothing else; it is
// 0 if there is none or data is not a request.
func RequestID(data []byte) uint64 {
	var own, header uint64
	for len(data) > 0 {
		num, typ, n := protowire.ConsumeTag(data)
		if n < 0 {
			return 0
		}
		data = data[n:]
		switch {
		case num == fieldRequestID && typ == protowire.VarintType:
			if own, n = protowire.ConsumeVarint(data); n < 0 {
				return 0
			}
		case num == fieldRequestHeader && typ == protowire.BytesType:
			var sub []byte
			if sub, n = protowire.ConsumeBytes(data); n < 0 {
				return 0
			}
			// A message field that occurs twice is merged: a later id wins, a missing one leaves
			// the earlier.
			id, found, ok := headerID(sub)
			if !ok {
				return 0
			}
			if found {
				header = id
			}
		default:
			if n = protowire.ConsumeFieldValue(num, typ, data); n < 0 {
				return 0
			}
		}
		data = data[n:]
	}
	if own != 0 {
		return own
	}
	return header
}

func headerID(data []byte) (id uint64, found, ok bool) {
	for len(data) > 0 {
		num, typ, n := protowire.ConsumeTag(data)
		if n < 0 {
			return 0, false, false
		}
		data = data[n:]
		if num == fieldHeaderID && typ == protowire.VarintType {
			id, n = protowire.ConsumeVarint(data)
			found = true
		} else {
			n = protowire.ConsumeFieldValue(num, typ, data)
		}
		if n < 0 {
			return 0, false, false
		}
		data = data[n:]
	}
	return id, found, true
}

// plainPut is a put with its envelope, in one allocation.
type plainPut struct {
	request pb.InternalRaftRequest
	header  pb.RequestHeader
	put     pb.PutRequest
}

// decodePlainPut reads the one form that isPlainPut describes: fields in ascending order, each at
// most once, of the expected wire type. For anything else, valid or not, it returns nil and leaves
// the decision to package proto. Keys and values refer to data.
func decodePlainPut(data []byte) *pb.InternalRaftRequest {
	var id uint64
	if len(data) > 0 && data[0] == fieldRequestID<<3|byte(protowire.VarintType) {
		v, n := protowire.ConsumeVarint(data[1:])
		if n < 0 {
			return nil
		}
		id, data = v, data[1+n:]
	}
	if len(data) == 0 || data[0] != fieldRequestPut<<3|byte(protowire.BytesType) {
		return nil
	}
	put, n := protowire.ConsumeBytes(data[1:])
	if n < 0 {
		return nil
	}
	data = data[1+n:]

	p := new(plainPut)
	p.request.ID = id
	p.request.Put = &p.put
	if !decodePut(put, &p.put) {
		return nil
	}
	if len(data) == 0 {
		return &p.request
	}
	num, typ, n := protowire.ConsumeTag(data)
	if n < 0 || num != fieldRequestHeader || typ != protowire.BytesType {
		return nil
	}
	header, m := protowire.ConsumeBytes(data[n:])
	if m < 0 || n+m != len(data) {
		return nil
	}
	p.request.Header = &p.header
	if !decodeHeader(header, &p.header) {
		return nil
	}
	return &p.request
}

func decodePut(data []byte, put *pb.PutRequest) bool {
	last := byte(0)
	for len(data) > 0 {
		tag := data[0]
		if tag>>3 <= last {
			return false
		}
		last = tag >> 3
		switch tag {
		case fieldPutKey<<3 | byte(protowire.BytesType), fieldPutValue<<3 | byte(protowire.BytesType):
			v, n := protowire.ConsumeBytes(data[1:])
			if n < 0 {
				return false
			}
			if last == fieldPutKey {
				put.Key = v[:len(v):len(v)]
			} else {
				put.Value = v[:len(v):len(v)]
			}
			data = data[1+n:]
		case fieldPutLease << 3, fieldPutPrevKV << 3, fieldPutIgnoreValue << 3, fieldPutIgnoreLease << 3:
			v, n := protowire.ConsumeVarint(data[1:])
			if n < 0 {
				return false
			}
			switch last {
			case fieldPutLease:
				put.Lease = int64(v)
			case fieldPutPrevKV:
				put.PrevKv = v != 0
			case fieldPutIgnoreValue:
				put.IgnoreValue = v != 0
			case fieldPutIgnoreLease:
				put.IgnoreLease = v != 0
			}
			data = data[1+n:]
		default:
			return false
		}
	}
	return true
}

func decodeHeader(data []byte, header *pb.RequestHeader) bool {
	last := byte(0)
	for len(data) > 0 {
		tag := data[0]
		if tag>>3 <= last {
			return false
		}
		last = tag >> 3
		switch tag {
		case fieldHeaderID << 3, fieldHeaderAuthRevision << 3:
			v, n := protowire.ConsumeVarint(data[1:])
			if n < 0 {
				return false
			}
			if last == fieldHeaderID {
				header.ID = v
			} else {
				header.AuthRevision = v
			}
			data = data[1+n:]
		case fieldHeaderUsername<<3 | byte(protowire.BytesType):
			v, n := protowire.ConsumeBytes(data[1:])
			if n < 0 || !utf8.Valid(v) {
				return false
			}
			header.Username = string(v)
			data = data[1+n:]
		default:
			return false
		}
	}
	return true
}
