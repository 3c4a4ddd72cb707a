package server

import (
	"context"
	"errors"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/auth"
)

// Where a call is judged, as in etcd:
//
//   - What goes through the log carries its user and auth revision (headerFor) and is judged when
//     it is applied, by the rules of that moment, alike on all members.
//   - What this member answers by itself is judged here (permitted), and again after the read:
//     rules that changed in between refuse it.

// authorizer judges what this member answers by itself, and says who asks for what goes through
// the log. Any goroutine.
type authorizer struct {
	rules  rules
	tokens auth.Tokens // nil: there are none
	// barrier is Replica.ReadBarrier: this member may be the last to know of users, roles and
	// tokens.
	barrier func(context.Context) error
	hasty   bool // see atOnce
	// leaseKeys are the keys of a lease, none if it does not exist.
	leaseKeys func(id int64) ([][]byte, error)

	clientCertAuth  bool // clients show certificates, and a name in one counts
	lax             bool // Config.LaxAuth
	maxRequestBytes int
	logger          *zap.Logger
}

// rules are users and roles as this member has applied them; *state.Machine has them.
type rules interface {
	Policy() *auth.Policy
	// PolicyUntil is Policy with a channel that is closed when there is another.
	PolicyUntil() (*auth.Policy, <-chan struct{})
	Applied() (index, term uint64)
	// AlarmRefusal is why an alarm that is active refuses a request; nil: none does.
	AlarmRefusal(*pb.InternalRaftRequest) error
}

// enabled reports whether authentication is, as this member has it.
func (a *authorizer) enabled() bool { return a.rules.Policy().Enabled() }

// identity determines the caller: by a token, or else by the name in a certificate that the
// listener has verified. The zero Identity: the caller gave none. REQUIRES: p is enabled.
func (a *authorizer) identity(ctx context.Context, p *auth.Policy) (auth.Identity, error) {
	if token, ok := tokenOf(ctx); ok {
		who, ok, err := a.tokenInfo(ctx, token)
		if ok || err != nil {
			return who, err
		}
		a.logger.Warn("invalid auth token", zap.String("token-fingerprint", auth.Fingerprint(token)))
		return auth.Identity{}, auth.ErrInvalidAuthToken
	}
	if !a.clientCertAuth {
		return auth.Identity{}, nil
	}
	md, _ := metadata.FromIncomingContext(ctx)
	return a.certificateName(ctx, md, p), nil
}

// tokenOf is the token that a call carries.
func tokenOf(ctx context.Context) (token string, ok bool) {
	tokens := metadata.ValueFromIncomingContext(ctx, rpctypes.TokenFieldNameGRPC)
	if len(tokens) == 0 {
		tokens = metadata.ValueFromIncomingContext(ctx, rpctypes.TokenFieldNameSwagger)
	}
	if len(tokens) == 0 {
		return "", false
	}
	return strings.TrimPrefix(tokens[0], "Bearer "), true
}

// tokenInfo asks the token provider. A simple token tells the index of the entry that made it:
// a member that has not applied it catches up first. The only error is errMustWait.
func (a *authorizer) tokenInfo(ctx context.Context, token string) (who auth.Identity, ok bool, err error) {
	if a.tokens == nil {
		return auth.Identity{}, false, nil
	}
	if a.hasty {
		if who, ok = a.tokens.Known(token, a.rules.Policy().Revision()); !ok {
			err = errMustWait
		}
		return who, ok, err
	}
	if who, ok := a.tokens.Info(token, a.rules.Policy().Revision()); ok {
		return who, true, nil
	}
	index, ok := auth.TokenIndex(token)
	if !ok {
		return auth.Identity{}, false, nil
	}
	if applied, _ := a.rules.Applied(); applied >= index {
		return auth.Identity{}, false, nil
	}
	// A token is issued after its entry was applied on some member: a barrier is enough, and an
	// invented index cannot make us wait for ever.
	if a.barrier(ctx) != nil {
		return auth.Identity{}, false, nil
	}
	who, ok = a.tokens.Info(token, a.rules.Policy().Revision())
	return who, ok, nil
}

// errMustWait is the error of an authorizer that may not wait, and of a read that may not.
var errMustWait = errors.New("server: this cannot be answered without waiting")

// atOnce is an authorizer that waits for nothing, and knows callers by the tokens that are in memory:
// where it would have to wait, to check a signature or to refuse a token that nobody was given, which
// is logged, the error is errMustWait.
func (a *authorizer) atOnce() *authorizer {
	b := *a
	b.hasty = true
	b.barrier = func(context.Context) error { return errMustWait }
	return &b
}

// certificateName takes the user from the client's certificate. Not for calls that a grpc-gateway
// passes on: their certificate is the gateway's own, whoever the client is.
func (a *authorizer) certificateName(ctx context.Context, md metadata.MD, p *auth.Policy) auth.Identity {
	pr, ok := peer.FromContext(ctx)
	if !ok {
		return auth.Identity{}
	}
	info, ok := pr.AuthInfo.(credentials.TLSInfo)
	if !ok {
		if pr.Addr != nil && pr.Addr.Network() == "pipe" && len(md[certifiedKey]) > 0 && len(md["grpcgateway-accept"]) == 0 {
			// Our own gateway: its client counts as known, like a client with a certificate without
			// a name. Not if it sends an Accept header: etcd recognises a gateway's calls only by
			// that.
			return auth.Identity{Revision: p.Revision()}
		}
		return auth.Identity{}
	}
	for _, chain := range info.State.VerifiedChains {
		if len(chain) == 0 {
			continue
		}
		who := auth.Identity{User: chain[0].Subject.CommonName, Revision: p.Revision()}
		if len(md["grpcgateway-accept"]) > 0 {
			a.logger.Warn("ignoring common name in gRPC-gateway proxy request",
				zap.String("common-name", who.User), zap.String("user-name", who.User), zap.Uint64("revision", who.Revision))
			return auth.Identity{}
		}
		return who
	}
	return auth.Identity{}
}

// headerFor is what the log records about the caller; nil while authentication is off.
func (a *authorizer) headerFor(ctx context.Context) (*pb.RequestHeader, error) {
	p := a.rules.Policy()
	if !p.Enabled() {
		return nil, nil
	}
	who, err := a.identity(ctx, p)
	if err != nil {
		return nil, err
	}
	return &pb.RequestHeader{Username: who.User, AuthRevision: who.Revision}, nil
}

// admittedHeader is headerFor for a request that refuse lets through.
func (a *authorizer) admittedHeader(ctx context.Context, r *pb.InternalRaftRequest) (*pb.RequestHeader, error) {
	for {
		header, err := a.headerFor(ctx)
		if err != nil || header == nil {
			return nil, err
		}
		err = a.refuse(ctx, auth.Identity{User: header.Username, Revision: header.AuthRevision}, r)
		if err == nil {
			return header, nil
		}
		if !errors.Is(err, auth.ErrAuthOldRevision) {
			return nil, err
		}
		// A change of the rules in between makes no token old, unless the token carries its
		// revision.
		again, againErr := a.headerFor(ctx)
		if againErr != nil || again == nil {
			return again, againErr
		}
		if again.AuthRevision <= header.AuthRevision {
			return nil, err
		}
	}
}

// noLeaseKeys replaces leaseKeys to judge a request without the keys of its lease, as a first
// check.
func noLeaseKeys(int64) ([][]byte, error) { return nil, nil }

// refuse returns the error that applying a request would give, if the caller may not make it:
// neither strangers nor users without the right may fill the log of a cluster, and the disks of all
// its members. What it lets through is still judged when it is applied; a caller who only may not
// touch a lease gets the error there.
func (a *authorizer) refuse(ctx context.Context, who auth.Identity, r *pb.InternalRaftRequest) error {
	byName := auth.NeedsAdmin(r) || r.AuthUserGet != nil || r.AuthRoleGet != nil || r.LeaseRevoke != nil
	judge := func(p *auth.Policy) error {
		err := p.Judge(who, r, noLeaseKeys)
		if err == nil && byName && p.Admin(who) == nil {
			err = a.current(p, who)
		}
		return err
	}
	// A token that carries its revision is compared with that of the cluster, not with that of a
	// member that is behind.
	signed := a.tokens != nil && !a.tokens.Replicated()
	if judge(a.rules.Policy()) == nil && (a.lax || !byName || !signed) {
		return nil
	}
	// The error of a too large request comes first; it is not replicated.
	if proto.Size(r) > a.maxRequestBytes {
		return nil
	}
	for {
		// The rules may have changed without this member knowing yet.
		if err := a.barrier(ctx); err != nil {
			return err
		}
		p := a.rules.Policy()
		if err := a.rules.AlarmRefusal(r); err != nil { // this error comes first, too
			return err
		}
		err := judge(p)
		if a.rules.Policy() == p {
			return err
		}
	}
}

// rootHeader is headerFor for the leader's own requests.
func (a *authorizer) rootHeader() *pb.RequestHeader {
	p := a.rules.Policy()
	if !p.Enabled() {
		return nil
	}
	return &pb.RequestHeader{Username: auth.Root, AuthRevision: p.Revision()}
}

// allowed applies check to the caller, by the present rules.
func (a *authorizer) allowed(ctx context.Context, check accessCheck) error {
	_, _, err := a.judge(ctx, check)
	return err
}

// judge is allowed that also returns the caller and the policy; the zero Identity if authentication
// is off.
func (a *authorizer) judge(ctx context.Context, check accessCheck) (*auth.Policy, auth.Identity, error) {
	for {
		p := a.rules.Policy()
		if !p.Enabled() {
			return p, auth.Identity{}, nil
		}
		who, err := a.identity(ctx, p)
		if err != nil {
			return p, who, err
		}
		// Rules that changed in between, for example while waiting for the token, make no token
		// old.
		if a.rules.Policy() == p {
			return p, who, check(p, who)
		}
	}
}

// permitted runs read for a caller that passes check. The result must not be used if there is an
// error.
func (a *authorizer) permitted(ctx context.Context, check accessCheck, read func() error) error {
	p, who, err := a.judge(ctx, check)
	if err != nil {
		return err
	}
	if err := read(); err != nil {
		return err
	}
	now := a.rules.Policy()
	if !p.Enabled() && now.Enabled() || p.Enabled() && who.Revision != 0 && now.Revision() != p.Revision() {
		return auth.ErrAuthOldRevision
	}
	return nil
}

// permittedRead is permitted for what reads keys. It also refuses a token of another revision than
// this member's, even a later one, such as a JWT from before a backup was restored. That error
// takes precedence over one of the read. All as in etcd.
func (a *authorizer) permittedRead(ctx context.Context, check accessCheck, read func() error) error {
	var caller auth.Identity
	return a.permitted(ctx, func(p *auth.Policy, who auth.Identity) error {
		caller = who
		return check(p, who)
	}, func() error {
		err := read()
		if caller.Revision != 0 && caller.Revision != a.rules.Policy().Revision() {
			return auth.ErrAuthOldRevision
		}
		return err
	})
}

// reads runs get, which reads what r asks for, for the caller. The result must not be used if there is
// an error.
func (a *authorizer) reads(ctx context.Context, r *pb.RangeRequest, get func() error) error {
	if a.enabled() {
		return a.permittedRead(ctx, readCheck(r.Key, r.RangeEnd), get)
	}
	err := get()
	if err == nil && a.enabled() {
		err = auth.ErrAuthOldRevision
	}
	return err
}

func nothing() error { return nil }

// adminCheck lets root alone, and, unless lax says otherwise, nobody whose token is of an older
// auth revision: etcd looks at the name only, and a JWT of root went on to rule until its end,
// whatever was changed to stop it.
//
// This is judged here, not when an entry is applied: there, members of other versions judge by the
// name.
func (a *authorizer) adminCheck(p *auth.Policy, who auth.Identity) error {
	if err := p.Admin(who); err != nil {
		return err
	}
	return a.current(p, who)
}

// current is what adminCheck requires beyond the name.
func (a *authorizer) current(p *auth.Policy, who auth.Identity) error {
	if a.lax {
		return nil
	}
	return p.Current(who)
}

// authorizeAdmin applies adminCheck to the caller.
func (a *authorizer) authorizeAdmin(ctx context.Context) error { return a.allowed(ctx, a.adminCheck) }

// authorizeUser accepts every caller with an identity.
func (a *authorizer) authorizeUser(ctx context.Context) error {
	return a.allowed(ctx, knownUser)
}

// knownUser is etcd's rule: a user that a certificate or a token names, even one who has no rights
// at all.
func knownUser(p *auth.Policy, who auth.Identity) error {
	if who == (auth.Identity{}) {
		return auth.ErrUserEmpty
	}
	return nil
}

// writeLease checks that the caller may write all keys of a lease.
func (a *authorizer) writeLease(id int64) accessCheck {
	return func(p *auth.Policy, who auth.Identity) error {
		if err := knownUser(p, who); err != nil {
			return err
		}
		if p.Admin(who) == nil {
			return a.current(p, who)
		}
		return p.WriteLease(who, id, a.leaseKeys)
	}
}

// readLeases checks that the caller may read all keys of the leases.
func (a *authorizer) readLeases(ids ...int64) accessCheck {
	return func(p *auth.Policy, who auth.Identity) error {
		if err := knownUser(p, who); err != nil {
			return err
		}
		if p.Admin(who) == nil {
			return a.current(p, who)
		}
		for _, id := range ids {
			if err := p.ReadLease(who, id, a.leaseKeys); err != nil {
				return err
			}
		}
		return nil
	}
}
