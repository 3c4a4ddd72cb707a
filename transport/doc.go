// Package transport carries raft messages and snapshots between members, in the wire format of
// etcd's rafthttp, so that a cluster may hold members of both kinds. It knows raft's messages, not
// raft: what arrives goes to a Handler, what leaves comes through Send.
//
// # Promises
//
//   - Send never blocks and never calls the Handler: it may be called from the raft loop. Queues
//     are bounded in messages and in bytes; a message without room is dropped and its peer reported
//     unreachable.
//   - A large value never delays a heartbeat. Appends and forwarded proposals travel on one stream
//     (msgapp), everything else on another (message); each has its own queue, goroutine and TCP
//     connection at both ends. etcd puts proposals on the second; receivers accept them on either.
//   - No decoder allocates by an announced length alone.
//   - A snapshot is streamed in bounded memory over a connection of its own.
//   - Messages of a removed member, of another cluster or for another member never reach the
//     Handler, nor those of a stranger or in another member's name, as far as that can be told
//     without certificates (door.go). A POST costs only what has arrived of it, and that is
//     bounded.
//
// Delivery is not promised: messages may be lost, and overtake each other when a connection is
// replaced. raft allows both.
//
// # Who dials whom
//
// The receiver dials. GET /raft/stream/msgapp/<own id> and /raft/stream/message/<own id> ask a peer
// for its two streams; the peer writes on the response body until the connection breaks. Until a
// stream is established, single messages are POSTed to /raft. A member that sends us a request and
// that we do not know (we are behind) becomes a "remote", reachable only by POST, once another one
// confirms that it is a member.
//
//	headers of requests    X-Server-From, X-Server-Version, X-Min-Cluster-Version, X-Etcd-Cluster-ID,
//	                       X-PeerURLs, X-Raft-To (etcd: on streams); ours: X-Belay-Version, X-Belay-Snapshot
//	answers                204 taken; 412 other cluster or version; 410 and 403 the sender was removed;
//	                       404 sender unknown; 503 busy with another snapshot, or with too many
//	                       messages (ours); 400 a message that is not of its sender (ours)
//
// A stream is written on the connection itself, taken over from net/http: the body is not chunked
// but ends with the connection. net/http's own path would copy each batch through two buffers and
// cut it into chunks. Where the server cannot hand over its connection (HTTP/2), the response
// writer is used.
//
// Each side sends a link heartbeat when a stream has been idle for a third of the read timeout.
//
// # Goroutines
//
// For each peer: two stream writers, two stream readers (they call Handler.Process), one that
// processes proposals, one prober; a pipeline worker or a snapshot sender while there is work. At
// most one asks the others about unknown senders. One reporter calls Handler.ReportUnreachable and
// ReportSnapshot. Stop waits for all of them.
//
// # Files
//
//	transport.go  Config, Transport, peers        peer.go      one peer, its status
//	codec.go      messages and frames             outbox.go    the bounded queue
//	stream.go     writers and readers             pipeline.go  POST /raft
//	http.go       the serving side                snapshot.go  both sides of a snapshot
//	door.go       who may send what, and how much probe.go     round trip, clock drift
//	roundtrip.go  dialling, timeouts, URLs        memory.go    the in-memory twin for tests
//	version.go    which versions understand us    metrics.go   etcd_network_*
//
// Sources: etcd server/etcdserver/api/rafthttp (v3.7.3) for the format, the answers and the texts
// of the log; xiang90/probing for the probe.
package transport
