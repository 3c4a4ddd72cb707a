// Package kubernetes runs the storage layer of Kubernetes' API server, the
// packages below k8s.io/apiserver/pkg/storage, against a server of one's choice.
//
// Two things are run here. The packages' own tests, unchanged: they ask etcd3/testserver for an
// embedded etcd, and a replacement in go.mod gives them one that starts processes (see
// ../etcdserver/embed):
//
//	BELAY_CLIENTS_SERVER="/path/to/belay server" go test k8s.io/apiserver/pkg/storage/etcd3
//
// And objects_test.go: some thousands of objects created, listed in pages, watched, updated with
// conflicts, compacted, and read through the watch cache. It writes down all that it sees, so that
// the same run on etcd can be compared word for word.
//
// It is a module of its own so that Belay's own go.mod does not know Kubernetes.
package kubernetes
