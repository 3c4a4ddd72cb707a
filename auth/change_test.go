package auth

import (
	"errors"
	"fmt"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// A change of a role reaches every user who has it, whatever order a store holds their roles in.
func TestChangedRoleReachesItsUsers(t *testing.T) {
	p, _ := rig(t)
	p = addRole(t, p, "z")
	p.users["bob"] = newUser(&authpb.User{Name: []byte("bob"), Roles: []string{"z", "a"}})
	for _, name := range []string{"alice", "bob"} {
		who := Identity{name, p.Revision()}
		if err := p.Read(who, []byte("r"), nil); err != nil {
			t.Fatal(err)
		}
		next := change(t, p, &pb.InternalRaftRequest{AuthRoleRevokePermission: &pb.AuthRoleRevokePermissionRequest{Role: "a", Key: []byte("r")}})
		who.Revision = next.Revision()
		if err := next.Read(who, []byte("r"), nil); !errors.Is(err, ErrPermissionDenied) {
			t.Errorf("%s: %v", name, err)
		}
		if err := next.Read(who, []byte("b"), nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// BenchmarkChangeWith10000Roles is what one change costs the applier, and the first check after it,
// while 1,000 users have 10,000 roles each.
func BenchmarkChangeWith10000Roles(b *testing.B) {
	p := addUser(b, empty(), Root, Root)
	names := make([]string, 10000)
	for i := range names {
		names[i] = fmt.Sprintf("r%05d", i)
		p.roles[names[i]] = &authpb.Role{Name: []byte(names[i]), KeyPermission: []*authpb.Permission{perm(authpb.Permission_READWRITE, names[i]+"/", names[i]+"0")}}
	}
	for i := range 1000 {
		name := fmt.Sprint("u", i)
		p.users[name] = newUser(&authpb.User{Name: []byte(name), Roles: names})
	}
	p = change(b, p, &pb.InternalRaftRequest{AuthEnable: &pb.AuthEnableRequest{}})
	grant := &pb.InternalRaftRequest{AuthRoleGrantPermission: &pb.AuthRoleGrantPermissionRequest{Name: "r05000", Perm: perm(authpb.Permission_READ, "x", "")}}
	b.Run("permission", func(b *testing.B) {
		for b.Loop() {
			change(b, p, grant)
		}
	})
	b.Run("role", func(b *testing.B) {
		for b.Loop() {
			change(b, p, &pb.InternalRaftRequest{AuthRoleAdd: &pb.AuthRoleAddRequest{Name: "new"}})
		}
	})
	b.Run("check", func(b *testing.B) {
		u := p.users["u5"]
		for b.Loop() {
			p.rangesOf(u.unmerged())
		}
	})
}
