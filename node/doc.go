// Package node is one member: it builds the parts from the lowest floor up, wires them, starts
// them, and stops them from the highest floor down. It decides nothing that a part could decide.
//
// The order of a start: the listeners are opened (a second start of the same member fails there,
// before it touches data), then the store and its mirrors in memory, then the raft log, which
// adopts the store's applied index (the restart rule), then the network, the replica and the
// services.
//
// # Files
//
//	node.go          Start and Stop, and what is wired to what
//	life.go          how far a member has come
//	config.go        its configuration
//	settings.go      those parts of it that flags say
//	data.go          the store, the log, and what is built on them
//	serve.go         ports, and what serves them
//	connections.go   how many connections each kind of port takes
//	certificates.go  when they expire
//	dialing.go       how other members are dialled
//	snapshot.go      messages and state sent to and received from peers
//	disks.go         the state of the other members' disks
//	heal.go          damaged data replaced by the others'
//	evidence.go      the evidence members exchange about slow disks and stops
//	neighbours.go    the record of who writes to the log's disk
//	tracing.go       spans for a collector
//	words.go         what a member logs about itself
//	metrics.go       the metrics of the ports
package node
