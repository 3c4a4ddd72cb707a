// Package command is Belay's replicated vocabulary: what an entry of the raft log says, and how it
// is encoded.
//
// It is on the lowest floor and knows nothing of raft's loop, the store or the network; every other
// package may import it. It holds no state and starts no goroutine. All functions, and the methods
// of an IDGenerator, may be called from any goroutine.
//
// # Payloads
//
// A normal entry carries an etcdserverpb.InternalRaftRequest in protobuf, exactly as etcd writes
// it, so that etcd's members and Belay's can read each other's entries. A leader's empty entry
// carries nothing. Etcd before 3.6 also writes requests of the API of version 2 (v2.go). A conf
// change entry carries a raftpb.ConfChange (V1) whose context is the JSON of a member, as etcd's
// membership package writes it:
//
//	add, add learner   {"id":N,"peerURLs":[...],"isLearner":true?,"name":"..."?,"clientURLs":[...]?,"isPromote":false}
//	promote            {"id":N,"peerURLs":null,"isPromote":true}   (type: add node)
//	update             {"id":N,"peerURLs":[...]}
//	remove             no context
//
// # Speed
//
// Puts are most of what a cluster replicates, so Encode and Decode have a fast path for one form:
// an optional id, one put and a header, each in the order and with the fields protobuf would use.
// Anything else - another request, an unknown field, a field out of order, twice or of a wrong wire
// type - goes to package proto. Both paths give the same bytes and the same messages, as FuzzDecode
// and TestEncodeEqualsProto check.
//
// Files: entry.go (Entry, Result, Change), place.go (where the log has it), member.go (Member,
// its ids and JSON), heir.go (who comes back in whose place), encode.go, decode.go (payloads),
// v2.go (those of etcd before 3.6), check.go (whether a payload can be decoded), id.go (request
// ids), stored.go (what a store holds about the cluster itself).
//
// Sources: docs/compatibility.md, section 8; etcd server/etcdserver/api/membership (JSON forms),
// pkg/idutil (ids).
package command
