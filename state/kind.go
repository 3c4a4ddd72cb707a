package state

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// kind is which of its many requests an InternalRaftRequest holds.
type kind uint8

const (
	kindNone kind = iota
	kindClusterVersionSet
	kindClusterMemberAttrSet
	kindDowngradeInfoSet
	kindDowngradeVersionTest
	kindRange
	kindPut
	kindDeleteRange
	kindTxn
	kindCompaction
	kindLeaseGrant
	kindLeaseRevoke
	kindLeaseCheckpoint
	kindAlarm
	kindAuth
	kindCount
)

var kindNames = [kindCount]string{
	"unknown", "ClusterVersionSet", "ClusterMemberAttrSet", "DowngradeInfoSet", "DowngradeVersionTest",
	"Range", "Put", "DeleteRange", "Txn", "Compaction", "LeaseGrant", "LeaseRevoke", "LeaseCheckpoint", "Alarm", "Auth",
}

// String is the label `op` of etcd_server_apply_duration_seconds.
func (k kind) String() string { return kindNames[k] }

// kindOf looks for the request in etcd's order, which decides if an entry should hold two.
func kindOf(r *pb.InternalRaftRequest) kind {
	switch {
	case r.ClusterVersionSet != nil:
		return kindClusterVersionSet
	case r.ClusterMemberAttrSet != nil:
		return kindClusterMemberAttrSet
	case r.DowngradeInfoSet != nil:
		return kindDowngradeInfoSet
	case r.DowngradeVersionTest != nil:
		return kindDowngradeVersionTest
	case r.Range != nil:
		return kindRange
	case r.Put != nil:
		return kindPut
	case r.DeleteRange != nil:
		return kindDeleteRange
	case r.Txn != nil:
		return kindTxn
	case r.Compaction != nil:
		return kindCompaction
	case r.LeaseGrant != nil:
		return kindLeaseGrant
	case r.LeaseRevoke != nil:
		return kindLeaseRevoke
	case r.LeaseCheckpoint != nil:
		return kindLeaseCheckpoint
	case r.Alarm != nil:
		return kindAlarm
	case r.Authenticate != nil, r.AuthEnable != nil, r.AuthDisable != nil, r.AuthStatus != nil,
		r.AuthUserAdd != nil, r.AuthUserDelete != nil, r.AuthUserChangePassword != nil, r.AuthUserGrantRole != nil,
		r.AuthUserGet != nil, r.AuthUserRevokeRole != nil, r.AuthUserList != nil,
		r.AuthRoleAdd != nil, r.AuthRoleGrantPermission != nil, r.AuthRoleGet != nil, r.AuthRoleRevokePermission != nil,
		r.AuthRoleDelete != nil, r.AuthRoleList != nil:
		return kindAuth
	}
	return kindNone
}
