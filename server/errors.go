package server

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/admission"
	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/state"
)

// Sentinels of this package, with etcd's texts.
var (
	errUnknownMethod             = errors.New("etcdserver: unknown method")
	errNotEnoughStartedMembers   = errors.New("etcdserver: re-configuration failed due to not enough started members")
	errUnhealthy                 = errors.New("etcdserver: unhealthy cluster")
	errClusterVersionUnavailable = errors.New("etcdserver: cluster version not found during downgrade")
	errWrongDowngradeFormat      = errors.New("etcdserver: wrong downgrade target version format")
	errInvalidDowngradeTarget    = errors.New("etcdserver: invalid downgrade target version")
	errDowngradeInProcess        = errors.New("etcdserver: cluster has a downgrade job in progress")
	// errLeaseHTTPTimeout answers another member's request for a lease.
	errLeaseHTTPTimeout = errors.New("waiting for node to catch up its applied index has timed out")
)

// errorTable maps each error of the packages below to what a client gets: etcd's code and text. It
// is the only such table. An error that is not in it is sent as Unknown with its own text, and so
// are, on purpose:
//
//   - `not enough started members` and `too many requests`, whose etcd mapping
//     points at client-side errors that carry no code,
//   - `unknown method`, `leader transfer took too long`, `not a primary
//     lessor`, which etcd does not map,
//   - the errors of Election and Lock.
var errorTable = []struct{ internal, wire error }{
	{mvcc.ErrCompacted, rpctypes.ErrGRPCCompacted},
	{mvcc.ErrFutureRev, rpctypes.ErrGRPCFutureRev},
	{mvcc.ErrTooLarge, status.Error(codes.ResourceExhausted, "etcdserver: the answer would be larger than --max-answer-bytes; ask for less at a time, or use RangeStream")},
	{state.ErrTxnAnswerTooLarge, status.Error(codes.ResourceExhausted, state.ErrTxnAnswerTooLarge.Error())},

	{state.ErrEmptyKey, rpctypes.ErrGRPCEmptyKey},
	{state.ErrInvalidSortOption, rpctypes.ErrGRPCInvalidSortOption},
	{state.ErrKeyNotFound, rpctypes.ErrGRPCKeyNotFound},
	{state.ErrNoSpace, rpctypes.ErrGRPCNoSpace},
	{state.ErrCorrupt, rpctypes.ErrGRPCCorrupt},
	{state.ErrMemberNotFound, rpctypes.ErrGRPCMemberNotFound},
	{state.ErrMemberExists, rpctypes.ErrGRPCMemberExist},
	{state.ErrPeerURLExists, rpctypes.ErrGRPCPeerURLExist},
	{state.ErrNotLearner, rpctypes.ErrGRPCMemberNotLearner},
	{state.ErrTooManyLearners, rpctypes.ErrGRPCTooManyLearners},

	{auth.ErrRootUserNotExist, rpctypes.ErrGRPCRootUserNotExist},
	{auth.ErrRootRoleNotExist, rpctypes.ErrGRPCRootRoleNotExist},
	{auth.ErrUserAlreadyExist, rpctypes.ErrGRPCUserAlreadyExist},
	{auth.ErrUserEmpty, rpctypes.ErrGRPCUserEmpty},
	{auth.ErrUserNotFound, rpctypes.ErrGRPCUserNotFound},
	{auth.ErrRoleAlreadyExist, rpctypes.ErrGRPCRoleAlreadyExist},
	{auth.ErrRoleNotFound, rpctypes.ErrGRPCRoleNotFound},
	{auth.ErrRoleEmpty, rpctypes.ErrGRPCRoleEmpty},
	{auth.ErrAuthFailed, rpctypes.ErrGRPCAuthFailed},
	{auth.ErrPermissionNotGiven, rpctypes.ErrGRPCPermissionNotGiven},
	{auth.ErrPermissionDenied, rpctypes.ErrGRPCPermissionDenied},
	{auth.ErrRoleNotGranted, rpctypes.ErrGRPCRoleNotGranted},
	{auth.ErrPermissionNotGranted, rpctypes.ErrGRPCPermissionNotGranted},
	{auth.ErrAuthNotEnabled, rpctypes.ErrGRPCAuthNotEnabled},
	{auth.ErrInvalidAuthToken, rpctypes.ErrGRPCInvalidAuthToken},
	{auth.ErrInvalidAuthMgmt, rpctypes.ErrGRPCInvalidAuthMgmt},
	{auth.ErrAuthOldRevision, rpctypes.ErrGRPCAuthOldRevision},

	{lease.ErrNotFound, rpctypes.ErrGRPCLeaseNotFound},
	{lease.ErrExists, rpctypes.ErrGRPCLeaseExist},
	{lease.ErrTTLTooLarge, rpctypes.ErrGRPCLeaseTTLTooLarge},

	{replica.ErrRequestTooLarge, rpctypes.ErrGRPCRequestTooLarge},
	{replica.ErrNoLeader, rpctypes.ErrGRPCNoLeader},
	{replica.ErrNotLeader, rpctypes.ErrGRPCNotLeader},
	{replica.ErrLeaderChanged, rpctypes.ErrGRPCLeaderChanged},
	{replica.ErrCanceled, rpctypes.ErrGRPCCanceled},
	{replica.ErrStopped, rpctypes.ErrGRPCStopped},
	{replica.ErrTimeout, rpctypes.ErrGRPCTimeout},
	{replica.ErrTimeoutLeaderFail, rpctypes.ErrGRPCTimeoutDueToLeaderFail},
	{replica.ErrTimeoutConnectionLost, rpctypes.ErrGRPCTimeoutDueToConnectionLost},
	{replica.ErrTimeoutWaitApplied, rpctypes.ErrGRPCTimeoutWaitAppliedIndex},
	{replica.ErrBadLeaderTransferee, rpctypes.ErrGRPCBadLeaderTransferee},
	{replica.ErrMemberNotFound, rpctypes.ErrGRPCMemberNotFound},
	{replica.ErrLearnerNotReady, rpctypes.ErrGRPCLearnerNotReady},

	{errUnhealthy, rpctypes.ErrGRPCUnhealthy},
	{errClusterVersionUnavailable, rpctypes.ErrGRPCClusterVersionUnavailable},
	{errWrongDowngradeFormat, rpctypes.ErrGRPCWrongDowngradeVersionFormat},
	{errInvalidDowngradeTarget, rpctypes.ErrGRPCInvalidDowngradeTargetVersion},
	{errDowngradeInProcess, rpctypes.ErrGRPCDowngradeInProcess},

	// Listed for completeness: they have no code of their own.
	{state.ErrLastVoter, status.Error(codes.Unknown, errNotEnoughStartedMembers.Error())},
	{errNotEnoughStartedMembers, status.Error(codes.Unknown, errNotEnoughStartedMembers.Error())},
	{admission.ErrTooManyRequests, status.Error(codes.Unknown, admission.ErrTooManyRequests.Error())},
	{admission.ErrTooManyWaiting, status.Error(codes.ResourceExhausted, admission.ErrTooManyWaiting.Error())},
	{replica.ErrTooManyRequests, status.Error(codes.Unknown, replica.ErrTooManyRequests.Error())},
	{replica.ErrTimeoutLeaderTransfer, status.Error(codes.Unknown, replica.ErrTimeoutLeaderTransfer.Error())},
	{errUnknownMethod, status.Error(codes.Unknown, errUnknownMethod.Error())},
}

// toGRPC maps an error to what the client gets. Errors of the caller's context pass unchanged, so
// that grpc turns them into Canceled or DeadlineExceeded; errors that have a code keep it.
func toGRPC(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	for _, e := range errorTable {
		if errors.Is(err, e.internal) {
			return e.wire
		}
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unknown, err.Error())
}
