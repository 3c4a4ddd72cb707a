package server

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func opPut(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key)}}}
}

func opDelete(key, end string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
		RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)}}}
}

func opRange(r *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
}

func opTxnOf(success, failure []*pb.RequestOp) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: success, Failure: failure}}}
}

func ops(list ...*pb.RequestOp) []*pb.RequestOp { return list }

// Texts and codes as clients match them.
const (
	textEmptyKey  = "etcdserver: key is not provided"
	textDuplicate = "etcdserver: duplicate key given in txn request"
	textTooMany   = "etcdserver: too many operations in txn request"
)

func checkStatus(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	if code == codes.OK {
		if err != nil {
			t.Fatalf("error %v, want none", err)
		}
		return
	}
	if st := status.Convert(err); st.Code() != code || st.Message() != text {
		t.Fatalf("error %v %q, want %v %q", st.Code(), st.Message(), code, text)
	}
}

// opKeep is a put that keeps the key's value.
func opKeep(key string) *pb.RequestOp {
	op := opPut(key)
	op.GetRequestPut().IgnoreValue = true
	return op
}

func TestCheckTxn(t *testing.T) {
	a, b := opPut("a"), opPut("b")
	del := opDelete("a", "c")
	cases := []struct {
		name string
		txn  *pb.TxnRequest
		code codes.Code
		text string
	}{
		{name: "empty", txn: &pb.TxnRequest{}},
		{name: "an empty operation", txn: &pb.TxnRequest{Success: ops(&pb.RequestOp{})}, code: codes.InvalidArgument, text: "etcdserver: key not found"},
		{name: "a compare without key", txn: &pb.TxnRequest{Compare: []*pb.Compare{{}}}, code: codes.InvalidArgument, text: textEmptyKey},
		{name: "a put without key", txn: &pb.TxnRequest{Failure: ops(opPut(""))}, code: codes.InvalidArgument, text: textEmptyKey},
		{name: "a delete without key", txn: &pb.TxnRequest{Failure: ops(opDelete("", ""))}, code: codes.InvalidArgument, text: textEmptyKey},
		{name: "a nested put without key", txn: &pb.TxnRequest{Failure: ops(opTxnOf(nil, ops(opPut(""))))}, code: codes.InvalidArgument, text: textEmptyKey},
		{name: "a bad sort order in a range", txn: &pb.TxnRequest{Success: ops(opRange(&pb.RangeRequest{Key: []byte("a"), SortOrder: 9}))},
			code: codes.InvalidArgument, text: "etcdserver: invalid sort option"},
		{name: "as many operations as may be", txn: &pb.TxnRequest{Success: ops(a, b, opPut("c"), opPut("d"))}},
		{name: "one more", txn: &pb.TxnRequest{Success: ops(a, b, opPut("c"), opPut("d"), opPut("e"))}, code: codes.InvalidArgument, text: textTooMany},
		{name: "too many compares", txn: &pb.TxnRequest{Compare: make([]*pb.Compare, 5)}, code: codes.InvalidArgument, text: textTooMany},
		{name: "nested: what is left", txn: &pb.TxnRequest{Success: ops(opTxnOf(ops(a, b, opPut("c")), nil))}},
		{name: "nested: beyond what is left", txn: &pb.TxnRequest{Success: ops(opTxnOf(ops(a, b, opPut("c"), opPut("d")), nil))}, code: codes.InvalidArgument, text: textTooMany},
		{name: "a key put twice", txn: &pb.TxnRequest{Success: ops(a, a)}, code: codes.InvalidArgument, text: textDuplicate},
		{name: "a key put in both branches", txn: &pb.TxnRequest{Success: ops(a), Failure: ops(a)}},
		{name: "put and deleted", txn: &pb.TxnRequest{Failure: ops(b, del)}, code: codes.InvalidArgument, text: textDuplicate},
		{name: "put beside a deleted range", txn: &pb.TxnRequest{Success: ops(opPut("c"), del)}},
		{name: "put and deleted, one key", txn: &pb.TxnRequest{Success: ops(opDelete("a", ""), a)}, code: codes.InvalidArgument, text: textDuplicate},
		{name: "deletes that overlap", txn: &pb.TxnRequest{Success: ops(del, opDelete("b", "d"))}},
		{name: "deleted from a key on: etcd lets it pass", txn: &pb.TxnRequest{Success: ops(opDelete("a", "\x00"), b)}},
		{name: "its value kept, deleted from a key on", txn: &pb.TxnRequest{Success: ops(opDelete("a", "\x00"), opKeep("b"))}, code: codes.InvalidArgument, text: textDuplicate},
		{name: "its value kept, deleted afterwards", txn: &pb.TxnRequest{Success: ops(opKeep("b"), opDelete("a", "\x00"))}},
		{name: "its value kept, below what is deleted", txn: &pb.TxnRequest{Success: ops(opDelete("b", "\x00"), opKeep("a"))}},
		{name: "its value kept, deleted in the other branch", txn: &pb.TxnRequest{Success: ops(opDelete("a", "\x00")), Failure: ops(opKeep("b"))}},
		{name: "its value kept, deleted in a nested one", txn: &pb.TxnRequest{Failure: ops(opTxnOf(nil, ops(opDelete("a", "\x00"))), opKeep("b"))}, code: codes.InvalidArgument, text: textDuplicate},
		{name: "its value kept in a nested one, deleted before", txn: &pb.TxnRequest{Failure: ops(opDelete("a", "\x00"), opTxnOf(ops(opKeep("b")), nil))}, code: codes.InvalidArgument, text: textDuplicate},
		{name: "its value kept in one nested branch, deleted in the other", txn: &pb.TxnRequest{Success: ops(opTxnOf(ops(opDelete("a", "\x00")), ops(opKeep("b"))))}},
		{name: "nested branches exclude each other", txn: &pb.TxnRequest{Success: ops(opTxnOf(ops(a), ops(a)))}},
		{name: "nested and beside", txn: &pb.TxnRequest{Success: ops(a, opTxnOf(nil, ops(a)))}, code: codes.InvalidArgument, text: textDuplicate},
		{name: "two nested", txn: &pb.TxnRequest{Success: ops(opTxnOf(ops(a), nil), opTxnOf(nil, ops(a)))}, code: codes.InvalidArgument, text: textDuplicate},
		{name: "nested put, deleted beside", txn: &pb.TxnRequest{Success: ops(opTxnOf(ops(b), nil), del)}, code: codes.InvalidArgument, text: textDuplicate},
		{name: "nested delete, put beside", txn: &pb.TxnRequest{Success: ops(b, opTxnOf(ops(del), nil))}, code: codes.InvalidArgument, text: textDuplicate},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			checkStatus(t, checkTxn(c.txn, 4), c.code, c.text)
		})
	}
}

func TestCheckRangeStream(t *testing.T) {
	cases := []struct {
		name string
		req  *pb.RangeRequest
		code codes.Code
		text string
	}{
		{"no key", &pb.RangeRequest{}, codes.InvalidArgument, textEmptyKey},
		{"plain", &pb.RangeRequest{Key: []byte("a")}, codes.OK, ""},
		{"by key", &pb.RangeRequest{Key: []byte("a"), SortOrder: pb.RangeRequest_ASCEND}, codes.OK, ""},
		{"a target without an order", &pb.RangeRequest{Key: []byte("a"), SortTarget: pb.RangeRequest_MOD}, codes.OK, ""},
		{"descending", &pb.RangeRequest{Key: []byte("a"), SortOrder: pb.RangeRequest_DESCEND}, codes.Unimplemented, "RangeStream does not support custom sort orders"},
		{"by version", &pb.RangeRequest{Key: []byte("a"), SortOrder: pb.RangeRequest_ASCEND, SortTarget: pb.RangeRequest_VERSION},
			codes.Unimplemented, "RangeStream does not support custom sort orders"},
		{"filter", &pb.RangeRequest{Key: []byte("a"), MaxCreateRevision: 3}, codes.Unimplemented, "RangeStream does not support revision filters"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { checkStatus(t, checkRangeStream(c.req), c.code, c.text) })
	}
}

// Whatever a client sends, checking it must not panic.
func FuzzCheckTxn(f *testing.F) {
	for _, txn := range []*pb.TxnRequest{
		{Success: ops(opPut("a"), opDelete("a", "\x00"), opTxnOf(ops(opPut("b")), ops(opDelete("b", "a"))))},
		{Compare: []*pb.Compare{{Key: []byte("k")}}},
	} {
		b, err := marshal(txn)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		txn := &pb.TxnRequest{}
		if unmarshal(data, txn) == nil {
			_ = checkTxn(txn, 8)
			txnReads(txn)
		}
	})
}
