package snapshotfile

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// A Reader reads the content of a snapshot file, written by Belay or by etcd, or of etcd's own
// database file (member/snap/db of a stopped member). It lives as long as the function that Read
// calls.
type Reader struct {
	// Tell is told by HashKV how many bytes it has read, of about how many; nil: nobody looks.
	Tell func(done, total int64)

	tx *bolt.Tx
}

// ErrInUse is part of the errors about a file that a process has locked.
var ErrInUse = errors.New("in use, by an etcd that runs on it")

// lockWait is how long Read waits for a file that a running etcd has locked.
const lockWait = time.Second

// Read checks the file and calls fn. skipHash skips the check of the SHA-256 at the end, which a
// database file does not have. The file is not changed.
func Read(path string, skipHash bool, fn func(*Reader) error) (err error) {
	if err := checkFile(path, skipHash); err != nil {
		return err
	}
	defer func() { // bbolt, and etcd's tools with it, panic on pages that make no sense
		if r := recover(); r != nil {
			err = fmt.Errorf("the snapshot file %s is damaged: %v", path, r)
		}
	}()
	db, err := bolt.Open(path, 0o400, &bolt.Options{ReadOnly: true, Timeout: lockWait})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return fmt.Errorf("%s is %w: stop that one first, or take a snapshot from it (`etcdctl snapshot save`) and read that", path, ErrInUse)
	}
	if err != nil {
		return fmt.Errorf("the snapshot file %s cannot be read as a database: %w", path, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := checkPagesOf(path); err != nil {
		return fmt.Errorf("the snapshot file %s is damaged: %w", path, err)
	}
	return db.View(func(tx *bolt.Tx) error { return fn(&Reader{tx: tx}) })
}

func checkPagesOf(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return checkPages(f, info.Size())
}

// checkFile compares the SHA-256 at the end with the rest of the file.
func checkFile(path string, skipHash bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() {
		return fmt.Errorf("%s is a directory, not a snapshot file", path)
	}
	if !info.Mode().IsRegular() { // its size, of which the rest speaks, is none
		return fmt.Errorf("%s is a pipe or a device: a snapshot is not read from its beginning to its end; save it to a file first", path)
	}
	if info.Size() == 0 { // bbolt would take it for a new database, and complain that it cannot write to it
		return fmt.Errorf("the snapshot file %s is empty", path)
	}
	hasHash := info.Size()%512 == sha256.Size // whole pages before it
	switch {
	case skipHash:
		return nil
	case !hasHash:
		return fmt.Errorf("snapshot missing hash but --skip-hash-check=false (%s is a copy of a database, or was cut off)", path)
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, info.Size()-sha256.Size)); err != nil {
		return err
	}
	want := make([]byte, sha256.Size)
	if _, err := f.ReadAt(want, info.Size()-sha256.Size); err != nil {
		return err
	}
	if got := h.Sum(nil); !bytes.Equal(got, want) {
		return fmt.Errorf("expected sha256 %v, got %v (%s was changed since it was saved)", want, got, path)
	}
	return nil
}

// each calls fn for every entry of a bucket, in order; a missing bucket counts as empty. The slices
// that fn gets are valid during the call.
func (r *Reader) each(bucket string, fn func(k, v []byte) error) error {
	b := r.tx.Bucket([]byte(bucket))
	if b == nil {
		return nil
	}
	return b.ForEach(func(k, v []byte) error {
		if err := fn(k, v); err != nil {
			return fmt.Errorf("bucket %s, key %x: %w", bucket, k, err)
		}
		return nil
	})
}

func (r *Reader) get(bucket, key string) []byte {
	if b := r.tx.Bucket([]byte(bucket)); b != nil {
		return b.Get([]byte(key))
	}
	return nil
}

// parseRevision takes the key of a revision apart.
func parseRevision(k []byte) (main, sub int64, tombstone bool, err error) {
	if len(k) != 17 && (len(k) != 18 || k[17] != 't') || k[8] != '_' {
		return 0, 0, false, errors.New("that is no revision")
	}
	m, s := binary.BigEndian.Uint64(k), binary.BigEndian.Uint64(k[9:])
	if m > math.MaxInt64 || s > math.MaxInt64 {
		return 0, 0, false, errors.New("that is no revision")
	}
	return int64(m), int64(s), len(k) == 18, nil
}

// Revisions calls each for every revision, in ascending order. kv is nil where a restore has only
// raised the revision; otherwise it may be kept. A tombstone's has only the key.
func (r *Reader) Revisions(each func(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error) error {
	return r.each("key", func(k, v []byte) error {
		main, sub, tombstone, err := parseRevision(k)
		if err != nil {
			return err
		}
		if len(v) == 0 {
			return each(main, sub, false, nil)
		}
		kv := new(mvccpb.KeyValue)
		if err := proto.Unmarshal(v, kv); err != nil {
			return err
		}
		return each(main, sub, tombstone, kv)
	})
}

// Compactions are the revisions of the newest compaction that was requested and of the newest that
// was done; -1: there was none.
func (r *Reader) Compactions() (scheduled, finished int64, err error) {
	read := func(name string) (int64, error) {
		v := r.get("meta", name)
		if v == nil {
			return -1, nil
		}
		main, _, _, err := parseRevision(v)
		return main, err
	}
	scheduled, err = read("scheduledCompactRev")
	if err == nil {
		finished, err = read("finishedCompactRev")
	}
	return max(scheduled, finished), finished, err
}

// Index is the last entry of the raft log that is in the file.
func (r *Reader) Index() uint64 {
	if v := r.get("meta", "consistent_index"); len(v) == 8 {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// Term is the term of that entry; 0: the file does not say (etcd before 3.5).
func (r *Reader) Term() uint64 {
	if v := r.get("meta", "term"); len(v) == 8 {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// Leases calls each for every lease, by ascending id.
func (r *Reader) Leases(each func(id, ttl, remaining int64) error) error {
	return r.each("lease", func(_, v []byte) error {
		var fields [3]int64
		for len(v) > 0 {
			num, kind, n := protowire.ConsumeTag(v)
			if n < 0 || kind != protowire.VarintType {
				return errors.New("that is no lease")
			}
			x, m := protowire.ConsumeVarint(v[n:])
			if m < 0 {
				return errors.New("that is no lease")
			}
			if num <= 3 {
				fields[num-1] = int64(x)
			}
			v = v[n+m:]
		}
		return each(fields[0], fields[1], fields[2])
	})
}

// Auth calls each for every record of users, roles and their settings.
func (r *Reader) Auth(each func(bucket, name string, value []byte) error) error {
	for _, bucket := range []string{"auth", "authRoles", "authUsers"} {
		if err := r.each(bucket, func(k, v []byte) error { return each(bucket, string(k), slices.Clone(v)) }); err != nil {
			return err
		}
	}
	return nil
}

// Alarms are the active alarms.
func (r *Reader) Alarms() (alarms []*pb.AlarmMember, err error) {
	err = r.each("alarm", func(k, _ []byte) error {
		a := new(pb.AlarmMember)
		alarms = append(alarms, a)
		return proto.Unmarshal(k, a)
	})
	return alarms, err
}

// Status is what etcdutl prints about a file.
type Status struct {
	Hash      uint32 `json:"hash"` // CRC-32C over all names, keys and values
	Revision  int64  `json:"revision"`
	TotalKey  int    `json:"totalKey"`
	TotalSize int64  `json:"totalSize"` // bytes, without the SHA-256
	Version   string `json:"version"`   // of the schema; empty before etcd 3.6
}

// Status reads the whole file.
func (r *Reader) Status() (st Status, err error) {
	var damage []string
	for err := range r.tx.Check() {
		damage = append(damage, err.Error())
	}
	if len(damage) > 0 {
		return st, fmt.Errorf("snapshot file integrity check failed. %d errors found.\n%s", len(damage), strings.Join(damage, "\n"))
	}
	st.TotalSize = r.tx.Size()
	st.Version = string(r.get("meta", "storageVersion"))
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	keys := map[string]struct{}{}
	err = r.tx.ForEach(func(name []byte, b *bolt.Bucket) error {
		h.Write(name)
		return b.ForEach(func(k, v []byte) error {
			h.Write(k)
			h.Write(v)
			if string(name) != "key" {
				return nil
			}
			main, _, tombstone, err := parseRevision(k)
			if err != nil {
				return fmt.Errorf("cannot parse revision key: %q err: %w", k, err)
			}
			st.Revision = main
			kv := new(mvccpb.KeyValue)
			if err := proto.Unmarshal(v, kv); err != nil {
				return fmt.Errorf("cannot unmarshal value, key: %q value: %q err: %w", k, v, err)
			}
			if tombstone {
				delete(keys, string(kv.Key))
			} else {
				keys[string(kv.Key)] = struct{}{}
			}
			return nil
		})
	})
	st.TotalKey, st.Hash = len(keys), h.Sum32()
	return st, err
}
