// Package replica is the raft loop of one member: it turns proposals into committed entries, hands
// them to the state machine, and answers whether what it has applied is fresh enough to read.
//
// # The one idea
//
// Memory is the log, the disk follows, and only promises wait for the disk (ARCHITECTURE.md). The
// loop owns a raft.RawNode with AsyncStorageWrites and never touches a disk, a socket or a lock
// that is held across I/O. What happens to the work that raft hands out:
//
//   - MsgStorageAppend goes to the Log, which takes it into memory at once. Its
//     MsgStorageAppendResp only says "these entries can be read back from Storage", so it is
//     stepped at once. All other responses in it are promises (the leader's own vote for an entry,
//     a follower's MsgAppResp, every vote) and come back through Released after the fdatasync that
//     covers them. So do a candidate's requests for votes, which raft would send at once: they
//     promise not to use the term again.
//   - MsgStorageApply goes to the applier goroutine; its response is stepped
//     when the entries are applied, which is how raft bounds the backlog.
//   - Everything else goes to the Network, which never blocks.
//
// Because MsgStorageAppendResp is stepped at once, raft considers entries stable (readable) as soon
// as they are in memory and lets committed ones be applied before the local disk has them: a leader
// whose disk does not answer still commits and applies through its followers. The store may
// therefore be flushed ahead of the local log; raftlog.Log.Adopt is the rule that makes this safe
// at the next start.
//
// The exception is a snapshot: its MsgStorageAppendResp tells raft that the state machine holds the
// snapshot, so it too waits until the state was installed (by the applier, durably) and the log's
// new base was written. Until then those of later entries wait behind it: raft computes its log
// from what it holds itself, snapshot first, and without the entries that follow it would believe
// that its log ends with the snapshot.
//
// # The disk watch
//
// Nothing waits for a leader's disk, so nobody would notice that it is dead: the leader would
// continue with one copy less of each new write, until its unsynced tail has filled memory. So the
// loop checks its log's disk at each tick (watchdisk.go; disk.go decides, handover.go acts): it
// serves through short stalls; when no sync has completed for Config.DiskStallHandOver it hands
// leadership, without an election timeout, to a member that reports a working disk and has proved
// it by acknowledging what was appended during the stall. It keeps leading if there is none, or if
// those members could not elect a leader without this member's vote.
//
// Followers must also work without their disk. Their acknowledgements wait for it, and raft sends
// little to a follower that acknowledges nothing; then it would apply nothing, and its clients
// would wait. Hence many appends may be in flight (maxInflightCount); a follower whose disk stalls
// tells a new leader how much of its log is durable (earlyAnswers), which makes raft stream to it;
// rejections, which promise nothing, do not wait for the disk. What a follower holds in memory is
// bounded by Config.MaxUnsyncedBytes: it drops what exceeds that.
//
// # Goroutines
//
//	loop       owns raft.RawNode; wakes for the inbox or a tick
//	applier    owns the state machine's write side; takes entries in order
//	keeper     makes applied member changes durable, and answers them then
//	flusher    asks the state machine to become durable, lets the log drop
//	feeds      send the log on disk to one follower each
//
// plus the log's writer goroutine, which calls Released. Clients call Propose,
// ProposeChange and ReadBarrier from any goroutine.
//
// All of them share env: the configuration, and what they publish for each other (published, whose
// fields name their writers). Everything else belongs to one goroutine, and others reach it through
// a queue: the loop through its inbox, which carries raft messages, proposals, and requests, each
// of which is a type with a handler.
//
// The loop consists of parts that share core: raft and its last state. Each decides about one thing
// and has the fields for it:
//
//	pending       what raft does not take now       questions    ReadIndex, ours and others'
//	disks         what the disks do                 earlyAnswers a follower's, before its disk
//	handOver      who is to lead, and the transfer  followers    those that are behind
//	ownRemoval    this member's, in its log         room         for more of the log
//	recorder      what went wrong                   timeouts     as the network needs them
//
// A transfer is raft's act: MsgTimeoutNow to a transferee that has the log. A hand-over is this
// package's decision to have one, and to whom; a request of a client is a transfer without one.
//
// # Invariants
//
//   - applied <= committed, and committed entries are on the disks of a quorum.
//   - No promise leaves before the sync that covers it (Released, in order).
//   - A member leads a term in one life only, since the term is on its disk before it asks anybody
//     for a vote in it.
//   - A reader that ReadBarrier lets pass sees every write that was acknowledged before it called.
//   - An entry is handed to the state machine once, in index order.
//
// # Files
//
//	replica.go    the type, its configuration and life, status
//	published.go  what the goroutines have in common and let each other know
//	inbox.go      what comes to the loop
//	core.go       raft, as the parts of the loop share it
//	loop.go       the raft loop
//	check.go      which messages of peers raft may see
//	propose.go    proposals, with a completion or a caller that waits
//	pending.go    what waits before raft
//	window.go     large proposals, which wait so that small ones need not
//	read.go       the read barrier
//	apply.go      the applier and snapshot installation
//	change.go     member changes, and what a crash must not take back
//	removal.go    this member's own removal
//	watchdisk.go  the disks: what the loop sees of them
//	disk.go       the disk of the raft log: what is decided because of it
//	store.go      the disk of the store: the same
//	handover.go   leadership: who gets it, and the transfer
//	earlyack.go   followers with slow disks
//	bounds.go     how much of the log a member takes
//	followers.go  what a leader keeps of followers that are behind, and for them
//	feed.go       followers further behind than the log in memory; feedwindow.go: how much at a time
//	flush.go      durable applied index, dropping the log
//	tuning.go     the election timeout, which follows the network
//	heartbeat.go  heartbeats that leave late
//	evidence.go   what the loop records of itself (package evidence)
//	metrics.go    etcd's metrics of raft, and Belay's own
//	logger.go     raft's lines in the log
//	spare.go      whether the others can do without this member
//	errors.go     what callers can see
//
// testdata/loop holds scenarios of what the loop decides, as text; testdata/disk those of
// the disk watch alone.
//
// Sources: Ongaro's thesis sections 3.8 (persisted state), 6.4 (read-only queries), 10.2.1 (writing
// to the leader's disk in parallel); raft v3's AsyncStorageWrites documentation; etcd's
// server/etcdserver/{raft,v3_server}.go for the timeouts and errors that clients know.
package replica
