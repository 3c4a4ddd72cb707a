// Package listen is a member's network front: sockets, TLS, and which protocol a connection speaks.
// It knows nothing about what is served.
//
// # Promises
//
//   - Accepting never waits for a client: each handshake runs in a goroutine of its own, with a
//     deadline, and when too many are under way the oldest is closed. A silent client delays
//     nobody.
//   - A connection that TLS, the revocation list or a name rule refuses is closed before a byte of
//     it reaches a service, whichever listener accepted it, and the refusal is logged once.
//   - A renewed certificate is used from the next handshake on. While the pair of files is
//     incomplete the last valid pair is used.
//   - gRPC clients go straight to the gRPC server's own transport, on a TLS port as on a plain one.
//   - The memory for incomplete messages of gRPC clients is bounded.
//
// # One port, two protocols
//
// Without TLS the first bytes decide: HTTP/2 is gRPC, HTTP/1 is for net/http. With TLS, ALPN
// distinguishes HTTP/1 from HTTP/2, but not gRPC from a browser or curl, which speak HTTP/2 as well
// (etcd gives all of it to net/http and has it call grpc-go's ServeHTTP, at about twice the CPU for
// a call). So preface.go reads the first request's headers, and passes the connection, as if
// unread, to the server that its content type selects. A call from a proxy is left to net/http,
// since other requests may follow it on the same connection:
//
//	client                    here                           server
//	  | -- TLS, ALPN h2 --------> |                              |
//	  | <-------- SETTINGS ------ |  (many clients wait for it)  |
//	  | -- preface, SETTINGS ---> | kept                         |
//	  | -- ACK of SETTINGS -----> | taken out: it answers ours   |
//	  | -- HEADERS -------------> | kept; content-type read      |
//	  |                           | -- all that was kept ------> |
//	  | <-------- SETTINGS, answer ... from the server itself -- |
//
// # Files
//
//	listen.go    sockets: TCP, unix, socket options
//	security.go  TLS of one side: files, rules, handshake
//	reload.go    what is read again when its file changes
//	front.go     Front: accept, shake hands, sort by protocol
//	preface.go   gRPC or plain HTTP/2
//	receiving.go the bound on incomplete messages
//	prelude.go   the bound on what comes before a request
//	limit.go     the bound on connections
//	memory.go    a listener inside the process
//	calls.go     gRPC calls among the requests that net/http gets
//	credentials.go  what grpc learns of a connection
//	gzip.go      unpacking, by turns
//	expiry.go    certificates that expire
//	clientvars.go  how a client reaches a port with these certificates
//
// Sources: go.etcd.io/etcd/client/pkg/v3/transport for the rules; RFC 9113 for
// the preface; etcd issue 15402 for what the shared TLS port costs there.
package listen
