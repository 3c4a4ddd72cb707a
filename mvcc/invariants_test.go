//go:build invariants

package mvcc

import (
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/belaydb/belay/internal/invariants"
	"github.com/belaydb/belay/store"
)

// TestInvariantsBreak breaks each invariant on purpose: the assert must say so.
func TestInvariantsBreak(t *testing.T) {
	for _, c := range []struct {
		name string
		harm func(r *rig)
		want string
	}{
		{"nothing", func(*rig) {}, ""},
		{"count of a block", func(r *rig) {
			g := &r.keyCounts.groups[0]
			g.blocks[0].n, g.n, r.keyCounts.total = g.blocks[0].n+1, g.n+1, r.keyCounts.total+1
		}, "keys are counted at revision"},
		{"count between blocks", func(r *rig) {
			g := &r.keyCounts.groups[0]
			g.blocks[0].n, g.blocks[1].n = g.blocks[0].n+1, g.blocks[1].n-1
		}, "counts 5 and has 4"},
		{"count of a group", func(r *rig) { r.keyCounts.groups[0].n++ }, "group 0 of counted keys counts"},
		{"order of blocks", func(r *rig) {
			b := r.keyCounts.groups[0].blocks
			b[1].n, b[2].n, b[2].start = 0, 8, b[1].start
		}, "stands after the one at"},
		{"filter", func(r *rig) { r.exists.filter = newBloom(r.exists.limit) }, "the filter says that it never did"},
		{"index without a version", func(r *rig) {
			r.local(func(b *store.Batch) error { return b.Delete(store.AppendUserKey(nil, []byte("key07"), 9, 0)) })
			r.keyCounts.state, r.exists.complete = countsOff, false
		}, "the index has \"key07\" at {9 0}"},
		{"version without an index", func(r *rig) {
			r.local(func(b *store.Batch) error { return b.Delete(store.AppendRevisionKey(nil, 9, 0)) })
		}, "the index has 20 revisions of 21"},
		{"version of the future", func(r *rig) {
			r.local(func(b *store.Batch) error { return b.Set(store.AppendUserKey(nil, []byte("key07"), 99, 0), nil) })
		}, "has a version at {99 0}"},
		{"created after it was written", func(r *rig) {
			r.local(func(b *store.Batch) error {
				return b.Set(store.AppendUserKey(nil, []byte("key07"), 9, 0), appendHeader(nil, 9, 0, 1, 0))
			})
		}, "was created at 0"},
		{"cached version", func(r *rig) {
			r.cache.put(&mvccpb.KeyValue{Key: []byte("key07"), ModRevision: 9, CreateRevision: 9, Version: 2}, 0)
		}, "is cached as"},
		{"cached version of the future", func(r *rig) {
			r.cache.put(&mvccpb.KeyValue{Key: []byte("key07"), ModRevision: 99, CreateRevision: 9, Version: 2}, 0)
		}, "is cached at revision 99"},
		{"cached key that is gone", func(r *rig) {
			r.cache.put(&mvccpb.KeyValue{Key: []byte("gone"), ModRevision: 9, CreateRevision: 9, Version: 1}, 0)
		}, "is cached as"},
		{"order of the cache", func(r *rig) { r.cache.shard([]byte("key07")).hot.bytes++ }, "an order of the cache"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, Options{countBlockKeys: 4})
			<-r.keyCounts.ready
			for i := range 20 {
				r.do(op{key: fmt.Sprintf("key%02d", i), value: "v"})
			}
			r.stopCompactor() // nothing moves blocks any more
			r.keyCounts.groups = groupsOf([]block{
				{nil, 4}, {[]byte("key04"), 4}, {[]byte("key08"), 4}, {[]byte("key12"), 8},
			})
			c.harm(r)
			r.checks = invariants.Budget{}
			text := invariants.Caught(func() { r.do(op{key: "key00", value: "again"}) })
			if c.want == "" && text != "" || !strings.Contains(text, c.want) {
				t.Errorf("got %q, want %q", text, c.want)
			}
			r.startCompactor()
		})
	}
}

// local writes something past the rules.
func (r *rig) local(f func(*store.Batch) error) {
	b := r.st.NewLocalBatch()
	defer b.Close()
	if err := f(b); err != nil {
		r.t.Fatal(err)
	}
	if err := b.Commit(); err != nil {
		r.t.Fatal(err)
	}
}
