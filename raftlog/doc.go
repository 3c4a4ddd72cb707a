// Package raftlog is the durable raft log and its tail in memory.
package raftlog
