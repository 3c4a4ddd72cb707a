package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
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
		_, done, err := s.AsyncFlush(t.Context())
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

// TestFullDiskFails: with FailFull nobody waits for space: the flush and the next commit fail, and the
// store can be closed.
func TestFullDiskFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if full.Load() && op.Kind == errorfs.OpCreate {
				return syscall.ENOSPC
			}
			return nil
		}))
		s, err := Open("store", Options{FS: fs, FailFull: true})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		full.Store(true)
		for index := uint64(1); index <= 2; index++ {
			b := s.NewBatch(index, 1)
			err = errors.Join(b.Set(MetaKey("k"), []byte("v")), b.Commit())
			if index == 1 {
				if ferr := s.Flush(t.Context()); err != nil || !errors.Is(ferr, syscall.ENOSPC) {
					t.Fatalf("%v; the flush: %v", err, ferr)
				}
			}
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("a commit after it: %v", err)
		}
	})
}

// TestFailedDisk: any other error is reported once, and names the directory.
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
		if _, _, err := s.AsyncFlush(t.Context()); err != nil {
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

// TestDamagedTableIsLookedAtWithPauses: the engine looks at a table that it finds at its start,
// and begins again at once when that is damaged. Time would not pass here.
func TestDamagedTableIsLookedAtWithPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		s := open(t, fs, "db")
		rng := rand.New(rand.NewPCG(1, 1))
		for i := range 1500 { // some tables
			value := make([]byte, 3000)
			for i := range value {
				value[i] = byte(rng.Uint32())
			}
			write(t, s, fmt.Sprintf("key-%04d", i), string(value))
		}
		if err := s.CompactAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		closeStore(t, s)
		names, err := fs.List("db")
		if err != nil {
			t.Fatal(err)
		}
		flip := func(name string) {
			t.Helper()
			if err := rewriteFile(fs, fs.PathJoin("db", name), func(b []byte) []byte { b[len(b)-100] ^= 1; return b }); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range names {
			if !strings.HasSuffix(name, tableSuffix) {
				continue
			}
			flip(name)
			var told atomic.Int64
			s, err := Open("db", Options{FS: fs, Corrupt: func(error) { told.Add(1) }})
			if err != nil {
				flip(name) // it is needed at the start
				continue
			}
			time.Sleep(time.Minute)
			if n := told.Load(); n == 0 || n > 200 {
				t.Errorf("the damage was told %d times in a minute", n)
			}
			closeStore(t, s)
			return
		}
		t.Error("every table is needed at the start")
	})
}

// TestDirectoryGone: whose directory was removed while it ran is not told that nothing is lost, nor to
// start again.
func TestDirectoryGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	failed := make(chan error, 10)
	s, err := Open(dir, Options{Failed: func(err error) { failed <- err }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b := s.NewBatch(1, 1)
	if err := errors.Join(b.Set(MetaKey("k"), []byte("v")), b.Commit()); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := s.FreeBytes(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the free space of a directory that is gone: %v", err)
	}
	if _, _, err := s.AsyncFlush(t.Context()); err != nil {
		t.Fatal(err)
	}
	err = <-failed
	if text := err.Error(); !strings.Contains(text, dir+" is not there any more") || strings.Contains(text, "nothing acknowledged is lost") {
		t.Errorf("told %v", err)
	}
}

// TestFlushBesideWriterThatWaits: a disk that stalls for so long that writers wait for it holds up
// whoever wants a flush for as long as that one likes, and no longer; a snapshot that is to be
// installed waits its turn.
func TestFlushBesideWriterThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // virtual time stops while a goroutine waits for a mutex
		stalled := make(chan struct{})
		var stalls atomic.Bool
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if stalls.Load() && op.Kind == errorfs.OpFileWrite {
				<-stalled
			}
			return nil
		}))
		s, err := Open("store", Options{FS: fs, MemTableBytes: 64 << 10, CacheBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		stalls.Store(true)
		const last = 2 * stalledMemTables
		written := make(chan error, 1)
		go func() {
			for i := range uint64(last) {
				b := s.NewBatch(i+1, 1)
				if err := errors.Join(b.Set(MetaKey(fmt.Sprint("k", i)), make([]byte, 40<<10)), b.Commit()); err != nil {
					written <- err
					return
				}
			}
			written <- nil
		}()
		time.Sleep(time.Minute)
		index, _ := s.Applied()
		if index == last {
			t.Fatal("no writer waits for the disk")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, _, err := s.AsyncFlush(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("the flush gives %v", err)
		}
		if err := s.CompactAll(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("the compaction gives %v", err)
		}
		flushed := make(chan error, 1)
		go func() {
			_, _, err := s.AsyncFlush(t.Context())
			flushed <- err
		}()
		closed := make(chan error, 1)
		go func() {
			time.Sleep(time.Minute)
			close(stalled) // a disk that comes back
			if err := <-written; err != nil {
				closed <- err
				return
			}
			closed <- s.Close()
		}()
		if err := <-flushed; err != nil && !errors.Is(err, errClosed) {
			t.Errorf("the flush gives %v", err)
		}
		if err := <-closed; err != nil {
			t.Error(err)
		}
	})
}
