package state

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/belaydb/belay/command"
)

func (g *generator) userName() string { return []string{"root", "a", "b", "c", ""}[g.IntN(5)] }
func (g *generator) roleName() string { return []string{"root", "r", "s", "t", ""}[g.IntN(5)] }

// authRequest changes or asks for users and roles; much of it is refused, some of it is malformed.
func (g *generator) authRequest() *pb.InternalRaftRequest {
	r := &pb.InternalRaftRequest{}
	hash := base64.StdEncoding.EncodeToString([]byte(fmt.Sprint("hash ", g.IntN(3))))
	switch n := g.IntN(40); {
	case n < 2:
		r.AuthEnable = &pb.AuthEnableRequest{}
	case n < 3:
		r.AuthDisable = &pb.AuthDisableRequest{}
	case n < 5:
		r.AuthStatus = &pb.AuthStatusRequest{}
	case n < 8:
		r.AuthUserAdd = &pb.AuthUserAddRequest{Name: g.userName(), HashedPassword: hash}
		switch g.IntN(5) {
		case 0:
			r.AuthUserAdd.Options = &authpb.UserAddOptions{NoPassword: g.flip(2)}
		case 1:
			r.AuthUserAdd.HashedPassword = "not base64!"
		case 2:
			r.AuthUserAdd.HashedPassword, r.AuthUserAdd.Password = "", "clear"
		}
	case n < 9:
		r.AuthUserDelete = &pb.AuthUserDeleteRequest{Name: g.userName()}
	case n < 10:
		r.AuthUserChangePassword = &pb.AuthUserChangePasswordRequest{Name: g.userName(), HashedPassword: hash}
	case n < 17:
		r.AuthUserGrantRole = &pb.AuthUserGrantRoleRequest{User: g.userName(), Role: g.roleName()}
	case n < 18:
		r.AuthUserRevokeRole = &pb.AuthUserRevokeRoleRequest{Name: g.userName(), Role: g.roleName()}
	case n < 20:
		r.AuthUserGet = &pb.AuthUserGetRequest{Name: g.userName()}
	case n < 21:
		r.AuthUserList = &pb.AuthUserListRequest{}
	case n < 24:
		r.AuthRoleAdd = &pb.AuthRoleAddRequest{Name: g.roleName()}
	case n < 25:
		r.AuthRoleDelete = &pb.AuthRoleDeleteRequest{Role: g.roleName()}
	case n < 27:
		r.AuthRoleGet = &pb.AuthRoleGetRequest{Role: g.roleName()}
	case n < 28:
		r.AuthRoleList = &pb.AuthRoleListRequest{}
	case n < 35:
		r.AuthRoleGrantPermission = &pb.AuthRoleGrantPermissionRequest{Name: g.roleName()}
		if !g.flip(10) {
			r.AuthRoleGrantPermission.Perm = &authpb.Permission{PermType: authpb.Permission_Type(g.IntN(4)), Key: g.key(), RangeEnd: g.end()}
		}
	case n < 37:
		r.AuthRoleRevokePermission = &pb.AuthRoleRevokePermissionRequest{Role: g.roleName(), Key: g.key(), RangeEnd: g.end()}
	default:
		r.Authenticate = &pb.InternalAuthenticateRequest{Name: g.userName(), SimpleToken: "x"}
	}
	return r
}

func (g *generator) end() []byte {
	switch g.IntN(4) {
	case 0:
		return nil
	case 1:
		return []byte{0}
	}
	return g.key()
}

// authHistory is a history whose requests are somebody's, while users and roles change.
func authHistory(seed uint64, n int) []command.Entry {
	entries := history(seed, n)
	g := newGenerator(seed + 1)
	first := []*pb.InternalRaftRequest{
		{AuthUserAdd: &pb.AuthUserAddRequest{Name: "root"}}, {AuthUserGrantRole: &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}},
		{AuthUserAdd: &pb.AuthUserAddRequest{Name: "a"}}, {AuthRoleAdd: &pb.AuthRoleAddRequest{Name: "r"}}, {AuthUserGrantRole: &pb.AuthUserGrantRoleRequest{User: "a", Role: "r"}},
		{AuthRoleGrantPermission: &pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: &authpb.Permission{PermType: authpb.Permission_READWRITE, Key: g.key(), RangeEnd: []byte{0}}}},
		{AuthEnable: &pb.AuthEnableRequest{}},
	}
	for i := range entries {
		e := &entries[i]
		switch {
		case e.Change != nil:
			continue
		case len(first) > 0:
			e.Request, first = first[0], first[1:]
		case g.flip(3):
			e.Request = g.authRequest()
		}
		if e.Request == nil {
			continue
		}
		// Most are of who may do something, under rules that are not old.
		h := &pb.RequestHeader{ID: uint64(i) + 1, Username: []string{"root", "root", "a", "a", "b", ""}[g.IntN(6)], AuthRevision: 1 << 40}
		if g.flip(6) {
			h.AuthRevision = g.Uint64N(60)
		}
		e.Request.Header = h
	}
	return entries
}

// Rights are judged alike on all members: after restarts, crashes and snapshots, in any batches.
func TestMetamorphicAuth(t *testing.T) {
	r := newRig(t, Config{})
	results := strings.Join(r.feed(authHistory(1, 600), func() int { return 1 }, nil), "\n")
	for _, want := range []string{"auth: permission denied", "auth: revision in header is old", "auth: user name is empty"} {
		if !strings.Contains(results, want) {
			t.Errorf("no request ended with %q: the histories prove too little", want)
		}
	}
	s := seed(t)
	metamorphic(t, s, authHistory(s, 600))
}

// What a member remembers of who may write the keys of a lease never makes it judge otherwise than
// one that was restarted.
func TestWritersOfALease(t *testing.T) {
	as := func(user string, r *pb.InternalRaftRequest) *pb.InternalRaftRequest {
		r.Header = &pb.RequestHeader{Username: user, AuthRevision: 1 << 40}
		return r
	}
	put := func(user, key string) *pb.InternalRaftRequest {
		return as(user, &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte(key), Lease: 1}})
	}
	perm := func(key string) *authpb.Permission {
		return &authpb.Permission{PermType: authpb.Permission_READWRITE, Key: []byte(key), RangeEnd: []byte(key + "~")}
	}
	old := put("a", "a4")
	old.Header.AuthRevision = 1
	const denied, stale, fine = "auth: permission denied", "auth: revision in header is old", ""
	steps := []struct {
		r    *pb.InternalRaftRequest
		want string
	}{
		{&pb.InternalRaftRequest{AuthUserAdd: &pb.AuthUserAddRequest{Name: "root"}}, fine},
		{&pb.InternalRaftRequest{AuthUserGrantRole: &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}}, fine},
		{&pb.InternalRaftRequest{AuthUserAdd: &pb.AuthUserAddRequest{Name: "a"}}, fine},
		{&pb.InternalRaftRequest{AuthRoleAdd: &pb.AuthRoleAddRequest{Name: "r"}}, fine},
		{&pb.InternalRaftRequest{AuthUserGrantRole: &pb.AuthUserGrantRoleRequest{User: "a", Role: "r"}}, fine},
		{&pb.InternalRaftRequest{AuthRoleGrantPermission: &pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: perm("a")}}, fine},
		{&pb.InternalRaftRequest{AuthEnable: &pb.AuthEnableRequest{}}, fine},
		{&pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: 1, TTL: 100}}, fine},
		{put("a", "a1"), fine},
		{put("a", "a2"), fine},
		{old, stale},
		{put("", "a3"), denied},
		{put("root", "z1"), fine},
		{put("a", "a3"), denied},
		{as("a", &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: 1}}), denied},
		{as("root", &pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: []byte("z1")}}), fine},
		{put("a", "a3"), fine},
		{as("root", &pb.InternalRaftRequest{AuthRoleGrantPermission: &pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: perm("b")}}), fine},
		{put("a", "b1"), fine},
		{as("root", &pb.InternalRaftRequest{AuthRoleRevokePermission: &pb.AuthRoleRevokePermissionRequest{Role: "r", Key: []byte("a"), RangeEnd: []byte("a~")}}), fine},
		{put("a", "b2"), denied}, // of a1, a2 and a3
		{as("root", &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: 1}}), fine},
		{as("root", &pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: 1, TTL: 100}}), fine},
		{put("a", "b2"), fine},
		{as("root", &pb.InternalRaftRequest{AuthDisable: &pb.AuthDisableRequest{}}), fine},
		{put("", "z2"), fine},
		{&pb.InternalRaftRequest{AuthEnable: &pb.AuthEnableRequest{}}, fine},
		{put("a", "b3"), denied},
	}
	for _, restarts := range []bool{false, true} {
		r := newRig(t, Config{})
		for i, s := range steps {
			if restarts {
				r.reopen()
			}
			text := ""
			if err := r.Apply([]command.Entry{{Index: uint64(i) + 1, Term: 1, Request: s.r}})[0].Err; err != nil {
				text = err.Error()
			}
			if text != s.want {
				t.Errorf("restarts %v: step %d, %v: %q, not %q", restarts, i, s.r, text, s.want)
			}
		}
	}
}

// Who reads the keys of a snapshot that was installed is judged by the rules that came with it, from
// the first moment on: they may have taken a right away.
func TestSnapshotBringsRulesBeforeKeys(t *testing.T) {
	from := newRig(t, Config{})
	from.Apply(from.next(
		&pb.InternalRaftRequest{AuthUserAdd: &pb.AuthUserAddRequest{Name: "root", HashedPassword: "cm9vdA=="}},
		&pb.InternalRaftRequest{AuthUserGrantRole: &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}},
		&pb.InternalRaftRequest{AuthEnable: &pb.AuthEnableRequest{}},
	))
	if !from.Policy().Enabled() {
		t.Fatal("users are not on")
	}
	var to *rig
	looked := false
	look := func(e zapcore.Entry) error { // in the middle of Reload, where keys can be read
		if e.Message == "kvstore restored" && to != nil && to.Machine != nil {
			looked = true
			if !to.Policy().Enabled() {
				t.Error("the keys of the snapshot can be read, and everybody may")
			}
		}
		return nil
	}
	core, _ := observer.New(zap.InfoLevel)
	to = &rig{t: t, fs: vfs.NewMem(), cfg: Config{MemberID: 1, ClusterID: 0xc1}, logger: zap.New(zapcore.RegisterHooks(core, look))}
	to.open()
	t.Cleanup(to.close)
	view := from.st.View()
	var stream bytes.Buffer
	if err := from.st.WriteSnapshot(t.Context(), view, &stream); err != nil {
		t.Fatal(err)
	}
	view.Close()
	in, err := to.st.ReceiveSnapshot(t.Context(), &stream)
	if err != nil {
		t.Fatal(err)
	}
	if err := to.Install(in); err != nil {
		t.Fatal(err)
	}
	if !looked {
		t.Error("nobody looked")
	}
}
