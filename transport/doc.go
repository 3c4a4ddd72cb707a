// Package transport carries raft messages and snapshots between members in etcd's rafthttp wire format.
package transport
