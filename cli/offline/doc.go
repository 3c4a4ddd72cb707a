// Package offline is `belay util`, and what Belay does under the name etcdutl: work on files, with
// no member running.
//
//	snapshot restore  a member's data directory from etcd's snapshot file
//	snapshot status   what such a file holds
//	hashkv            the hash of keys and history, of such a file or of a member's store
//	inspect           what each kind of file that a member writes holds
//	migrate           a stopped etcd's data made Belay's, or back
//	raftlog           a member's raft log, group by group
//
// Commands, flags, output and exit codes are etcdutl's where it has them; its defrag and
// migrate have no counterpart, since there is no database file for them to work on; `belay util
// migrate` is another one.
//
// Sources: etcd's etcdutl/etcdutl and etcdutl/snapshot, read for facts and compared live.
package offline
