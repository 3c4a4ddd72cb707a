// Package rolling changes a running cluster one member at a time, with a look at all of it after
// each step: a member replaced by a new one; etcds made Belays with their data, and back.
//
// What is to be done next is decided from what the members say now, and from nothing that an
// earlier run has left behind: [Replace] and [Move] look, decide (a function that asks nobody),
// take one step, and look again. So a run may end at any point, by Ctrl-C or a crash, and the next
// one goes on where it was. The members may be Belay's or etcd's.
//
// Files: look.go (the cluster as its members tell it) and access.go (why they tell nothing);
// replace.go (a member replaced) and decide.go (which step comes next); move.go (members that
// change their kind), plan.go (which, in which order, by which commands) and turn.go (one run at a
// time).
package rolling
