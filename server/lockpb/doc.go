// Package lockpb is the generated code of etcd's lock service. It stands in for
// go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb, which lives in etcd's
// server module; the wire format is the same. A program cannot import both: their
// message names are equal, and protobuf refuses that.
package lockpb

//go:generate go run generate.go lock.proto
