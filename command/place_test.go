package command

import (
	"bytes"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// TestPutValue: the value is found in what Encode makes of a put, whatever else the put has, and in
// nothing else.
func TestPutValue(t *testing.T) {
	value := bytes.Repeat([]byte("v"), 1000)
	put := &pb.PutRequest{Key: bytes.Repeat([]byte("v"), 2000), Value: value, Lease: 7, PrevKv: true}
	for name, c := range map[string]struct {
		request *pb.InternalRaftRequest
		found   bool
	}{
		"put":       {&pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: 1, Username: "u", AuthRevision: 3}, Put: put}, true},
		"no header": {&pb.InternalRaftRequest{ID: 5, Put: put}, true},
		"no value":  {&pb.InternalRaftRequest{ID: 5, Put: &pb.PutRequest{Key: []byte("k"), IgnoreValue: true}}, false},
		"both":      {&pb.InternalRaftRequest{ID: 5, Put: &pb.PutRequest{Key: []byte("k"), Value: value, IgnoreValue: true}}, false},
		"txn": {&pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: 1}, Txn: &pb.TxnRequest{
			Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: put}}},
		}}, false},
	} {
		data, err := Encode(c.request)
		if err != nil {
			t.Fatal(err)
		}
		at, n, ok := PutValue(data)
		if ok != c.found || ok && !bytes.Equal(data[at:at+n], value) {
			t.Errorf("%s: %d bytes at %d, %t", name, n, at, ok)
		}
		if ok && at < len(put.Key) {
			t.Errorf("%s: it begins within the key", name)
		}
	}
	if _, _, ok := PutValue(nil); ok {
		t.Error("there is a value in nothing")
	}
}
