package mvcc

import (
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/belaydb/belay/store"
)

// Restore writes one version, or one tombstone, from a snapshot file, with its revision there.
// REQUIRES: every pair of main and sub comes once, and nobody has opened the store for reading yet.
// RestoreRevision must be called at the end.
func Restore(b *store.Batch, rev Revision, tombstone bool, kv *mvccpb.KeyValue) error {
	main, sub := uint64(rev.Main), uint32(rev.Sub)
	if rev.Main <= 0 || rev.Sub < 0 || int64(sub) != rev.Sub || len(kv.Key) == 0 {
		return fmt.Errorf("mvcc: a snapshot has a version at the impossible revision %d/%d of the key %q", rev.Main, rev.Sub, kv.Key)
	}
	var value []byte // a tombstone's is empty
	flags := byte(flagTombstone)
	if !tombstone {
		if kv.CreateRevision <= 0 || kv.CreateRevision > rev.Main || kv.Version <= 0 {
			return fmt.Errorf("mvcc: a snapshot has an impossible version %d of the key %q, created at %d, at revision %d", kv.Version, kv.Key, kv.CreateRevision, rev.Main)
		}
		value = append(appendHeader(make([]byte, 0, maxHeaderLen+len(kv.Value)), rev.Main, kv.CreateRevision, kv.Version, kv.Lease), kv.Value...)
		flags = 0
	}
	if err := b.Set(store.AppendUserKey(nil, kv.Key, main, sub), value); err != nil {
		return err
	}
	return b.Set(store.AppendRevisionKey(nil, main, sub), append([]byte{flags}, kv.Key...))
}

// RestoreRevision writes the current revision and how far compactions came; -1: there was none. One
// that was requested and not done continues when the store is opened.
func RestoreRevision(b *store.Batch, current, scheduled, finished int64) error {
	for name, n := range map[string]int64{metaRevision: current, metaScheduled: scheduled, metaFinished: finished} {
		if n < 0 {
			continue
		}
		if err := b.Set(store.MetaKey(name), number(n)); err != nil {
			return err
		}
	}
	return nil
}
