//go:build unix

package state

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/command"
)

// BenchmarkApply overwrites 256-byte values of 100,000 keys, in batches; the time is per put,
// making the requests included.
func BenchmarkApply(b *testing.B) {
	const keyCount = 100_000
	for _, size := range []int{1, 100, 500} {
		for _, leased := range []bool{false, true} {
			name := fmt.Sprintf("puts=%d", size)
			if leased {
				name += "/leased"
			}
			b.Run(name, func(b *testing.B) {
				r := newRig(b, Config{QuotaBytes: -1})
				r.cfg.Sink = nil
				r.Machine.cfg.Sink = nil
				id := int64(0)
				if leased {
					id = 7
					r.do(&pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: 7, TTL: 1000}})
				}
				rnd := rand.New(rand.NewPCG(1, 2))
				value := make([]byte, 256)
				for i := range value {
					value[i] = byte(rnd.Uint32())
				}
				var batch []command.Entry
				put := func(keys ...int) {
					index, _ := r.Applied()
					batch = batch[:0]
					for i, key := range keys {
						batch = append(batch, command.Entry{Index: index + uint64(i) + 1, Term: 1, Request: &pb.InternalRaftRequest{
							Header: &pb.RequestHeader{ID: index},
							Put:    &pb.PutRequest{Key: fmt.Appendf(make([]byte, 0, 32), "/bench/key/%012d", key), Value: value, Lease: id},
						}})
					}
					r.Apply(batch)
				}
				for part := range slices.Chunk(rnd.Perm(keyCount), 500) {
					put(part...)
				}
				keys := make([]int, size)
				b.ReportAllocs()
				b.ResetTimer()
				before := cpuTime(b)
				for done := 0; done < b.N; done += size {
					for i := range keys {
						keys[i] = rnd.IntN(keyCount)
					}
					put(keys...)
				}
				b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}

// cpuTime is what the process has used so far, flushes in the background included: the figure that
// holds on a busy machine.
func cpuTime(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkTxn is the write of a Kubernetes API server: compare the mod revision, put, else read.
func BenchmarkTxn(b *testing.B) {
	r := newRig(b, Config{QuotaBytes: -1})
	r.Machine.cfg.Sink = nil
	value := make([]byte, 256)
	const keys = 1000
	revs := make([]int64, keys)
	b.ReportAllocs()
	b.ResetTimer()
	var batch []command.Entry
	for done := 0; done < b.N; done += 100 {
		index, _ := r.Applied()
		batch = batch[:0]
		for i := range 100 {
			k := (done + i) % keys
			key := fmt.Appendf(nil, "/registry/pods/default/%06d", k)
			batch = append(batch, command.Entry{Index: index + uint64(i) + 1, Term: 1, Request: &pb.InternalRaftRequest{
				Txn: &pb.TxnRequest{
					Compare: []*pb.Compare{{Target: pb.Compare_MOD, Key: key, TargetUnion: &pb.Compare_ModRevision{ModRevision: revs[k]}}},
					Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: value}}}},
					Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}},
				},
			}})
		}
		for i, res := range r.Apply(batch) {
			resp := res.Response.(*pb.TxnResponse)
			if !resp.Succeeded {
				b.Fatal("a compare failed")
			}
			revs[(done+i)%keys] = resp.Header.Revision
		}
	}
}
