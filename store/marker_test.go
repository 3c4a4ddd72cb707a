package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
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

// A store whose marker is gone, as in a copy that left out empty files, is refused, and its tables
// stay: the engine would take it for none and remove them.
func TestMarkerGone(t *testing.T) {
	fs := vfs.NewMem()
	s, err := Open("store", Options{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	b := s.NewBatch(7, 1)
	if err := errors.Join(b.Set(MetaKey("k"), []byte("v")), b.Commit(), s.Flush(t.Context()), s.Close()); err != nil {
		t.Fatal(err)
	}
	names, err := fs.List("store")
	if err != nil {
		t.Fatal(err)
	}
	var marker string
	for _, name := range names {
		if strings.HasPrefix(name, manifestMarker) {
			marker = name
		}
	}
	if err := fs.Remove("store/" + marker); err != nil {
		t.Fatal(err)
	}
	open := map[string]func() (*Store, error){
		"Open":         func() (*Store, error) { return Open("store", Options{FS: fs}) },
		"OpenReadOnly": func() (*Store, error) { return OpenReadOnly("store", Options{FS: fs}) },
	}
	for how, open := range open {
		if _, err := open(); !IsDamage(err) || !strings.Contains(err.Error(), "make an empty file of the name "+manifestMarker+"000001.MANIFEST-") {
			t.Errorf("%s: %v", how, err)
		}
	}
	if left, err := fs.List("store"); err != nil || len(left) != len(names)-1 {
		t.Errorf("%v of %v are left: %v", left, names, err)
	}
	_, manifest, _ := strings.Cut(strings.TrimPrefix(marker, manifestMarker), ".")
	f, err := fs.Create("store/"+manifestMarker+"000001."+manifest, vfs.WriteCategoryUnspecified) // as it says
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open("store", Options{FS: fs}); err != nil {
		t.Fatal(err)
	}
	if index, _ := s.Applied(); index != 7 {
		t.Errorf("the store has applied %d", index)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
