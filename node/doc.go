// Package node is one member: it builds the parts from the lowest floor up,
// wires them, starts them, and stops them from the highest floor down. It
// decides nothing that a part could decide.
//
// The order of a start: the listeners are opened (a second start of the same
// member fails there, before it touches data), the store and what is mirrored
// of it in memory, the raft log, which adopts the store's applied index (the
// restart rule), then the network, the replica and the services.
//
// Files: node.go (life), data.go (directories, store, log), bootstrap.go (who
// am I, in which cluster), snapshot.go (state that peers send and get), mux.go
// (gRPC and HTTP on one port), config.go.
package node
