package server

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/admission"
	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/replica"
)

// stuckReplica takes proposals and ends none before it is told to.
type stuckReplica struct {
	proposer
	taken chan struct{}
	end   chan struct{}
}

func (r *stuckReplica) Propose(context.Context, *pb.InternalRaftRequest) (command.Result, error) {
	r.taken <- struct{}{}
	<-r.end
	return command.Result{}, nil
}

// Large proposals, which are not encoded while they wait, count half of their bytes in flight, and
// give back as much.
func TestLargeProposalsCountHalf(t *testing.T) {
	const limit = 8 * replica.LargeProposal
	for size, most := range map[int]int{replica.LargeProposal: 16, replica.LargeProposal / 2: 16, replica.LargeProposal - 1: 8} {
		r := &stuckReplica{taken: make(chan struct{}), end: make(chan struct{})}
		p := &proposals{replica: r, gate: admission.New(admission.Options{MaxInFlightBytes: limit}), callers: &authorizer{}, metrics: NewMetrics(prometheus.NewRegistry(), MetricsOptions{})}
		request := &pb.InternalRaftRequest{Put: &pb.PutRequest{Value: []byte(strings.Repeat("v", size))}}
		var all sync.WaitGroup
		for range most {
			all.Go(func() {
				if _, err := p.admitAndPropose(t.Context(), kindPut, request, size, false); err != nil {
					t.Errorf("of %d bytes fewer than %d are let in: %v", size, most, err)
				}
			})
			<-r.taken
		}
		if _, err := p.admitAndPropose(t.Context(), kindPut, request, size, false); err != admission.ErrTooManyRequests {
			t.Errorf("of %d bytes more than %d are let in: %v", size, most, err)
		}
		close(r.end)
		all.Wait()
		if n := p.gate.InFlight(); n != 0 {
			t.Errorf("%d bytes are in flight at the end", n)
		}
	}
}
