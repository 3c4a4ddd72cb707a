// Package costs holds what one operation of a client costs a member against the figures in
// testdata/figures.txt, and fails where a fifth more is allocated or asked of the system, or half as
// much again of CPU time is spent; with -strict, a fifth of that, too. It is a test alone: there is
// nothing to import.
//
// # What is measured
//
// A member runs in a process of its own, with its data in memory and one processor (GOMAXPROCS=1),
// once over grpc-go and once over Belay's own gRPC server. The client is this test. It writes a burst
// of requests to a real connection at once, by frames that it makes itself, and sends the next burst
// when all are answered; so how many requests a read of the member finds, and how many answers leave
// in a write of Belay's own server, does not depend on who else uses the machine. Of each operation is
// counted what the member's process has spent, the client not included:
//
//	objects  that were allocated
//	bytes    that were allocated
//	calls    to read and write of the system, as the kernel counts them (/proc/self/io)
//	CPU      as a ratio: what an operation takes, to what an empty call of grpc-go takes
//
// The ratio is what makes CPU time comparable. A third process serves a grpc.Server that answers
// nothing, to the same client, in the same bursts; it is measured between the others. A machine that
// is slow, or whose caches others use, is so for both. What is said of an operation is the least of
// several rounds: others can only add to what it costs. A round is repeated only for operations that
// seem too dear, so that a quiet machine needs the fewest rounds; if 15 s do not suffice, the machine
// is so busy that nothing is judged.
//
// # What is not
//
// Instructions would be better than CPU time, but virtual machines seldom let them be counted. The
// ratio depends on the kind of CPU: on another than that which the figures name, it is printed and
// not judged. Objects and bytes are judged everywhere, and calls wherever they are up to Belay's code:
// not over grpc-go, whose writer takes along what has come by then, and not of ranges, whose answers
// leave in as many pieces as the socket has room for. -strict is for a machine that does
// nothing else: among other work the least of all rounds was up to a third too high. Disks,
// elections and what several processors do to each other are not seen here; `make bench` is for
// those.
//
// # When it fails
//
// It says which operation, by how much, and the command that writes a profile of it. When the cost is
// meant, or a change has made an operation cheaper for good, write the figures anew on a quiet
// machine, and read the diff:
//
//	go test -count=1 ./proof/costs -rewrite
//
// Files: costs_test.go (rounds, judgement, figures), client_test.go (bursts of frames), server_test.go
// (the processes), race_test.go, norace_test.go.
package costs
