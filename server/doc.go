// Package server is what clients and other members speak to: etcd's v3 gRPC
// services and HTTP endpoints. It validates, asks whether the caller may,
// proposes or reads, maps errors and fills headers; it decides nothing of the
// data. What members do by themselves (package leader, and publishing this member) is started
// here, and the requests that it takes are made here.
//
// # Promises
//
//   - Every error reaches the client with etcd's code and text: errors.go has
//     the one table.
//   - Every call passes authorize before it does anything.
//   - A read that is not serializable sees every write acknowledged before it.
//   - A revision in a header is never newer than what the answer was read at,
//     for reads, and that of the write, for writes.
//   - What only the leader knows (renewals, remaining TTLs, how far a learner has come) is
//     asked of it over the peer port, in etcd's form.
//   - Nothing that one client does takes unbounded memory: requests, transactions
//     and chunks of streams are bounded, proposals pass the admission gate.
//
// # The path of a put
//
//	grpc -> countingCodec -> interceptUnary -> kvService.Put: quota, checkPut,
//	authorize -> propose: admission, Replica.Propose -> fill -> grpc
//
// Beyond grpc and the replica that is about a microsecond: counters are resolved
// before the first request, nothing takes a lock, and the clock is read four
// times (request stats and duration metrics; grpc's own not counted).
//
// # Goroutines
//
// All handlers run concurrently. Start runs one loop for each of: publishing
// this member (publish.go), the tasks of package leader (leading.go), the apply
// backlog (space.go), streams that want a leader (interceptors.go), a lost quorum
// (quorum.go), file descriptors (http.go).
//
// # Files
//
//	server.go        Server, its parts and loops, proposing, headers
//	interceptors.go  what every call passes; options of the grpc server
//	grpcmetrics.go   grpc_server_*; metrics.go: all other series; codec.go: bytes
//	slowlog.go       `request stats`
//	errors.go        the error table; validate.go: request checks; authorize.go
//	kv.go            KV; lease.go: Lease; cluster.go: Cluster; auth.go: Auth
//	maintenance.go   Maintenance; snapshot.go: its snapshot stream; health.go
//	watch.go, election.go, lock.go
//	http.go          /version /health /livez /readyz /metrics /debug
//	peerhttp.go      the peer port; forward.go: asking it at the leader
//	leading.go       what package leader needs; publish.go, quorum.go, space.go: other loops
//
// Sources: etcd server/etcdserver/api/{v3rpc,etcdhttp}, v3_server.go and
// server.go for behaviour; reference surface 1, 2, 6, 7, 10.
package server
