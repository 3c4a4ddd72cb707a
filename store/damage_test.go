package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestDamage: whatever bit of a store's files is flipped, and wherever one of them is cut, the store
// says so or gives what was written; it neither panics nor leaves anything open or running. It is
// opened, read, written, compacted, rid of garbage, read again and closed.
func TestDamage(t *testing.T) {
	var values map[string]string // by key
	var files map[string][]byte
	synctest.Test(t, func(t *testing.T) { values, files = storeWithGarbage(t) })
	names := make([]string, 0, len(files))
	for name, data := range files {
		if len(data) > 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	cases := 100
	if testing.Short() {
		cases = 40
	}
	for n := range cases {
		rng := rand.New(rand.NewPCG(1, uint64(n)))
		name := names[rng.IntN(len(names))]
		data := slices.Clone(files[name])
		at, bit := rng.IntN(len(data)), rng.IntN(8)
		if rng.IntN(2) == 0 { // where what is not data is
			at = len(data) - 1 - rng.IntN(min(len(data), 600))
		}
		what := fmt.Sprintf("bit %d of byte %d of %d of %s", bit, at, len(data), name)
		data[at] ^= 1 << bit
		if rng.IntN(8) == 0 {
			what, data = fmt.Sprintf("%s ends at %d of %d", name, at, len(data)), data[:at]
		}
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { useDamaged(t, files, name, data, values) })
		})
	}
}

// storeWithGarbage makes a store with several tables and files of values, some of which is garbage.
func storeWithGarbage(t *testing.T) (values map[string]string, files map[string][]byte) {
	const rounds, keys = 6, 60
	fs := vfs.NewMem()
	s, err := Open("db", Options{FS: fs, MemTableBytes: 1 << 20, CacheBytes: 1 << 20, valuesAge: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	values = map[string]string{}
	var last [keys][]byte
	for round := range rounds {
		for k := range keys {
			rev := uint64(1 + round*keys + k)
			size := 100
			if k%3 == 0 {
				size = separateBytes + rng.IntN(2*separateBytes)
			}
			value := make([]byte, size)
			for i := range value {
				value[i] = byte('a' + rng.IntN(26))
			}
			b := s.NewBatch(rev, 1)
			key := AppendUserKey(nil, fmt.Appendf(nil, "key-%03d", k), rev, 0)
			err := b.Set(key, value)
			if round > 0 && k%4 != 0 {
				err = errors.Join(err, b.DeleteSized(last[k], len(values[string(last[k])])))
				delete(values, string(last[k]))
			}
			if err := errors.Join(err, b.Commit()); err != nil {
				t.Fatal(err)
			}
			last[k], values[string(key)] = key, string(value)
		}
		flush(t, s)
		if round == rounds/2 {
			if err := s.CompactAll(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	closeStore(t, s)
	names, err := fs.List("db")
	if err != nil {
		t.Fatal(err)
	}
	files = map[string][]byte{}
	for _, name := range names {
		path := fs.PathJoin("db", name)
		info, err := fs.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.IsDir() {
			continue
		}
		f, err := fs.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = make([]byte, info.Size())
		if _, err := f.ReadAt(files[name], 0); err != nil && len(files[name]) > 0 {
			t.Fatal(err)
		}
		f.Close()
	}
	return values, files
}

// useDamaged uses a store of which one file has other content.
func useDamaged(t *testing.T, files map[string][]byte, damaged string, content []byte, values map[string]string) {
	fs := vfs.NewMem()
	if err := fs.MkdirAll("db", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if name == damaged {
			data = content
		}
		f, err := fs.Create(fs.PathJoin("db", name), vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Write(data)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(2 * time.Hour) // what is garbage is old then
	told := 0
	s, err := Open("db", Options{FS: fs, MemTableBytes: 1 << 20, CacheBytes: 1 << 20, MaxOpenFiles: 100, valuesAge: 1,
		Corrupt: func(error) { told++ },
		Failed:  func(err error) { t.Errorf("the disk is well: %v", err) }})
	if err != nil {
		return
	}
	read := func() (failed error) {
		for key, want := range values {
			got, ok, err := s.Get([]byte(key))
			if failed = errors.Join(failed, err); err == nil && (!ok || string(got) != want) {
				t.Errorf("%q: %d bytes, %v", key, len(got), ok)
			}
		}
		return failed
	}
	failed := read()
	index, _ := s.Applied()
	b := s.NewBatch(index+1, 1)
	failed = errors.Join(failed, b.Set(ClusterKey("key"), make([]byte, separateBytes)), b.Commit(), s.Flush(t.Context()))
	failed = errors.Join(failed, s.CompactAll(t.Context()))
	for range 3 {
		time.Sleep(2 * time.Second)
		s.Reclaim()
	}
	failed = errors.Join(failed, read())
	closeStore(t, s)
	if failed != nil && (!IsDamage(failed) || told == 0) {
		t.Errorf("told %d times: %v", told, failed)
	}
}
