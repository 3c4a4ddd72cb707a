package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// ofValues counts the operations that write files of values, and has those from one on fail.
type ofValues struct {
	seen atomic.Int64
	from atomic.Int64 // 0: none
	with atomic.Pointer[error]
}

func (v *ofValues) fs() vfs.FS {
	return errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if !strings.HasSuffix(op.Path, blobSuffix) {
			return nil
		}
		switch op.Kind {
		case errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo, errorfs.OpFileClose:
		default:
			return nil
		}
		if n, from := v.seen.Add(1), v.from.Load(); from > 0 && n >= from {
			return *v.with.Load()
		}
		return nil
	}))
}

func (v *ofValues) failFrom(n int64, err error) {
	v.with.Store(&err)
	v.from.Store(n)
}

func largeValues(t *testing.T, s *Store) []byte {
	t.Helper()
	value := make([]byte, 3*separateBytes/2)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range value {
		value[i] = byte(rng.Uint32())
	}
	b := s.NewBatch(1, 1)
	for i := range 10 {
		if err := b.Set(AppendUserKey(nil, fmt.Appendf(nil, "key%d", i), 2, 0), value); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	return value
}

// TestValuesThatCannotBeWritten has each operation fail that a flush does to a file of values, on a
// disk that is full for a while, and on one that fails. The engine panicked when it was one of the
// last: a write of what was left, or the sync.
func TestValuesThatCannotBeWritten(t *testing.T) {
	for n, whole := int64(1), false; !whole; n++ {
		t.Run(fmt.Sprint("full, from operation ", n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var values ofValues
				s := open(t, values.fs(), "db")
				want := largeValues(t, s)
				values.failFrom(n, syscall.ENOSPC)
				_, flushed, err := s.AsyncFlush(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				select {
				case <-flushed:
					whole = true // it does not have so many operations
				default:
				}
				values.from.Store(0)
				<-flushed
				if blobs, err := blobsIn(s.fs, "db"); err != nil || len(blobs) != 1 {
					t.Errorf("files of values are left: %v, %v", blobs, err)
				}
				closeStore(t, s)
				s = open(t, s.fs, "db")
				defer closeStore(t, s)
				for i := range 10 {
					got, _, err := s.Get(AppendUserKey(nil, fmt.Appendf(nil, "key%d", i), 2, 0))
					if err != nil || !bytes.Equal(got, want) {
						t.Fatalf("key %d has %d bytes, %v", i, len(got), err)
					}
				}
			})
		})
		if !whole {
			t.Run(fmt.Sprint("broken, from operation ", n), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var values ofValues
					failed := make(chan error, 10)
					s, err := Open("db", Options{FS: values.fs(), Failed: func(err error) { failed <- err }})
					if err != nil {
						t.Fatal(err)
					}
					largeValues(t, s)
					values.failFrom(n, syscall.EIO)
					if _, _, err := s.AsyncFlush(t.Context()); err != nil {
						t.Fatal(err)
					}
					if err := <-failed; !errors.Is(err, syscall.EIO) {
						t.Errorf("it failed with %v", err)
					}
					values.from.Store(0)
					time.Sleep(time.Second)
					if err := s.Close(); err != nil {
						t.Error(err)
					}
				})
			})
		}
		if n > 100 {
			t.Fatal("a flush has no end")
		}
	}
}

// lengthFS asks before each write and sync of a file; length 0: it is a sync.
type lengthFS struct {
	vfs.FS
	ask func(path string, length int) error
}

func (fs *lengthFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.Create(name, c)
	return lengthFile{f, name, fs}, err
}

type lengthFile struct {
	vfs.File
	path string
	fs   *lengthFS
}

func (f lengthFile) Write(p []byte) (int, error) {
	if err := f.fs.ask(f.path, len(p)); err != nil {
		n, _ := f.File.Write(p[:len(p)/2])
		return n, err
	}
	return f.File.Write(p)
}

func (f lengthFile) SyncData() error { return errors.Join(f.fs.ask(f.path, 0), f.File.SyncData()) }

// TestNewValuesThatCannotBeWritten: a file of values that is written anew, without its garbage, waits
// for room for its last bytes, and is begun again if it is broken off before; a disk that fails is the
// end, of which the store's closing knows.
func TestNewValuesThatCannotBeWritten(t *testing.T) {
	for _, c := range []struct {
		name  string
		err   error
		fails func(length int) bool
		ends  bool // the store is closed while it fails
	}{
		{"no room amid it", syscall.ENOSPC, func(length int) bool { return length > tailBytes }, false},
		{"no room at its end", syscall.ENOSPC, func(length int) bool { return 0 < length && length <= tailBytes }, false},
		{"no room at its end, and a stop", syscall.ENOSPC, func(length int) bool { return 0 < length && length <= tailBytes }, true},
		{"no room, as the sync says", syscall.ENOSPC, func(length int) bool { return length == 0 }, true},
		{"a sync that fails", syscall.EIO, func(length int) bool { return length == 0 }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var broken atomic.Bool
			var hits atomic.Int64
			var s *Store
			fs := &lengthFS{vfs.NewMem(), func(path string, length int) error {
				if broken.Load() && c.fails(length) && strings.HasSuffix(path, blobSuffix) && s.outputs.isRewrite(path) {
					hits.Add(1)
					return c.err
				}
				return nil
			}}
			failed := make(chan error, 10)
			s, err := Open("db", Options{FS: fs, MemTableBytes: 1 << 20, CacheBytes: 1 << 20, valuesAge: 1, Failed: func(err error) { failed <- err }})
			if err != nil {
				t.Fatal(err)
			}
			value := make([]byte, 3*separateBytes/2)
			for i := range value {
				value[i] = byte(rand.Uint32())
			}
			rev := uint64(1)
			put := func(k int, was uint64) (at uint64) {
				t.Helper()
				rev++
				b := s.NewBatch(rev, 1)
				key := fmt.Appendf(nil, "key-%03d", k)
				err := b.Set(AppendUserKey(nil, key, rev, 0), value)
				if was != 0 {
					err = errors.Join(err, b.DeleteSized(AppendUserKey(nil, key, was, 0), len(value)))
				}
				if err := errors.Join(err, b.Commit()); err != nil {
					t.Fatal(err)
				}
				return rev
			}
			var last [100]uint64
			for k := range last {
				last[k] = put(k, 0)
			}
			flush(t, s)
			broken.Store(true)
			for k := range last {
				if k%3 > 0 {
					last[k] = put(k, last[k])
				}
			}
			flush(t, s)
			s.Reclaim()
			soon := func(what string, done func() bool) {
				t.Helper()
				for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatalf("not within a minute: %s\n%v", what, s.Pebble())
					}
				}
			}
			soon("a file is written anew", func() bool { return hits.Load() > 0 })
			if c.ends {
				if c.fails(0) {
					if err := <-failed; !strings.Contains(err.Error(), "write a file of values: "+c.err.Error()) {
						t.Errorf("it failed with %v", err)
					}
				}
				if err := s.Close(); err == nil || !strings.Contains(err.Error(), "does not end") {
					t.Errorf("it is closed: %v", err)
				}
				return
			}
			broken.Store(false)
			soon("it was written anew", func() bool { return s.Pebble().Compact.BlobFileRewriteCount > 0 })
			for k, at := range last {
				got, _, err := s.Get(AppendUserKey(nil, fmt.Appendf(nil, "key-%03d", k), at, 0))
				if err != nil || !bytes.Equal(got, value) {
					t.Fatalf("key %d has %d bytes, %v", k, len(got), err)
				}
			}
			closeStore(t, s)
		})
	}
}
