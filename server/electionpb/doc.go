// Package electionpb is the generated code of etcd's election service. It stands
// in for go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb, which
// lives in etcd's server module; the wire format is the same. A program cannot
// import both: their message names are equal, and protobuf refuses that.
package electionpb

//go:generate go run ../lockpb/generate.go election.proto
