package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// halfGarbage makes a store with one file of values, of which half are garbage, and returns the paths
// of that file and of the table that refers to it. REQUIRES: a bubble.
func halfGarbage(t *testing.T, fs vfs.FS) (values, table string) {
	t.Helper()
	s, err := Open("db", Options{FS: fs, valuesAge: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	const keys = 20
	key := func(k int) []byte { return AppendUserKey(nil, fmt.Appendf(nil, "key-%03d", k), 2, 0) }
	b := s.NewBatch(1, 1)
	for k := range keys {
		value := make([]byte, 2*separateBytes)
		for i := range value {
			value[i] = byte('a' + rng.IntN(26))
		}
		err = errors.Join(err, b.Set(key(k), value))
	}
	if err := errors.Join(err, b.Commit(), s.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	b = s.NewBatch(2, 1)
	for k := range keys / 2 {
		err = errors.Join(err, b.DeleteSized(key(k), 2*separateBytes))
	}
	if err := errors.Join(err, b.Commit(), s.CompactAll(t.Context()), s.Close()); err != nil {
		t.Fatal(err)
	}
	names, err := fs.List("db")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	for _, name := range names {
		switch {
		case strings.HasSuffix(name, blobSuffix):
			values = fs.PathJoin("db", name)
		case strings.HasSuffix(name, tableSuffix):
			table = fs.PathJoin("db", name)
		}
	}
	time.Sleep(2 * time.Hour)
	return values, table
}

// rewriteValues opens the store, has the engine look for garbage, and closes it. It returns what the
// store told, and whether a file of values was written anew.
func rewriteValues(t *testing.T, fs vfs.FS, values string) (told, failed []error, rewritten bool) {
	t.Helper()
	s, err := Open("db", Options{FS: fs, valuesAge: 1, Corrupt: func(err error) { told = append(told, err) }, Failed: func(err error) { failed = append(failed, err) }})
	if err != nil {
		t.Fatal(err)
	}
	for index := uint64(3); index < 6; index++ {
		b := s.NewBatch(index, 1)
		if err := errors.Join(b.Set(ClusterKey("key"), []byte("value")), b.Commit(), s.Flush(t.Context())); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
	}
	m := s.Pebble()
	if m.TableIters != 0 {
		t.Errorf("%d readers are left", m.TableIters)
	}
	if m.Compact.BlobFileRewriteCount == 0 {
		t.Error("the engine does not try to")
	}
	closeStore(t, s)
	_, err = fs.Stat(values)
	return told, failed, isNotExist(err)
}

// TestDamageBeforeRewrite: a file of values that is damaged is not written anew, nor is one of which a
// table cannot tell what is needed of it: the damage is told, with the name of the file. The engine
// alone panics over the first, and leaves goroutines behind over the second.
func TestDamageBeforeRewrite(t *testing.T) {
	indexAt := func(t *testing.T, fs vfs.FS, path string) int64 {
		f, err := fs.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		footer, err := readBlobFooter(f)
		if err != nil {
			t.Fatal(err)
		}
		return int64(footer.indexAt)
	}
	for name, c := range map[string]struct {
		table bool
		at    func(t *testing.T, fs vfs.FS, path string) int64
	}{
		"nothing":        {},
		"garbage":        {at: func(*testing.T, vfs.FS, string) int64 { return 100 }},
		"a needed block": {at: func(t *testing.T, fs vfs.FS, path string) int64 { return indexAt(t, fs, path) - 100 }},
		"the index":      {at: func(t *testing.T, fs vfs.FS, path string) int64 { return indexAt(t, fs, path) + 3 }},
		"the references": {table: true, at: referencesAt},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fs := vfs.NewMem()
				values, table := halfGarbage(t, fs)
				path := values
				if c.table {
					path = table
				}
				if c.at != nil {
					at := c.at(t, fs, path)
					if err := rewriteFile(fs, path, func(b []byte) []byte { b[at] ^= 4; return b }); err != nil {
						t.Fatal(err)
					}
				}
				told, failed, rewritten := rewriteValues(t, fs, values)
				if c.at == nil {
					if len(told) > 0 || len(failed) > 0 || !rewritten {
						t.Errorf("rewritten %v, told %v, failed %v", rewritten, told, failed)
					}
					return
				}
				if len(told) != 1 || !IsDamage(told[0]) || !strings.Contains(told[0].Error(), "file "+path+" is corrupt") || len(failed) > 0 || rewritten {
					t.Errorf("rewritten %v, told %v, failed %v", rewritten, told, failed)
				}
			})
		})
	}
}

// referencesAt is where a table has the block that tells which values it refers to.
func referencesAt(t *testing.T, fs vfs.FS, path string) int64 {
	t.Helper()
	f, err := fs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	readable, err := sstable.NewSimpleReadable(f)
	if err != nil {
		t.Fatal(err)
	}
	r, err := sstable.NewReader(t.Context(), readable, (&Store{}).pebbleOptions(Options{}).MakeReaderOptions())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	layout, err := r.Layout()
	if err != nil || layout.BlobReferenceIndex.Length == 0 {
		t.Fatal(layout, err)
	}
	return int64(layout.BlobReferenceIndex.Offset)
}

// TestDiskFailsBeforeRewrite: a disk that does not give what is to be written anew is the end of the
// member. The engine alone panics.
func TestDiskFailsBeforeRewrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := vfs.NewMem()
		values, _ := halfGarbage(t, mem)
		var tries atomic.Int64
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpFileReadAt && op.Path == values && op.Offset > 130_000 && op.Offset < 160_000 {
				tries.Add(1)
				return syscall.EIO
			}
			return nil
		}))
		told, failed, rewritten := rewriteValues(t, fs, values)
		if len(told) > 0 || len(failed) != 1 || !errors.Is(failed[0], syscall.EIO) || !strings.Contains(failed[0].Error(), values) || rewritten {
			t.Errorf("rewritten %v, told %v, failed %v", rewritten, told, failed)
		}
		if n := tries.Load(); n > 100 {
			t.Errorf("%d tries in half a minute", n)
		}
	})
}

// TestDiskFailsInRewrite: nor does the disk that fails after that end the process with a panic of the
// engine: the job stays, and the member ends.
func TestDiskFailsInRewrite(t *testing.T) {
	mem := vfs.NewMem()
	var values string
	synctest.Test(t, func(t *testing.T) { values, _ = halfGarbage(t, mem) })
	var reads atomic.Int64
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileReadAt && op.Path == values && op.Offset > 130_000 && op.Offset < 140_000 && reads.Add(1) > 1 {
			return syscall.EIO
		}
		return nil
	}))
	failed := make(chan error, 10)
	s, err := Open("db", Options{FS: fs, valuesAge: 1, Failed: func(err error) { failed <- err }})
	if err != nil {
		t.Fatal(err)
	}
	for index := uint64(3); err == nil; index++ {
		b := s.NewBatch(index, 1)
		if err := errors.Join(b.Set(ClusterKey("key"), []byte("value")), b.Commit(), s.Flush(t.Context())); err != nil {
			t.Fatal(err)
		}
		if index == 1000 {
			t.Fatal("the engine does not write the values anew")
		}
		select {
		case err = <-failed:
		case <-time.After(50 * time.Millisecond):
		}
	}
	if !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), values) {
		t.Errorf("it failed with %v", err)
	}
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "does not end") {
		t.Errorf("it is closed: %v", err)
	}
}

// TestDamageInCompaction: a compaction that fails over damage is tried again at a pace, and keeps
// nothing open meanwhile.
func TestDamageInCompaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		s := open(t, fs, "db")
		rng := rand.New(rand.NewPCG(1, 1))
		value := make([]byte, separateBytes-1)
		for i := range value {
			value[i] = byte(rng.Uint32())
		}
		b := s.NewBatch(1, 1)
		var err error
		for i := range 20 {
			err = errors.Join(err, b.Set(ClusterKey(fmt.Sprintf("key-%02d", i)), value))
		}
		if err := errors.Join(err, b.Commit(), s.Flush(t.Context())); err != nil {
			t.Fatal(err)
		}
		closeStore(t, s)
		names, err := fs.List("db")
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		table := names[slices.IndexFunc(names, func(name string) bool { return strings.HasSuffix(name, tableSuffix) })]
		if err := rewriteFile(fs, fs.PathJoin("db", table), func(b []byte) []byte { b[10] ^= 1; return b }); err != nil {
			t.Fatal(err)
		}
		var told atomic.Int64
		s, err = Open("db", Options{FS: fs, Corrupt: func(error) { told.Add(1) }})
		if err != nil {
			t.Fatal(err)
		}
		defer closeStore(t, s)
		for i := range 4 {
			b := s.NewBatch(uint64(10+i), 1)
			if err := errors.Join(b.Set(ClusterKey("key-00"), value), b.Set(ClusterKey("key-19"), value), b.Commit(), s.Flush(t.Context())); err != nil {
				t.Fatal(err)
			}
		}
		open := 0
		for range 100 {
			time.Sleep(777 * time.Millisecond)
			synctest.Wait()
			if s.Pebble().TableIters > 0 {
				open++
			}
		}
		if n := told.Load(); n < 20 || n > 500 || open > 0 {
			t.Errorf("the damage was met %d times in 78 s; a compaction had something open at %d moments of 100", n, open)
		}
	})
}
