package store

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// TestFullDisk: flushes that fail for want of space are tried again, at a pace,
// until there is space; nothing is lost and nobody has to restart.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		var tries atomic.Int64
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if full.Load() && op.Kind == errorfs.OpCreate {
				tries.Add(1)
				return syscall.ENOSPC
			}
			return nil
		}))
		s, err := Open("store", Options{FS: fs, Failed: func(err error) { t.Errorf("a full disk is not the end: %v", err) }})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		full.Store(true)
		b := s.NewBatch(1, 1)
		if err := errors.Join(b.Set(MetaKey("k"), []byte("v")), b.Commit()); err != nil {
			t.Fatal(err)
		}
		_, done, err := s.AsyncFlush()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		select {
		case <-done:
			t.Fatal("a flush to a full disk ended")
		default:
		}
		if n := tries.Load(); n < 10 || n > 200 {
			t.Errorf("%d tries in a minute", n)
		}
		full.Store(false)
		time.Sleep(2 * retryPause)
		select {
		case <-done:
		default:
			t.Fatal("with space again the flush does not end")
		}
		if s.DurableIndex() != 1 {
			t.Errorf("durable index %d", s.DurableIndex())
		}
	})
}

// TestFailedDisk: any other error is told once, and names the directory.
func TestFailedDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if broken.Load() && op.Kind == errorfs.OpFileWrite {
				return syscall.EIO
			}
			return nil
		}))
		failed := make(chan error, 10)
		s, err := Open("some/dir", Options{FS: fs, Failed: func(err error) { failed <- err }})
		if err != nil {
			t.Fatal(err)
		}
		broken.Store(true)
		b := s.NewBatch(1, 1)
		if err := errors.Join(b.Set(MetaKey("k"), []byte("v")), b.Commit()); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.AsyncFlush(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if n := len(failed); n != 1 {
			t.Fatalf("told %d times", n)
		}
		const want = "store: a flush or compaction failed, and a write that failed is not tried again: input/output error; " +
			"check the disk under some/dir, then start the member again: nothing acknowledged is lost"
		if err := <-failed; fmt.Sprint(err) != want || !errors.Is(err, syscall.EIO) {
			t.Errorf("told %v", err)
		}
		broken.Store(false)
		time.Sleep(2 * retryPause)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
