package lease

import "github.com/belaydb/belay/store"

// Restore writes a lease from a snapshot file, with its TTL and remaining TTL in seconds;
// RestoreKey writes that a key is attached to one. REQUIRES: no Table was opened on the store yet.
func Restore(b *store.Batch, id ID, ttl, remaining int64) error {
	return writeRecord(b, id, ttl, remaining)
}

// RestoreKey: see Restore.
func RestoreKey(b *store.Batch, id ID, key []byte) error {
	return b.Set(store.LeaseAttachmentKey(int64(id), key), nil)
}
