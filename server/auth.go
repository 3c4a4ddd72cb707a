package server

import (
	"context"
	"encoding/base64"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/admission"
	"github.com/belaydb/belay/auth"
)

// authService is etcdserverpb.Auth. Everything goes through the log, reads too, as in etcd, so the
// answer is current. Passwords do not: they are hashed or compared here.
type authService struct {
	log     *proposals
	callers *authorizer
	headers *headers
	life    *lifetime
	limits  Limits
	cost    int              // of passwords' hashes, as bcrypt counts
	hashing *admission.Turns // of computing them; see acquireHashing
	logger  *zap.Logger
	pb.UnsafeAuthServer
}

// authCall replicates a request of this service and completes the header of its answer.
func authCall[Resp interface {
	proto.Message
	GetHeader() *pb.ResponseHeader
}](ctx context.Context, a *authService, kind requestKind, req *pb.InternalRaftRequest) (resp Resp, err error) {
	result, err := a.log.propose(ctx, kind, req, smallRequest)
	if err != nil {
		return resp, toGRPC(err)
	}
	resp = result.Response.(Resp)
	a.headers.fill(resp.GetHeader())
	return resp, nil
}

func (a *authService) AuthStatus(ctx context.Context, r *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	return authCall[*pb.AuthStatusResponse](ctx, a, kindAuthStatus, &pb.InternalRaftRequest{AuthStatus: r})
}

func (a *authService) AuthEnable(ctx context.Context, r *pb.AuthEnableRequest) (*pb.AuthEnableResponse, error) {
	return authCall[*pb.AuthEnableResponse](ctx, a, kindAuthEnable, &pb.InternalRaftRequest{AuthEnable: r})
}

func (a *authService) AuthDisable(ctx context.Context, r *pb.AuthDisableRequest) (*pb.AuthDisableResponse, error) {
	return authCall[*pb.AuthDisableResponse](ctx, a, kindAuthDisable, &pb.InternalRaftRequest{AuthDisable: r})
}

// Authenticate compares the password here and gets the token through the log. If users or roles
// changed in between, it starts again: the password may have changed.
func (a *authService) Authenticate(ctx context.Context, r *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	password := r.Password
	r.Password = "" // code that holds the request later, such as the log of slow requests, must not have it
	if err := a.callers.barrier(ctx); err != nil {
		return nil, toGRPC(err)
	}
	for {
		revision, err := a.checkPassword(ctx, r.Name, password)
		if err != nil {
			return nil, toGRPC(err)
		}
		req := &pb.InternalRaftRequest{Authenticate: &pb.InternalAuthenticateRequest{Name: r.Name}}
		if a.callers.tokens != nil {
			req.Authenticate.SimpleToken = a.callers.tokens.Prefix()
		}
		resp, err := authCall[*pb.AuthenticateResponse](ctx, a, kindAuthenticate, req)
		if err != nil {
			return nil, err
		}
		if a.callers.rules.Policy().Revision() == revision {
			if t := a.callers.tokens; t != nil && !t.Replicated() {
				if resp.Token, err = t.Assign(r.Name, revision, "", 0); err != nil {
					return nil, toGRPC(err)
				}
			}
			return resp, nil
		}
		a.logger.Info("revision when password checked became stale; retrying")
	}
}

func (a *authService) checkPassword(ctx context.Context, name, password string) (uint64, error) {
	if !a.callers.rules.Policy().Enabled() {
		return 0, auth.ErrAuthNotEnabled
	}
	if a.callers.rules.Policy().HasPassword(name) { // unknown names take no turn from existing users
		release, err := a.acquireHashing(ctx, name)
		if err != nil {
			return 0, err
		}
		defer release()
	}
	revision, err := a.callers.rules.Policy().CheckPassword(name, password)
	if err != nil && !errors.Is(err, auth.ErrAuthNotEnabled) {
		a.logger.Warn("invalid authentication was requested", zap.String("user", name), zap.Error(err))
	}
	return revision, err
}

// acquireHashing waits for a turn to compute bcrypt, which takes tens of milliseconds of CPU: at
// most half of the processors do, so that a flood of Authenticate leaves the others for the rest of
// the work. Turns rotate by user name and host: a flood of wrong passwords delays the logins of
// nobody else.
func (a *authService) acquireHashing(ctx context.Context, user string) (release func(), err error) {
	ended := a.life.endable(ctx)
	defer ended.cancel(nil)
	return a.hashing.Take(ended, user+"\x00"+callerHost(ctx))
}

const (
	maxHashingCalls   = 64   // of one user and host, waiting
	maxHashingClients = 8000 // users and hosts that wait
)

// maxPasswordBytes is the longest password that bcrypt accepts.
const maxPasswordBytes = 72

// hash is the replicated form of a password. It is computed only for callers that may set
// passwords: others would take the turns of those who authenticate.
func (a *authService) hash(ctx context.Context, password string) (string, error) {
	if len(password) > maxPasswordBytes {
		return "", bcrypt.ErrPasswordTooLong // whoever asks, as in etcd
	}
	if a.callers.authorizeAdmin(ctx) != nil {
		// This member may not know yet what the cluster has agreed on.
		if err := a.callers.barrier(ctx); err != nil {
			return "", err
		}
		if err := a.callers.authorizeAdmin(ctx); err != nil {
			return "", err
		}
	}
	release, err := a.acquireHashing(ctx, "") // only root gets here
	if err != nil {
		return "", err
	}
	defer release()
	b, err := bcrypt.GenerateFromPassword([]byte(password), a.cost)
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(b), nil
}

func (a *authService) UserAdd(ctx context.Context, r *pb.AuthUserAddRequest) (*pb.AuthUserAddResponse, error) {
	if err := a.limits.checkName(r.Name); err != nil {
		return nil, err
	}
	if !r.Options.GetNoPassword() {
		hashed, err := a.hash(ctx, r.Password)
		r.Password = ""
		if err != nil {
			return nil, toGRPC(err)
		}
		r.HashedPassword = hashed
	}
	r.Password = "" // given for a user without one: nobody wants it in the log
	return authCall[*pb.AuthUserAddResponse](ctx, a, kindAuthUserAdd, &pb.InternalRaftRequest{AuthUserAdd: r})
}

func (a *authService) UserChangePassword(ctx context.Context, r *pb.AuthUserChangePasswordRequest) (*pb.AuthUserChangePasswordResponse, error) {
	if r.Password != "" {
		hashed, err := a.hash(ctx, r.Password)
		r.Password = ""
		if err != nil {
			return nil, toGRPC(err)
		}
		r.HashedPassword = hashed
	}
	return authCall[*pb.AuthUserChangePasswordResponse](ctx, a, kindAuthUserChangePassword, &pb.InternalRaftRequest{AuthUserChangePassword: r})
}

func (a *authService) UserGet(ctx context.Context, r *pb.AuthUserGetRequest) (*pb.AuthUserGetResponse, error) {
	return authCall[*pb.AuthUserGetResponse](ctx, a, kindAuthUserGet, &pb.InternalRaftRequest{AuthUserGet: r})
}

func (a *authService) UserList(ctx context.Context, r *pb.AuthUserListRequest) (*pb.AuthUserListResponse, error) {
	return authCall[*pb.AuthUserListResponse](ctx, a, kindAuthUserList, &pb.InternalRaftRequest{AuthUserList: r})
}

func (a *authService) UserDelete(ctx context.Context, r *pb.AuthUserDeleteRequest) (*pb.AuthUserDeleteResponse, error) {
	return authCall[*pb.AuthUserDeleteResponse](ctx, a, kindAuthUserDelete, &pb.InternalRaftRequest{AuthUserDelete: r})
}

func (a *authService) UserGrantRole(ctx context.Context, r *pb.AuthUserGrantRoleRequest) (*pb.AuthUserGrantRoleResponse, error) {
	return authCall[*pb.AuthUserGrantRoleResponse](ctx, a, kindAuthUserGrantRole, &pb.InternalRaftRequest{AuthUserGrantRole: r})
}

func (a *authService) UserRevokeRole(ctx context.Context, r *pb.AuthUserRevokeRoleRequest) (*pb.AuthUserRevokeRoleResponse, error) {
	return authCall[*pb.AuthUserRevokeRoleResponse](ctx, a, kindAuthUserRevokeRole, &pb.InternalRaftRequest{AuthUserRevokeRole: r})
}

func (a *authService) RoleAdd(ctx context.Context, r *pb.AuthRoleAddRequest) (*pb.AuthRoleAddResponse, error) {
	if err := a.limits.checkName(r.Name); err != nil {
		return nil, err
	}
	return authCall[*pb.AuthRoleAddResponse](ctx, a, kindAuthRoleAdd, &pb.InternalRaftRequest{AuthRoleAdd: r})
}

func (a *authService) RoleGet(ctx context.Context, r *pb.AuthRoleGetRequest) (*pb.AuthRoleGetResponse, error) {
	return authCall[*pb.AuthRoleGetResponse](ctx, a, kindAuthRoleGet, &pb.InternalRaftRequest{AuthRoleGet: r})
}

func (a *authService) RoleList(ctx context.Context, r *pb.AuthRoleListRequest) (*pb.AuthRoleListResponse, error) {
	return authCall[*pb.AuthRoleListResponse](ctx, a, kindAuthRoleList, &pb.InternalRaftRequest{AuthRoleList: r})
}

func (a *authService) RoleDelete(ctx context.Context, r *pb.AuthRoleDeleteRequest) (*pb.AuthRoleDeleteResponse, error) {
	return authCall[*pb.AuthRoleDeleteResponse](ctx, a, kindAuthRoleDelete, &pb.InternalRaftRequest{AuthRoleDelete: r})
}

func (a *authService) RoleGrantPermission(ctx context.Context, r *pb.AuthRoleGrantPermissionRequest) (*pb.AuthRoleGrantPermissionResponse, error) {
	return authCall[*pb.AuthRoleGrantPermissionResponse](ctx, a, kindAuthRoleGrantPermission, &pb.InternalRaftRequest{AuthRoleGrantPermission: r})
}

func (a *authService) RoleRevokePermission(ctx context.Context, r *pb.AuthRoleRevokePermissionRequest) (*pb.AuthRoleRevokePermissionResponse, error) {
	return authCall[*pb.AuthRoleRevokePermissionResponse](ctx, a, kindAuthRoleRevokePermission, &pb.InternalRaftRequest{AuthRoleRevokePermission: r})
}
