// Package rpc is a gRPC server over HTTP/2 of Belay's own, for the same clients, services and
// interceptors as grpc.Server. It knows nothing about what is served.
//
// # Promises
//
//   - Whoever registers services with it gets what grpc-go would give: contexts, metadata, peers,
//     deadlines, compression, and errors with the same texts. TestAnswersLikeGRPC and
//     TestFlowControlModel hold the two against each other.
//   - Nothing waits on a connection's reader: not a handler, not a socket that takes nothing, not a
//     lock that is held over I/O. So a call delays no other on its connection.
//   - What a client can make a connection hold is bounded, whatever it sends and however slowly it
//     reads: see send.go for what leaves, receiveBudget and long.go for what comes, and the
//     constants at the top of conn.go for the rest. What long requests of all connections hold is
//     bounded, too, and so are unary answers, of calls that ask for room: see room.go.
//   - A connection ends in an order that clients know: GOAWAY, the calls that are under way, and
//     with `too_many_pings` for those that ping too often.
//
// # A connection
//
//	            frames                        handlers
//	socket ---> reader --- streams, under ---> one goroutine for each call,
//	               |       the connection's    its messages in a queue
//	               |       lock                    |
//	               v                               v
//	             out: frames in the order in which they leave <--- queues of what the
//	               |                                               windows do not let out
//	socket <--- writer: all that is in out, in one write; when that is little, a frame of
//	            each stream that is ready, in turn
//
// The stages of a connection are open, draining (no new streams) and closed; those of a stream lie
// in the flags of its two sides, recvDone and ending, and closed. A stream that is closed is
// forgotten at once; its handler may run on, which counts (orphans).
//
// x/net's hpack is used, its Framer is not: it copies and allocates for each frame, and the header
// of a frame is nine bytes.
//
// # The way not taken
//
// Own epoll loops instead of goroutines that read: measured, they cost more, since the blocking
// wait takes a processor of Go's scheduler each time. Writing on the reader, where a socket would
// take it at once: through TLS and the listeners' layers nobody can tell whether it would.
//
// # Files
//
//	server.go     Server: registering, accepting, stopping
//	engine.go     --rpc-engine: this package or grpc-go
//	conn.go       a connection: its reader, every frame, the windows of what is received
//	request.go    what a block of headers asks for
//	stream.go     a call with its handler: grpc.ServerStream
//	long.go       the windows of long messages, which all connections share
//	call.go       a call without: Hot, and messages: HotMessage; the deadlines of such calls
//	send.go       the writer, the windows of what is sent
//	room.go       the room for answers that clients have not taken
//	answer.go     the headers of answers
//	keepalive.go  pings, age, idleness, draining
//
// Sources: RFC 9113 and 7541; gRPC's PROTOCOL-HTTP2 and A41; grpc-go's internal/transport for what
// they leave open.
package rpc
