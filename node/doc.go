// Package node is one member: it builds the parts from the lowest floor up,
// wires them, starts them, and stops them from the highest floor down. It
// decides nothing that a part could decide.
//
// The order of a start: the listeners are opened (a second start of the same
// member fails there, before it touches data), the store and what is mirrored
// of it in memory, the raft log, which adopts the store's applied index (the
// restart rule), then the network, the replica and the services.
//
// # Files
//
//	node.go          Start and Stop, and what is wired to what
//	life.go          how far a member has come
//	config.go        what it is told
//	settings.go      those parts of it that flags say
//	data.go          the store, the log, and what is built on them
//	serve.go         ports, and what serves them
//	connections.go   how many connections each kind of port takes
//	certificates.go  when they expire
//	dialing.go       how other members are reached
//	snapshot.go      messages and state that peers send and get
//	disks.go         how the other members' disks do
//	evidence.go      what members tell each other of their troubles
//	tracing.go       spans for a collector
//	words.go         what a member says of itself in the log
//	metrics.go       those of the ports
package node
