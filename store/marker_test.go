package store

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/belaydb/belay/internal/crash"
)

// TestCrashAtEveryOperation opens a store, has its manifest rotated by each flush, closes it and
// opens it again, and lets the power fail before each operation on the file system: whatever of the
// names and pages that were not synced is left, the store opens and has all that was durable.
func TestCrashAtEveryOperation(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	mem := vfs.NewCrashableMem()
	var (
		mu      sync.Mutex
		durable uint64 // applied index that a flush has promised
		crashes int
		faults  []error
	)
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		switch op.Kind.ReadOrWrite() {
		case errorfs.OpIsRead:
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		crashes++
		if err := crash.Kinds(mem, 3, rng, func(left *vfs.MemFS) error { return opensWith(left, durable) }); err != nil && len(faults) < 3 {
			faults = append(faults, fmt.Errorf("before %v %s: %w", op.Kind, op.Path, err))
		}
		return nil
	}))
	promise := func(index uint64) {
		mu.Lock()
		defer mu.Unlock()
		durable = index
	}
	if err := mem.MkdirAll("store", 0o700); err != nil {
		t.Fatal(err)
	}
	root, err := mem.OpenDir("/")
	if err != nil {
		t.Fatal(err)
	}
	if err := root.Sync(); err != nil {
		t.Fatal(err)
	}
	for life := range 2 {
		s, err := Open("store", Options{FS: fs, MemTableBytes: 256 << 10, CacheBytes: 1 << 20, manifestBytes: 1})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			write(t, s, fmt.Sprint("key", life, i), "value")
			promise(flush(t, s))
		}
		closeStore(t, s)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, err := range faults {
		t.Error(err)
	}
	t.Logf("%d operations", crashes)
	if crashes < 100 {
		t.Errorf("only %d operations were met", crashes)
	}
}

// opensWith reports whether a store that is left after a crash opens and has applied at least
// index.
func opensWith(left *vfs.MemFS, index uint64) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	s, err := Open("store", Options{FS: left, MemTableBytes: 256 << 10, CacheBytes: 1 << 20})
	if err != nil {
		return err
	}
	applied, _ := s.Applied()
	if err := s.Close(); err != nil {
		return err
	}
	if applied < index {
		return fmt.Errorf("applied %d, but %d was durable", applied, index)
	}
	return nil
}
