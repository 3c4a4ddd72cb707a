package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.uber.org/zap"
)

func open(t testing.TB, fs vfs.FS, dir string) *Store {
	t.Helper()
	s, err := Open(dir, Options{FS: fs, MemTableBytes: 1 << 20, CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// write commits the next batch: key = value for each pair.
func write(t testing.TB, s *Store, pairs ...string) {
	t.Helper()
	index, term := s.Applied()
	b := s.NewBatch(index+1, max(term, 1))
	for i := 0; i < len(pairs); i += 2 {
		if err := b.Set(ClusterKey(pairs[i]), []byte(pairs[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
}

func flush(t testing.TB, s *Store) uint64 {
	t.Helper()
	index, done, err := s.AsyncFlush(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	<-done
	return index
}

// dump is the cluster space as text.
func dump(t testing.TB, r Reader) string {
	t.Helper()
	lower, upper := span(spaceCluster)
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	var out strings.Builder
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s=%.20s ", it.Key()[1:len(it.Key())-1], value)
	}
	if err := it.Error(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func mustPanic(t *testing.T, what string, fn func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s: no panic", what)
		}
	}()
	fn()
}

func TestBatch(t *testing.T) {
	s := open(t, vfs.NewMem(), "db")
	defer closeStore(t, s)
	if index, term := s.Applied(); index != 0 || term != 0 {
		t.Fatal(index, term)
	}
	if total, _ := s.Size(); total <= 0 {
		t.Fatal("an empty store has size", total)
	}
	b := s.NewBatch(5, 2)
	mustPanic(t, "a second batch", func() { s.NewBatch(6, 2) })
	b.Set(ClusterKey("a"), []byte("1"))
	if got := dump(t, s); got != "" {
		t.Fatalf("before the commit: %s", got)
	}
	b.Set(ClusterKey("b"), []byte("2"))
	if got := dump(t, b); got != "a=1 b=2 " {
		t.Fatalf("through the batch: %s", got)
	}
	b.Delete(ClusterKey("a"))
	if _, ok, err := b.Get(ClusterKey("a")); ok || err != nil {
		t.Fatal(ok, err)
	}
	before := s.View()
	defer before.Close()
	b.BeforeCommit(func(b *Batch) error { return b.Set(ClusterKey("c"), []byte("3")) })
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if index, term := s.Applied(); index != 5 || term != 2 {
		t.Fatal(index, term)
	}
	after := s.View()
	defer after.Close()
	write(t, s, "d", "4")
	if got := dump(t, s); got != "b=2 c=3 d=4 " {
		t.Fatal(got)
	}
	if got := dump(t, before); got != "" {
		t.Fatal(got)
	}
	if got := dump(t, after); got != "b=2 c=3 " {
		t.Fatal(got)
	}
	if index, term := after.Applied(); index != 5 || term != 2 {
		t.Fatal(index, term)
	}
	if v, ok, err := after.Get(ClusterKey("c")); string(v) != "3" || !ok || err != nil {
		t.Fatal(v, ok, err)
	}
	if _, ok, err := after.Get(ClusterKey("d")); ok || err != nil {
		t.Fatal(ok, err)
	}
	mustPanic(t, "an index that is applied", func() { s.NewBatch(6, 2) })

	dropped := s.NewBatch(7, 2)
	dropped.Set(ClusterKey("e"), nil)
	dropped.Close()
	failing := s.NewBatch(7, 2)
	failing.BeforeCommit(func(*Batch) error { return io.ErrClosedPipe })
	if err := failing.Commit(); !errors.Is(err, io.ErrClosedPipe) {
		t.Fatal(err)
	}
	local := s.NewLocalBatch()
	for _, kv := range strings.Fields(dump(t, s)) {
		key, _, _ := strings.Cut(kv, "=")
		local.Delete(ClusterKey(key))
	}
	if err := local.Commit(); err != nil {
		t.Fatal(err)
	}
	if got := dump(t, s); got != "" {
		t.Fatal(got)
	}
	if index, _ := s.Applied(); index != 6 {
		t.Fatal(index)
	}
}

func TestReopenFindsWhatWasFlushed(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, fs, "db")
	write(t, s, "a", "1")
	if index := flush(t, s); index != 1 || s.DurableIndex() != 1 {
		t.Fatal(index, s.DurableIndex())
	}
	write(t, s, "a", "2")
	closeStore(t, s)
	s = open(t, fs, "db")
	defer closeStore(t, s)
	if got := dump(t, s); got != "a=1 " {
		t.Fatal(got)
	}
	if index, term := s.Applied(); index != 1 || term != 1 || s.DurableIndex() != 1 {
		t.Fatal(index, term, s.DurableIndex())
	}
}

// TestCrash crashes at any moment: data and applied index agree, and nothing that was said to be
// durable is missing.
func TestCrash(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 20 {
		fs := vfs.NewCrashableMem()
		s := open(t, fs, "db")
		steps := 1 + rng.IntN(60)
		for range steps {
			index, _ := s.Applied()
			i := index + 1
			b := s.NewBatch(i, i/10+1)
			for k := range 1 + rng.IntN(5) {
				// Every batch writes its index everywhere; big values go to blob files.
				b.Set(ClusterKey(fmt.Sprint("k", k)), append(fmt.Appendf(nil, "%020d", i), make([]byte, rng.IntN(6000))...))
			}
			b.Set(ClusterKey("k0"), append(fmt.Appendf(nil, "%020d", i), make([]byte, rng.IntN(60000))...))
			if err := b.Commit(); err != nil {
				t.Fatal(err)
			}
			switch rng.IntN(6) {
			case 0:
				flush(t, s)
			case 1:
				if _, _, err := s.AsyncFlush(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if rng.IntN(8) > 0 {
				continue
			}
			durable := s.DurableIndex()
			applied, _ := s.Applied()
			crashed := open(t, fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng}), "db")
			got, term := crashed.Applied()
			if got < durable || got > applied {
				t.Fatalf("after a crash %d is applied; %d was durable, %d applied", got, durable, applied)
			}
			if got > 0 {
				value, ok, err := crashed.Get(ClusterKey("k0"))
				if err != nil || !ok || string(value[:20]) != fmt.Sprintf("%020d", got) || term != got/10+1 {
					t.Fatalf("after a crash %d (term %d) is applied, but the data is of %.20s %v", got, term, value, err)
				}
			}
			closeStore(t, crashed)
		}
		closeStore(t, s)
	}
}

// snapshot is a stream of what a store holds.
func snapshot(t testing.TB, s *Store) []byte {
	t.Helper()
	var buf bytes.Buffer
	v := s.View()
	defer v.Close()
	if err := s.WriteSnapshot(context.Background(), v, &buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func filled(t testing.TB, fs vfs.FS, dir string, n int) *Store {
	s := open(t, fs, dir)
	rng := rand.New(rand.NewPCG(uint64(n), 0))
	for i := range n {
		index, _ := s.Applied()
		b := s.NewBatch(index+1, 3)
		key := fmt.Appendf(nil, "user-%d", i)
		op := b.SetDeferred(UserKeyLen(key, uint32(i%2)), 100+rng.IntN(9000))
		AppendUserKey(op.Key[:0], key, uint64(i+2), uint32(i%2))
		if err := op.Finish(); err != nil {
			t.Fatal(err)
		}
		b.Set(ClusterKey(fmt.Sprintf("name-%04d", i)), fmt.Appendf(nil, "%s %d", dir, i))
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// A local batch that is begun in the middle of an Install is of the old content, whatever it read.
func TestLocalBatchBegunAmidInstall(t *testing.T) {
	var amid func()
	mem := vfs.NewMem()
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if amid != nil && op.Kind == errorfs.OpLink {
			amid()
			amid = nil
		}
		return nil
	}))
	from := filled(t, mem, "from", 30)
	defer closeStore(t, from)
	to := filled(t, fs, "to", 20)
	defer closeStore(t, to)
	in, err := to.ReceiveSnapshot(t.Context(), bytes.NewReader(snapshot(t, from)))
	if err != nil {
		t.Fatal(err)
	}
	var batch *Batch
	amid = func() {
		batch = to.NewLocalBatch()
		batch.Delete(ClusterKey("name-0007"))
	}
	if err := to.Install(in); err != nil {
		t.Fatal(err)
	}
	if batch == nil {
		t.Fatal("no file was linked")
	}
	if err := batch.Commit(); !errors.Is(err, ErrReplaced) {
		t.Fatalf("its commit: %v", err)
	}
}

func TestSnapshot(t *testing.T) {
	fs := vfs.NewMem()
	from := filled(t, fs, "from", 300)
	defer closeStore(t, from)
	to := filled(t, fs, "to", 20)
	defer closeStore(t, to)
	flush(t, to)
	write(t, to, "unflushed", "x")

	in, err := to.ReceiveSnapshot(context.Background(), bytes.NewReader(snapshot(t, from)))
	if err != nil {
		t.Fatal(err)
	}
	if in.Index != 300 || in.Term != 3 {
		t.Fatal(in.Index, in.Term)
	}
	old := to.View()
	defer old.Close()
	oldText := dump(t, old)
	stale := to.NewLocalBatch()
	stale.Delete(ClusterKey("name-0007"))
	generation := to.Generation()
	if err := to.Install(in); err != nil {
		t.Fatal(err)
	}
	if err := stale.Commit(); !errors.Is(err, ErrReplaced) {
		t.Fatalf("a batch from before: %v", err)
	}
	if to.Generation() == generation {
		t.Error("the generation stayed")
	}
	if got, want := dump(t, to), dump(t, from); got != want {
		t.Fatalf("%s\nwant %s", got, want)
	}
	if !bytes.Equal(snapshot(t, to), snapshot(t, from)) {
		t.Fatal("not the same content")
	}
	if got := dump(t, old); got != oldText {
		t.Fatal("a view from before changed")
	}
	if index, term := to.Applied(); index != 300 || term != 3 || to.DurableIndex() != 300 {
		t.Fatal(index, term, to.DurableIndex())
	}
	if err := to.Install(in); err == nil {
		t.Fatal("installed twice")
	}
	older, err := to.ReceiveSnapshot(context.Background(), bytes.NewReader(snapshot(t, filled(t, vfs.NewMem(), "x", 3))))
	if err != nil {
		t.Fatal(err)
	}
	if err := to.Install(older); err == nil {
		t.Fatal("installed an older one")
	}
	older.Discard()
	if left, _ := fs.List(fs.PathJoin("to", incomingDir)); len(left) != 0 {
		t.Fatal("left behind:", left)
	}
	write(t, to, "name-0000", "on it goes")
	flush(t, to)
}

// TestInstallCrash crashes before every operation on the file system that an install does: the
// content is all old or all new.
func TestInstallCrash(t *testing.T) {
	stream := snapshot(t, filled(t, vfs.NewMem(), "new", 200))
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	found := map[uint64]int{}
	for range 5 {
		mem := vfs.NewCrashableMem()
		var mu sync.Mutex // Pebble works in several goroutines
		var clones []*vfs.MemFS
		installing := false
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(errorfs.Op) error {
			mu.Lock()
			defer mu.Unlock()
			if installing {
				clones = append(clones, mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng}))
			}
			return nil
		}))
		s := filled(t, fs, "db", 30)
		flush(t, s)
		in, err := s.ReceiveSnapshot(context.Background(), bytes.NewReader(stream))
		if err != nil {
			t.Fatal(err)
		}
		during := func(now bool) {
			mu.Lock()
			defer mu.Unlock()
			installing = now
		}
		during(true)
		if err := s.Install(in); err != nil {
			t.Fatal(err)
		}
		during(false)
		clones = append(clones, mem.CrashClone(vfs.CrashCloneCfg{}))
		for i, clone := range clones {
			crashed := open(t, clone, "db")
			index, _ := crashed.Applied()
			found[index]++
			if index != 30 && index != 200 || i == len(clones)-1 && index != 200 {
				t.Fatalf("crash %d of %d: applied %d", i, len(clones), index)
			}
			if n := strings.Count(dump(t, crashed), "="); n != int(index) {
				t.Fatalf("applied %d with %d keys", index, n)
			}
			if left, err := clone.List(clone.PathJoin("db", incomingDir)); err == nil && len(left) > 0 {
				t.Fatal("left behind:", left)
			}
			closeStore(t, crashed)
		}
		closeStore(t, s)
	}
	t.Log("applied index after a crash:", found)
	if found[30] == 0 || found[200] == 0 {
		t.Error("the crashes all came too early or too late")
	}
}

func TestDamagedSnapshots(t *testing.T) {
	fs := vfs.NewMem()
	stream := snapshot(t, filled(t, fs, "from", 50))
	s := filled(t, fs, "to", 5)
	defer closeStore(t, s)
	want := dump(t, s)
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	for i := range 300 {
		bad := bytes.Clone(stream)
		if i%2 == 0 {
			bad = bad[:rng.IntN(len(bad))]
		} else {
			bad[rng.IntN(len(bad))] ^= byte(1 + rng.IntN(255))
		}
		if _, err := s.ReceiveSnapshot(context.Background(), bytes.NewReader(bad)); err == nil {
			t.Fatalf("damage %d was not seen", i)
		}
	}
	if left, _ := fs.List(fs.PathJoin("to", incomingDir)); len(left) != 0 {
		t.Fatal("left behind:", left)
	}
	if got := dump(t, s); got != want {
		t.Fatal(got)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.ReceiveSnapshot(ctx, bytes.NewReader(stream)); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func FuzzReceiveSnapshot(f *testing.F) {
	fs := vfs.NewMem()
	f.Add(snapshot(f, filled(f, fs, "from", 5)))
	f.Add([]byte(snapshotMagic))
	s := open(f, fs, "to")
	f.Fuzz(func(t *testing.T, data []byte) {
		in, err := s.ReceiveSnapshot(context.Background(), bytes.NewReader(data))
		if err == nil {
			in.Discard()
		}
	})
}

func FuzzKeys(f *testing.F) {
	f.Add([]byte("key"), uint64(7), uint32(0))
	f.Add([]byte("\x00"), uint64(1), uint32(9))
	f.Fuzz(func(t *testing.T, b []byte, main uint64, sub uint32) {
		_, _, _, _, _ = ParseUserKey(b)
		_, _, _ = ParseRevisionKey(b)
		_, _, _ = ParseLeaseAttachmentKey(b)
		_, _, _ = ParseAuthKey(b)
		validKey(b)
		main = max(main, 1)
		k := AppendUserKey(nil, b, main, sub)
		prefix, key, m, s, ok := ParseUserKey(k)
		if !ok || !validKey(k) || !bytes.Equal(key, b) || m != main || s != sub || len(k) != UserKeyLen(b, sub) ||
			!bytes.Equal(prefix, AppendUserKeyPrefix(nil, b)) {
			t.Fatalf("%x %d %d", b, main, sub)
		}
		if m, s, ok := ParseRevisionKey(AppendRevisionKey(nil, main, sub)); !ok || m != main || s != sub {
			t.Fatal(m, s, ok)
		}
		if id, key, ok := ParseLeaseAttachmentKey(LeaseAttachmentKey(int64(main), b)); !ok || id != int64(main) || !bytes.Equal(key, b) {
			t.Fatal(id, key, ok)
		}
	})
}

// TestDirectories opens what it must not, and names the file each time.
func TestDirectories(t *testing.T) {
	good := func(t *testing.T) (vfs.FS, string) {
		fs := vfs.Default
		dir := filepath.Join(t.TempDir(), "db")
		s := filled(t, fs, dir, 50)
		flush(t, s)
		closeStore(t, s)
		return fs, dir
	}
	one := func(t *testing.T, dir, pattern string) string {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(names) == 0 {
			t.Fatal(pattern, err)
		}
		return names[len(names)-1]
	}
	check := func(t *testing.T, dir string, wants ...string) {
		t.Helper()
		s, err := Open(dir, Options{Logger: zap.NewNop()})
		if err == nil {
			// Pebble reads a table when it needs it.
			_, _, err = s.Get(ClusterKey("name-0001"))
			s.Close()
		}
		for _, want := range wants {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v\nwant %q in it", err, want)
			}
		}
		if err != nil && strings.ContainsAny(err.Error(), "\n<") {
			t.Errorf("not one plain line: %v", err)
		}
	}
	t.Run("foreign", func(t *testing.T) {
		dir := t.TempDir()
		db, err := pebble.Open(dir, &pebble.Options{})
		if err != nil {
			t.Fatal(err)
		}
		db.Close()
		check(t, dir, dir, "not a store of Belay")
	})
	t.Run("newer", func(t *testing.T) {
		_, dir := good(t)
		os.WriteFile(filepath.Join(dir, formatFile), []byte("belay store 99\n"), 0o600)
		check(t, dir, formatFile, "newer Belay")
	})
	t.Run("garbled", func(t *testing.T) {
		_, dir := good(t)
		os.WriteFile(filepath.Join(dir, formatFile), []byte("hello"), 0o600)
		check(t, dir, formatFile)
	})
	t.Run("cut format file", func(t *testing.T) {
		dir := t.TempDir()
		os.WriteFile(filepath.Join(dir, formatFile), nil, 0o600)
		closeStore(t, open(t, vfs.Default, dir))
	})
	t.Run("table damaged", func(t *testing.T) {
		_, dir := good(t)
		name := one(t, dir, "*.sst")
		b, _ := os.ReadFile(name)
		for i := range b {
			b[i] ^= 0x55
		}
		os.WriteFile(name, b, 0o600)
		check(t, dir, filepath.Base(name))
	})
	t.Run("table missing", func(t *testing.T) {
		_, dir := good(t)
		name := one(t, dir, "*.sst")
		os.Remove(name)
		check(t, dir, dir, strings.TrimSuffix(filepath.Base(name), ".sst"))
	})
	t.Run("manifest damaged", func(t *testing.T) {
		_, dir := good(t)
		name := one(t, dir, "MANIFEST-*")
		b, _ := os.ReadFile(name)
		for i := range b {
			b[i] ^= 0x55
		}
		os.WriteFile(name, b, 0o600)
		check(t, dir, filepath.Base(name))
	})
	t.Run("table missing", func(t *testing.T) {
		_, dir := good(t)
		name := one(t, dir, "*.sst")
		os.Remove(name)
		check(t, dir, strings.TrimSuffix(filepath.Base(name), ".sst"), "is damaged", "restore this member from its peers")
	})
	t.Run("table cut", func(t *testing.T) {
		_, dir := good(t)
		name := one(t, dir, "*.sst")
		os.Truncate(name, 100)
		check(t, dir, filepath.Base(name), "is damaged", "restore this member from its peers")
	})
	t.Run("manifest missing", func(t *testing.T) {
		_, dir := good(t)
		name := one(t, dir, "MANIFEST-*")
		os.Remove(name)
		check(t, dir, filepath.Base(name))
	})
	t.Run("locked", func(t *testing.T) {
		dir := t.TempDir()
		s := open(t, vfs.Default, dir)
		defer closeStore(t, s)
		check(t, dir, dir)
	})
	t.Run("not a directory", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "file")
		os.WriteFile(dir, nil, 0o600)
		check(t, dir, dir)
	})
}

func TestSize(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	if free, err := s.FreeBytes(); err != nil || free == 0 {
		t.Fatal(free, err)
	}
	value := make([]byte, 1<<20)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range value {
		value[i] = byte(rng.Uint32())
	}
	for i := range 20 {
		write(t, s, fmt.Sprint("key-", i), string(value))
		if total, inUse := s.Size(); total < int64(i+1)<<20 || inUse < int64(i+1)<<20 {
			t.Fatalf("%d MiB were written, the size is %d, in use %d", i+1, total, inUse)
		}
	}
	flush(t, s)
	for i := range 19 {
		index, _ := s.Applied()
		b := s.NewBatch(index+1, 1)
		b.Delete(ClusterKey(fmt.Sprint("key-", i)))
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CompactAll(context.Background()); err != nil {
		t.Fatal(err)
	}
	_, inUse := s.Size()
	if inUse > 3<<20 {
		t.Errorf("1 MiB is left, %d in use", inUse)
	}
}
