package snapshotfile

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// database is a file whose tree has several levels, values longer than a page, a bucket within a
// page, free pages and a list of them.
func database(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	db, err := bolt.Open(path, 0o600, &bolt.Options{PageSize: 4096})
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		err := db.Update(func(tx *bolt.Tx) error {
			for _, name := range []string{"key", "meta"} {
				if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
					return err
				}
			}
			if err := tx.Bucket([]byte("meta")).Put([]byte("term"), be64(7)); err != nil {
				return err
			}
			for i := range int64(6000) {
				size := 10
				if i%500 == 0 {
					size = 9000
				}
				if err := tx.Bucket([]byte("key")).Put(revisionKey(i+1, int64(round), false), bytes.Repeat([]byte{byte(i)}, size)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := newestMeta(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return b[:m.pages*m.pageSize] // what follows is room
}

// TestPagesDamaged: whatever is damaged in a file, it is read without a fault, or refused. bbolt
// alone would end the process.
func TestPagesDamaged(t *testing.T) {
	t.Parallel()
	whole := database(t)
	if err := checkPages(bytes.NewReader(whole), int64(len(whole))); err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	path := filepath.Join(t.TempDir(), "db")
	refused := 0
	for range 150 {
		b := bytes.Clone(whole)
		for range 1 + rng.IntN(3) {
			page := rng.IntN(len(b) / 4096)
			switch at := page*4096 + rng.IntN(64); rng.IntN(4) {
			case 0:
				b[at] ^= 1 << rng.IntN(8)
			case 1: // a number of a header or an element
				binary.LittleEndian.PutUint32(b[page*4096+rng.IntN(16)*4:], rng.Uint32()>>rng.IntN(32))
			case 2: // another page in its place
				copy(b[page*4096:(page+1)*4096], whole[rng.IntN(len(b)/4096)*4096:])
			case 3:
				clear(b[page*4096 : (page+1)*4096])
			}
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		err := Read(path, true, func(r *Reader) error {
			return r.tx.ForEach(func(_ []byte, bucket *bolt.Bucket) error {
				return bucket.ForEach(func(k, v []byte) error {
					for _, c := range v { // touches all of it
						_ = c
					}
					return nil
				})
			})
		})
		if err != nil {
			refused++
		}
	}
	if refused == 0 || refused == 150 {
		t.Errorf("%d of 150 damaged files are refused", refused)
	}
	for _, cut := range []int{0, 1, 5000, 4096 * 3, len(whole) / 2, len(whole) - 1} {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Read(path, true, func(*Reader) error { return nil }); err == nil {
			t.Errorf("a file that was cut off after %d of %d bytes is read", cut, len(whole))
		}
	}
}

// TestPagesInCircle: pages that lead to each other, and to themselves.
func TestPagesInCircle(t *testing.T) {
	t.Parallel()
	whole := database(t)
	m, err := newestMeta(bytes.NewReader(whole))
	if err != nil {
		t.Fatal(err)
	}
	circles := 0
	for page := uint64(2); page < m.pages; page++ {
		at := page * 4096
		if binary.LittleEndian.Uint64(whole[at:]) != page || binary.LittleEndian.Uint16(whole[at+8:]) != flagBranch {
			continue
		}
		b := bytes.Clone(whole)
		binary.LittleEndian.PutUint64(b[at+pageHeaderLen+8:], page)
		if checkPages(bytes.NewReader(b), int64(len(b))) != nil {
			circles++
		}
	}
	if circles == 0 {
		t.Error("no page of the database leads to others")
	}
}
