package datadir

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// TestMoveInterrupted: a run that was killed after the exchange, or left a half-made folder, is
// finished by the next one; nothing that is whole is removed.
func TestMoveInterrupted(t *testing.T) {
	make := func(dir string, files ...string) {
		for _, f := range files {
			path := filepath.Join(dir, f)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir := t.TempDir()
	make(dir, "member/identity.json", "member/store/STORE", "member.migrating/snap/db", "member.migrating/wal/0")
	_, err := Move{DataDir: dir}.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "belay's already") || !exists(filepath.Join(dir, "member.etcd", "wal", "0")) || exists(filepath.Join(dir, migratingDir)) {
		t.Errorf("after the exchange: %v", err)
	}

	dir = t.TempDir()
	make(dir, "member/snap/db", "member.migrating/snap/db")
	if _, err := (Move{DataDir: dir}).Run(t.Context()); err == nil || !exists(filepath.Join(dir, migratingDir, "snap", "db")) {
		t.Errorf("data of etcd in the way: %v", err)
	}

	dir = t.TempDir()
	make(dir, "member/snap/db", "member.migrating/store/half")
	if _, err := (Move{DataDir: dir}).Run(t.Context()); err == nil || exists(filepath.Join(dir, migratingDir)) || !exists(filepath.Join(dir, "member", "snap", "db")) {
		t.Errorf("a folder half made: %v", err)
	}
	make(dir, "member.etcd/snap/db")
	if _, err := (Move{DataDir: dir}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "earlier run") {
		t.Errorf("the old data of an earlier run: %v", err)
	}
}

// TestExchange swaps two folders.
func TestExchange(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux can")
	}
	dir := t.TempDir()
	for _, name := range []string{"a", "b"} {
		if err := os.MkdirAll(filepath.Join(dir, name, "in-"+name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := exchange(filepath.Join(dir, "a"), filepath.Join(dir, "b")); err != nil {
		t.Skipf("this file system cannot: %v", err)
	}
	if !exists(filepath.Join(dir, "a", "in-b")) || !exists(filepath.Join(dir, "b", "in-a")) {
		t.Error("the folders were not swapped")
	}
}

// TestTranslate: requests of the API of version 2, in both of their forms.
func TestTranslate(t *testing.T) {
	old := func(method, path, value string) []byte {
		b := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 77)
		for i, text := range []string{method, path, value} {
			b = protowire.AppendString(protowire.AppendTag(b, protowire.Number(i+2), protowire.BytesType), text)
		}
		return b
	}
	wrapped := func(b []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), b)
	}
	plain, err := proto.Marshal(&pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: 5}, Put: &pb.PutRequest{Key: []byte("k"), Value: []byte("v")}})
	if err != nil {
		t.Fatal(err)
	}
	published := old("PUT", "/0/members/abc/attributes", `{"name":"m1","clientURLs":["http://c:1"]}`)
	var entries []*raftpb.Entry
	for i, data := range [][]byte{published, wrapped(published), old("PUT", "/0/version", "3.4.0"), old("SYNC", "", ""), wrapped(old("PUT", "/1/key", "v")), plain, nil} {
		entries = append(entries, &raftpb.Entry{Type: raftpb.EntryNormal.Enum(), Index: new(uint64(i + 1)), Term: new(uint64(2)), Data: data})
	}
	got, dropped, err := translate(entries)
	if err != nil || dropped != 2 || len(got) != len(entries) {
		t.Fatal(got, dropped, err)
	}
	for i, e := range got {
		r := new(pb.InternalRaftRequest)
		if err := proto.Unmarshal(e.Data, r); err != nil || e.GetIndex() != uint64(i+1) || e.GetTerm() != 2 {
			t.Fatal(i, e, err)
		}
		ok := true
		switch i {
		case 0, 1:
			set := r.GetClusterMemberAttrSet()
			ok = set.GetMember_ID() == 0xabc && set.GetMemberAttributes().GetName() == "m1" && set.GetMemberAttributes().GetClientUrls()[0] == "http://c:1"
		case 2:
			ok = r.GetClusterVersionSet().GetVer() == "3.4.0"
		case 5:
			ok = string(r.GetPut().GetKey()) == "k"
		default:
			ok = len(e.Data) == 0
		}
		if !ok {
			t.Errorf("%d: %v", i, r)
		}
	}
}
