package relay

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/cli/proxy/upstream"
)

// ask is a question of the proxy's own.
func (r *Relay) ask(ctx context.Context, full string, request, answer proto.Message) error {
	f, err := encode(request)
	if err != nil {
		return err
	}
	resp, err := r.cfg.Cluster.Call(ctx, upstream.NewClient(nil), upstream.Request{Method: full, Frame: f, Read: true})
	if err != nil {
		return err
	}
	return proto.Unmarshal(resp.Frame.Head, answer)
}

// ClusterMembers are the members of the cluster as it says.
func (r *Relay) ClusterMembers(ctx context.Context) ([]*pb.Member, error) {
	list := &pb.MemberListResponse{}
	err := r.ask(ctx, memberListMethod, &pb.MemberListRequest{}, list)
	return list.Members, err
}

// Healthy reads from the cluster, linearizably. That it is asked who asks counts as an answer, as
// long as a member that may have calls says so: it knows a leader.
func (r *Relay) Healthy(ctx context.Context) error {
	err := r.ask(ctx, rangeMethod, &pb.RangeRequest{Key: []byte("a"), CountOnly: true}, &pb.RangeResponse{})
	switch status.Code(err) {
	case codes.PermissionDenied, codes.InvalidArgument, codes.Unauthenticated:
		if r.cfg.Cluster.Fit() > 0 {
			return nil
		}
	}
	return err
}

// Recover has no later response be older than the cluster is now. It has an effect with
// Config.OneFloor.
func (r *Relay) Recover(ctx context.Context) error {
	answer := &pb.RangeResponse{}
	if err := r.ask(ctx, rangeMethod, &pb.RangeRequest{Key: []byte("_"), CountOnly: true}, answer); err != nil {
		return err
	}
	upstream.NewClient(r.floor).Advance(answer.Header.GetRevision())
	return nil
}
