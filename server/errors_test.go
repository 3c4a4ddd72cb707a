package server

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/admission"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/state"
)

func marshal(m proto.Message) ([]byte, error)   { return proto.Marshal(m) }
func unmarshal(b []byte, m proto.Message) error { return proto.Unmarshal(b, m) }

// The texts and codes are what clients of every language match on: this table
// is written out, not derived.
func TestErrorsOnTheWire(t *testing.T) {
	cases := []struct {
		err  error
		code codes.Code
		text string
	}{
		{mvcc.ErrCompacted, codes.OutOfRange, "etcdserver: mvcc: required revision has been compacted"},
		{mvcc.ErrFutureRev, codes.OutOfRange, "etcdserver: mvcc: required revision is a future revision"},
		{state.ErrKeyNotFound, codes.InvalidArgument, "etcdserver: key not found"},
		{state.ErrNoSpace, codes.ResourceExhausted, "etcdserver: mvcc: database space exceeded"},
		{state.ErrCorrupt, codes.DataLoss, "etcdserver: corrupt cluster"},
		{state.ErrMemberNotFound, codes.NotFound, "etcdserver: member not found"},
		{state.ErrMemberExists, codes.FailedPrecondition, "etcdserver: member ID already exist"},
		{state.ErrPeerURLExists, codes.FailedPrecondition, "etcdserver: Peer URLs already exists"},
		{state.ErrNotLearner, codes.FailedPrecondition, "etcdserver: can only promote a learner member"},
		{state.ErrTooManyLearners, codes.FailedPrecondition, "etcdserver: too many learner members in cluster"},
		{lease.ErrNotFound, codes.NotFound, "etcdserver: requested lease not found"},
		{lease.ErrExists, codes.FailedPrecondition, "etcdserver: lease already exists"},
		{lease.ErrTTLTooLarge, codes.OutOfRange, "etcdserver: too large lease TTL"},
		{lease.ErrNotPrimary, codes.Unknown, "not a primary lessor"},
		{replica.ErrRequestTooLarge, codes.InvalidArgument, "etcdserver: request is too large"},
		{replica.ErrNoLeader, codes.Unavailable, "etcdserver: no leader"},
		{replica.ErrNotLeader, codes.FailedPrecondition, "etcdserver: not leader"},
		{replica.ErrLeaderChanged, codes.Unavailable, "etcdserver: leader changed"},
		{replica.ErrStopped, codes.Unavailable, "etcdserver: server stopped"},
		{replica.ErrCanceled, codes.Canceled, "etcdserver: request canceled"},
		{replica.ErrTimeout, codes.Unavailable, "etcdserver: request timed out"},
		{replica.ErrTimeoutLeaderFail, codes.Unavailable, "etcdserver: request timed out, possibly due to previous leader failure"},
		{replica.ErrTimeoutConnectionLost, codes.Unavailable, "etcdserver: request timed out, possibly due to connection lost"},
		{replica.ErrTimeoutWaitApplied, codes.Unavailable, "etcdserver: request timed out, waiting for the applied index took too long"},
		{replica.ErrTimeoutLeaderTransfer, codes.Unknown, "etcdserver: request timed out, leader transfer took too long"},
		{replica.ErrBadLeaderTransferee, codes.FailedPrecondition, "etcdserver: bad leader transferee"},
		{replica.ErrLearnerNotReady, codes.FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader"},
		{replica.ErrTooManyRequests, codes.Unknown, "etcdserver: too many requests"},
		{admission.ErrTooManyRequests, codes.Unknown, "etcdserver: too many requests"},
		{errNotEnoughStartedMembers, codes.Unknown, "etcdserver: re-configuration failed due to not enough started members"},
		{errUnhealthy, codes.Unavailable, "etcdserver: unhealthy cluster"},
		{errUnknownMethod, codes.Unknown, "etcdserver: unknown method"},
		{errClusterVersionUnavailable, codes.FailedPrecondition, "etcdserver: cluster version not found during downgrade"},
		{errWrongDowngradeFormat, codes.InvalidArgument, "etcdserver: wrong downgrade target version format"},
		{errInvalidDowngradeTarget, codes.InvalidArgument, "etcdserver: invalid downgrade target version"},
		{errDowngradeInProcess, codes.FailedPrecondition, "etcdserver: cluster has a downgrade job in progress"},
		{errors.New("anything else"), codes.Unknown, "anything else"},
		{status.Error(codes.Aborted, "has a code"), codes.Aborted, "has a code"},
	}
	for _, c := range cases {
		checkStatus(t, toGRPC(c.err), c.code, c.text)
	}
	for _, e := range errorTable {
		if toGRPC(fmt.Errorf("with more words: %w", e.internal)) != e.wire {
			t.Errorf("%v, wrapped, is not found in the table", e.internal)
		}
	}
}

func TestContextErrorsGoRaw(t *testing.T) {
	for _, err := range []error{context.Canceled, context.DeadlineExceeded} {
		if got := toGRPC(err); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
	if toGRPC(nil) != nil {
		t.Error("nil became an error")
	}
	if codeOf(context.DeadlineExceeded) != codes.DeadlineExceeded || codeOf(context.Canceled) != codes.Canceled || codeOf(nil) != codes.OK {
		t.Error("codeOf differs from what grpc sends")
	}
}
