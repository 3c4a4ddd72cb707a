// Package sim runs whole members in one process, in the virtual time of a testing/synctest bubble,
// and breaks everything around them as one seed decides.
//
// # What runs
//
// A member is what node builds, without gRPC: raftlog and store (Pebble) on a crashable file system
// in memory, mvcc, lease, state, watch hub, replica, and server for its loops (lease expiry,
// checkpoints, publishing, version) and its peer HTTP handler, which answers lease renewals. The log
// is opened with what node knows of it: what the store has applied, and which group it had. The
// network is transport.Memory; HTTP between members goes where its links go.
//
// # What is broken
//
// Syncs hang, for seconds or for so long that leadership is handed over, or are slow; crashes lose
// what was not synced, by blocks and directory entries; processes are killed; the log's disk
// returns EIO or ENOSPC, and the member stops and starts again; so does the store's (EIO ends a
// member, ENOSPC is waited for); the store is flushed ahead of the log and the member crashes;
// members are cut off, one way or both, once or flapping; messages are lost, delayed and reordered;
// members are paused (loop, applier and disk stop, as with SIGSTOP); leadership is transferred;
// members stop in order; learners are added and promoted, and members removed. Logs keep only a few
// KiB, so a lagging member gets a snapshot.
//
// # Kinds
//
// In addition each seed draws the kinds of its world, none (plain) or some, from the table in
// kinds_test.go; -sim.kind fixes them. A run ends with the virtual hours of each kind.
//
//	big      values of up to 1 MB, which the store keeps apart, and groups that are split
//	clock    the date of each member jumps by seconds or years; what counts time goes on
//	damaged  a member that is down loses a file or has a bit flipped, in the log or the
//	         store, of what can be told from a write that a crash interrupted. It may be
//	         right all the same, or stop, and is then replaced; it may not serve what is wrong
//	flags    members have flags that differ, and others after each crash; in every other world
//	         election timeouts too, as in the middle of a rolling change of theirs
//	hung     file operations of every kind but reads hang, names and directories included:
//	         the log's, the store's alone, or both
//	idle     clients are silent for up to a minute, so what is written lazily stays unwritten
//	loaded   more is written than disks take, by clients that do not wait
//	power    all members lose power at once, and with it all that was not synced
//	small    one to three voters, down to one
//	users    every client is a user, whose right to write comes and goes
//	wedged   the applier stands still, as in a write stall of the store
//
// # What is checked
//
//   - All members apply the same events at the same revision (oracle).
//   - Every acknowledged write is among them, once, at the revision in its answer; one that was
//     reported as never proposed is not.
//   - Operations see at least the revision of every operation that ended before they began; reads,
//     serializable ones too, show exactly the state of the revision in their header. With the
//     oracle that is linearizability; porcupine checks the same history again, without knowledge of
//     revisions.
//   - A watcher, over restarts and members, gets each event once, in order, whole
//     revisions, with the right previous value.
//   - There is one leader in a term, and one vote of a member in a term, judged by the messages
//     sent over all lives of a member.
//   - A lease does not end before its TTL has passed since the last answered renewal was sent, and
//     ends some time after nobody renews it.
//   - A call ends by its deadline, or by the request timeout, whatever hangs.
//   - The raft loop answers at once at each tick of each member, whatever the files do.
//   - The log that a member holds in memory stays below the sum of its bounds.
//   - In every fourth plain world only disks are broken, several at a time and for any length of
//     time: no member ever loses its leader there. Leadership may be handed over on purpose.
//   - When the faults end, every member serves within a bound, all reach the same index, their
//     HashKV, Hash, members and raft configuration are equal, and there is no further election.
//
// Every violation has a name (finding). Mutations break a rule in the wiring (the disk reports a
// sync that has not happened, or not yet; the restart rule is skipped, or keeps a conflicting
// tail); TestMutations shows that the checks detect each, by a finding that the breach should
// cause: neither a run that hangs nor another finding counts.
//
// # What a seed repeats
//
// The schedule of faults and every client's choices follow from the seed, and time is virtual. What
// Go's scheduler, select and map order decide does not, so a failing seed may have to be run
// several times (-sim.runs).
//
// # Not covered
//
// gRPC and the real transport (package check has them), tokens and the rights to read, clocks that
// drift (the bubble has one clock, and only lease tables get a wall clock that jumps: internal/lint
// checks that little else reads it), a manifest of the store that cannot be written (the process
// ends), damage to the last group of the raft log or the loss of its last segment, which look like
// an interrupted write, damage to files in use, members of etcd, more than one version.
package sim
