package server

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/admission"
	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/replica"
)

// smallRequest is about what a request without keys and values holds in memory, in bytes, for
// admission.
const smallRequest = 64

// proposer is the raft group as far as it is written to; replica.Replica is one.
type proposer interface {
	Propose(ctx context.Context, req *pb.InternalRaftRequest) (command.Result, error)
	// ProposeThen is Propose that does not wait; CancelProposal ends it early.
	ProposeThen(req *pb.InternalRaftRequest, then replica.Completion) (id uint64, err error)
	CancelProposal(id uint64, cause error)
	// ProposeInTerm is Propose that is given up with ErrNotLeader unless this member
	// leads in term when raft is handed the request.
	ProposeInTerm(ctx context.Context, term uint64, req *pb.InternalRaftRequest) (command.Result, error)
}

// proposals puts requests into the log. Errors are the request's own or raft's, still to be
// mapped by toGRPC. Any goroutine.
type proposals struct {
	replica proposer
	gate    *admission.Gate
	callers *authorizer
	metrics *Metrics
}

// propose replicates a request of a client and returns what applying it
// answered. cost is about what it holds in memory, for admission.
func (p *proposals) propose(ctx context.Context, kind requestKind, req *pb.InternalRaftRequest, cost int) (command.Result, error) {
	if p.callers.enabled() && req.Authenticate == nil {
		header, err := p.callers.admittedHeader(ctx, req)
		if err != nil {
			return command.Result{}, err
		}
		req.Header = header
	}
	return p.admitAndPropose(ctx, kind, req, cost, false)
}

// own is propose for what the member itself asks for: it finds room where clients do not.
func (p *proposals) own(ctx context.Context, kind requestKind, req *pb.InternalRaftRequest) (command.Result, error) {
	return p.admitAndPropose(ctx, kind, req, smallRequest, true)
}

// inTerm is own for what only the leader of a term may ask for; it waits for no room.
func (p *proposals) inTerm(ctx context.Context, term uint64, kind requestKind, req *pb.InternalRaftRequest) error {
	start := time.Now()
	result, err := p.replica.ProposeInTerm(ctx, term, req)
	p.metrics.observeRequest(kind, err == nil, time.Since(start).Seconds())
	if err == nil {
		err = result.Err
	}
	return err
}

// inFlight is what a proposal counts in flight. A byte of it is held twice, as the request and
// encoded; of a large one, which is not encoded while it waits for its turn, once.
func inFlight(cost int) int {
	if cost >= replica.LargeProposal {
		return cost / 2
	}
	return cost
}

func (p *proposals) admitAndPropose(ctx context.Context, kind requestKind, req *pb.InternalRaftRequest, cost int, own bool) (result command.Result, err error) {
	if err = p.gate.Enter(inFlight(cost), own); err != nil {
		return
	}
	start := time.Now()
	result, err = p.replica.Propose(ctx, req)
	p.ended(kind, cost, start, err == nil)
	if err == nil {
		err = result.Err
	}
	return
}

// begin is admitAndPropose for a caller without a goroutine. With an error nothing is left to do;
// otherwise then is told of the end, and must call ended. REQUIRES: req has the header of its caller.
func (p *proposals) begin(kind requestKind, req *pb.InternalRaftRequest, cost int, start time.Time, then replica.Completion) (id uint64, err error) {
	if err = p.gate.Enter(inFlight(cost), false); err != nil {
		return 0, err
	}
	if id, err = p.replica.ProposeThen(req, then); err != nil {
		p.ended(kind, cost, start, false)
	}
	return id, err
}

// ended is what is left to do once a proposal has ended; see Replica.Propose for why it is apart.
//
//go:noinline
func (p *proposals) ended(kind requestKind, cost int, start time.Time, success bool) {
	p.gate.Leave(inFlight(cost))
	p.metrics.observeRequest(kind, success, time.Since(start).Seconds())
}

// alarm raises, disarms or lists alarms. It needs no room: alarms are raised when there is none.
func (p *proposals) alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	result, err := p.own(ctx, kindAlarm, &pb.InternalRaftRequest{Alarm: r})
	if err != nil {
		return nil, err
	}
	return result.Response.(*pb.AlarmResponse), nil
}
