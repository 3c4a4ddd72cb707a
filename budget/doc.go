// Package budget divides the memory that a member may take.
//
// # What for
//
// Each part of a member has always been bounded, but by figures for a machine with memory to spare:
// together they may take several gigabytes, and in a container of 512 MiB the kernel kills the
// member before any of them is reached. Here one figure, --memory-budget, is divided: every part gets
// a share of it, and no more than its figure for a large machine, so a member with memory to spare
// behaves as it always did.
//
// # What it promises
//
// Find reads how much memory there is: the least of the machine's, of the memory limits of the
// cgroups (version 1 or 2) that the process is in, and of GOMEMLIMIT. Divide is arithmetic: the shares
// that are taken at the same time add up to the budget, or to less where a part has reached its
// figure for a large machine. The bounds are kept by the parts themselves, each in its own way: it
// makes others wait (range answers, large writes), refuses (proposals, incomplete requests), reads
// again later what it let go (watches), or evicts (caches).
//
// Not everything can be divided. The process itself, its goroutines and connections are an estimate
// (Process), and Go's collector lets garbage grow up to Garbage before it collects.
//
// # Who may call
//
// Any goroutine; there is no state.
//
//	size.go    what --memory-budget says
//	limit.go   what there is: machine, cgroups, GOMEMLIMIT
//	divide.go  the shares
//	heap.go    what is not Go's heap (heap_cgo.go, heap_nocgo.go)
package budget
