// Package embed replaces etcd's package of the same name, so that tests written elsewhere for an
// embedded etcd run unchanged against another server: StartEtcd starts processes instead of an etcd
// in this process.
//
// A module takes it with
//
//	replace go.etcd.io/etcd/server/v3 => ../etcdserver
//
// It has the part of embed's surface that the tests of k8s.io/apiserver use. The environment says
// what to start:
//
//	BELAY_CLIENTS_SERVER  the program and its first arguments, for example
//	                      "/path/to/belay server" or "/path/to/etcd"
//	BELAY_CLIENTS_SIZE    members of each cluster (1)
//	BELAY_CLIENTS_LOGS    a folder that keeps the members' logs (none: they go
//	                      with the test's data directory)
//
// Every call of StartEtcd starts a new, empty cluster, as etcd's does, and Close kills it.
package embed
