// Command faults breaks things under three real members and reports what their clients saw: a
// table, Belay beside etcd, by the same script on the same machine.
//
//	go run ./proof/faults                         every row, both kinds
//	go run ./proof/faults -rows 'leader-*' -kinds belay
//	go run ./proof/faults -list
//	go run ./proof/faults -verdicts               what Belay's members say was wrong, scored
//
// The load of every row: 8 writers with a timeout of 2 s that put keys of their own, 4 linearizable
// readers, a lease kept alive, a watcher of all writes. Each of these clients knows all three
// members, as etcd's clients do. A row runs 5 s without the fault, 10 s (some 20 s) with it, and 5
// s after it. Then everything is read back: an acknowledged write must exist once, at its revision;
// the watcher must have seen each write once and in order; no read may have missed a write that was
// acknowledged before it began; the members' HashKV must be equal.
//
// How the faults are made (by proof/inject):
//
//	disk      slowfs under every member's data directory, in all rows, so that before and during
//	          cost the same. -disk none leaves it out: the difference is its cost.
//	network   a TCP relay between each two members: delay, loss as the
//	          wait for a retransmission, partitions in one direction or both.
//	          Clients speak to the members directly.
//	CPU       busy shells, two for each CPU.
//	full disk a tmpfs for each member, which another process fills.
//	pause     SIGSTOP.
//
// With -verdicts the rows have labels: the member and the cause. After the fault the members are
// asked for their verdicts (/debug/belay/events), and each is right or wrong; a row is right if it
// has the right one and no other.
//
// Everything is undone at the end, also after Ctrl-C; slowfs unmounts itself if this program dies
// in another way. It needs Linux, root and /dev/fuse.
//
// Files: main.go (the table), scenario.go (the rows), run.go (one run of one row), load.go and
// heavy.go (the clients), snapshot.go (the rows with a new member), verify.go (what they may
// expect), verdicts.go (labels and score).
package main
