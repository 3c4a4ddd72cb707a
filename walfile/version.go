package walfile

import (
	"fmt"

	"github.com/coreos/go-semver/semver"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/versionpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// LeastVersion is the oldest etcd that understands all entries: the newest of the versions with
// which etcd's own descriptions (the options of versionpb) mark the messages, fields and values that
// the entries use. 3.0 without any.
//
// Source: etcd server/storage/wal/version.go.
func LeastVersion(entries []*raftpb.Entry) (semver.Version, error) {
	least := semver.Version{Major: 3}
	for _, e := range entries {
		if e.GetType() != raftpb.EntryNormal || len(e.GetData()) == 0 {
			continue // member changes are as they always were
		}
		request := new(pb.InternalRaftRequest)
		if err := proto.Unmarshal(e.GetData(), request); err != nil {
			continue // an entry of etcd's API of version 2, which is older than all of this
		}
		if err := visit(request.ProtoReflect(), &least); err != nil {
			return least, fmt.Errorf("entry %d: %w", e.GetIndex(), err)
		}
	}
	return least, nil
}

// visit raises least to what a message needs.
func visit(m protoreflect.Message, least *semver.Version) (err error) {
	raise := func(d protoreflect.Descriptor, extension protoreflect.ExtensionType) {
		text, _ := proto.GetExtension(d.Options(), extension).(string)
		if text == "" || err != nil {
			return
		}
		var v semver.Version
		if v, err = parseMinor(text); err == nil && least.LessThan(v) {
			*least = v
		}
	}
	raise(m.Descriptor(), versionpb.E_EtcdVersionMsg)
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		raise(field, versionpb.E_EtcdVersionField)
		switch {
		case err != nil:
		case field.IsMap():
		case field.Message() != nil && field.IsList():
			for i := range value.List().Len() {
				if err == nil {
					err = visit(value.List().Get(i).Message(), least)
				}
			}
		case field.Message() != nil:
			err = visit(value.Message(), least)
		case field.Enum() != nil && !field.IsList():
			raise(field.Enum(), versionpb.E_EtcdVersionEnum)
			if named := field.Enum().Values().ByNumber(value.Enum()); named != nil {
				raise(named, versionpb.E_EtcdVersionEnumValue)
			}
		}
		return err == nil
	})
	return err
}

func parseMinor(text string) (v semver.Version, err error) {
	if _, err := fmt.Sscanf(text, "%d.%d", &v.Major, &v.Minor); err != nil {
		return v, fmt.Errorf("version %q: %w", text, err)
	}
	return v, nil
}
