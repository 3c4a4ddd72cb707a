// Package server is what clients and other members talk to: etcd's v3 gRPC services and HTTP
// endpoints. It validates requests, checks the caller's rights, proposes or reads, maps errors and
// fills headers; it decides nothing about the data. What members do by themselves (package leader,
// and publishing this member) is started here, and the requests that it needs are made here.
//
// # Promises
//
//   - Every error reaches the client with etcd's code and text: errors.go has the one table.
//   - What this member answers by itself it shows only to whom the rules of now let see it; what
//     goes through the log is judged when it is applied, alike on all members (authorize.go).
//   - A read that is not serializable sees every write acknowledged before it.
//   - The revision in a header is never newer than the one that a read was answered from; for a
//     write it is that of the write.
//   - For what only the leader knows (renewals, remaining TTLs, how far a learner has come) it asks
//     the leader over the peer port, in etcd's form.
//   - No single client can take unbounded memory: requests, transactions and chunks of streams are
//     bounded, and proposals pass the admission gate.
//
// # How it is put together
//
// Server makes the parts, gives each what it needs of the others, and starts and ends them. A
// part has funcs and small interfaces of what it needs, and the flags of its own state; none knows
// Server. (The answers on the peer port are a second face of the services of leases and members,
// and know these.) What several services need are parts, too:
//
//	proposals   puts requests into the log: admission, Replica.Propose, metrics
//	authorizer  who calls, and what they may
//	headers     cluster, member, term and revision of an answer
//	turns       reading much, a few at a time
//	forwarder   asking the leader
//	calls       what every call passes; lifetime: what ends with the member
//
// No func or interface of a part may be nil unless its comment says what nil means.
//
// # The path of a put
//
//	grpc -> countingCodec -> calls.beginCall -> kvService.Put: quota, checkPut
//	-> proposals: the caller's header, admission, Replica.Propose -> headers.fill -> grpc
//
// Beyond grpc and the replica that is about a microsecond: counters are resolved
// before the first request, nothing takes a lock, and the clock is read four
// times (request stats and duration metrics; grpc's own not counted).
//
// # Goroutines
//
// All handlers run concurrently. Start runs one loop for each of: publishing this member
// (publish.go), the tasks of package leader, the apply backlog and file descriptors (samples.go), a
// lost quorum (quorum.go), streams that want a leader (interceptors.go).
//
// # Files
//
//	server.go        Server: parts, services, tasks; config.go: what it is given
//	lifetime.go      what runs in the background, and contexts that end with the member
//	proposals.go     requests into the log; headers.go; forward.go: asking the leader; renewals.go: for renewals
//	interceptors.go  what every call passes; hotcalls.go: KV's calls without interceptor
//	hotrange.go      gets without a goroutine, over package rpc; hotwrites.go: writes; hotlease.go: keepalives
//	codec.go         bytes in and out; wire.go: the messages of puts, gets and watches by hand
//	authorize.go     rights of callers; rights.go: those of streams that stay open
//	errors.go        the error table; validate.go: request checks; limits.go: bounds of work
//	turn.go          reading much in turns; rangereply.go: ranges that are encoded as they are read;
//	                 answerroom.go: which calls ask for room for their answers
//	kv.go            KV; lease.go: Lease; cluster.go: Cluster; auth.go: Auth
//	watch.go         Watch; election.go, lock.go: queues
//	maintenance.go   Maintenance; snapshot.go, defrag.go, hashes.go, quota.go
//	http.go          /version /health /livez /readyz /metrics /debug; events.go; health.go: grpc's
//	access.go        what HTTP requests pass; origin.go: whose page sent them
//	gateway.go       JSON; websocket.go: streams of JSON
//	peerhttp.go      answers to other members; heal.go: to one whose data is damaged
//	leading.go       what package leader proposes; publish.go
//	quorum.go        reporting a lost quorum; samples.go, descriptors_unix.go, descriptors_other.go
//	metrics.go       series; grpcmetrics.go: grpc_server_*; emptymetrics.go: etcd's that stay empty
//	slowlog.go       `request stats`; waits.go: what calls have waited for; tracing.go: spans
//
// Sources: etcd server/etcdserver/api/{v3rpc,etcdhttp}, v3_server.go and server.go for behaviour;
// docs/compatibility.md, sections 1, 2, 6, 7 and 10.
package server
