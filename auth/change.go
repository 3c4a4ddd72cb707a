package auth

import (
	"bytes"
	"encoding/base64"
	"maps"
	"slices"
	"sort"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// Outcome is the result of an administrative request.
type Outcome struct {
	Response proto.Message // its header is nil
	Next     *Policy       // nil: nothing changed
	Records  []Record      // to be written with it
	// Forget names a user whose tokens end; ForgetAll ends them all.
	Forget    string
	ForgetAll bool
}

// NeedsAdmin reports whether a request is root's alone.
func NeedsAdmin(r *pb.InternalRaftRequest) bool {
	return r.AuthEnable != nil || r.AuthDisable != nil || r.AuthUserAdd != nil || r.AuthUserDelete != nil ||
		r.AuthUserChangePassword != nil || r.AuthUserGrantRole != nil || r.AuthUserRevokeRole != nil ||
		r.AuthRoleAdd != nil || r.AuthRoleGrantPermission != nil || r.AuthRoleRevokePermission != nil ||
		r.AuthRoleDelete != nil || r.AuthUserList != nil || r.AuthRoleList != nil
}

// Judge reports whether the caller may make a request, with the error that Change and the state
// machine would give. keys supplies the keys of leases where they matter.
func (p *Policy) Judge(who Identity, r *pb.InternalRaftRequest, keys LeaseKeys) error {
	switch {
	case !p.enabled:
		return nil
	case r.Put != nil:
		return p.Put(who, r.Put, keys)
	case r.DeleteRange != nil:
		return p.DeleteRange(who, r.DeleteRange)
	case r.Txn != nil:
		return p.Txn(who, r.Txn, keys)
	case r.AuthUserGet != nil:
		return p.mayGetUser(who, r.AuthUserGet)
	case r.AuthRoleGet != nil:
		return p.mayGetRole(who, r.AuthRoleGet)
	case NeedsAdmin(r):
		return p.Admin(who)
	}
	return nil
}

// Change gives what a request for users and roles does, Authenticate excepted. It depends on p and
// the request alone. REQUIRES: the caller checked Admin if NeedsAdmin.
func (p *Policy) Change(who Identity, r *pb.InternalRaftRequest) (Outcome, error) {
	e := edit{of: p}
	switch {
	case r.AuthEnable != nil:
		return e.enable()
	case r.AuthDisable != nil:
		return e.disable(), nil
	case r.AuthStatus != nil:
		return Outcome{Response: &pb.AuthStatusResponse{Enabled: p.enabled, AuthRevision: p.revision}}, nil
	case r.AuthUserAdd != nil:
		return e.userAdd(r.AuthUserAdd)
	case r.AuthUserDelete != nil:
		return e.userDelete(r.AuthUserDelete)
	case r.AuthUserChangePassword != nil:
		return e.userChangePassword(r.AuthUserChangePassword)
	case r.AuthUserGrantRole != nil:
		return e.userGrantRole(r.AuthUserGrantRole)
	case r.AuthUserRevokeRole != nil:
		return e.userRevokeRole(r.AuthUserRevokeRole)
	case r.AuthUserGet != nil:
		return e.userGet(who, r.AuthUserGet)
	case r.AuthUserList != nil:
		return Outcome{Response: &pb.AuthUserListResponse{Users: p.userNames()}}, nil
	case r.AuthRoleAdd != nil:
		return e.roleAdd(r.AuthRoleAdd)
	case r.AuthRoleDelete != nil:
		return e.roleDelete(r.AuthRoleDelete)
	case r.AuthRoleGet != nil:
		return e.roleGet(who, r.AuthRoleGet)
	case r.AuthRoleList != nil:
		return Outcome{Response: &pb.AuthRoleListResponse{Roles: p.roleNames()}}, nil
	case r.AuthRoleGrantPermission != nil:
		return e.grant(r.AuthRoleGrantPermission)
	case r.AuthRoleRevokePermission != nil:
		return e.revoke(r.AuthRoleRevokePermission)
	}
	return Outcome{}, ErrInvalidAuthMgmt
}

// next is a copy of p one revision later, without the maps of p that the caller is to change.
func (p *Policy) next() *Policy {
	n := *p
	n.revision++
	return &n
}

// withUser is p with one user set, or deleted if u is nil.
func (p *Policy) withUser(name string, u *authpb.User) (*Policy, []Record) {
	n := p.next()
	n.users = maps.Clone(p.users)
	rec := Record{kind: kindUser, name: name}
	if u == nil {
		delete(n.users, name)
	} else {
		n.users[name] = newUser(u)
		rec = userRecord(u)
	}
	return n, []Record{rec, revisionRecord(n.revision)}
}

// withRole is p with one role set; the users that have it merge their ranges again.
func (p *Policy) withRole(name string, role *authpb.Role) (*Policy, []Record) {
	n := p.next()
	n.roles = maps.Clone(p.roles)
	n.roles[name] = role
	cloned := false
	for userName, u := range p.users {
		if !u.has(name) {
			continue
		}
		if !cloned {
			n.users, cloned = maps.Clone(p.users), true
		}
		n.users[userName] = u.unmerged()
	}
	return n, []Record{roleRecord(role), revisionRecord(n.revision)}
}

// edit makes the next policy from a request; the policy itself does not change.
type edit struct{ of *Policy }

func (e edit) enable() (Outcome, error) {
	out := Outcome{Response: &pb.AuthEnableResponse{}}
	if e.of.enabled {
		e.of.logger.Info("authentication is already enabled; ignored auth enable request")
		return out, nil
	}
	root := e.of.users[Root]
	if root == nil {
		return Outcome{}, ErrRootUserNotExist
	}
	if !root.root {
		return Outcome{}, ErrRootRoleNotExist
	}
	n := *e.of // the revision stays, as in etcd
	n.enabled = true
	out.Next, out.Records = &n, []Record{enabledRecord(true)}
	e.of.logger.Info("enabled authentication")
	return out, nil
}

func (e edit) disable() Outcome {
	out := Outcome{Response: &pb.AuthDisableResponse{}}
	if !e.of.enabled {
		return out
	}
	n := e.of.next()
	n.enabled = false
	out.Next, out.Records, out.ForgetAll = n, []Record{enabledRecord(false), revisionRecord(n.revision)}, true
	e.of.logger.Info("disabled authentication")
	return out
}

// hashOf is the hash in a request. A password in the clear comes from a member older than 3.5:
// hashing it here would give each member a different hash.
func hashOf(password, hashed string) ([]byte, error) {
	if password != "" && hashed == "" {
		return nil, ErrNoPasswordUser
	}
	b, err := base64.StdEncoding.DecodeString(hashed)
	if err != nil {
		return nil, ErrNoPasswordUser
	}
	return b, nil
}

func (e edit) userAdd(r *pb.AuthUserAddRequest) (Outcome, error) {
	if r.Name == "" {
		return Outcome{}, ErrUserEmpty
	}
	if e.of.users[r.Name] != nil {
		return Outcome{}, ErrUserAlreadyExist
	}
	options := r.Options
	if options == nil {
		options = &authpb.UserAddOptions{}
	}
	u := &authpb.User{Name: []byte(r.Name), Options: options}
	if !options.NoPassword {
		var err error
		if u.Password, err = hashOf(r.Password, r.HashedPassword); err != nil {
			return Outcome{}, err
		}
	}
	out := Outcome{Response: &pb.AuthUserAddResponse{}}
	out.Next, out.Records = e.of.withUser(r.Name, u)
	e.of.logger.Info("added a user", zap.String("user-name", r.Name))
	return out, nil
}

func (e edit) userDelete(r *pb.AuthUserDeleteRequest) (Outcome, error) {
	if e.of.enabled && r.Name == Root {
		e.of.logger.Error("cannot delete 'root' user", zap.String("user-name", r.Name))
		return Outcome{}, ErrInvalidAuthMgmt
	}
	u := e.of.users[r.Name]
	if u == nil {
		return Outcome{}, ErrUserNotFound
	}
	out := Outcome{Response: &pb.AuthUserDeleteResponse{}, Forget: r.Name}
	out.Next, out.Records = e.of.withUser(r.Name, nil)
	e.of.logger.Info("deleted a user", zap.String("user-name", r.Name), zap.Strings("user-roles", u.record.Roles))
	return out, nil
}

// with is a copy of a user's record with other roles and password.
func with(u *authpb.User, roles []string, password []byte) *authpb.User {
	return &authpb.User{Name: u.Name, Password: password, Roles: roles, Options: u.Options}
}

func (e edit) userChangePassword(r *pb.AuthUserChangePasswordRequest) (Outcome, error) {
	u := e.of.users[r.Name]
	if u == nil {
		return Outcome{}, ErrUserNotFound
	}
	var password []byte
	if !u.record.Options.GetNoPassword() {
		var err error
		if password, err = hashOf(r.Password, r.HashedPassword); err != nil {
			return Outcome{}, err
		}
	}
	out := Outcome{Response: &pb.AuthUserChangePasswordResponse{}, Forget: r.Name}
	out.Next, out.Records = e.of.withUser(r.Name, with(u.record, u.record.Roles, password))
	e.of.logger.Info("changed a password of a user", zap.String("user-name", r.Name), zap.Strings("user-roles", u.record.Roles))
	return out, nil
}

func (e edit) userGrantRole(r *pb.AuthUserGrantRoleRequest) (Outcome, error) {
	u := e.of.users[r.User]
	if u == nil {
		return Outcome{}, ErrUserNotFound
	}
	if r.Role != Root && e.of.roles[r.Role] == nil {
		return Outcome{}, ErrRoleNotFound
	}
	out := Outcome{Response: &pb.AuthUserGrantRoleResponse{}}
	if u.has(r.Role) {
		e.of.logger.Warn("ignored grant role request to a user", zap.String("user-name", r.User),
			zap.Strings("user-roles", u.record.Roles), zap.String("duplicate-role-name", r.Role))
		return out, nil
	}
	roles := append(slices.Clone(u.record.Roles), r.Role)
	slices.Sort(roles)
	out.Next, out.Records = e.of.withUser(r.User, with(u.record, roles, u.record.Password))
	e.of.logger.Info("granted a role to a user", zap.String("user-name", r.User),
		zap.Strings("user-roles", roles), zap.String("added-role-name", r.Role))
	return out, nil
}

func without(roles []string, role string) []string {
	var out []string
	for _, r := range roles {
		if r != role {
			out = append(out, r)
		}
	}
	return out
}

func (e edit) userRevokeRole(r *pb.AuthUserRevokeRoleRequest) (Outcome, error) {
	if e.of.enabled && r.Name == Root && r.Role == Root {
		e.of.logger.Error("'root' user cannot revoke 'root' role", zap.String("user-name", r.Name), zap.String("role-name", r.Role))
		return Outcome{}, ErrInvalidAuthMgmt
	}
	u := e.of.users[r.Name]
	if u == nil {
		return Outcome{}, ErrUserNotFound
	}
	roles := without(u.record.Roles, r.Role)
	if len(roles) == len(u.record.Roles) {
		return Outcome{}, ErrRoleNotGranted
	}
	out := Outcome{Response: &pb.AuthUserRevokeRoleResponse{}}
	out.Next, out.Records = e.of.withUser(r.Name, with(u.record, roles, u.record.Password))
	e.of.logger.Info("revoked a role from a user", zap.String("user-name", r.Name), zap.Strings("old-user-roles", u.record.Roles),
		zap.Strings("new-user-roles", roles), zap.String("revoked-role-name", r.Role))
	return out, nil
}

// mayGetUser: everybody may ask for themselves.
func (p *Policy) mayGetUser(who Identity, r *pb.AuthUserGetRequest) error {
	if r.Name == who.User {
		return nil
	}
	return p.Admin(who)
}

func (e edit) userGet(who Identity, r *pb.AuthUserGetRequest) (Outcome, error) {
	if err := e.of.mayGetUser(who, r); err != nil {
		return Outcome{}, err
	}
	u := e.of.users[r.Name]
	if u == nil {
		return Outcome{}, ErrUserNotFound
	}
	return Outcome{Response: &pb.AuthUserGetResponse{Roles: slices.Clone(u.record.Roles)}}, nil
}

func (e edit) roleAdd(r *pb.AuthRoleAddRequest) (Outcome, error) {
	if r.Name == "" {
		return Outcome{}, ErrRoleEmpty
	}
	if e.of.roles[r.Name] != nil {
		return Outcome{}, ErrRoleAlreadyExist
	}
	out := Outcome{Response: &pb.AuthRoleAddResponse{}}
	out.Next, out.Records = e.of.withRole(r.Name, &authpb.Role{Name: []byte(r.Name)})
	e.of.logger.Info("created a role", zap.String("role-name", r.Name))
	return out, nil
}

func (e edit) roleDelete(r *pb.AuthRoleDeleteRequest) (Outcome, error) {
	if e.of.enabled && r.Role == Root {
		e.of.logger.Error("cannot delete 'root' role", zap.String("role-name", r.Role))
		return Outcome{}, ErrInvalidAuthMgmt
	}
	if e.of.roles[r.Role] == nil {
		return Outcome{}, ErrRoleNotFound
	}
	n := e.of.next()
	n.roles, n.users = maps.Clone(e.of.roles), maps.Clone(e.of.users)
	delete(n.roles, r.Role)
	records := []Record{{kind: kindRole, name: r.Role}}
	for _, name := range e.of.userNames() {
		if u := e.of.users[name].record; e.of.users[name].has(r.Role) {
			changed := with(u, without(u.Roles, r.Role), u.Password)
			n.users[name] = newUser(changed)
			records = append(records, userRecord(changed))
		}
	}
	e.of.logger.Info("deleted a role", zap.String("role-name", r.Role))
	return Outcome{Response: &pb.AuthRoleDeleteResponse{}, Next: n, Records: append(records, revisionRecord(n.revision))}, nil
}

// mayGetRole: everybody may ask for roles of their own.
func (p *Policy) mayGetRole(who Identity, r *pb.AuthRoleGetRequest) error {
	err := p.Admin(who)
	if err != nil && p.hasRole(who.User, r.Role) {
		return nil
	}
	return err
}

func (e edit) roleGet(who Identity, r *pb.AuthRoleGetRequest) (Outcome, error) {
	if err := e.of.mayGetRole(who, r); err != nil {
		return Outcome{}, err
	}
	role := e.of.roles[r.Role]
	if role == nil {
		return Outcome{}, ErrRoleNotFound
	}
	resp := &pb.AuthRoleGetResponse{Perm: slices.Clone(role.KeyPermission)}
	if r.Role == Root {
		resp.Perm = []*authpb.Permission{{PermType: authpb.Permission_READWRITE, Key: []byte{}, RangeEnd: []byte{0}}}
	}
	return Outcome{Response: resp}, nil
}

func (p *Policy) hasRole(name, role string) bool {
	u := p.users[name]
	if u == nil {
		p.logger.Warn("'has-role' requested for non-existing user", zap.String("user-name", name), zap.String("role-name", role))
		return false
	}
	return u.has(role)
}

func (e edit) grant(r *pb.AuthRoleGrantPermissionRequest) (Outcome, error) {
	if r.Perm == nil {
		return Outcome{}, ErrPermissionNotGiven
	}
	if !validRange(r.Perm.Key, r.Perm.RangeEnd) {
		return Outcome{}, ErrInvalidAuthMgmt
	}
	role := e.of.roles[r.Name]
	if role == nil {
		return Outcome{}, ErrRoleNotFound
	}
	perm := &authpb.Permission{PermType: r.Perm.PermType, Key: r.Perm.Key, RangeEnd: r.Perm.RangeEnd}
	perms := slices.Clone(role.KeyPermission)
	i := sort.Search(len(perms), func(i int) bool { return bytes.Compare(perms[i].Key, perm.Key) >= 0 })
	if i < len(perms) && bytes.Equal(perms[i].Key, perm.Key) && bytes.Equal(perms[i].RangeEnd, perm.RangeEnd) {
		perms[i] = perm
	} else {
		perms = append(perms, perm)
		// Not stable on purpose: etcd sorts by the key alone with this very function, and members
		// must agree.
		sort.Sort(byKey(perms))
	}
	out := Outcome{Response: &pb.AuthRoleGrantPermissionResponse{}}
	out.Next, out.Records = e.of.withRole(r.Name, &authpb.Role{Name: role.Name, KeyPermission: perms})
	e.of.logger.Info("granted/updated a permission to a user", zap.String("user-name", r.Name),
		zap.String("permission-name", authpb.Permission_Type_name[int32(perm.PermType)]),
		zap.ByteString("key", perm.Key), zap.ByteString("range-end", perm.RangeEnd))
	return out, nil
}

type byKey []*authpb.Permission

func (b byKey) Len() int           { return len(b) }
func (b byKey) Less(i, j int) bool { return bytes.Compare(b[i].Key, b[j].Key) < 0 }
func (b byKey) Swap(i, j int)      { b[i], b[j] = b[j], b[i] }

func (e edit) revoke(r *pb.AuthRoleRevokePermissionRequest) (Outcome, error) {
	role := e.of.roles[r.Role]
	if role == nil {
		return Outcome{}, ErrRoleNotFound
	}
	var kept []*authpb.Permission
	for _, perm := range role.KeyPermission {
		if !bytes.Equal(perm.Key, r.Key) || !bytes.Equal(perm.RangeEnd, r.RangeEnd) {
			kept = append(kept, perm)
		}
	}
	if len(kept) == len(role.KeyPermission) {
		return Outcome{}, ErrPermissionNotGranted
	}
	out := Outcome{Response: &pb.AuthRoleRevokePermissionResponse{}}
	out.Next, out.Records = e.of.withRole(r.Role, &authpb.Role{Name: role.Name, KeyPermission: kept})
	e.of.logger.Info("revoked a permission on range", zap.String("role-name", r.Role),
		zap.ByteString("key", r.Key), zap.ByteString("range-end", r.RangeEnd))
	return out, nil
}

// MayAuthenticate reports whether a user whose password was correct may get a token.
func (p *Policy) MayAuthenticate(name string) error {
	if !p.enabled {
		return ErrAuthNotEnabled
	}
	if u := p.users[name]; u == nil || u.record.Options.GetNoPassword() {
		return ErrAuthFailed
	}
	return nil
}
