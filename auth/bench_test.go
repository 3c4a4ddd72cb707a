package auth

import (
	"encoding/base64"
	"fmt"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// many has one user with so many roles, each of which opens a prefix of its own; authentication is
// on. Built in one go: each change copies the maps.
func many(b *testing.B, roles int) (*Policy, Identity) {
	p := addUser(b, empty(), Root, Root)
	p = change(b, p, &pb.InternalRaftRequest{AuthEnable: &pb.AuthEnableRequest{}})
	u := &authpb.User{Name: []byte("alice"), Password: []byte(base64.StdEncoding.EncodeToString([]byte("x")))}
	for i := range roles {
		name := fmt.Sprintf("role%06d", i)
		p.roles[name] = &authpb.Role{Name: []byte(name), KeyPermission: []*authpb.Permission{
			perm(authpb.Permission_READWRITE, fmt.Sprintf("tenant%06d/", i), fmt.Sprintf("tenant%06d0", i)),
		}}
		u.Roles = append(u.Roles, name)
	}
	p.users["alice"] = newUser(u)
	return p, Identity{"alice", p.Revision()}
}

// BenchmarkPut is what a put's check costs.
func BenchmarkPut(b *testing.B) {
	for _, roles := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprintf("roles=%d", roles), func(b *testing.B) {
			p, alice := many(b, roles)
			put := &pb.PutRequest{Key: fmt.Appendf(nil, "tenant%06d/key", roles/2)}
			b.ReportAllocs()
			for b.Loop() {
				if err := p.Put(alice, put, noKeys); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkFirstCheck is the first check after a role of the user changed: its ranges are merged
// anew.
func BenchmarkFirstCheck(b *testing.B) {
	for _, roles := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprintf("roles=%d", roles), func(b *testing.B) {
			p, alice := many(b, roles)
			key := fmt.Appendf(nil, "tenant%06d/key", roles/2)
			for b.Loop() {
				p.users["alice"] = newUser(p.users["alice"].record)
				if err := p.Read(alice, key, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkGrant is a change of one role's permissions among many roles.
func BenchmarkGrant(b *testing.B) {
	for _, roles := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprintf("roles=%d", roles), func(b *testing.B) {
			p, _ := many(b, roles)
			grant := &pb.InternalRaftRequest{AuthRoleGrantPermission: &pb.AuthRoleGrantPermissionRequest{
				Name: "role000000", Perm: perm(authpb.Permission_READ, "other", "")}}
			for b.Loop() {
				p = change(b, p, grant)
			}
		})
	}
}
