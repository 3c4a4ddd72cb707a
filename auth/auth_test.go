package auth

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	mathrand "math/rand"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
)

func empty() *Policy {
	return &Policy{logger: zap.NewNop(), revision: 1, users: map[string]*user{}, roles: map[string]*authpb.Role{}}
}

// change applies a request as root, and stops the test if it is refused.
func change(t testing.TB, p *Policy, r *pb.InternalRaftRequest) *Policy {
	t.Helper()
	out, err := p.Change(Identity{Root, p.revision}, r)
	if err != nil {
		t.Fatalf("%v: %v", r, err)
	}
	if out.Next == nil {
		return p
	}
	return out.Next
}

func addUser(t testing.TB, p *Policy, name string, roles ...string) *Policy {
	p = change(t, p, &pb.InternalRaftRequest{AuthUserAdd: &pb.AuthUserAddRequest{Name: name, HashedPassword: base64.StdEncoding.EncodeToString([]byte(name))}})
	for _, role := range roles {
		p = change(t, p, &pb.InternalRaftRequest{AuthUserGrantRole: &pb.AuthUserGrantRoleRequest{User: name, Role: role}})
	}
	return p
}

func addRole(t testing.TB, p *Policy, name string, perms ...*authpb.Permission) *Policy {
	p = change(t, p, &pb.InternalRaftRequest{AuthRoleAdd: &pb.AuthRoleAddRequest{Name: name}})
	for _, perm := range perms {
		p = change(t, p, &pb.InternalRaftRequest{AuthRoleGrantPermission: &pb.AuthRoleGrantPermissionRequest{Name: name, Perm: perm}})
	}
	return p
}

func perm(kind authpb.Permission_Type, key, end string) *authpb.Permission {
	return &authpb.Permission{PermType: kind, Key: []byte(key), RangeEnd: []byte(end)}
}

// rig has alice, who reads and writes [b, d), reads "r", writes "w"; authentication is on.
func rig(t testing.TB) (*Policy, Identity) {
	p := addUser(t, empty(), Root, Root)
	p = addRole(t, p, "a", perm(authpb.Permission_READWRITE, "b", "d"), perm(authpb.Permission_READ, "r", ""), perm(authpb.Permission_WRITE, "w", ""))
	p = addUser(t, p, "alice", "a")
	p = change(t, p, &pb.InternalRaftRequest{AuthEnable: &pb.AuthEnableRequest{}})
	return p, Identity{"alice", p.Revision()}
}

func noKeys(int64) ([][]byte, error) { return nil, nil }

func TestRangesAgainstModel(t *testing.T) {
	seed := time.Now().UnixNano()
	rnd := mathrand.New(mathrand.NewSource(seed))
	key := func() string { return string(rune('a' + rnd.Intn(8))) }
	for range 3000 {
		var perms []*authpb.Permission
		for range rnd.Intn(6) {
			switch k, e := key(), key(); {
			case rnd.Intn(3) == 0:
				perms = append(perms, perm(authpb.Permission_READ, k, ""))
			case rnd.Intn(8) == 0:
				perms = append(perms, perm(authpb.Permission_READ, k, "\x00"))
			case k < e:
				perms = append(perms, perm(authpb.Permission_READ, k, e))
			}
		}
		merged := mergeRoles([]string{"r"}, map[string]*authpb.Role{"r": {KeyPermission: perms}}).read
		// All keys of one letter, and each with a tail that no single-key permission opens.
		open := func(k string) bool {
			for _, p := range perms {
				s := spanOf(p.Key, p.RangeEnd)
				if k >= string(s.begin) && (s.end == nil || k < string(s.end)) {
					return true
				}
			}
			return false
		}
		from, to := key(), key()
		if got := merged.contains([]byte(from), nil); got != open(from) {
			t.Fatalf("seed %d: %v: key %s: %v", seed, perms, from, got)
		}
		if from >= to {
			continue
		}
		want := true
		for c := from; c < to; c = string(rune(c[0] + 1)) {
			want = want && open(c) && open(c+"\x01")
		}
		if got := merged.contains([]byte(from), []byte(to)); got != want {
			t.Fatalf("seed %d: %v: [%s, %s): %v", seed, perms, from, to, got)
		}
	}
}

// A type of permission that this version does not know opens nothing; it opened all, once.
func TestUnknownPermissionType(t *testing.T) {
	p, alice := rig(t)
	p = change(t, p, &pb.InternalRaftRequest{AuthRoleGrantPermission: &pb.AuthRoleGrantPermissionRequest{Name: "a", Perm: perm(7, "x", "")}})
	alice.Revision = p.Revision()
	if err := errors.Join(p.Read(alice, []byte("b"), nil), p.Write(alice, []byte("b"), nil)); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{"read": p.Read(alice, []byte("x"), nil), "write": p.Write(alice, []byte("x"), nil)} {
		if !errors.Is(err, ErrPermissionDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A range that ends before it begins has no keys: its first key decides, as in etcd.
func TestInvertedRange(t *testing.T) {
	p, alice := rig(t)
	for _, r := range []struct {
		key, end string
		want     error
	}{{"c", "a", nil}, {"c", "c", nil}, {"b", "a", nil}, {"d", "c", ErrPermissionDenied}, {"a", "a", ErrPermissionDenied}, {"e", "b", ErrPermissionDenied}} {
		if err := p.Read(alice, []byte(r.key), []byte(r.end)); !errors.Is(err, r.want) {
			t.Errorf("[%s, %s): %v", r.key, r.end, err)
		}
	}
}

func TestChecks(t *testing.T) {
	p, alice := rig(t)
	put := func(key string) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key)}}}
	}
	nested := func(r *pb.TxnRequest) *pb.TxnRequest {
		return &pb.TxnRequest{Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}}}
	}
	lease := func(id int64) ([][]byte, error) { return [][]byte{[]byte("b"), []byte("secret")}, nil }
	for _, tc := range []struct {
		name string
		got  error
		want error
	}{
		{"read a range", p.Read(alice, []byte("b"), []byte("d")), nil},
		{"read beyond it", p.Read(alice, []byte("b"), []byte("e")), ErrPermissionDenied},
		{"read to the end of all keys", p.Read(alice, []byte("b"), []byte{0}), ErrPermissionDenied},
		{"read everything", p.Read(alice, []byte{0}, []byte{0}), ErrPermissionDenied},
		{"range of one key", p.Read(alice, []byte("r"), []byte("r\x00")), nil},
		{"write only", p.Read(alice, []byte("w"), nil), ErrPermissionDenied},
		{"put with prev_kv reads", p.Put(alice, &pb.PutRequest{Key: []byte("w"), PrevKv: true}, noKeys), ErrPermissionDenied},
		{"delete with prev_kv reads", p.DeleteRange(alice, &pb.DeleteRangeRequest{Key: []byte("w"), PrevKv: true}), ErrPermissionDenied},
		{"delete without", p.DeleteRange(alice, &pb.DeleteRangeRequest{Key: []byte("w")}), nil},
		{"compare alone reads", p.Txn(alice, &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("x")}}}, noKeys), ErrPermissionDenied},
		{"compare of a range", p.Txn(alice, &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("b"), RangeEnd: []byte{0}}}}, noKeys), ErrPermissionDenied},
		{"nested three deep", p.Txn(alice, nested(nested(nested(&pb.TxnRequest{Success: []*pb.RequestOp{put("x")}}))), noKeys), ErrPermissionDenied},
		{"nested compare", p.Txn(alice, nested(&pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("x")}}}), noKeys), ErrPermissionDenied},
		{"nested and allowed", p.Txn(alice, nested(nested(&pb.TxnRequest{Success: []*pb.RequestOp{put("c")}})), noKeys), nil},
		{"lease of a secret key", p.Put(alice, &pb.PutRequest{Key: []byte("b"), Lease: 1}, lease), ErrPermissionDenied},
		{"revoke it", p.WriteLease(alice, 1, lease), ErrPermissionDenied},
		{"list its keys", p.ReadLease(alice, 1, lease), ErrPermissionDenied},
		{"root may", p.WriteLease(Identity{Root, p.Revision()}, 1, lease), nil},
		{"nobody", p.Read(Identity{}, []byte("b"), nil), ErrUserEmpty},
		{"an old revision", p.Read(Identity{"alice", 1}, []byte("b"), nil), ErrAuthOldRevision},
		{"unknown user", p.Read(Identity{"eve", p.Revision()}, []byte("b"), nil), ErrPermissionDenied},
		{"admin", p.Admin(alice), ErrPermissionDenied},
		{"admin without name", p.Admin(Identity{}), ErrUserEmpty},
	} {
		if !errors.Is(tc.got, tc.want) {
			t.Errorf("%s: %v, not %v", tc.name, tc.got, tc.want)
		}
	}

	// What was merged for one policy must not serve the next.
	next := change(t, p, &pb.InternalRaftRequest{AuthRoleRevokePermission: &pb.AuthRoleRevokePermissionRequest{Role: "a", Key: []byte("r")}})
	alice.Revision = next.Revision()
	if err := next.Read(alice, []byte("r"), nil); !errors.Is(err, ErrPermissionDenied) {
		t.Errorf("after the permission was revoked: %v", err)
	}
	next = change(t, next, &pb.InternalRaftRequest{AuthRoleDelete: &pb.AuthRoleDeleteRequest{Role: "a"}})
	alice.Revision = next.Revision()
	if err := next.Write(alice, []byte("b"), nil); !errors.Is(err, ErrPermissionDenied) {
		t.Errorf("after the role was deleted: %v", err)
	}
	if err := p.Read(Identity{"alice", p.Revision()}, []byte("r"), nil); err != nil {
		t.Errorf("the old policy changed: %v", err)
	}
}

func TestSimpleTokens(t *testing.T) {
	s := newSimple(zap.NewNop(), time.Minute)
	now := time.Unix(1000, 0)
	s.now = func() time.Time { return now }
	prefix := s.Prefix()
	if len(prefix) != 16 || bytes.ContainsAny([]byte(prefix), "0123456789.") {
		t.Fatalf("prefix %q", prefix)
	}
	token, err := s.Assign("alice", 3, prefix, 77)
	if err != nil || token != prefix+".76" { // as etcd numbers it
		t.Fatal(token, err)
	}
	if index, ok := TokenIndex(token); !ok || index != 77 {
		t.Fatal(index, ok)
	}
	if index, ok := TokenIndex("x.18446744073709551615"); ok {
		t.Fatal(index)
	}
	for range 5 { // use keeps it alive
		now = now.Add(50 * time.Second)
		if who, ok := s.Info(token, 9); !ok || who != (Identity{"alice", 9}) {
			t.Fatal(who, ok)
		}
	}
	now = now.Add(61 * time.Second)
	if _, ok := s.Info(token, 9); ok {
		t.Fatal("an expired token is taken")
	}
	if _, err := s.Assign("bob", 3, "x", 78); err != nil || len(s.tokens) != 1 {
		t.Fatalf("%d tokens, %v", len(s.tokens), err)
	}
	s.Keep(func(user string) bool { return user != "bob" })
	if _, ok := s.Info("x.77", 9); ok {
		t.Fatal("the token of a forgotten user is taken")
	}
}

func TestJWT(t *testing.T) {
	dir := t.TempDir()
	write := func(name, kind string, der []byte, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(priv)
	private := write("priv", "PRIVATE KEY", der, err)
	der, err = x509.MarshalPKIXPublicKey(pub)
	public := write("pub", "PUBLIC KEY", der, err)
	other, _, _ := ed25519.GenerateKey(rand.Reader)
	der, err = x509.MarshalPKIXPublicKey(other)
	wrong := write("wrong", "PUBLIC KEY", der, err)

	signer, err := NewTokens(nil, "jwt,sign-method=EdDSA,priv-key="+private+",pub-key="+public, 0)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := NewTokens(nil, "jwt,sign-method=EdDSA,pub-key="+public, 0)
	if err != nil {
		t.Fatal(err)
	}
	token, err := signer.Assign("alice", 5, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	if who, ok := verifier.Info(token, 8); !ok || who != (Identity{"alice", 5}) {
		t.Fatal(who, ok)
	}
	if _, err := verifier.Assign("alice", 5, "", 0); !errors.Is(err, ErrVerifyOnly) {
		t.Fatal(err)
	}
	// The public key as an HMAC secret, the classic forgery.
	forger, err := NewTokens(nil, "jwt,sign-method=HS256,priv-key="+public, 0)
	if err != nil {
		t.Fatal(err)
	}
	forged, _ := forger.Assign(Root, 99, "", 0)
	if _, ok := verifier.Info(forged, 8); ok {
		t.Fatal("a token with another method is taken")
	}
	for options, want := range map[string]error{
		"simple,x": ErrInvalidAuthOpts, "what": ErrInvalidAuthOpts, "jwt": ErrInvalidAuthOpts,
		"jwt,sign-method=RS256,sign-method=RS256": ErrInvalidAuthOpts, "jwt,sign-method=RS256": ErrMissingKey,
		"jwt,sign-method=EdDSA,priv-key=" + private + ",pub-key=" + wrong: ErrKeyMismatch,
		"jwt,sign-method=HS256,ttl=x":                                     ErrInvalidAuthOpts, "jwt,sign-method=HS256": ErrMissingKey,
	} {
		if _, err := NewTokens(nil, options, 0); !errors.Is(err, want) {
			t.Errorf("%s: %v", options, err)
		}
	}
	if _, err := NewTokens(nil, "jwt,sign-method=none", 0); err == nil {
		t.Error("tokens that nobody signs")
	}
}

func BenchmarkCheckWith10000Roles(b *testing.B) {
	p := addUser(b, empty(), Root, Root)
	names := make([]string, 10000)
	roles := make(map[string]*authpb.Role)
	for i := range names {
		names[i] = fmt.Sprintf("r%05d", i)
		roles[names[i]] = &authpb.Role{Name: []byte(names[i]), KeyPermission: []*authpb.Permission{perm(authpb.Permission_READWRITE, names[i]+"/", names[i]+"0")}}
	}
	p.roles = roles
	p.users["alice"] = newUser(&authpb.User{Name: []byte("alice"), Roles: names})
	p = change(b, p, &pb.InternalRaftRequest{AuthEnable: &pb.AuthEnableRequest{}})
	who := Identity{"alice", p.Revision()}
	key := []byte("r05000/x")
	b.ReportAllocs()
	for b.Loop() {
		if err := p.Read(who, key, nil); err != nil {
			b.Fatal(err)
		}
	}
}
