// Package clients runs programs and libraries written by others against Belay, as their users would
// run them.
//
// Each test gets its client from where users get it (the Go module proxy, npm, Debian), builds it,
// and runs it against one member and three; where the client can report what it saw, the same run
// on a real etcd must report the same.
//
//	kubernetes_test.go  the storage layer of Kubernetes: its own tests, unchanged,
//	                    and the life of some thousands of objects
//	recipes_test.go     etcd's Go client: elections, locks, transactions, mirrors
//	                    and the rest, while members are killed
//	access_test.go      plain, TLS with clients' certificates, users
//	etcdctl_test.go     etcdctl's commands side by side with etcd; etcdutl;
//	                    `belay ctl` beside etcdctl
//	node_test.go        the npm package etcd3
//	python_test.go      etcd's API from Python, by gRPC's C core
//	coredns_test.go     CoreDNS serving a zone that lies in Belay
//	benchmark_test.go   etcd's own benchmark tool, every sub-command
//	etcdtests_test.go   etcd's own end-to-end tests, unchanged
//	robustness_test.go  etcd's own robustness tests: faults under traffic, and a
//	                    model that says whether what clients saw may be; etcdwal
//	                    writes a member's log in the form that they read
//	integration_test.go etcd's own integration tests, with members of Belay in
//	                    their process
//	debian_test.go      Patroni, and other programs that Debian has
//
// Folders below with a go.mod are modules of their own: the clients' many dependencies stay out of
// Belay's. The folder etcdserver stands in for an embedded etcd.
//
// `go test ./proof/clients` runs a part that takes about a minute; the rest runs on request, as
// with `make clients`:
//
//	BELAY_CLIENTS=all         run everything
//	BELAY_CHECK_KIND=etcd     run against etcd, to see that a test is right
//	BELAY_BIN, BELAY_ETCD, BELAY_ETCDCTL, BELAY_ETCDUTL   programs to use
//
// A test whose tool is missing (node, patroni, ...) skips and names it.
package clients
