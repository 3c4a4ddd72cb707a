package auth

import (
	"maps"
	"slices"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"golang.org/x/crypto/bcrypt"
)

// Root is the name of the user that must exist for authentication to be on, and of the role that
// may do everything.
const Root = "root"

// Identity is the caller. The zero value means that the caller gave no identity.
type Identity struct {
	User string
	// Revision is that of the policy under which the identity was established. A check under a
	// later policy fails, so that a request on its way through the log is not judged by other rules
	// than its token was.
	Revision uint64
}

// Policy is immutable.
type Policy struct {
	logger   *zap.Logger
	enabled  bool
	revision uint64 // counts changes; 1 before the first
	users    map[string]*user
	roles    map[string]*authpb.Role
}

// user is immutable except for the merged ranges, which are made on first use. When a role changes,
// its users are replaced.
type user struct {
	record *authpb.User
	root   bool
	sorted bool // the names of its roles are, as ever since etcd 3.0
	merged atomic.Pointer[ranges]
}

func newUser(record *authpb.User) *user {
	return &user{record: record, root: slices.Contains(record.Roles, Root), sorted: slices.IsSorted(record.Roles)}
}

// unmerged is the same user after a change of its roles: its ranges are merged again on next use.
func (u *user) unmerged() *user { return &user{record: u.record, root: u.root, sorted: u.sorted} }

func (u *user) has(role string) bool {
	if u.sorted {
		_, found := slices.BinarySearch(u.record.Roles, role)
		return found
	}
	return slices.Contains(u.record.Roles, role)
}

func (p *Policy) rangesOf(u *user) *ranges {
	if r := u.merged.Load(); r != nil {
		return r
	}
	r := mergeRoles(u.record.Roles, p.roles)
	u.merged.Store(r)
	return r
}

// Enabled reports whether authentication is on.
func (p *Policy) Enabled() bool { return p.enabled }

// Revision counts the changes; it starts at 1.
func (p *Policy) Revision() uint64 { return p.revision }

// Admin checks that the caller has the role root. As in etcd the revision does not matter; see
// Current.
func (p *Policy) Admin(who Identity) error {
	if !p.enabled {
		return nil
	}
	if who.User == "" {
		return ErrUserEmpty
	}
	switch u := p.users[who.User]; {
	case u == nil:
		return ErrUserNotFound
	case !u.root:
		return ErrPermissionDenied
	}
	return nil
}

// Current checks that the caller's token has this revision or a later one: callers that are let in
// by name alone must pass it too.
func (p *Policy) Current(who Identity) error {
	if p.enabled && who.Revision < p.revision {
		return ErrAuthOldRevision
	}
	return nil
}

// Read checks that the caller may read a range; end as in a RangeRequest.
func (p *Policy) Read(who Identity, key, end []byte) error { return p.check(who, key, end, false) }

// Write checks that the caller may write all keys of a range.
func (p *Policy) Write(who Identity, key, end []byte) error { return p.check(who, key, end, true) }

func (p *Policy) check(who Identity, key, end []byte, write bool) error {
	if !p.enabled {
		return nil
	}
	if who.Revision == 0 {
		return ErrUserEmpty
	}
	if who.Revision < p.revision {
		p.logger.Warn("request auth revision is less than current node auth revision",
			zap.Uint64("current node auth revision", p.revision),
			zap.Uint64("request auth revision", who.Revision),
			zap.ByteString("request key", key),
			zap.Error(ErrAuthOldRevision))
		return ErrAuthOldRevision
	}
	u := p.users[who.User]
	if u == nil {
		p.logger.Error("cannot find a user for permission check", zap.String("user-name", who.User))
		return ErrPermissionDenied
	}
	if u.root {
		return nil
	}
	r := p.rangesOf(u)
	open := r.read
	if write {
		open = r.write
	}
	if !open.contains(key, end) {
		return ErrPermissionDenied
	}
	return nil
}

// LeaseKeys returns the keys that are attached to a lease; none for a lease that does not exist.
type LeaseKeys func(id int64) ([][]byte, error)

// Put checks a put. Attaching a lease requires the right to write every key that is attached to it,
// since its expiry deletes them all.
func (p *Policy) Put(who Identity, r *pb.PutRequest, keys LeaseKeys) error {
	if !p.enabled {
		return nil
	}
	if err := p.Write(who, r.Key, nil); err != nil {
		return err
	}
	if r.Lease != 0 {
		if err := p.WriteLease(who, r.Lease, keys); err != nil {
			return err
		}
	}
	if r.PrevKv {
		return p.Read(who, r.Key, nil)
	}
	return nil
}

// DeleteRange checks a deletion.
func (p *Policy) DeleteRange(who Identity, r *pb.DeleteRangeRequest) error {
	if err := p.Write(who, r.Key, r.RangeEnd); err != nil || !r.PrevKv {
		return err
	}
	return p.Read(who, r.Key, r.RangeEnd)
}

// Txn checks a whole transaction, both branches, at every depth: which branch is taken reveals
// something about keys, too.
func (p *Policy) Txn(who Identity, r *pb.TxnRequest, keys LeaseKeys) error {
	if !p.enabled {
		return nil
	}
	for _, c := range r.Compare {
		if err := p.Read(who, c.GetKey(), c.GetRangeEnd()); err != nil {
			return err
		}
	}
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			if err := p.op(who, op, keys); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *Policy) op(who Identity, op *pb.RequestOp, keys LeaseKeys) error {
	switch o := op.GetRequest().(type) {
	case *pb.RequestOp_RequestRange:
		if o.RequestRange != nil {
			return p.Read(who, o.RequestRange.Key, o.RequestRange.RangeEnd)
		}
	case *pb.RequestOp_RequestPut:
		if o.RequestPut != nil {
			return p.Put(who, o.RequestPut, keys)
		}
	case *pb.RequestOp_RequestDeleteRange:
		if o.RequestDeleteRange != nil {
			return p.DeleteRange(who, o.RequestDeleteRange)
		}
	case *pb.RequestOp_RequestTxn:
		if o.RequestTxn != nil {
			return p.Txn(who, o.RequestTxn, keys)
		}
	}
	return nil
}

// WriteLease checks that the caller may write every key of a lease: renewing, revoking or attaching
// it affects them all.
func (p *Policy) WriteLease(who Identity, id int64, keys LeaseKeys) error {
	return p.lease(who, id, keys, p.Write)
}

// ReadLease checks that the caller may read every key of a lease.
func (p *Policy) ReadLease(who Identity, id int64, keys LeaseKeys) error {
	return p.lease(who, id, keys, p.Read)
}

func (p *Policy) lease(who Identity, id int64, keys LeaseKeys, check func(Identity, []byte, []byte) error) error {
	if p.Admin(who) == nil {
		return nil
	}
	attached, err := keys(id)
	if err != nil {
		return err
	}
	for _, key := range attached {
		if err := check(who, key, nil); err != nil {
			return err
		}
	}
	return nil
}

// CheckPassword compares a password with the user's hash, which takes some 50 ms of CPU at the
// default cost. The revision is that of the policy that was used.
func (p *Policy) CheckPassword(name, password string) (revision uint64, err error) {
	if !p.enabled {
		return 0, ErrAuthNotEnabled
	}
	u := p.users[name]
	if u == nil {
		return 0, ErrAuthFailed
	}
	if u.record.Options.GetNoPassword() {
		return 0, ErrNoPasswordUser
	}
	if bcrypt.CompareHashAndPassword(u.record.Password, []byte(password)) != nil {
		p.logger.Info("invalid password", zap.String("user-name", name))
		return 0, ErrAuthFailed
	}
	return p.revision, nil
}

// HasPassword reports whether there is a user with a password to compare: CheckPassword answers at
// once for any other name.
func (p *Policy) HasPassword(name string) bool {
	u := p.users[name]
	return p.enabled && u != nil && !u.record.Options.GetNoPassword()
}

// SameUser reports whether a user has the same password in both policies: tokens given under one
// may be used under the other.
func (p *Policy) SameUser(other *Policy, name string) bool {
	a, b := p.users[name], other.users[name]
	return a != nil && b != nil && string(a.record.Password) == string(b.record.Password)
}

func (p *Policy) userNames() []string { return slices.Sorted(maps.Keys(p.users)) }
func (p *Policy) roleNames() []string { return slices.Sorted(maps.Keys(p.roles)) }
