package store

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// An operation that does not end is seen, of whatever kind it is, and so is its end.
func TestDiskTellsOfEachHangingOperation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gate atomic.Pointer[chan struct{}]
		s := &Store{disk: newDiskWatch()}
		fs := watchedFS{errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(errorfs.Op) error {
			if g := gate.Load(); g != nil {
				<-*g
			}
			return nil
		})), s.disk}
		const c = vfs.WriteCategoryUnspecified
		file := func(f vfs.File, err error) vfs.File {
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
		for _, name := range []string{"a", "b", "c", "d"} {
			if err := file(fs.Create(name, c)).Close(); err != nil {
				t.Fatal(err)
			}
		}
		f, buf := file(fs.OpenReadWrite("a", c)), make([]byte, 16)
		for name, op := range map[string]func(){
			"create":    func() { fs.Create("new", c) },
			"open":      func() { fs.Open("a") },
			"openrw":    func() { fs.OpenReadWrite("a", c) },
			"opendir":   func() { fs.OpenDir("/") },
			"link":      func() { fs.Link("a", "link") },
			"rename":    func() { fs.Rename("b", "b2") },
			"reuse":     func() { fs.ReuseForWrite("c", "c2", c) },
			"remove":    func() { fs.Remove("d") },
			"removeall": func() { fs.RemoveAll("gone") },
			"mkdir":     func() { fs.MkdirAll("dir", 0o700) },
			"list":      func() { fs.List("/") },
			"stat":      func() { fs.Stat("a") },
			"write":     func() { f.Write(buf) },
			"writeat":   func() { f.WriteAt(buf, 0) },
			"read":      func() { f.Read(buf) },
			"readat":    func() { f.ReadAt(buf, 0) },
			"sync":      func() { f.Sync() },
			"syncdata":  func() { f.SyncData() },
			"syncto":    func() { f.SyncTo(8) },
			"fstat":     func() { f.Stat() },
		} {
			g := make(chan struct{})
			gate.Store(&g)
			go op()
			time.Sleep(3 * time.Second)
			if oldest, _ := s.Disk(); oldest < 3*time.Second || oldest > 4*time.Second {
				t.Errorf("%s: the oldest operation is said to be under way for %v", name, oldest)
			}
			gate.Store(nil)
			close(g)
			synctest.Wait()
			if oldest, _ := s.Disk(); oldest != 0 {
				t.Errorf("%s: an operation is said to be under way for %v", name, oldest)
			}
		}
		time.Sleep(time.Second)
		if _, since := s.Disk(); since < time.Second {
			t.Errorf("a write or sync ended well %v ago", since)
		}
		f.Sync()
		if _, since := s.Disk(); since == 0 || since > time.Second {
			t.Errorf("a sync ended well %v ago", since)
		}
	})
}

// A store opened with a file system uses it under the watch.
func TestStoreWatchesItsDisk(t *testing.T) {
	s, err := Open("db", Options{FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b := s.NewBatch(1, 1)
	if err := b.Set(MetaKey("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	before := s.disk.progress.Load()
	_, done, err := s.AsyncFlush(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	<-done
	if s.disk.progress.Load() == before {
		t.Error("a flush was no progress")
	}
}
