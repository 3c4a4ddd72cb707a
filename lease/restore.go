package lease

import "github.com/belaydb/belay/store"

// Restore writes a lease as a snapshot file tells of it, TTL and what remained of it in seconds,
// and RestoreKey that a key is attached to one. For a store that no Table was opened on yet.
func Restore(b *store.Batch, id ID, ttl, remaining int64) error {
	return writeRecord(b, id, ttl, remaining)
}

// RestoreKey: see Restore.
func RestoreKey(b *store.Batch, id ID, key []byte) error {
	return b.Set(store.LeaseAttachmentKey(int64(id), key), nil)
}
