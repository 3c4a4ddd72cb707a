package check

import (
	"context"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/proof/cluster"
)

// TestHashAfterDeleteAndPut: a key that one revision deletes and makes again counts in etcd's hash
// like one that does not exist (found by TestAuthDifferential with seed 77).
func TestHashAfterDeleteAndPut(t *testing.T) {
	t.Parallel()
	var hashes [2][]uint32
	for i, kind := range []cluster.Kind{cluster.Belay, cluster.Etcd} {
		c := startCluster(t, cluster.Config{Kind: kind, Size: 1, Args: []string{"--unsafe-no-fsync"}})
		conn, err := c.Members[0].Dial()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		kv, maint := pb.NewKVClient(conn), pb.NewMaintenanceClient(conn)
		must := func(_ any, err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		put := func(key string) *pb.RequestOp {
			return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte("v")}}}
		}
		nested := func(ops ...*pb.RequestOp) *pb.RequestOp {
			return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: ops}}}
		}
		deleteAll := &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}}}
		for _, key := range []string{"a", "b", "c"} {
			must(kv.Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte("1")}))
		}
		must(kv.Compact(ctx, &pb.CompactionRequest{Revision: 4, Physical: true}))
		must(kv.Put(ctx, &pb.PutRequest{Key: []byte("d")}))
		// At 6 only c exists, which it has deleted before; at 7 e, too.
		must(kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{nested(deleteAll), nested(put("c"))}}))
		must(kv.Put(ctx, &pb.PutRequest{Key: []byte("e")}))
		must(kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{nested(deleteAll), nested(put("c")), nested(put("f"))}}))
		must(kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}))
		for rev := int64(4); rev <= 9; rev++ {
			r, err := maint.HashKV(ctx, &pb.HashKVRequest{Revision: rev})
			must(r, err)
			hashes[i] = append(hashes[i], r.Hash)
		}
	}
	for i, got := range hashes[0] {
		if want := hashes[1][i]; got != want {
			t.Errorf("hash of revision %d: %d, etcd's is %d", i+4, got, want)
		}
	}
}
