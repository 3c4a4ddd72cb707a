package main

import (
	"context"
	"errors"
	"net"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// emptyKV answers at once with an empty answer.
type emptyKV struct {
	pb.UnimplementedKVServer
	header *pb.ResponseHeader
}

func (e emptyKV) Put(context.Context, *pb.PutRequest) (*pb.PutResponse, error) {
	return &pb.PutResponse{Header: e.header}, nil
}

func (e emptyKV) Range(context.Context, *pb.RangeRequest) (*pb.RangeResponse, error) {
	return &pb.RangeResponse{Header: e.header}, nil
}

func (e emptyKV) Txn(context.Context, *pb.TxnRequest) (*pb.TxnResponse, error) {
	return &pb.TxnResponse{Header: e.header, Succeeded: true}, nil
}

// emptyRevision distinguishes the empty server's answers from real ones.
const emptyRevision = 12345

// serveEmpty runs until it is killed.
func serveEmpty(args []string) error {
	if len(args) != 1 {
		return errors.New("serve-empty wants one address")
	}
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	s := grpc.NewServer(grpc.NumStreamWorkers(4))
	pb.RegisterKVServer(s, emptyKV{header: &pb.ResponseHeader{ClusterId: 1 << 60, MemberId: 1 << 61, Revision: emptyRevision, RaftTerm: 2}})
	return s.Serve(l)
}
