// Command abuse attacks one of three real members and reports what their light clients noticed: a
// table, Belay beside etcd, by the same attacks on the same machine.
//
//	go run ./proof/abuse                           every attack, both kinds
//	go run ./proof/abuse -attacks 'peer-*' -kinds belay
//	go run ./proof/abuse -list
//
// Each attack is a row: what the attacker must have (a TCP connection, a token, the right to read
// some keys), and what it does to the first member for some seconds. It runs in a process of its
// own, at low priority, as a client on another machine would. Meanwhile a light client talks to
// each member: a put every 25 ms, and every 200 ms a read on a new connection. Then the attack
// ends, and the members are polled until all is as before.
//
// What is required of Belay, in each row: the members live; the one that is attacked stays within
// the row's bound of memory; the light clients' requests take less than a second, on the other
// members as well, whose memory stays as it was; all is back to normal some seconds after the
// attack. Some rows require more: that nothing was written, or that a password is not shown.
//
// TestAbuse runs the same attacks for half a second each on a single member, with bounds that a
// busy machine keeps: memory, and that the member lives and answers in the end.
//
// Files: main.go (the table), run.go (one attack on one kind), light.go (the
// light clients), attacks.go (the rows), grpc.go, http2.go, http1.go (what they
// do), child.go (the attacker's process).
package main
