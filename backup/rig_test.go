package backup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/store"
)

// member is a state machine over a store in memory, whose state is saved.
type member struct {
	t  testing.TB
	kv *mvcc.Store
	*state.Machine
}

var who = Origin{Cluster: 0xc1, Member: 0xa1, MemberName: "a"}

func newMember(t testing.TB) *member {
	t.Helper()
	st, err := store.Open("db", store.Options{FS: vfs.NewMem(), CacheBytes: 1 << 20, MemTableBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	kv, err := mvcc.Open(st, mvcc.Options{})
	if err != nil {
		t.Fatal(err)
	}
	leases, err := lease.Open(st, lease.Options{MinTTL: 2})
	if err != nil {
		t.Fatal(err)
	}
	m, err := state.Open(state.Config{Store: st, KV: kv, Leases: leases, MemberID: who.Member, ClusterID: who.Cluster})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		kv.Close()
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	r := &member{t, kv, m}
	r.change(&command.Change{Type: raftpb.ConfChangeAddNode, MemberID: who.Member, Member: command.Member{ID: who.Member, Name: "a", PeerURLs: []string{"http://127.0.0.1:1"}}})
	return r
}

func (m *member) change(c *command.Change) {
	index, _ := m.Applied()
	if res := m.ApplyChange(command.Entry{Index: index + 1, Term: 1, Change: c}); res.Err != nil {
		m.t.Fatal(res.Err)
	}
}

func (m *member) do(requests ...*pb.InternalRaftRequest) {
	m.t.Helper()
	index, _ := m.Applied()
	var entries []command.Entry
	for i, req := range requests {
		req.Header = &pb.RequestHeader{ID: 1}
		entries = append(entries, command.Entry{Index: index + 1 + uint64(i), Term: 1, Request: req})
	}
	for _, res := range m.Apply(entries) {
		if res.Err != nil {
			m.t.Fatal(res.Err)
		}
	}
}

func put(key, value string, lease int64) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte(key), Value: []byte(value), Lease: lease}}
}

func del(key string) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: []byte(key)}}
}

func grant(id int64) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: id, TTL: 600}}
}

func revoke(id int64) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: id}}
}

func compact(rev int64) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: rev}}
}

func role(name string) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{AuthRoleAdd: &pb.AuthRoleAddRequest{Name: name}}
}

// trial is a place to restore to.
func trial(t testing.TB) Trial {
	return Trial{scratch, filepath.Join(t.TempDir(), "scratch")}
}

func scratch(ctx context.Context, dir string, r *Reading, look func(view *mvcc.View, versions int) error) error {
	return datadir.Scratch(ctx, dir, r, look)
}

// some writes n puts over 10 keys, and deletes one of ten.
func (m *member) some(n int) {
	m.t.Helper()
	for i := range n {
		if i%10 == 9 {
			m.do(del(fmt.Sprintf("key%d", i/10%10)))
			continue
		}
		m.do(put(fmt.Sprintf("key%d", i%10), strings.Repeat(fmt.Sprint(m.kv.Revision()), 20), 0))
	}
}

// hash is HashKV at a revision as the member has it.
func (m *member) hash(rev int64) uint32 {
	m.t.Helper()
	view := m.kv.View()
	defer view.Close()
	h, err := view.HashState(m.t.Context(), rev)
	if err != nil {
		m.t.Fatal(err)
	}
	return h
}

// save makes a backup, as of a second of that day.
func (m *member) save(d Depot, parent *Entry, second int, hash bool) *Entry {
	m.t.Helper()
	e, err := m.trySave(d, parent, second, hash)
	if err != nil {
		m.t.Fatal(err)
	}
	return e
}

func (m *member) trySave(d Depot, parent *Entry, second int, hash bool) (*Entry, error) {
	view := m.kv.View()
	defer view.Close()
	return save(m.t.Context(), d, view, saving{Origin: who, Parent: parent, Time: at(second), Hash: hash})
}

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

func at(second int) time.Time { return noon.Add(time.Duration(second) * time.Second) }

func load(t testing.TB, d Depot) *Catalog {
	t.Helper()
	c, err := Load(t.Context(), d, clusterFolder(who.Cluster), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// states are the states of what is in a depot, oldest first.
func states(c *Catalog) (text string) {
	for _, e := range c.Entries {
		text += string(e.State) + ";"
	}
	return text
}

func (c *Catalog) mustFind(t testing.TB, name string) *Entry {
	t.Helper()
	e := c.find(name)
	if e == nil {
		t.Fatalf("%s is not there", name)
	}
	return e
}

// files are the files of a directory, with their folders.
func files(t testing.TB, root string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
