// Package proxy is `belay proxy`, which stands between many clients and a cluster, Belay's or etcd's,
// and by the name etcd `etcd grpc-proxy start` and `etcd gateway start`.
//
// A proxy holds no state that matters: it may be killed at any time, and several side by side give
// the same answers. docs/proxy.md tells operators what it is for, its flags and its bounds.
//
// The parts: upstream knows the members, relay answers calls, merge and cache decide which watches and
// reads are the cluster's, gateway passes bytes. This package is the command line and the wiring.
//
// Files: main.go the commands; flags.go what they are told; serve.go a proxy that runs; ports.go its
// listeners; http.go its pages; resolver.go how proxies know each other; discover.go DNS.
package proxy
