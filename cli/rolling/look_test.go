package rolling

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// teller tells who it is, and who the members are.
type teller struct {
	pb.UnimplementedMaintenanceServer
	pb.UnimplementedClusterServer
	header  *pb.ResponseHeader
	members []*pb.Member
}

func (t *teller) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	return &pb.StatusResponse{Header: t.header, Leader: t.header.MemberId}, nil
}

func (t *teller) Alarm(context.Context, *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	return &pb.AlarmResponse{Header: t.header}, nil
}

func (t *teller) MemberList(context.Context, *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	return &pb.MemberListResponse{Header: t.header, Members: t.members}, nil
}

// tell has a teller serve, and returns its URL.
func tell(t *testing.T, teller *teller) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	pb.RegisterMaintenanceServer(s, teller)
	pb.RegisterClusterServer(s, teller)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return "http://" + l.Addr().String()
}

// TestLookAtAnotherCluster: a member that was started again on an empty directory, as a cluster of its
// own, has its old id, which comes from its URLs. It was taken for the member, and would have been
// moved with data that is not the cluster's.
func TestLookAtAnotherCluster(t *testing.T) {
	alone := tell(t, &teller{header: &pb.ResponseHeader{ClusterId: 8, MemberId: 2}})
	first := &teller{header: &pb.ResponseHeader{ClusterId: 7, MemberId: 1}}
	whole := tell(t, first)
	first.members = []*pb.Member{{ID: 1, Name: "m1", ClientURLs: []string{whole}}, {ID: 2, Name: "m2", ClientURLs: []string{alone}}}
	for _, endpoints := range [][]string{{whole}, {whole, alone}} {
		cfg := &clientv3.Config{Endpoints: []string{whole}}
		l, err := newLooker(t.Context(), cfg, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		defer l.close()
		l.cfg.Endpoints = endpoints // those that are asked; who the members are is asked of the first
		c, err := l.look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if m := c.Members[0]; m.Status == nil || m.Err != nil {
			t.Errorf("%v: m1: %+v", endpoints, m)
		}
		if m := c.Members[1]; m.Status != nil || m.Err == nil || !strings.Contains(m.Err.Error(), "a member of another cluster answers: 2 of cluster 8") {
			t.Errorf("%v: m2: %+v", endpoints, m)
		}
	}
}
