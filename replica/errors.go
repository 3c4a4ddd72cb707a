package replica

import "errors"

// The errors of Propose, ProposeChange, ReadBarrier and TransferLeader. Their
// texts are etcd's; server maps them to gRPC codes.
//
// A caller whose context ends before its proposal was handed to raft (there was no leader) gets the
// context's own error, as with etcd; a proposal that raft has and that has no result yet ends in
// one of the Timeout errors and may still be applied.
var (
	ErrStopped               = errors.New("etcdserver: server stopped")
	ErrCanceled              = errors.New("etcdserver: request cancelled")
	ErrTimeout               = errors.New("etcdserver: request timed out")
	ErrTimeoutLeaderFail     = errors.New("etcdserver: request timed out, possibly due to previous leader failure")
	ErrTimeoutConnectionLost = errors.New("etcdserver: request timed out, possibly due to connection lost")
	ErrTimeoutLeaderTransfer = errors.New("etcdserver: request timed out, leader transfer took too long")
	ErrTimeoutWaitApplied    = errors.New("etcdserver: request timed out, waiting for the applied index took too long")
	ErrNoLeader              = errors.New("etcdserver: no leader")
	ErrNotLeader             = errors.New("etcdserver: not leader")
	ErrLeaderChanged         = errors.New("etcdserver: leader changed")
	ErrTooManyRequests       = errors.New("etcdserver: too many requests")
	ErrRequestTooLarge       = errors.New("etcdserver: request is too large")
	ErrBadLeaderTransferee   = errors.New("etcdserver: bad leader transferee")
	ErrMemberNotFound        = errors.New("etcdserver: member not found")
	ErrLearnerNotReady       = errors.New("etcdserver: can only promote a learner member which is in sync with leader")
)
