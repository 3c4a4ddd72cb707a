package main

import (
	"context"
	"errors"
	"net"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	encodingproto "google.golang.org/grpc/encoding/proto"

	"github.com/belaydb/belay/proof/cluster"
	"github.com/belaydb/belay/rpc"
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

// serveEmpty runs until it is killed. The arguments are the kind and the address.
func serveEmpty(args []string) error {
	if len(args) != 2 {
		return errors.New("serve-empty wants a kind and an address")
	}
	l, err := net.Listen("tcp", args[1])
	if err != nil {
		return err
	}
	kv := emptyKV{header: &pb.ResponseHeader{ClusterId: 1 << 60, MemberId: 1 << 61, Revision: emptyRevision, RaftTerm: 2}}
	if cluster.Kind(args[0]) == emptyOwn {
		s := rpc.New(rpc.Options{Codec: encoding.GetCodecV2(encodingproto.Name)})
		pb.RegisterKVServer(s, kv)
		return s.Serve(l)
	}
	s := grpc.NewServer(grpc.NumStreamWorkers(4))
	pb.RegisterKVServer(s, kv)
	return s.Serve(l)
}
