package follow

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/belaydb/belay/cli/doctor/live"
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

// TestOtherCluster: what a member of another cluster tells at a member's client URL, as one does that
// was started again on an empty directory, is not in the report.
func TestOtherCluster(t *testing.T) {
	t.Parallel()
	alone := tell(t, &teller{header: &pb.ResponseHeader{ClusterId: 8, MemberId: 2}})
	first := &teller{header: &pb.ResponseHeader{ClusterId: 7, MemberId: 1}}
	whole := tell(t, first)
	first.members = []*pb.Member{{ID: 1, Name: "m1", ClientURLs: []string{whole}}, {ID: 2, Name: "m2", ClientURLs: []string{alone}}}
	a := NewAsker(live.Options{Client: &clientv3.Config{Endpoints: []string{whole}}, Timeout: time.Minute})
	defer a.Close()
	l := a.Look(t.Context())
	if len(l.Members) != 2 {
		t.Fatalf("%+v", l.Members)
	}
	if s := l.Members[0]; s.Err != "" || s.Leader != 1 {
		t.Errorf("m1: %+v", s)
	}
	if s := l.Members[1]; s.Leader != 0 || !strings.Contains(s.Err, "a member of another cluster answers there: 2 of cluster 8") {
		t.Errorf("m2: %+v", s)
	}
}
