// Package walfile reads and writes the raft log of an etcd: its write-ahead log (member/wal) and
// the snapshot files beside it (member/snap/*.snap). Like snapshotfile it is a border: data goes
// over it when a member of one kind becomes one of the other, and no member that runs uses it.
//
// # What it promises
//
// Read changes nothing and takes bounded memory: it keeps the entries after the one that the
// database has applied, and the member changes since the newest snapshot; what lies before is
// checked and dropped. It judges as etcd does. A last record that has a sector of zeros is a write
// that a crash interrupted: the log ends before it. Every other record that cannot be read, or whose
// checksum does not fit, is damage: a *DamageError with the file and the offset.
//
// Write makes a log that every etcd from 3.4 on continues: a snapshot at the applied entry, the hard
// state, the entries after it. It is durable when Write returns. WriteSnapshot makes the file of
// that snapshot, which etcd before 3.7 reads.
//
// Everything here is a function; no goroutine is started.
//
// # The format
//
// A segment is named by its number and the index of its first entry, and is a sequence of frames:
//
//	+---------------------+-----------------------+---------+
//	| length, LE, 8 bytes | record                | padding |
//	+---------------------+-----------------------+---------+
//	  low 56 bits: bytes of the record; top byte: 0x80 | bytes of padding, if there is any
//
// A length of 0, or the end of the file, ends the segment. A record is, in protobuf, type (1), crc
// (2), data (3). crc is CRC-32C over the data of all records so far, continued from segment to
// segment by a record of type 4 at the head of each.
//
// # Files
//
//	read.go      Read, and the records
//	write.go     Write
//	version.go   which etcd can read the entries
//	snapshot.go  .snap files, with the membership in the form of etcd's old store
//
// Sources: etcd's server/storage/wal and server/etcdserver/api/snap, read for facts.
package walfile
