package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/belaydb/belay/admission"
	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/state"
)

// newSafeMember is a member with authentication on: root, and alice, who reads and writes [b, d).
func newSafeMember(t *testing.T, tokens auth.Tokens, edit ...func(*Config, *state.Config)) *member {
	t.Helper()
	if tokens == nil {
		var err error
		tokens, err = auth.NewTokens(nil, "simple", 0)
		must(t, err)
	}
	m := newMember(t, append(edit, func(c *Config, s *state.Config) {
		c.Tokens, s.Tokens, c.BcryptCost = tokens, tokens, bcrypt.MinCost
	})...)
	ctx := t.Context()
	for _, user := range []string{"root", "alice"} {
		_, err := m.auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: user, Password: user + "'s"})
		must(t, err)
		_, err = m.auth.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: user})
		must(t, err)
		_, err = m.auth.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: user, Role: user})
		must(t, err)
	}
	_, err := m.auth.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: "alice",
		Perm: &authpb.Permission{PermType: authpb.Permission_READWRITE, Key: []byte("b"), RangeEnd: []byte("d")}})
	must(t, err)
	_, err = m.auth.AuthEnable(ctx, &pb.AuthEnableRequest{})
	must(t, err)
	return m
}

// as is a context that says who calls.
func (m *member) as(user string) context.Context {
	m.t.Helper()
	ctx := m.t.Context()
	if user == "" {
		return ctx
	}
	resp, err := m.auth.Authenticate(ctx, &pb.AuthenticateRequest{Name: user, Password: user + "'s"})
	must(m.t, err)
	return metadata.AppendToOutgoingContext(ctx, "token", resp.Token)
}

const (
	userEmpty = "etcdserver: user name is empty"
	denied    = "etcdserver: permission denied"
)

// Passwords are hashed only for who may set them: with every turn taken, a stranger is refused at
// once.
func TestStrangersDoNotHash(t *testing.T) {
	m := newSafeMember(t, nil)
	root, alice := m.as("root"), m.as("alice")
	m.Server.auth.hashing = admission.NewTurns(1, 1, 1)
	release, err := m.Server.auth.hashing.Take(t.Context(), "somebody")
	must(t, err)
	calls := map[string]func(context.Context) error{
		"add": func(ctx context.Context) error {
			_, err := m.auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "eve", Password: "x"})
			return err
		},
		"change": func(ctx context.Context) error {
			_, err := m.auth.UserChangePassword(ctx, &pb.AuthUserChangePasswordRequest{Name: "alice", Password: "x"})
			return err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			checkStatus(t, call(t.Context()), codes.InvalidArgument, userEmpty)
			checkStatus(t, call(alice), codes.PermissionDenied, denied)
		})
	}
	release()
	for name, call := range calls {
		if err := call(root); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLoginsOfOthers: a flood of logins of one user is bounded, and leaves the turns of the others
// alone.
func TestLoginsOfOthers(t *testing.T) {
	m := newSafeMember(t, nil)
	m.Server.auth.hashing = admission.NewTurns(1, maxHashingCalls, maxHashingClients)
	release, err := m.Server.auth.hashing.Take(t.Context(), "somebody")
	must(t, err)
	login := func(user, password string) error {
		_, err := m.auth.Authenticate(t.Context(), &pb.AuthenticateRequest{Name: user, Password: password})
		return err
	}
	failed := make(chan error, maxHashingCalls)
	for range maxHashingCalls {
		go func() { failed <- login("root", "wrong") }()
	}
	until(t, "all wait", func() bool { return m.Server.auth.hashing.Waiting() == maxHashingCalls })
	checkStatus(t, login("root", "wrong"), codes.ResourceExhausted, admission.ErrTooManyWaiting.Error())
	checkStatus(t, login("nobody of that name", "wrong"), codes.InvalidArgument, "etcdserver: authentication failed, invalid user ID or password")
	right := make(chan error, 1)
	go func() { right <- login("alice", "alice's") }()
	until(t, "alice waits", func() bool { return m.Server.auth.hashing.Waiting() == maxHashingCalls+1 })
	release()
	must(t, <-right)
	for range maxHashingCalls {
		checkStatus(t, <-failed, codes.InvalidArgument, "etcdserver: authentication failed, invalid user ID or password")
	}
}

// The password of a user who has none is not replicated.
func TestNoPasswordInTheLog(t *testing.T) {
	m := newSafeMember(t, nil)
	_, err := m.auth.UserAdd(m.as("root"), &pb.AuthUserAddRequest{Name: "cn", Password: "secret", Options: &authpb.UserAddOptions{NoPassword: true}})
	must(t, err)
	for _, r := range m.replica.requests() {
		if strings.Contains(fmt.Sprint(r), "secret") {
			t.Errorf("replicated: %v", r)
		}
	}
	_, err = m.auth.Authenticate(t.Context(), &pb.AuthenticateRequest{Name: "cn", Password: "secret"})
	checkStatus(t, err, codes.Unknown, "auth: authentication failed, password was given for no password user")
}

// Who does not say who they are is refused before anything is replicated.
func TestNobodyWritesTheLog(t *testing.T) {
	m := newSafeMember(t, nil)
	before := len(m.replica.requests())
	nested := &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: ops(opPut("b"))}}}
	for name, call := range map[string]func(context.Context) error{
		"put": func(ctx context.Context) error {
			_, err := m.kv.Put(ctx, &pb.PutRequest{Key: []byte("b")})
			return err
		},
		"delete": func(ctx context.Context) error {
			_, err := m.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("b")})
			return err
		},
		"txn": func(ctx context.Context) error {
			_, err := m.kv.Txn(ctx, &pb.TxnRequest{Failure: ops(nested)})
			return err
		},
		"compact": func(ctx context.Context) error {
			_, err := m.kv.Compact(ctx, &pb.CompactionRequest{Revision: 1})
			return err
		},
		"grant": func(ctx context.Context) error {
			_, err := m.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 10})
			return err
		},
		"revoke": func(ctx context.Context) error {
			_, err := m.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 1})
			return err
		},
		"role": func(ctx context.Context) error {
			_, err := m.auth.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: "r"})
			return err
		},
		"off": func(ctx context.Context) error {
			_, err := m.auth.AuthDisable(ctx, &pb.AuthDisableRequest{})
			return err
		},
		"user": func(ctx context.Context) error {
			_, err := m.auth.UserGet(ctx, &pb.AuthUserGetRequest{Name: "alice"})
			return err
		},
		"no such user": func(ctx context.Context) error {
			_, err := m.auth.UserGet(ctx, &pb.AuthUserGetRequest{Name: strings.Repeat("\x01", 1<<20)})
			return err
		},
		"a role": func(ctx context.Context) error {
			_, err := m.auth.RoleGet(ctx, &pb.AuthRoleGetRequest{Role: strings.Repeat("\x01", 1<<20)})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) { checkStatus(t, call(t.Context()), codes.InvalidArgument, userEmpty) })
	}
	if n := len(m.replica.requests()); n != before {
		t.Errorf("%d entries more: %v", n-before, m.replica.requests()[before:])
	}
	_, err := m.auth.AuthStatus(t.Context(), &pb.AuthStatusRequest{}) // anybody may ask
	must(t, err)
	// That a request is too large is told first, by who would propose it.
	_, err = m.kv.Put(t.Context(), &pb.PutRequest{Key: []byte("b"), Value: make([]byte, m.cfg.MaxRequestBytes)})
	checkStatus(t, err, codes.InvalidArgument, userEmpty) // the test's Replica has no bound
	if n := len(m.replica.requests()); n != before+2 {
		t.Errorf("%d entries more: a large request was not left to the replica", n-before)
	}
	// A member that is the last to know that authentication is off asks before it refuses.
	m.replica.set(func(r *solo) { r.barrierErr = errors.New("no quorum") })
	_, err = m.kv.Put(t.Context(), &pb.PutRequest{Key: []byte("b")})
	checkStatus(t, err, codes.Unknown, "no quorum")
	m.replica.set(func(r *solo) { r.barrierErr = nil })
	_, err = m.kv.Put(m.as("alice"), &pb.PutRequest{Key: []byte("b")})
	must(t, err)
}

// TestDeniedWritesNoLog: what a user may not do is refused before it is in the log of every member,
// with the error that applying it gives; what depends on a lease is left to that.
func TestDeniedWritesNoLog(t *testing.T) {
	m := newSafeMember(t, nil)
	root, alice := m.as("root"), m.as("alice")
	huge := []byte(strings.Repeat("z", 1<<20))
	for name, c := range map[string]struct {
		call func(context.Context) error
		want string
	}{
		"put": {func(ctx context.Context) error {
			_, err := m.kv.Put(ctx, &pb.PutRequest{Key: []byte("z"), Value: huge})
			return err
		}, denied},
		"delete": {func(ctx context.Context) error {
			_, err := m.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: huge})
			return err
		}, denied},
		"txn": {func(ctx context.Context) error {
			_, err := m.kv.Txn(ctx, &pb.TxnRequest{Success: ops(opPut("b")), Failure: ops(opPut("z"))})
			return err
		}, denied},
		"another user": {func(ctx context.Context) error {
			_, err := m.auth.UserGet(ctx, &pb.AuthUserGetRequest{Name: "root"})
			return err
		}, denied},
		"another role": {func(ctx context.Context) error {
			_, err := m.auth.RoleGet(ctx, &pb.AuthRoleGetRequest{Role: string(huge)})
			return err
		}, denied},
		"grant a role": {func(ctx context.Context) error {
			_, err := m.auth.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: "alice", Role: "root"})
			return err
		}, denied},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(m.replica.requests())
			checkStatus(t, c.call(alice), codes.PermissionDenied, c.want)
			if n := len(m.replica.requests()) - before; n != 0 {
				t.Errorf("%d entries", n)
			}
		})
	}
	_, err := m.auth.UserGet(alice, &pb.AuthUserGetRequest{Name: "alice"})
	must(t, err)
	_, err = m.auth.RoleGet(alice, &pb.AuthRoleGetRequest{Role: "alice"})
	must(t, err)

	lease, err := m.lease.LeaseGrant(root, &pb.LeaseGrantRequest{TTL: 1000})
	must(t, err)
	_, err = m.kv.Put(root, &pb.PutRequest{Key: []byte("z"), Lease: lease.ID})
	must(t, err)
	_, err = m.kv.Put(alice, &pb.PutRequest{Key: []byte("b"), Lease: lease.ID})
	checkStatus(t, err, codes.PermissionDenied, denied)

	// Alarms are told before rights are.
	_, err = m.maintenance.Alarm(root, &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: m.cfg.MemberID})
	must(t, err)
	before := len(m.replica.requests())
	for _, ctx := range []context.Context{t.Context(), alice} {
		_, err = m.kv.Put(ctx, &pb.PutRequest{Key: []byte("z")})
		checkStatus(t, err, codes.ResourceExhausted, "etcdserver: mvcc: database space exceeded")
		_, err = m.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("z")})
		if err == nil {
			t.Error("a delete that is not allowed was answered")
		}
	}
	if n := len(m.replica.requests()) - before; n != 0 {
		t.Errorf("%d entries under an alarm", n)
	}
}

// signing counts what signs; the entry's application must not.
type signing struct {
	auth.Tokens
	assigned atomic.Int64
	indexed  atomic.Bool
}

func (s *signing) Replicated() bool { return false }

func (s *signing) Assign(user string, revision uint64, prefix string, index uint64) (string, error) {
	s.assigned.Add(1)
	if index != 0 {
		s.indexed.Store(true)
	}
	return s.Tokens.Assign(user, revision, prefix, index)
}

func TestTheAskedSigns(t *testing.T) {
	simple, err := auth.NewTokens(nil, "simple", 0)
	must(t, err)
	tokens := &signing{Tokens: simple}
	m := newSafeMember(t, tokens)
	_, err = m.kv.Range(m.as("alice"), &pb.RangeRequest{Key: []byte("b")})
	must(t, err)
	if n := tokens.assigned.Load(); n != 1 || tokens.indexed.Load() {
		t.Errorf("%d tokens, one while an entry was applied: %v", n, tokens.indexed.Load())
	}
}

// A JWT that names a user under revision 0 is of somebody, as in etcd, for what takes no right.
func TestRevisionZeroIsSomebody(t *testing.T) {
	m, token := newSigningMember(t)
	ctx := token("root", 0)
	_, err := m.cluster.MemberList(ctx, &pb.MemberListRequest{})
	must(t, err)
	_, err = m.auth.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: "r"})
	checkStatus(t, err, codes.InvalidArgument, oldRevision)
	_, err = m.kv.Put(ctx, &pb.PutRequest{Key: []byte("b")})
	checkStatus(t, err, codes.InvalidArgument, userEmpty)
}

// Credentials come in two metadata keys; of several tokens the first counts.
func TestCredentials(t *testing.T) {
	m := newSafeMember(t, nil)
	md, _ := metadata.FromOutgoingContext(m.as("alice"))
	alice := md["token"][0]
	md, _ = metadata.FromOutgoingContext(m.as("root"))
	root := md["token"][0]
	const invalid = "etcdserver: invalid auth token"
	for _, c := range []struct {
		name string
		md   []string
		code codes.Code
		text string
	}{
		{"none", nil, codes.InvalidArgument, userEmpty},
		{"token", []string{"token", alice}, codes.OK, ""},
		{"authorization", []string{"authorization", alice}, codes.OK, ""},
		{"bearer", []string{"authorization", "Bearer " + alice}, codes.OK, ""},
		{"token before authorization", []string{"authorization", alice, "token", "x"}, codes.Unauthenticated, invalid},
		{"the first", []string{"token", "x.1", "token", root}, codes.Unauthenticated, invalid},
		{"an index to come", []string{"token", "abcdefghijklmnop.99999999"}, codes.Unauthenticated, invalid},
		{"no index", []string{"token", "abcdefghijklmnop."}, codes.Unauthenticated, invalid},
		{"empty", []string{"token", ""}, codes.Unauthenticated, invalid},
		{"a JWT that nobody signed", []string{"token", "eyJhbGciOiJub25lIn0.eyJ1c2VybmFtZSI6InJvb3QiLCJyZXZpc2lvbiI6OX0."}, codes.Unauthenticated, invalid},
		{"of a gateway", []string{"token", alice, "grpcgateway-accept", "*/*"}, codes.OK, ""},
	} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), c.md...)
		_, err := m.kv.Range(ctx, &pb.RangeRequest{Key: []byte("b")})
		if c.code == codes.OK && err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if c.code != codes.OK {
			t.Run(c.name, func(t *testing.T) { checkStatus(t, err, c.code, c.text) })
		}
	}
}

// With the alarm CORRUPT, requests that pass through etcd's log tell a caller without a valid token
// that, and the others of the alarm; so does a nested transaction that only reads.
func TestTokensBeforeAlarms(t *testing.T) {
	m := newSafeMember(t, nil)
	root := m.as("root")
	_, err := m.maintenance.Alarm(root, &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_CORRUPT, MemberID: m.cfg.MemberID})
	must(t, err)
	get := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("b")}}}
	nested := &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: []*pb.RequestOp{get}}}}
	stranger := metadata.AppendToOutgoingContext(t.Context(), "token", "abcdefghijklmnop.-1")
	for name, call := range map[string]func(context.Context) error{
		"nested": func(ctx context.Context) error {
			_, err := m.kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{nested}})
			return err
		},
		"put": func(ctx context.Context) error {
			_, err := m.kv.Put(ctx, &pb.PutRequest{Key: []byte("b")})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			checkStatus(t, call(stranger), codes.Unauthenticated, "etcdserver: invalid auth token")
			checkStatus(t, call(root), codes.DataLoss, "etcdserver: corrupt cluster")
		})
	}
}

// A streamed range passes the same checks as another.
func TestRangeStreamIsJudged(t *testing.T) {
	m := newSafeMember(t, nil)
	root := m.as("root")
	for _, key := range []string{"a", "b", "c"} {
		_, err := m.kv.Put(root, &pb.PutRequest{Key: []byte(key)})
		must(t, err)
	}
	read := func(user, key, end string) (n int, err error) {
		stream, err := m.kv.RangeStream(m.as(user), &pb.RangeRequest{Key: []byte(key), RangeEnd: []byte(end)})
		must(t, err)
		for {
			resp, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return n, nil
			}
			if err != nil {
				return n, err
			}
			n += len(resp.RangeResponse.Kvs)
		}
	}
	if n, err := read("alice", "b", "d"); n != 2 || err != nil {
		t.Errorf("%d keys, %v", n, err)
	}
	n, err := read("alice", "b", "\x00")
	if checkStatus(t, err, codes.PermissionDenied, denied); n != 0 {
		t.Errorf("%d keys although they are denied", n)
	}
	n, err = read("", "b", "d")
	if checkStatus(t, err, codes.InvalidArgument, userEmpty); n != 0 {
		t.Errorf("%d keys for nobody", n)
	}
}

// etcd names every request for users and roles in its two histograms.
func TestAuthMetrics(t *testing.T) {
	m := newSafeMember(t, nil)
	m.as("root")
	_, err := m.auth.AuthStatus(t.Context(), &pb.AuthStatusRequest{})
	must(t, err)
	text := m.get("/metrics").Body.String()
	for _, kind := range []string{"AuthUserAdd", "AuthRoleAdd", "AuthUserGrantRole", "AuthRoleGrantPermission", "AuthEnable", "Authenticate", "AuthStatus"} {
		if line := fmt.Sprintf("etcd_server_request_duration_seconds_count{success=\"true\",type=%q} ", kind); !strings.Contains(text, line) {
			t.Errorf("no %s", line)
		}
	}
}
