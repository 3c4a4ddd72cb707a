// Package auth decides who may do what: users, roles, the key ranges that roles grant, and the
// tokens that identify a user between calls.
//
// A Policy is all users and roles at one moment. It is immutable: Change makes the next one,
// together with the records that store it. So a reader uses one Policy for a whole call without a
// lock, the applier moves on to the next within a batch that nobody sees yet, and both judge by the
// same code.
//
// The ranges that a user's roles grant are merged into sorted, disjoint ranges on first use, and
// kept until a role of the user changes. A check is then one binary search, whatever the number of
// roles. (etcd merges the ranges of all users again after each change of any.)
//
// Tokens are not part of the Policy; each member has its own. A simple token is issued by an entry
// of the log, so all members that apply the entry know it; it exists only in memory, and a restart
// forgets it. A JWT carries everything it says.
//
// Package server hashes and compares passwords before anything is proposed: the hash is what is
// replicated, and applying it costs nothing.
//
// Files: policy.go (Policy, checks), session.go (the user behind a stream), change.go
// (administration), ranges.go (merged ranges), tokens.go (simple tokens), jwt.go, record.go
// (records in the store), restore.go (from a snapshot file), errors.go.
//
// Any goroutine may call everything here. Source of the rules: etcd's server/auth and
// server/etcdserver/apply/auth.go.
package auth
