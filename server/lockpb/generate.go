//go:build ignore

// This program generates Go code from the .proto file named, in the current
// directory. It needs protoc, protoc-gen-go and protoc-gen-go-grpc on the path. The
// files that ours import are taken from the generated packages themselves, so no
// .proto file of anybody else has to be found.
package main

import (
	"log"
	"os"
	"os/exec"
	"path/filepath"

	_ "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

func main() {
	log.SetFlags(0)
	name := os.Args[1]
	dir, err := os.Getwd()
	check(err)

	// etcd's files register under short names but import each other by long ones.
	long := map[string]string{
		"kv.proto": "etcd/api/mvccpb/kv.proto", "auth.proto": "etcd/api/authpb/auth.proto",
		"version.proto": "etcd/api/versionpb/version.proto", "rpc.proto": "etcd/api/etcdserverpb/rpc.proto",
	}
	set := &descriptorpb.FileDescriptorSet{}
	done := map[string]bool{}
	var add func(fd protoreflect.FileDescriptor)
	add = func(fd protoreflect.FileDescriptor) {
		if fd.IsPlaceholder() || done[fd.Path()] {
			return
		}
		done[fd.Path()] = true
		for i := range fd.Imports().Len() { // protoc wants a file after its imports
			add(fd.Imports().Get(i).FileDescriptor)
		}
		file := protodesc.ToFileDescriptorProto(fd)
		if name := long[fd.Path()]; name != "" {
			file.Name = &name
		}
		set.File = append(set.File, file)
	}
	for _, path := range []string{
		"google/api/annotations.proto", "protoc-gen-openapiv2/options/annotations.proto",
		"version.proto", "auth.proto", "kv.proto", "rpc.proto",
	} {
		fd, err := protoregistry.GlobalFiles.FindFileByPath(path)
		check(err)
		add(fd)
	}
	data, err := proto.Marshal(set)
	check(err)
	tmp, err := os.MkdirTemp("", "protoset")
	check(err)
	defer os.RemoveAll(tmp)
	deps := filepath.Join(tmp, "deps.binpb")
	check(os.WriteFile(deps, data, 0o600))

	// The path under which the file registers is that of the package in this repository.
	virtual := filepath.Join("belay/server", filepath.Base(dir), name)
	src := filepath.Join(tmp, virtual)
	check(os.MkdirAll(filepath.Dir(src), 0o700))
	text, err := os.ReadFile(name)
	check(err)
	check(os.WriteFile(src, text, 0o600))

	const module = "github.com/belaydb/belay/server/"
	cmd := exec.Command("protoc", "--descriptor_set_in="+deps, "-I"+tmp,
		"--go_out=.", "--go_opt=module="+module+filepath.Base(dir),
		"--go-grpc_out=.", "--go-grpc_opt=module="+module+filepath.Base(dir), virtual)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	check(cmd.Run())
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
