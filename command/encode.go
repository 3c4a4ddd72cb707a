package command

import (
	"slices"
	"unicode/utf8"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Field numbers of raft_internal.proto and rpc.proto that the hand-written forms use.
const (
	fieldRequestID     = 1
	fieldRequestV2     = 2 // of etcd before 3.6
	fieldRequestPut    = 4
	fieldRequestHeader = 100

	fieldHeaderID           = 1
	fieldHeaderUsername     = 2
	fieldHeaderAuthRevision = 3

	fieldPutKey         = 1
	fieldPutValue       = 2
	fieldPutLease       = 3
	fieldPutPrevKV      = 4
	fieldPutIgnoreValue = 5
	fieldPutIgnoreLease = 6
)

// Encode returns the payload of a normal entry: the same bytes as proto.Marshal. The error is
// proto's: a string that is not UTF-8.
func Encode(req *pb.InternalRaftRequest) ([]byte, error) { return Append(nil, req) }

// Append appends the encoding to dst, reallocating it only if it has no room.
func Append(dst []byte, req *pb.InternalRaftRequest) ([]byte, error) {
	if !isPlainPut(req) {
		return proto.MarshalOptions{}.MarshalAppend(dst, req)
	}
	put, header := req.Put, req.Header
	size, putSize, headerSize := plainPutSizes(req)
	b, before := slices.Grow(dst, size), len(dst)
	b = appendVarint(b, fieldRequestID, req.ID)
	b = append(b, fieldRequestPut<<3|byte(protowire.BytesType))
	b = protowire.AppendVarint(b, uint64(putSize))
	b = appendBytes(b, fieldPutKey, put.Key)
	b = appendBytes(b, fieldPutValue, put.Value)
	b = appendVarint(b, fieldPutLease, uint64(put.Lease))
	b = appendTrue(b, fieldPutPrevKV, put.PrevKv)
	b = appendTrue(b, fieldPutIgnoreValue, put.IgnoreValue)
	b = appendTrue(b, fieldPutIgnoreLease, put.IgnoreLease)
	if header != nil {
		b = protowire.AppendTag(b, fieldRequestHeader, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(headerSize))
		b = appendVarint(b, fieldHeaderID, header.ID)
		if header.Username != "" {
			b = append(b, fieldHeaderUsername<<3|byte(protowire.BytesType))
			b = protowire.AppendString(b, header.Username)
		}
		b = appendVarint(b, fieldHeaderAuthRevision, header.AuthRevision)
	}
	if len(b)-before != size {
		panic("command: Encode foretold another size than it wrote") // the sizes computed above disagree with the appends
	}
	return b, nil
}

// Size is how many bytes Append would append.
func Size(req *pb.InternalRaftRequest) int {
	if !isPlainPut(req) {
		return proto.Size(req)
	}
	size, _, _ := plainPutSizes(req)
	return size
}

// plainPutSizes foretells the encoding of a plain put, and of its two messages, in bytes.
func plainPutSizes(req *pb.InternalRaftRequest) (size, putSize, headerSize int) {
	put, header := req.Put, req.Header
	putSize = sizeBytes(put.Key) + sizeBytes(put.Value) + sizeVarint(uint64(put.Lease))
	if put.PrevKv {
		putSize += 2
	}
	if put.IgnoreValue {
		putSize += 2
	}
	if put.IgnoreLease {
		putSize += 2
	}
	size = sizeVarint(req.ID) + 1 + protowire.SizeBytes(putSize)
	if header != nil {
		headerSize = sizeVarint(header.ID) + sizeVarint(header.AuthRevision)
		if n := len(header.Username); n > 0 {
			headerSize += 1 + protowire.SizeBytes(n)
		}
		size += 2 + protowire.SizeBytes(headerSize)
	}
	return size, putSize, headerSize
}

// isPlainPut reports whether the request is a put and a header and nothing else at all.
func isPlainPut(r *pb.InternalRaftRequest) bool {
	if r.Put == nil || hasOtherThanPut(r) {
		return false
	}
	if len(r.ProtoReflect().GetUnknown()) != 0 || len(r.Put.ProtoReflect().GetUnknown()) != 0 {
		return false
	}
	if r.Header == nil {
		return true
	}
	return utf8.ValidString(r.Header.Username) && len(r.Header.ProtoReflect().GetUnknown()) == 0
}

// hasOtherThanPut names every other field of the message. TestEncodeEqualsProto sets each field in
// turn, so that a field added by a newer API is not forgotten here.
func hasOtherThanPut(r *pb.InternalRaftRequest) bool {
	return r.Range != nil || r.DeleteRange != nil || r.Txn != nil || r.Compaction != nil ||
		r.LeaseGrant != nil || r.LeaseRevoke != nil || r.Alarm != nil || r.LeaseCheckpoint != nil ||
		r.AuthEnable != nil || r.AuthDisable != nil || r.AuthStatus != nil || r.Authenticate != nil ||
		r.AuthUserAdd != nil || r.AuthUserDelete != nil || r.AuthUserGet != nil ||
		r.AuthUserChangePassword != nil || r.AuthUserGrantRole != nil || r.AuthUserRevokeRole != nil ||
		r.AuthUserList != nil || r.AuthRoleList != nil || r.AuthRoleAdd != nil || r.AuthRoleDelete != nil ||
		r.AuthRoleGet != nil || r.AuthRoleGrantPermission != nil || r.AuthRoleRevokePermission != nil ||
		r.ClusterVersionSet != nil || r.ClusterMemberAttrSet != nil || r.DowngradeInfoSet != nil ||
		r.DowngradeVersionTest != nil
}

// The size and append functions below are for fields numbered 1 to 15 (a tag of one byte) and leave
// out zero values, as proto3 does.

func sizeBytes(v []byte) int {
	if len(v) == 0 {
		return 0
	}
	return 1 + protowire.SizeBytes(len(v))
}

func sizeVarint(v uint64) int {
	if v == 0 {
		return 0
	}
	return 1 + protowire.SizeVarint(v)
}

func appendBytes(b []byte, field byte, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	b = append(b, field<<3|byte(protowire.BytesType))
	return protowire.AppendBytes(b, v)
}

func appendVarint(b []byte, field byte, v uint64) []byte {
	if v == 0 {
		return b
	}
	b = append(b, field<<3|byte(protowire.VarintType))
	return protowire.AppendVarint(b, v)
}

func appendTrue(b []byte, field byte, v bool) []byte {
	if !v {
		return b
	}
	return append(b, field<<3|byte(protowire.VarintType), 1)
}
