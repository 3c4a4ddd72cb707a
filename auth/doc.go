// Package auth knows who may do what: users, roles, the ranges of keys that roles open, and the
// tokens that stand for a user between calls.
//
// A Policy is all users and roles of one moment. It never changes: a change makes the next one
// (Change), together with the records that hold it in the store. So a reader keeps one Policy for a
// whole call without a lock, the applier goes on to the next within a batch that nobody sees yet,
// and both judge by the same code.
//
// The ranges that a user's roles open are merged into sorted, disjoint ranges when they are first
// asked for, and kept until a role of the user changes. A check is then one binary search, whatever
// the number of roles. (etcd merges the ranges of all users anew at each change of any.)
//
// Tokens are not part of the Policy: they are each member's own. A simple token is handed out by an
// entry of the log, so all members that apply it know it; it is in memory alone and a restart
// forgets it. A JWT carries all it says.
//
// Hashes of passwords are made and compared by package server before anything is proposed: what is
// replicated is the hash, and applying it costs nothing.
//
// Files: policy.go (Policy, checks), session.go (whose a stream is), change.go (administration),
// ranges.go (merged ranges), tokens.go (simple tokens), jwt.go, record.go (records in the store).
//
// Any goroutine may call everything here. Source of the rules: etcd's server/auth and
// server/etcdserver/apply/auth.go.
package auth
