package command_test

import (
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/command"
)

// What travels through the raft log is etcd's own message, so that an entry means the same to every
// member.
func ExampleEncode() {
	data, err := command.Encode(&pb.InternalRaftRequest{
		Header: &pb.RequestHeader{ID: 7},
		Put:    &pb.PutRequest{Key: []byte("hello"), Value: []byte("world")},
	})
	if err != nil {
		panic(err)
	}
	fmt.Println("request", command.RequestID(data))
	req, err := command.Decode(data)
	if err != nil {
		panic(err)
	}
	fmt.Printf("%s = %s\n", req.Put.Key, req.Put.Value)
	// Output:
	// request 7
	// hello = world
}

// How many of the voters have to promise a write.
func ExampleQuorum() {
	for voters := 1; voters <= 5; voters++ {
		fmt.Println(voters, command.Quorum(voters))
	}
	// Output:
	// 1 1
	// 2 2
	// 3 2
	// 4 3
	// 5 3
}
