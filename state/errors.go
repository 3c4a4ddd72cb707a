package state

import (
	"errors"

	"github.com/belaydb/belay/mvcc"
)

// Errors for the client. The texts are etcd's, without the gRPC code, which package server adds in
// its one table. Besides these, results carry mvcc.ErrCompacted, mvcc.ErrFutureRev,
// lease.ErrNotFound, lease.ErrExists and lease.ErrTTLTooLarge.
//
// Each depends only on the log and the store, so a command fails alike on every member. The
// exceptions are ErrNoSpace beside a response, which means that the command was applied and this
// member's database is over its quota, and ErrTxnAnswerTooLarge.
var (
	ErrEmptyKey          = errors.New("etcdserver: key is not provided")
	ErrKeyNotFound       = errors.New("etcdserver: key not found")
	ErrInvalidSortOption = errors.New("etcdserver: invalid sort option")
	ErrNoSpace           = errors.New("etcdserver: mvcc: database space exceeded")
	ErrCorrupt           = errors.New("etcdserver: corrupt cluster")
	ErrMemberNotFound    = errors.New("etcdserver: member not found") // unknown or removed; a removed id never returns
	ErrMemberExists      = errors.New("etcdserver: member ID already exist")
	ErrPeerURLExists     = errors.New("etcdserver: Peer URLs already exists")
	ErrNotLearner        = errors.New("etcdserver: can only promote a learner member")
	ErrTooManyLearners   = errors.New("etcdserver: too many learner members in cluster")
	ErrBadVersion        = errors.New("etcdserver: cluster version is not a version")

	// ErrLastVoter answers the removal of the only voter: raft has no configuration without one,
	// and ends the process. It has the text with which etcd refuses the removal, if it checks at
	// all.
	ErrLastVoter = errors.New("etcdserver: re-configuration failed due to not enough started members")

	// ErrUnknownRequest answers an entry that holds no request at all. No member of ours or of
	// etcd's writes one.
	ErrUnknownRequest = errors.New("etcdserver: empty raft request")

	// ErrUnknownChange answers a change of the member list of a type or content that cannot be.
	ErrUnknownChange = errors.New("etcdserver: malformed member change")

	// ErrTxnAnswerTooLarge answers, beside a response, a transaction that was applied and asked for
	// more than Config.MaxAnswerBytes. Only this member returns it: on the others nobody waits for
	// the answer.
	ErrTxnAnswerTooLarge = errors.New("etcdserver: the transaction was applied, but its answer is too large; ask for less at a time")

	// ErrNotReadOnly answers ReadTxn for a transaction that writes.
	ErrNotReadOnly = errors.New("state: not a read-only transaction")
)

// isRoutine reports whether an error is so usual that applying it is no failure in metrics and log;
// etcd's choice.
func isRoutine(err error) bool { return err == nil || errors.Is(err, mvcc.ErrCompacted) }
