//go:build invariants

package state

import (
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/internal/invariants"
	"github.com/belaydb/belay/store"
)

// TestInvariantsBreak breaks each invariant on purpose: the assert must say so, and the member must
// stop.
func TestInvariantsBreak(t *testing.T) {
	set := func(key []byte) func(*store.Batch) error {
		return func(b *store.Batch) error { return b.Set(key, nil) }
	}
	remove := func(key []byte) func(*store.Batch) error {
		return func(b *store.Batch) error { return b.Delete(key) }
	}
	for _, c := range []struct {
		name string
		harm func(*store.Batch) error
		want string
	}{
		{"nothing", nil, ""},
		{"lease that is not in the table", func(b *store.Batch) error { return b.Set(store.LeaseKey(8), []byte{1, 2, 0}) }, "lease 8 is stored and not in the table"},
		{"lease that is not stored", remove(store.LeaseKey(7)), "1 leases are in the table and 0 stored"},
		{"attachment to no lease", set(store.LeaseAttachmentKey(9, []byte("b"))), "is attached to lease 9, which does not exist"},
		{"attachment that is missing", remove(store.LeaseAttachmentKey(7, []byte("a"))), "has lease 7 and is attached to 0"},
		{"attachment of a key without a lease", set(store.LeaseAttachmentKey(7, []byte("b"))), "1 keys more are attached to leases than have one"},
		{"member that is not stored", remove(store.MemberKey(2)), "of the cluster is published"},
		{"alarm that is not published", set(store.AlarmKey(int32(pb.AlarmType_NOSPACE), 2)), "of the cluster is published"},
		{"users", func(b *store.Batch) error {
			return b.Set(store.AuthKey('s', "authRevision"), []byte{0, 0, 0, 0, 0, 0, 0, 9})
		}, "users and roles are at revision 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, Config{Logger: panicLogger(zap.NewNop())})
			index, _ := r.Applied()
			r.ApplyChange(command.Entry{Index: index + 1, Term: 1, Change: &command.Change{
				Type: raftpb.ConfChangeAddNode, MemberID: 2, Member: command.Member{ID: 2, PeerURLs: []string{"http://m2"}}}})
			r.do(&pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: 7, TTL: 60}})
			r.do(&pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("a"), Value: []byte("1"), Lease: 7}})
			r.do(put("b", "1"))
			if c.harm != nil {
				b := r.st.NewLocalBatch()
				defer b.Close()
				if err := c.harm(b); err != nil {
					t.Fatal(err)
				}
				if err := b.Commit(); err != nil {
					t.Fatal(err)
				}
			}
			r.checks = invariants.Budget{}
			text := invariants.Caught(func() { r.do(put("c", "1")) })
			if c.want == "" && text != "" || !strings.Contains(text, c.want) {
				t.Errorf("got %q, want %q", text, c.want)
			}
		})
	}
}
