package replica

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/raftlog"
)

// nobody is the network of a member that is alone.
type nobody struct{}

func (nobody) Send([]*raftpb.Message)       {}
func (nobody) ActiveSince(uint64) time.Time { return time.Time{} }

// startAlone starts a member that is alone, with its log in memory.
func startAlone(b *testing.B) *Replica {
	fs, state := vfs.NewMem(), newMemoryState()
	var r *Replica
	open := func() *raftlog.Log {
		log, err := raftlog.Open("log", raftlog.Options{
			FS: fs, MemberID: 1, ClusterID: testClusterID,
			Released: func(ms []*raftpb.Message) { r.Released(ms) },
			Failed:   func(err error) { b.Error(err) },
		})
		if err != nil {
			b.Fatal(err)
		}
		return log
	}
	member, err := json.Marshal(&command.Member{ID: 1, PeerURLs: []string{"http://m1"}})
	if err != nil {
		b.Fatal(err)
	}
	data, err := proto.Marshal(&raftpb.ConfChange{Type: raftpb.ConfChangeAddNode.Enum(), NodeId: new(uint64(1)), Context: member})
	if err != nil {
		b.Fatal(err)
	}
	log := open()
	log.Append(raftlog.Append{
		HardState: &raftpb.HardState{Term: new(uint64(1)), Vote: new(uint64(0)), Commit: new(uint64(1))},
		Entries:   []*raftpb.Entry{{Type: raftpb.EntryConfChange.Enum(), Term: new(uint64(1)), Index: new(uint64(1)), Data: data}},
	})
	if err := log.Sync(context.Background()); err != nil {
		b.Fatal(err)
	}
	if err := log.Close(); err != nil {
		b.Fatal(err)
	}
	log = open()
	b.Cleanup(func() { log.Close() })
	if r, err = New(Config{ID: 1, Log: log, State: state, Network: nobody{}, Failed: func(err error) { b.Error(err) }}); err != nil {
		b.Fatal(err)
	}
	if err := r.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(r.Stop)
	for deadline := time.Now().Add(time.Minute); r.ReadBarrier(context.Background()) != nil || !r.IsLeader(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatal("it does not lead")
		}
	}
	return r
}

// BenchmarkPropose is a write of a member that is alone, from the request to its result, with
// a log in memory and a state machine that does next to nothing.
func BenchmarkPropose(b *testing.B) {
	for _, clients := range []int{1, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			r := startAlone(b)
			key, value := []byte("key"), make([]byte, 100)
			b.SetParallelism(max(1, clients/runtime.GOMAXPROCS(0)))
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(next *testing.PB) {
				for next.Next() {
					_, err := r.Propose(context.Background(), &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: key, Value: value}})
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkReadBarrier is the same for a linearizable read.
func BenchmarkReadBarrier(b *testing.B) {
	r := startAlone(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := r.ReadBarrier(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
