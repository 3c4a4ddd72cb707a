package server

import (
	"context"
	"errors"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/lease"
)

// Where a call is judged, as in etcd:
//
//   - What goes through the log carries its user and auth revision (propose, headerFor) and is judged when it is applied,
//     by the rules of that moment, alike on all members.
//   - What this member answers by itself is judged here (permitted), and again after it was read: rules that changed
//     meanwhile refuse it.

// identity finds out who calls: by a token, else by the name in a certificate that the listener has verified. The zero
// Identity: nobody said. REQUIRES: p is enabled.
func (s *Server) identity(ctx context.Context, p *auth.Policy) (auth.Identity, error) {
	if token, ok := tokenOf(ctx); ok {
		if who, ok := s.tokenInfo(ctx, token); ok {
			return who, nil
		}
		s.logger.Warn("invalid auth token", zap.String("token-fingerprint", auth.Fingerprint(token)))
		return auth.Identity{}, auth.ErrInvalidAuthToken
	}
	if !s.cfg.ClientCertAuth {
		return auth.Identity{}, nil
	}
	md, _ := metadata.FromIncomingContext(ctx)
	return s.certificateName(ctx, md, p), nil
}

// tokenOf is the token that a call carries.
func tokenOf(ctx context.Context) (token string, ok bool) {
	md, _ := metadata.FromIncomingContext(ctx)
	tokens := md[rpctypes.TokenFieldNameGRPC]
	if len(tokens) == 0 {
		tokens = md[rpctypes.TokenFieldNameSwagger]
	}
	if len(tokens) == 0 {
		return "", false
	}
	return strings.TrimPrefix(tokens[0], "Bearer "), true
}

// tokenInfo asks the token provider. A simple token ends with the index of the entry that made it: a member that is not
// there yet catches up first.
func (s *Server) tokenInfo(ctx context.Context, token string) (auth.Identity, bool) {
	if s.cfg.Tokens == nil {
		return auth.Identity{}, false
	}
	if who, ok := s.cfg.Tokens.Info(token, s.state.Policy().Revision()); ok {
		return who, true
	}
	index, ok := auth.TokenIndex(token)
	if !ok {
		return auth.Identity{}, false
	}
	if applied, _ := s.state.Applied(); applied >= index {
		return auth.Identity{}, false
	}
	// Whoever was given the token was given it after its entry was applied somewhere: a barrier is enough, and a made-up
	// index cannot make us wait for ever.
	if err := s.replica.ReadBarrier(ctx); err != nil {
		return auth.Identity{}, false
	}
	return s.cfg.Tokens.Info(token, s.state.Policy().Revision())
}

// certificateName takes the user from the client's certificate. Not for what a grpc-gateway passes on: the certificate
// is the gateway's own then, whoever asked it.
func (s *Server) certificateName(ctx context.Context, md metadata.MD, p *auth.Policy) auth.Identity {
	pr, ok := peer.FromContext(ctx)
	if !ok {
		return auth.Identity{}
	}
	info, ok := pr.AuthInfo.(credentials.TLSInfo)
	if !ok {
		if pr.Addr != nil && pr.Addr.Network() == "pipe" && len(md[certifiedKey]) > 0 && len(md["grpcgateway-accept"]) == 0 {
			// Our own gateway: its client is known, as who calls with a nameless certificate is. Not one that says what
			// it accepts: etcd knows a gateway's calls by that alone.
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
			s.logger.Warn("ignoring common name in gRPC-gateway proxy request",
				zap.String("common-name", who.User), zap.String("user-name", who.User), zap.Uint64("revision", who.Revision))
			return auth.Identity{}
		}
		return who
	}
	return auth.Identity{}
}

// headerFor is what the log is to know of the caller; nil while authentication is off.
func (s *Server) headerFor(ctx context.Context) (*pb.RequestHeader, error) {
	p := s.state.Policy()
	if !p.Enabled() {
		return nil, nil
	}
	who, err := s.identity(ctx, p)
	if err != nil {
		return nil, err
	}
	return &pb.RequestHeader{Username: who.User, AuthRevision: who.Revision}, nil
}

// admittedHeader is headerFor for a request that refuse lets through.
func (s *Server) admittedHeader(ctx context.Context, r *pb.InternalRaftRequest) (*pb.RequestHeader, error) {
	for {
		header, err := s.headerFor(ctx)
		if err != nil || header == nil {
			return nil, err
		}
		err = s.refuse(ctx, auth.Identity{User: header.Username, Revision: header.AuthRevision}, r)
		if err == nil {
			return header, nil
		}
		if !errors.Is(err, auth.ErrAuthOldRevision) {
			return nil, err
		}
		// Rules that came meanwhile make nobody's token an old one, unless it says its revision itself.
		again, againErr := s.headerFor(ctx)
		if againErr != nil || again == nil {
			return again, againErr
		}
		if again.AuthRevision <= header.AuthRevision {
			return nil, err
		}
	}
}

// noLeaseKeys has a request judged without what its lease is attached to: leaseKeys, for a first look.
func noLeaseKeys(int64) ([][]byte, error) { return nil, nil }

// refuse gives a request of somebody who may not make it the error that applying it would give: neither strangers nor users
// without the right shall fill the log of a cluster, and the disks of all its members. What it lets through is judged when it
// is applied, as ever; who may only not touch a lease is told so there.
func (s *Server) refuse(ctx context.Context, who auth.Identity, r *pb.InternalRaftRequest) error {
	byName := auth.NeedsAdmin(r) || r.AuthUserGet != nil || r.AuthRoleGet != nil || r.LeaseRevoke != nil
	judge := func(p *auth.Policy) error {
		err := p.Judge(who, r, noLeaseKeys)
		if err == nil && byName && p.Admin(who) == nil {
			err = s.current(p, who)
		}
		return err
	}
	// A token that says its revision itself is compared with that of the cluster, not of a member that is behind.
	signed := s.cfg.Tokens != nil && !s.cfg.Tokens.Replicated()
	if judge(s.state.Policy()) == nil && (s.cfg.LaxAuth || !byName || !signed) {
		return nil
	}
	// That a request is too large is told first, and nobody replicates it.
	if proto.Size(r) > s.cfg.MaxRequestBytes {
		return nil
	}
	for {
		// Rules may be others by now, and this member the last to know.
		if err := s.replica.ReadBarrier(ctx); err != nil {
			return err
		}
		p := s.state.Policy()
		if err := s.state.AlarmRefusal(r); err != nil { // told first as well
			return err
		}
		err := judge(p)
		if s.state.Policy() == p {
			return err
		}
	}
}

// rootHeader is headerFor for what the leader asks for itself.
func (s *Server) rootHeader() *pb.RequestHeader {
	p := s.state.Policy()
	if !p.Enabled() {
		return nil
	}
	return &pb.RequestHeader{Username: auth.Root, AuthRevision: p.Revision()}
}

// allowed lets whom check lets, by the rules of now.
func (s *Server) allowed(ctx context.Context, check accessCheck) error {
	_, _, err := s.judge(ctx, check)
	return err
}

// judge is allowed that also tells who asks and by which rules: nobody by rules that are not enabled.
func (s *Server) judge(ctx context.Context, check accessCheck) (*auth.Policy, auth.Identity, error) {
	for {
		p := s.state.Policy()
		if !p.Enabled() {
			return p, auth.Identity{}, nil
		}
		who, err := s.identity(ctx, p)
		if err != nil {
			return p, who, err
		}
		// Rules that came meanwhile, which the token may have had to wait for, make nobody's token an old one.
		if s.state.Policy() == p {
			return p, who, check(p, who)
		}
	}
}

// permitted runs read for a caller whom check lets. Its result must not be shown if there is an error.
func (s *Server) permitted(ctx context.Context, check accessCheck, read func() error) error {
	p, who, err := s.judge(ctx, check)
	if err != nil {
		return err
	}
	if err := read(); err != nil {
		return err
	}
	now := s.state.Policy()
	if !p.Enabled() && now.Enabled() || p.Enabled() && who.Revision != 0 && now.Revision() != p.Revision() {
		return auth.ErrAuthOldRevision
	}
	return nil
}

// permittedRead is permitted for what reads keys. It also refuses a token of another revision than this member's, even a
// later one: a JWT from before the data was taken back to a backup, say. Such a refusal is told before an error of the
// read. All as in etcd.
func (s *Server) permittedRead(ctx context.Context, check accessCheck, read func() error) error {
	var caller auth.Identity
	return s.permitted(ctx, func(p *auth.Policy, who auth.Identity) error {
		caller = who
		return check(p, who)
	}, func() error {
		err := read()
		if caller.Revision != 0 && caller.Revision != s.state.Policy().Revision() {
			return auth.ErrAuthOldRevision
		}
		return err
	})
}

func nothing() error { return nil }

// adminCheck lets root alone, and, unless LaxAuth says otherwise, nobody whose token is of an older auth revision: etcd
// looks at the name only, and a JWT of root went on to rule until its end, whatever was changed to stop it.
//
// This is judged here, not when an entry is applied: members of other versions judge that by the name.
func (s *Server) adminCheck(p *auth.Policy, who auth.Identity) error {
	if err := p.Admin(who); err != nil {
		return err
	}
	return s.current(p, who)
}

// current is what adminCheck asks beyond the name.
func (s *Server) current(p *auth.Policy, who auth.Identity) error {
	if s.cfg.LaxAuth {
		return nil
	}
	return p.Current(who)
}

// authorizeAdmin lets whom adminCheck lets.
func (s *Server) authorizeAdmin(ctx context.Context) error { return s.allowed(ctx, s.adminCheck) }

// authorizeUser lets everybody who says who they are.
func (s *Server) authorizeUser(ctx context.Context) error {
	return s.allowed(ctx, knownUser)
}

// knownUser is etcd's rule: a user that a certificate or a token names, even one who has no rights at all.
func knownUser(p *auth.Policy, who auth.Identity) error {
	if who == (auth.Identity{}) {
		return auth.ErrUserEmpty
	}
	return nil
}

// leaseKeys are the keys of a lease, none if it does not exist.
func (s *Server) leaseKeys(id int64) ([][]byte, error) {
	return s.cfg.Leases.Keys(s.cfg.Store, lease.ID(id))
}

// writeLease lets who may write all keys of a lease.
func (s *Server) writeLease(id int64) accessCheck {
	return func(p *auth.Policy, who auth.Identity) error {
		if err := knownUser(p, who); err != nil {
			return err
		}
		if p.Admin(who) == nil {
			return s.current(p, who)
		}
		return p.WriteLease(who, id, s.leaseKeys)
	}
}

// readLeases lets who may read all keys of the leases.
func (s *Server) readLeases(ids ...int64) accessCheck {
	return func(p *auth.Policy, who auth.Identity) error {
		if err := knownUser(p, who); err != nil {
			return err
		}
		if p.Admin(who) == nil {
			return s.current(p, who)
		}
		for _, id := range ids {
			if err := p.ReadLease(who, id, s.leaseKeys); err != nil {
				return err
			}
		}
		return nil
	}
}

// acquireHashing waits for a turn to compute bcrypt, which takes tens of milliseconds of CPU: half of the processors at
// most do, so that a flood of Authenticate leaves the others to serve. The turns go round by the user's name and the host
// that asks: a flood of wrong passwords delays the logins of nobody else.
func (s *Server) acquireHashing(ctx context.Context, user string) (release func(), err error) {
	ended := s.endable(ctx)
	defer ended.cancel(nil)
	return s.hashing.Take(ended, user+"\x00"+callerHost(ctx))
}

const (
	maxHashingCalls   = 64   // of one user and host, waiting
	maxHashingClients = 8000 // users and hosts that wait
)

// authRevisionGauge is etcd_debugging_auth_revision.
func (m *Metrics) authRevisionGauge() prometheus.GaugeFunc {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "etcd_debugging", Subsystem: "auth", Name: "revision", Help: "The current revision of auth store.",
	}, func() float64 {
		if revision := m.authRevision.Load(); revision != nil {
			return (*revision)()
		}
		return 0
	})
}
