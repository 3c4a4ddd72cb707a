package snapshotfile

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	bolt "go.etcd.io/bbolt"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
)

// Content is what goes into a file.
type Content struct {
	Index, Term    uint64 // applied
	ConfState      *raftpb.ConfState
	Members        []*command.Member
	Removed        []uint64
	Alarms         []*pb.AlarmMember
	ClusterVersion string // "3.7.0"; empty: not decided yet
	Downgrade      []byte // JSON as stored; nil: never set
	CompactRev     int64  // -1: never compacted
	// For is the minor version of the etcd 3 that is to read the file; 0: the newest. An older one
	// refuses a schema and a cluster version above its own.
	For int64

	// Revisions calls each for every revision that is kept, in ascending order;
	// value is a mvccpb.KeyValue in protobuf form and may be kept.
	Revisions func(ctx context.Context, each func(main, sub int64, tombstone bool, value []byte) error) error
	// Leases calls each for every lease, by ascending id.
	Leases func(each func(id, ttl, remaining int64) error) error
	// Auth calls each for every record of package auth, with its bucket in etcd, in ascending order
	// within each bucket; nil: authentication was never used.
	Auth func(each func(bucket, name string, value []byte) error) error
}

// StorageVersion is the schema that the file has.
const StorageVersion = "3.7.0"

// Batches bound the memory: bbolt holds everything that a transaction writes until its end.
const (
	maxBatchBytes   = 4 << 20
	maxBatchEntries = 10_000
)

var buckets = []string{
	"alarm", "auth", "authRoles", "authUsers", "cluster", "key", "lease", "members", "members_removed", "meta",
}

// Create builds a database in dir, which must have room for all of it.
func Create(ctx context.Context, dir string, c Content) (*File, error) {
	tmp, err := os.CreateTemp(dir, namePattern)
	if err != nil {
		return nil, fmt.Errorf("snapshotfile: %w", err)
	}
	path := tmp.Name()
	// The name is removed in any case: on success the descriptor keeps the file.
	defer os.Remove(path)
	size, err := build(ctx, path, &c)
	if err != nil {
		tmp.Close()
		return nil, fmt.Errorf("snapshotfile: %w", err)
	}
	return &File{f: tmp, size: size}, nil
}

func build(ctx context.Context, path string, c *Content) (size int64, err error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout:        time.Second,
		NoSync:         true,
		NoGrowSync:     true,
		NoFreelistSync: true,
		FreelistType:   bolt.FreelistMapType,
		PageSize:       4096,
	})
	if err != nil {
		return 0, err
	}
	defer func() {
		if cerr := db.Close(); err == nil {
			err = cerr
		}
	}()
	w := &writer{db: db, ctx: ctx}
	if err := w.run(c); err != nil {
		w.abort()
		return 0, err
	}
	err = db.View(func(tx *bolt.Tx) error { size = tx.Size(); return nil })
	return size, err
}

// writer writes in batches: one transaction after the other.
type writer struct {
	db      *bolt.DB
	ctx     context.Context
	tx      *bolt.Tx // nil between batches
	bytes   int
	entries int
}

func (w *writer) abort() {
	if w.tx != nil {
		_ = w.tx.Rollback() // an error is being returned already
	}
}

// put writes one entry. REQUIRES: keys of a bucket ascend; key and value stay
// as they are until the batch ends.
func (w *writer) put(bucket string, key, value []byte) error {
	if w.tx == nil {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		tx, err := w.db.Begin(true)
		if err != nil {
			return err
		}
		w.tx = tx
	}
	b := w.tx.Bucket([]byte(bucket))
	b.FillPercent = 0.95 // ascending keys, never written again
	if err := b.Put(key, value); err != nil {
		return fmt.Errorf("bucket %s: %w", bucket, err)
	}
	w.bytes += len(key) + len(value)
	if w.entries++; w.entries >= maxBatchEntries || w.bytes >= maxBatchBytes {
		return w.commit()
	}
	return nil
}

func (w *writer) commit() error {
	if w.tx == nil {
		return nil
	}
	tx := w.tx
	w.tx, w.bytes, w.entries = nil, 0, 0
	return tx.Commit()
}

func (w *writer) run(c *Content) error {
	err := w.db.Update(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := w.writeCluster(c); err != nil {
		return err
	}
	err = c.Leases(func(id, ttl, remaining int64) error {
		return w.put("lease", be64(uint64(id)), leaseRecord(id, ttl, remaining))
	})
	if err != nil {
		return err
	}
	err = c.Revisions(w.ctx, func(main, sub int64, tombstone bool, value []byte) error {
		return w.put("key", revisionKey(main, sub, tombstone), value)
	})
	if err != nil {
		return err
	}
	return w.commit()
}

// schema is the storage version of the file; empty: etcd before 3.6 has none.
func (c *Content) schema() string {
	switch {
	case c.For == 0:
		return StorageVersion
	case c.For < 6:
		return ""
	}
	return fmt.Sprintf("3.%d.0", c.For)
}

// writeCluster writes everything that is small.
func (w *writer) writeCluster(c *Content) error {
	type entry struct {
		bucket     string
		key, value []byte
	}
	confState, err := json.Marshal(c.ConfState)
	if err != nil {
		return fmt.Errorf("conf state: %w", err)
	}
	entries := []entry{
		{"meta", []byte("confState"), confState},
		{"meta", []byte("consistent_index"), be64(c.Index)},
		{"meta", []byte("term"), be64(c.Term)},
	}
	if schema := c.schema(); schema != "" {
		entries = append(entries, entry{"meta", []byte("storageVersion"), []byte(schema)})
	}
	if c.CompactRev >= 0 {
		rev := revisionKey(c.CompactRev, 0, false)
		entries = append(entries, entry{"meta", []byte("finishedCompactRev"), rev}, entry{"meta", []byte("scheduledCompactRev"), rev})
	}
	if c.ClusterVersion != "" {
		entries = append(entries, entry{"cluster", []byte("clusterVersion"), []byte(c.ClusterVersion)})
	}
	if c.Downgrade != nil {
		entries = append(entries, entry{"cluster", []byte("downgrade"), c.Downgrade})
	}
	for _, m := range c.Members {
		value, err := json.Marshal(m)
		if err != nil {
			return fmt.Errorf("member %x: %w", m.ID, err)
		}
		entries = append(entries, entry{"members", hexKey(m.ID), value})
	}
	for _, id := range c.Removed {
		entries = append(entries, entry{"members_removed", hexKey(id), []byte("removed")})
	}
	for _, a := range c.Alarms {
		key, err := proto.Marshal(a)
		if err != nil {
			return fmt.Errorf("alarm: %w", err)
		}
		entries = append(entries, entry{"alarm", key, []byte{}})
	}
	authRevision := false
	if c.Auth != nil {
		err := c.Auth(func(bucket, name string, value []byte) error {
			authRevision = authRevision || bucket == "auth" && name == "authRevision"
			entries = append(entries, entry{bucket, []byte(name), value})
			return nil
		})
		if err != nil {
			return err
		}
	}
	if !authRevision { // etcd writes it when it starts for the first time
		entries = append(entries, entry{"auth", []byte("authRevision"), be64(1)})
	}
	for _, e := range entries {
		if err := w.put(e.bucket, e.key, e.value); err != nil {
			return err
		}
	}
	return w.commit()
}

func be64(n uint64) []byte { return binary.BigEndian.AppendUint64(make([]byte, 0, 8), n) }

// hexKey is an id as etcd writes it: lower case, not padded.
func hexKey(id uint64) []byte { return strconv.AppendUint(nil, id, 16) }

// revisionKey is 17 bytes, 18 for a tombstone:
//
//	+----------+---+----------+-----+
//	| main, BE | _ | sub, BE  | (t) |
//	+----------+---+----------+-----+
func revisionKey(main, sub int64, tombstone bool) []byte {
	k := make([]byte, 0, 18)
	k = binary.BigEndian.AppendUint64(k, uint64(main))
	k = append(k, '_')
	k = binary.BigEndian.AppendUint64(k, uint64(sub))
	if tombstone {
		k = append(k, 't')
	}
	return k
}

// leaseRecord is leasepb.Lease (not part of etcd's API module): three varints, zeros left out.
func leaseRecord(id, ttl, remaining int64) []byte {
	b := []byte{}
	for field, v := range []int64{id, ttl, remaining} {
		if v != 0 {
			b = protowire.AppendTag(b, protowire.Number(field+1), protowire.VarintType)
			b = protowire.AppendVarint(b, uint64(v))
		}
	}
	return b
}
