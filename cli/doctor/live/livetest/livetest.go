// Package livetest has members that answer as a test wants, for tests of who asks members.
package livetest

import (
	"context"
	"net"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// member tells who it is, and who the members are.
type member struct {
	pb.UnimplementedMaintenanceServer
	pb.UnimplementedClusterServer
	header  *pb.ResponseHeader
	members []*pb.Member
}

func (m *member) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	return &pb.StatusResponse{Header: m.header, Leader: m.header.MemberId}, nil
}

func (m *member) Alarm(context.Context, *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	return &pb.AlarmResponse{Header: m.header}, nil
}

func (m *member) MemberList(context.Context, *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	return &pb.MemberListResponse{Header: m.header, Members: m.members}, nil
}

// serve has the member answer until the test ends, and returns its URL.
func (m *member) serve(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	pb.RegisterMaintenanceServer(s, m)
	pb.RegisterClusterServer(s, m)
	go func() { _ = s.Serve(l) }() // until Stop
	t.Cleanup(s.Stop)
	return "http://" + l.Addr().String()
}

// TwoClusters starts member 1 (m1) of cluster 7, at whole, and at alone, the client URL of its member
// 2 (m2), a member 2 of cluster 8: as it is when one was started again on an empty directory.
func TwoClusters(t testing.TB) (whole, alone string) {
	t.Helper()
	alone = (&member{header: &pb.ResponseHeader{ClusterId: 8, MemberId: 2}}).serve(t)
	first := &member{header: &pb.ResponseHeader{ClusterId: 7, MemberId: 1}}
	whole = first.serve(t)
	first.members = []*pb.Member{{ID: 1, Name: "m1", ClientURLs: []string{whole}}, {ID: 2, Name: "m2", ClientURLs: []string{alone}}}
	return whole, alone
}
