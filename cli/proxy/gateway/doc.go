// Package gateway passes the TCP connections of clients to the members of a cluster, byte for byte:
// `etcd gateway`. It knows nothing of what they say, so TLS and users are between client and member.
//
// An endpoint that cannot be reached is left out until a try in the background succeeds, every
// RetryDelay; when all are left out, all are tried. Which endpoint a connection gets is as DNS's SRV
// records say: those of the best priority, by weight, and in turn where there are no weights.
//
// A connection holds copyBytes in each direction, and what the kernel keeps for its two sockets.
// One that has been closed in one direction is passed on as such: the other direction goes on.
//
// New is called once; Run serves until its context ends.
//
// Files: gateway.go, pick.go which endpoint.
package gateway
