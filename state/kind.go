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
	kindAuthenticate // the first of package auth's
	kindAuthEnable
	kindAuthDisable
	kindAuthStatus
	kindAuthUserAdd
	kindAuthUserDelete
	kindAuthUserChangePassword
	kindAuthUserGrantRole
	kindAuthUserGet
	kindAuthUserRevokeRole
	kindAuthUserList
	kindAuthRoleAdd
	kindAuthRoleGrantPermission
	kindAuthRoleGet
	kindAuthRoleRevokePermission
	kindAuthRoleDelete
	kindAuthRoleList // the last of package auth's
	kindCount
)

var kindNames = [kindCount]string{
	"unknown", "ClusterVersionSet", "ClusterMemberAttrSet", "DowngradeInfoSet", "DowngradeVersionTest",
	"Range", "Put", "DeleteRange", "Txn", "Compaction", "LeaseGrant", "LeaseRevoke", "LeaseCheckpoint", "Alarm",
	"Authenticate", "AuthEnable", "AuthDisable", "unknown", // AuthStatus: etcd forgot its name
	"AuthUserAdd", "AuthUserDelete", "AuthUserChangePassword", "AuthUserGrantRole", "AuthUserGet", "AuthUserRevokeRole", "AuthUserList",
	"AuthRoleAdd", "AuthRoleGrantPermission", "AuthRoleGet", "AuthRoleRevokePermission", "AuthRoleDelete", "AuthRoleList",
}

// isAuth reports whether package auth applies it.
func (k kind) isAuth() bool { return k >= kindAuthenticate && k <= kindAuthRoleList }

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
	case r.Authenticate != nil:
		return kindAuthenticate
	case r.AuthEnable != nil:
		return kindAuthEnable
	case r.AuthDisable != nil:
		return kindAuthDisable
	case r.AuthStatus != nil:
		return kindAuthStatus
	case r.AuthUserAdd != nil:
		return kindAuthUserAdd
	case r.AuthUserDelete != nil:
		return kindAuthUserDelete
	case r.AuthUserChangePassword != nil:
		return kindAuthUserChangePassword
	case r.AuthUserGrantRole != nil:
		return kindAuthUserGrantRole
	case r.AuthUserGet != nil:
		return kindAuthUserGet
	case r.AuthUserRevokeRole != nil:
		return kindAuthUserRevokeRole
	case r.AuthRoleAdd != nil:
		return kindAuthRoleAdd
	case r.AuthRoleGrantPermission != nil:
		return kindAuthRoleGrantPermission
	case r.AuthRoleGet != nil:
		return kindAuthRoleGet
	case r.AuthRoleRevokePermission != nil:
		return kindAuthRoleRevokePermission
	case r.AuthRoleDelete != nil:
		return kindAuthRoleDelete
	case r.AuthUserList != nil:
		return kindAuthUserList
	case r.AuthRoleList != nil:
		return kindAuthRoleList
	}
	return kindNone
}
