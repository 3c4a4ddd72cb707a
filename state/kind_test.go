package state

import (
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Every request that a log can hold has a kind, named as etcd names it in its histogram.
func TestKinds(t *testing.T) {
	fields := (&pb.InternalRaftRequest{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.Kind() != protoreflect.MessageKind || f.Name() == "header" {
			continue
		}
		r := &pb.InternalRaftRequest{}
		r.ProtoReflect().Set(f, r.ProtoReflect().NewField(f))
		k := kindOf(r)
		want := strings.ReplaceAll(string(f.Name()), "_", "")
		if f.Name() == "auth_status" {
			want = "unknown"
		}
		if !strings.EqualFold(k.String(), want) {
			t.Errorf("%s is of kind %s", f.Name(), k)
		}
		isAuth := strings.HasPrefix(string(f.Name()), "auth")
		if k.isAuth() != isAuth {
			t.Errorf("%s: is package auth's: %v", f.Name(), k.isAuth())
		}
	}
}
