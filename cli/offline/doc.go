// Package offline is `belay util`, and what Belay does under the name etcdutl: work on files, with
// no member running.
//
//	snapshot restore  a member's data directory from etcd's snapshot file
//	snapshot status   what such a file holds
//	hashkv            the hash of keys and history, of such a file or of a member's store
//	inspect           what each kind of file that a member writes holds
//	verify            everything that a stopped member's data directory holds, read and checked
//	defrag            a stopped member's store, rewritten without what it does not need
//	migrate           a stopped etcd's data made Belay's, or back; by the name etcdutl: an etcd's
//	                  data made that of another version of etcd
//	move              the members of a running etcd made Belay one by one, or back: it alone asks
//	                  members that run
//	raftlog           a member's raft log, group by group
//
// Commands, flags, output and exit codes are etcdutl's where it has them. Its migrate and `belay
// util migrate` are two commands.
//
// Sources: etcd's etcdutl/etcdutl and etcdutl/snapshot, read for facts and compared live.
package offline
