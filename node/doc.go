// Package node is one member: it builds the parts from the lowest floor up,
// wires them, starts them, and stops them from the highest floor down. It
// decides nothing that a part could decide.
//
// The order of a start: the listeners are opened (a second start of the same
// member fails there, before it touches data), the store and what is mirrored
// of it in memory, the raft log, which adopts the store's applied index (the
// restart rule), then the network, the replica and the services.
//
// Files: node.go (life), data.go (store, log and what is built on them), serve.go (ports and what serves
// them), connections.go (how many), certificates.go, snapshot.go (state that peers send and get), disks.go and
// evidence.go (what members tell each other), tracing.go, words.go (log lines), metrics.go, config.go.
package node
