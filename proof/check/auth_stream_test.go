package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/proof/cluster"
)

// TestAuthDifferential sends one stream of requests by many users, while users, roles and passwords
// change, to Belay and to etcd, and wants equal answers: every field and every error, of every
// service.
func TestAuthDifferential(t *testing.T) {
	requests := envInt(t, "BELAY_AUTH_REQUESTS", 2000)
	if testing.Short() {
		requests = min(requests, 500)
	}
	t.Parallel()
	runAuthStream(t, "TestAuthDifferential", requests, "simple")
}

// TestAuthDifferentialJWT is the same with tokens that carry the revision of users and roles, so
// that nearly all become old all the time, and with tokens that nobody handed out.
func TestAuthDifferentialJWT(t *testing.T) {
	requests := envInt(t, "BELAY_AUTH_REQUESTS", 2000) / 2
	if testing.Short() {
		requests = min(requests, 300)
	}
	t.Parallel()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	runAuthStream(t, "TestAuthDifferentialJWT", requests, "jwt,sign-method=HS256,priv-key="+secret)
}

func runAuthStream(t *testing.T, name string, requests int, token string) {
	seed := seedOf(t, name)
	start := time.Now()
	d := &authDifferential{
		differential: &differential{gen: newGenerator(rand.New(rand.NewPCG(seed, 1)))},
		jwt:          strings.HasPrefix(token, "jwt"),
		tokens:       map[*side]map[string]string{},
		passwords:    map[string]string{},
		errors:       map[string]int{},
	}
	if os.Getenv("BELAY_CHECK_TRACE") != "" {
		d.trace = t.Logf
	}
	for i, kind := range []cluster.Kind{cluster.Etcd, checkKind(t)} {
		args := slices.Concat(differentialArgs, []string{"--auth-token=" + token, "--bcrypt-cost=4"})
		if kind == cluster.Belay {
			args = append(args, "--strict-auth=false") // what it does when rights end, server.TestWatchEndsWithItsRight tries
		}
		c := startCluster(t, cluster.Config{Kind: kind, Size: 1, Args: args})
		s, err := newSide(c.Members[0])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.close)
		d.sides[i] = s
		d.tokens[s] = map[string]string{}
	}
	if err := d.run(requests); err != nil {
		if d.etcdFell(t) {
			t.Skip("nothing to compare with")
		}
		t.Fatalf("seed %d: %v", seed, err)
	}
	t.Logf("%d answers compared, %d errors among them, %d watch events, revision %d, %v",
		d.compared, d.refused, d.watched, d.gen.rev, time.Since(start).Round(time.Millisecond))
	for _, text := range slices.Sorted(keysOf(d.errors)) {
		t.Logf("%6d %s", d.errors[text], text)
	}
	if requests < 900 {
		return
	}
	wanted := []string{"permission denied", "user name is empty", "invalid auth token", "no password user"}
	if d.jwt {
		wanted = []string{"permission denied", "user name is empty", "invalid auth token", "revision of auth store is old"}
	}
	for _, want := range wanted {
		if !slices.ContainsFunc(slices.Collect(keysOf(d.errors)), func(text string) bool { return strings.Contains(text, want) }) {
			t.Errorf("nobody was answered %q: the stream proves too little", want)
		}
	}
}

func keysOf[M ~map[K]V, K comparable, V any](m M) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// authDifferential makes the generator's requests somebody's, and adds those for users and roles.
type authDifferential struct {
	*differential
	jwt       bool
	tokens    map[*side]map[string]string // of a side, by name
	passwords map[string]string           // of users, as far as the stream knows
	errors    map[string]int
	stale     int // requests since all users authenticated
}

// The users; more come and go. What their roles open is in setUp.
func authUsers() []string {
	return []string{"root", "key", "reader", "writer", "prefix", "open", "all", "none"}
}

func (d *authDifferential) run(requests int) error {
	do := func(n int, steps []step) error {
		for _, st := range steps {
			learn := st.do
			st.do = func(ctx context.Context, s *side) (proto.Message, error) {
				m, err := learn(ctx, s)
				if err != nil && s == d.sides[0] {
					d.errors[answer(nil, err)]++
				}
				return m, err
			}
			if err := d.step(n, st); err != nil {
				return err
			}
		}
		return nil
	}
	if err := do(0, d.setUp()); err != nil {
		return err
	}
	for n := 0; n < requests; {
		steps := d.next()
		if err := do(n, steps); err != nil {
			return err
		}
		n += max(1, len(steps))
		if n%50 == 0 || d.gen.wantSync {
			if err := d.sync(n); err != nil {
				return err
			}
		}
	}
	end := []step{auth("AuthStatus", &pb.AuthStatusRequest{}, pb.AuthClient.AuthStatus)}
	end = append(end, d.authenticateAll()...)
	for _, st := range d.gen.finish() {
		end = append(end, d.as("root", st))
	}
	if err := do(requests, end); err != nil {
		return err
	}
	return d.sync(requests)
}

// auth makes a step of a call of the Auth service.
func auth[Q, R proto.Message, F ~func(pb.AuthClient, context.Context, Q, ...grpc.CallOption) (R, error)](name string, req Q, call F) step {
	return unary(name, req, func(s *side, ctx context.Context, r Q) (proto.Message, error) {
		m, err := call(pb.NewAuthClient(s.conn), ctx, r)
		return m, err
	})
}

func (d *authDifferential) setUp() []step {
	perm := func(role string, kind authpb.Permission_Type, key, end string) step {
		return auth("RoleGrantPermission", &pb.AuthRoleGrantPermissionRequest{Name: role, Perm: &authpb.Permission{PermType: kind, Key: []byte(key), RangeEnd: []byte(end)}}, pb.AuthClient.RoleGrantPermission)
	}
	steps := []step{
		auth("AuthStatus", &pb.AuthStatusRequest{}, pb.AuthClient.AuthStatus),
		auth("AuthEnable", &pb.AuthEnableRequest{}, pb.AuthClient.AuthEnable), // no root
		auth("Authenticate", &pb.AuthenticateRequest{Name: "root", Password: "root"}, pb.AuthClient.Authenticate),
	}
	for _, name := range authUsers() {
		d.passwords[name] = name
		steps = append(steps,
			auth("UserAdd", &pb.AuthUserAddRequest{Name: name, Password: name}, pb.AuthClient.UserAdd),
			auth("RoleAdd", &pb.AuthRoleAddRequest{Name: name}, pb.AuthClient.RoleAdd))
		if name == "root" {
			steps = append(steps, auth("AuthEnable", &pb.AuthEnableRequest{}, pb.AuthClient.AuthEnable)) // no root role
		}
		if name != "none" {
			steps = append(steps, auth("UserGrantRole", &pb.AuthUserGrantRoleRequest{User: name, Role: name}, pb.AuthClient.UserGrantRole))
		}
	}
	return slices.Concat(steps, []step{
		auth("UserAdd", &pb.AuthUserAddRequest{Name: "nopass", Options: &authpb.UserAddOptions{NoPassword: true}}, pb.AuthClient.UserAdd),
		perm("key", authpb.Permission_READWRITE, "a/01", ""),
		perm("key", authpb.Permission_READ, "a/02", ""),
		perm("key", authpb.Permission_WRITE, "a/03", ""),
		perm("reader", authpb.Permission_READ, "a/", "a0"),
		perm("writer", authpb.Permission_WRITE, "b/", "b0"),
		perm("prefix", authpb.Permission_READWRITE, "c/", "c0"),
		perm("prefix", authpb.Permission_READWRITE, "el", "em"),
		perm("open", authpb.Permission_READWRITE, "b/05", "\x00"),
		perm("all", authpb.Permission_READWRITE, "\x00", "\x00"),
		auth("AuthEnable", &pb.AuthEnableRequest{}, pb.AuthClient.AuthEnable),
		auth("AuthEnable", &pb.AuthEnableRequest{}, pb.AuthClient.AuthEnable), // nobody asks
		auth("Authenticate", &pb.AuthenticateRequest{Name: "nopass", Password: "x"}, pb.AuthClient.Authenticate),
		auth("Authenticate", &pb.AuthenticateRequest{Name: "root", Password: "x"}, pb.AuthClient.Authenticate),
		auth("UserGet", &pb.AuthUserGetRequest{}, pb.AuthClient.UserGet), // nobody asks for nobody
	}, d.authenticateAll(), []step{
		d.as("root", auth("UserDelete", &pb.AuthUserDeleteRequest{Name: "root"}, pb.AuthClient.UserDelete)),
		d.as("root", auth("RoleDelete", &pb.AuthRoleDeleteRequest{Role: "root"}, pb.AuthClient.RoleDelete)),
		d.as("root", auth("UserRevokeRole", &pb.AuthUserRevokeRoleRequest{Name: "root", Role: "root"}, pb.AuthClient.UserRevokeRole)),
		d.as("root", auth("RoleGrantPermission", &pb.AuthRoleGrantPermissionRequest{Name: "all"}, pb.AuthClient.RoleGrantPermission)),
		d.as("root", auth("RoleGet", &pb.AuthRoleGetRequest{Role: "root"}, pb.AuthClient.RoleGet)),
	})
}

func (d *authDifferential) authenticateAll() (steps []step) {
	d.stale = 0
	for _, name := range authUsers() {
		steps = append(steps, d.authenticate(name, d.passwords[name]))
	}
	return steps
}

// authenticate asks for a token, which each side remembers for the user; the one before becomes
// "old".
func (d *authDifferential) authenticate(name, password string) step {
	st := auth("Authenticate", &pb.AuthenticateRequest{Name: name, Password: password}, pb.AuthClient.Authenticate)
	st.learn = func(s *side, m proto.Message) {
		d.tokens[s]["old"] = d.tokens[s][name]
		d.tokens[s][name] = m.(*pb.AuthenticateResponse).Token
	}
	st.adjust = func(a, b proto.Message) {
		for _, m := range []proto.Message{a, b} {
			if r := m.(*pb.AuthenticateResponse); len(r.Token) > 16 {
				r.Token = "given"
			}
		}
	}
	return st
}

// forged are tokens that no server handed out.
func (d *authDifferential) forged() map[string]string {
	tokens := map[string]string{
		"nonsense": "nonsense", "unknown": "abcdefghijklmnop.1", "no number": "abcdefghijklmnop.x", "three parts": "a.b.1", "empty": "",
		"bearer": "Bearer ", "negative": "abcdefghijklmnop.-1",
	}
	if !d.jwt {
		return tokens
	}
	exp := time.Now().Add(time.Hour).Unix()
	sign := func(method jwt.SigningMethod, key any, claims jwt.MapClaims) string {
		token, err := jwt.NewWithClaims(method, claims).SignedString(key)
		if err != nil {
			panic(err)
		}
		return token
	}
	secret := []byte("secret")
	root := jwt.MapClaims{"username": "root", "revision": 1 << 20, "exp": exp}
	for name, token := range map[string]string{
		"root, a revision to come": sign(jwt.SigningMethodHS256, secret, root),
		"all, a revision to come":  sign(jwt.SigningMethodHS256, secret, jwt.MapClaims{"username": "all", "revision": 1 << 20, "exp": exp}),
		"root, revision 1":         sign(jwt.SigningMethodHS256, secret, jwt.MapClaims{"username": "root", "revision": 1, "exp": exp}),
		"root, revision 0":         sign(jwt.SigningMethodHS256, secret, jwt.MapClaims{"username": "root", "revision": 0, "exp": exp}),
		"another's":                sign(jwt.SigningMethodHS256, []byte("other"), root),
		"another method":           sign(jwt.SigningMethodHS512, secret, root),
		"none":                     sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, root),
		"expired":                  sign(jwt.SigningMethodHS256, secret, jwt.MapClaims{"username": "root", "revision": 1 << 20, "exp": exp - 7200}),
		"not yet":                  sign(jwt.SigningMethodHS256, secret, jwt.MapClaims{"username": "root", "revision": 1 << 20, "exp": exp, "nbf": exp}),
		"without end":              sign(jwt.SigningMethodHS256, secret, jwt.MapClaims{"username": "root", "revision": 1 << 20}),
		"without user":             sign(jwt.SigningMethodHS256, secret, jwt.MapClaims{"revision": 1 << 20, "exp": exp}),
		"without revision":         sign(jwt.SigningMethodHS256, secret, jwt.MapClaims{"username": "root", "exp": exp}),
		"text revision":            sign(jwt.SigningMethodHS256, secret, jwt.MapClaims{"username": "root", "revision": "9", "exp": exp}),
		"nobody":                   sign(jwt.SigningMethodHS256, secret, jwt.MapClaims{"username": "nobody", "revision": 1 << 20, "exp": exp}),
		"empty user":               sign(jwt.SigningMethodHS256, secret, jwt.MapClaims{"username": "", "revision": 1 << 20, "exp": exp}),
		"nopass":                   sign(jwt.SigningMethodHS256, secret, jwt.MapClaims{"username": "nopass", "revision": 1 << 20, "exp": exp}),
	} {
		tokens[name] = token
	}
	return tokens
}

// someone picks the caller.
func (d *authDifferential) someone() string {
	g := d.gen
	switch n := g.rng.IntN(100); {
	case n < 30:
		return "root"
	case n < 85:
		return pick(g, authUsers()[1:]...)
	case n < 88:
		return "" // says nothing
	case n < 90:
		return "old"
	case n < 92:
		return pick(g, "temp0", "temp1", "temp2")
	default:
		return pick(g, slices.Sorted(keysOf(d.forged()))...)
	}
}

// credentials returns the context of somebody's call.
func (d *authDifferential) credentials(ctx context.Context, s *side, who string, authorization bool) context.Context {
	if who == "" {
		return ctx
	}
	token, ok := d.tokens[s][who]
	if !ok {
		token, ok = d.forged()[who]
	}
	if !ok {
		return ctx // no token as yet
	}
	if authorization {
		return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	return metadata.AppendToOutgoingContext(ctx, "token", token)
}

// turnAround reverses ranges that end before they begin. They have no keys; whether etcd lets a
// user ask for one depends on the shape of its tree of permissions.
func turnAround(m proto.Message) {
	turn := func(key, end *[]byte) {
		if len(*end) > 0 && !bytes.Equal(*end, []byte{0}) && bytes.Compare(*end, *key) < 0 && len(*key) > 0 {
			*key, *end = *end, *key
		}
	}
	switch r := m.(type) {
	case *pb.RangeRequest:
		turn(&r.Key, &r.RangeEnd)
	case *pb.DeleteRangeRequest:
		turn(&r.Key, &r.RangeEnd)
	case *pb.WatchCreateRequest:
		turn(&r.Key, &r.RangeEnd)
	case *pb.TxnRequest:
		for _, c := range r.Compare {
			turn(&c.Key, &c.RangeEnd)
		}
		eachOp(r, func(op *pb.RequestOp) {
			if o := op.GetRequestRange(); o != nil {
				turnAround(o)
			}
			if o := op.GetRequestDeleteRange(); o != nil {
				turnAround(o)
			}
			for _, c := range op.GetRequestTxn().GetCompare() {
				turn(&c.Key, &c.RangeEnd)
			}
		})
	}
}

// as makes a step somebody's.
func (d *authDifferential) as(who string, st step) step {
	turnAround(st.request)
	if r, ok := st.request.(*pb.WatchCreateRequest); ok && r.StartRevision > d.gen.rev {
		r.StartRevision = 0 // few writes are let through: it would stay in the future, and its stream without a barrier
	}
	authorization := d.gen.chance(10)
	do := st.do
	if number, ok := strings.CutPrefix(st.name, "Watch: open stream "); ok {
		if d.gen.chance(50) {
			who = "root"
		}
		var n int
		if _, err := fmt.Sscan(number, &n); err != nil {
			panic(err)
		}
		// A stream lasts longer than the step.
		do = func(_ context.Context, s *side) (proto.Message, error) {
			return nil, s.openStream(d.credentials(context.Background(), s, who, authorization), n)
		}
		st.do = do
		st.name += " as " + who
		return st
	}
	st.name += " as " + fmt.Sprintf("%q", who)
	st.do = func(ctx context.Context, s *side) (proto.Message, error) {
		return do(d.credentials(ctx, s, who, authorization), s)
	}
	return st
}

func (d *authDifferential) next() []step {
	g := d.gen
	d.stale++
	if d.stale > 120 || d.jwt && d.stale > 25 {
		return d.authenticateAll()
	}
	if g.chance(18) {
		return d.authSteps()
	}
	steps := g.next()
	block := len(steps) > 1 // what belongs together is one user's, or alarms and locks would stay
	who := d.someone()
	if block && (strings.HasPrefix(steps[0].name, "Alarm") || strings.HasPrefix(steps[0].name, "MemberAdd") || strings.Contains(steps[len(steps)-2].name, "expired")) {
		who = "root"
		steps = append(d.authenticateAll(), steps...)
	}
	alarmed := false
	for i, st := range steps {
		if !block {
			who = d.someone()
		}
		by := who
		if st.name == "Alarm" {
			alarmed = st.request.(*pb.AlarmRequest).Action == pb.AlarmRequest_ACTIVATE || alarmed
		} else if alarmed && st.name != "LeaseGrant" {
			by = d.someone() // the alarm and the rules, which answers?
		}
		if st.name == "Authenticate" {
			continue
		}
		if by == "old" && strings.HasPrefix(st.name, "LeaseGrant") {
			by = who
		}
		steps[i] = d.as(by, st)
	}
	return steps
}

// authSteps are requests for users and roles, and what only root may ask that the generator does
// not.
func (d *authDifferential) authSteps() []step {
	g := d.gen
	who := d.someone()
	if g.chance(50) {
		who = "root"
	}
	temp := pick(g, "temp0", "temp1", "temp2")
	user := pick(g, "root", "key", "reader", "writer", "prefix", "open", "all", "none", "nopass", temp, temp, temp, "missing", "")
	role := pick(g, "root", "key", "reader", "writer", "prefix", "open", "all", "none", temp, temp, "missing", "")
	password := pick(g, "", "a", "root", strings.Repeat("p", 72), strings.Repeat("p", 73))
	permission := func() *authpb.Permission {
		key, end := g.keyRange()
		p := &authpb.Permission{Key: key, RangeEnd: end, PermType: authpb.Permission_Type(g.rng.IntN(3))}
		if g.chance(4) {
			p.PermType = 7
		}
		return p
	}
	var st step
	switch n := g.rng.IntN(100); {
	case n < 8:
		req := &pb.AuthUserAddRequest{Name: pick(g, temp, temp, user), Password: password}
		if g.chance(20) {
			req.Options = &authpb.UserAddOptions{NoPassword: g.chance(70)}
		}
		if g.chance(5) {
			req.HashedPassword = pick(g, "xx", "!!")
		}
		st = auth("UserAdd", req, pb.AuthClient.UserAdd)
		st.observe = func(*generator, proto.Message) { d.passwords[req.Name] = req.Password }
	case n < 12:
		st = auth("UserDelete", &pb.AuthUserDeleteRequest{Name: pick(g, temp, "root", "missing", "")}, pb.AuthClient.UserDelete)
	case n < 18:
		name := pick(g, user, temp)
		req := &pb.AuthUserChangePasswordRequest{Name: name, Password: password}
		if g.chance(5) {
			req.HashedPassword = pick(g, "!!", "eHg=")
		}
		st = auth("UserChangePassword", req, pb.AuthClient.UserChangePassword)
		st.observe = func(*generator, proto.Message) {
			if name != "nopass" {
				d.passwords[name] = password
			}
		}
		if slices.Contains(authUsers(), name) { // and back, or that user would be out of the game
			return []step{d.as("root", st),
				d.authenticate(name, password), d.as(name, unary("Put", g.put(), (*side).put)),
				d.as("root", auth("UserChangePassword", &pb.AuthUserChangePasswordRequest{Name: name, Password: name}, pb.AuthClient.UserChangePassword)),
				d.reset(name), d.authenticate(name, name)}
		}
	case n < 26:
		st = auth("UserGrantRole", &pb.AuthUserGrantRoleRequest{User: pick(g, temp, user), Role: role}, pb.AuthClient.UserGrantRole)
		if st.request.(*pb.AuthUserGrantRoleRequest).Role == "root" && !strings.HasPrefix(user, "temp") && g.chance(80) {
			return nil // too many roots prove nothing
		}
	case n < 32:
		st = auth("UserRevokeRole", &pb.AuthUserRevokeRoleRequest{Name: user, Role: role}, pb.AuthClient.UserRevokeRole)
	case n < 36:
		st = auth("UserGet", &pb.AuthUserGetRequest{Name: pick(g, user, who)}, pb.AuthClient.UserGet)
	case n < 39:
		st = auth("UserList", &pb.AuthUserListRequest{}, pb.AuthClient.UserList)
	case n < 43:
		st = auth("RoleAdd", &pb.AuthRoleAddRequest{Name: role}, pb.AuthClient.RoleAdd)
	case n < 46:
		st = auth("RoleDelete", &pb.AuthRoleDeleteRequest{Role: pick(g, temp, "root", "missing", "")}, pb.AuthClient.RoleDelete)
	case n < 50:
		st = auth("RoleGet", &pb.AuthRoleGetRequest{Role: pick(g, role, who)}, pb.AuthClient.RoleGet)
	case n < 53:
		st = auth("RoleList", &pb.AuthRoleListRequest{}, pb.AuthClient.RoleList)
	case n < 65:
		req := &pb.AuthRoleGrantPermissionRequest{Name: role, Perm: permission()}
		if g.chance(5) {
			req.Perm = nil
		}
		grant := auth("RoleGrantPermission", req, pb.AuthClient.RoleGrantPermission)
		steps := []step{d.as(who, grant)}
		if d.jwt {
			steps = append(steps, d.authenticateAll()...)
		}
		for range 6 {
			steps = append(steps, d.as(pick(g, authUsers()[1:]...), unary("Range", g.rangeRequest(), (*side).rangeKV)), d.as(pick(g, authUsers()[1:]...), unary("DeleteRange", g.deleteRange(), (*side).deleteRange)))
		}
		if req.Perm != nil && g.chance(90) { // or everybody may do everything in the end
			steps = append(steps, d.as("root", auth("RoleRevokePermission", &pb.AuthRoleRevokePermissionRequest{Role: role, Key: req.Perm.Key, RangeEnd: req.Perm.RangeEnd}, pb.AuthClient.RoleRevokePermission)))
		}
		return steps
	case n < 68:
		p := permission()
		st = auth("RoleRevokePermission", &pb.AuthRoleRevokePermissionRequest{Role: role, Key: p.Key, RangeEnd: p.RangeEnd}, pb.AuthClient.RoleRevokePermission)
	case n < 80:
		st = d.authenticate(user, pick(g, d.passwords[user], d.passwords[user], password, user))
	case n < 83:
		st = auth("AuthStatus", &pb.AuthStatusRequest{}, pb.AuthClient.AuthStatus)
	case n < 86:
		st = auth("AuthEnable", &pb.AuthEnableRequest{}, pb.AuthClient.AuthEnable)
	case n < 88:
		return d.off()
	case n < 91:
		st = unary("Hash", &pb.HashRequest{}, func(s *side, ctx context.Context, r *pb.HashRequest) (proto.Message, error) {
			return s.maint.Hash(ctx, r)
		})
		st.adjust = func(a, b proto.Message) { b.(*pb.HashResponse).Hash = a.(*pb.HashResponse).Hash } // of the file, in etcd
	case n < 94:
		st = unary("Snapshot", &pb.SnapshotRequest{}, (*side).snapshotHeads)
	default:
		// Keys that one may not write on a lease that another granted.
		id := 900_000 + g.rng.Int64N(1_000_000)
		steps := []step{d.as(who, unary("LeaseGrant", &pb.LeaseGrantRequest{ID: id, TTL: 9000}, (*side).grant))}
		for range 3 {
			put := g.put()
			put.Lease, put.IgnoreLease = id, false
			steps = append(steps,
				d.as(d.someone(), unary("Put", put, (*side).put)),
				d.as(d.someone(), unary("LeaseKeepAlive", &pb.LeaseKeepAliveRequest{ID: id}, (*side).keepAlive)),
				d.as(d.someone(), g.timeToLive(id)),
				d.as(d.someone(), unary("LeaseLeases", &pb.LeaseLeasesRequest{}, (*side).leaseList)),
				d.as(d.someone(), unary("Txn", &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{
					Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: put}}},
				}}}}}, (*side).txn)),
				d.as(d.someone(), unary("LeaseRevoke", &pb.LeaseRevokeRequest{ID: id}, (*side).revoke)))
		}
		return append(d.authenticateAll(), append(steps, d.as("root", unary("LeaseRevoke", &pb.LeaseRevokeRequest{ID: id}, (*side).revoke)))...)
	}
	return []step{d.as(who, st)}
}

// reset remembers a user's first password again.
func (d *authDifferential) reset(name string) step {
	return step{name: "(the password of " + name + " is the first again)", do: func(context.Context, *side) (proto.Message, error) {
		d.passwords[name] = name
		return nil, nil
	}}
}

// off does without authentication for a while.
func (d *authDifferential) off() []step {
	g := d.gen
	steps := append(d.authenticateAll(), d.as("root", auth("AuthDisable", &pb.AuthDisableRequest{}, pb.AuthClient.AuthDisable)))
	steps = append(steps,
		auth("AuthDisable", &pb.AuthDisableRequest{}, pb.AuthClient.AuthDisable),
		auth("Authenticate", &pb.AuthenticateRequest{Name: "root", Password: "root"}, pb.AuthClient.Authenticate),
		auth("AuthStatus", &pb.AuthStatusRequest{}, pb.AuthClient.AuthStatus),
		d.as("root", unary("Put", g.put(), (*side).put)),
		d.as("nonsense", unary("Put", g.put(), (*side).put)),
		unary("Range", g.rangeRequest(), (*side).rangeKV),
		unary("LeaseLeases", &pb.LeaseLeasesRequest{}, (*side).leaseList),
		auth("UserRevokeRole", &pb.AuthUserRevokeRoleRequest{Name: "root", Role: "root"}, pb.AuthClient.UserRevokeRole),
		auth("AuthEnable", &pb.AuthEnableRequest{}, pb.AuthClient.AuthEnable),
		auth("RoleDelete", &pb.AuthRoleDeleteRequest{Role: "root"}, pb.AuthClient.RoleDelete),
		auth("UserGrantRole", &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}, pb.AuthClient.UserGrantRole),
		auth("RoleGet", &pb.AuthRoleGetRequest{Role: "root"}, pb.AuthClient.RoleGet),
		auth("RoleAdd", &pb.AuthRoleAddRequest{Name: "root"}, pb.AuthClient.RoleAdd),
		auth("AuthEnable", &pb.AuthEnableRequest{}, pb.AuthClient.AuthEnable),
		d.as("root", unary("Put", g.put(), (*side).put)), // the old token
		d.as("all", unary("Range", g.rangeRequest(), (*side).rangeKV)))
	return append(steps, d.authenticateAll()...)
}

// snapshotHeads reports whether a snapshot is sent; what is in it is tried elsewhere.
func (s *side) snapshotHeads(ctx context.Context, r *pb.SnapshotRequest) (proto.Message, error) {
	stream, err := s.maint.Snapshot(ctx, r)
	if err != nil {
		return nil, err
	}
	for {
		if _, err := stream.Recv(); errors.Is(err, io.EOF) {
			return &pb.SnapshotResponse{}, nil
		} else if err != nil {
			return nil, err
		}
	}
}
