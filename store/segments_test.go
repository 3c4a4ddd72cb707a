package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/internal/crc32c"
)

// keep makes a segment of values on the disk and has the store keep it.
func keep(t testing.TB, s *Store, number uint64, values ...string) command.EntryPlace {
	t.Helper()
	path := fmt.Sprintf("segment-%d", number)
	f, err := s.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte(strings.Join(values, ""))); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	at := command.EntryPlace{Segment: command.Segment{Log: 1, Number: number}}
	if err := s.Segments.Keep(at.Segment, path); err != nil {
		t.Fatal(err)
	}
	if err := s.fs.Remove(path); err != nil { // as the log does when it needs it no more
		t.Fatal(err)
	}
	return at
}

// placeAll writes versions of keys, from revision rev on, whose values are in a kept segment.
func placeAll(t testing.TB, s *Store, at command.EntryPlace, rev uint64, values ...string) {
	t.Helper()
	index, _ := s.Applied()
	b := s.NewBatch(index+1, 1)
	data := []byte(strings.Join(values, ""))
	for i, v := range values {
		at.Sum = crc32c.Checksum(data)
		p, _ := s.Segments.Find([]byte(v), data, at, 0)
		if !p.IsSet() {
			t.Fatalf("%.20q has no place", v)
		}
		if err := b.SetPlaced(AppendUserKey(nil, fmt.Append(nil, "key-", i), rev+uint64(i), 0), []byte{0, 0, 1}, p); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
}

// versions are all versions with their values.
func versions(r Reader) (out []string, err error) {
	lower, upper := UserKeysSpan()
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		_, key, main, _, _ := ParseUserKey(it.Key())
		value, err := it.ValueAndErr()
		if err != nil {
			return nil, err
		}
		if want := it.Extent().Bytes; want != len(value) {
			return nil, fmt.Errorf("%q: %d bytes, the extent says %d", key, len(value), want)
		}
		if head, err := it.VersionAndErr(false); err != nil || !bytes.HasPrefix(value, head) {
			return nil, fmt.Errorf("%q: head %x of %.20x: %w", key, head, value, err)
		}
		out = append(out, fmt.Sprintf("%s@%d=%s", key, main, value[3:]))
	}
	return out, it.Error()
}

func values(n, bytes int) (out []string) {
	for i := range n {
		out = append(out, strings.Repeat(string(rune('a'+i)), bytes))
	}
	return out
}

func withPlaces(t testing.TB, fs vfs.FS, corrupt func(error)) *Store {
	t.Helper()
	s, err := Open("db", Options{FS: fs, MemTableBytes: 1 << 20, CacheBytes: 1 << 20, PlaceBytes: 1, Corrupt: corrupt})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func formatOf(t testing.TB, s *Store) string {
	t.Helper()
	text, err := readAll(s.fs, s.fs.PathJoin(s.dir, formatFile))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestPlacedValues: a value in a segment is read like any other, by every kind of reader, after a start
// and in a store that is only looked at; snapshots carry the values; a snapshot that is installed frees
// the segments; and only a store with kept segments has the format that older builds refuse.
func TestPlacedValues(t *testing.T) {
	fs := vfs.NewMem()
	s := withPlaces(t, fs, nil)
	if got := formatOf(t, s); got != "belay store 1\n" {
		t.Fatalf("format %q", got)
	}
	all := values(5, 1000)
	at := keep(t, s, 1, all...)
	placeAll(t, s, at, 10, all...)
	if got := formatOf(t, s); got != "belay store 2\n" {
		t.Fatalf("format %q", got)
	}
	var want []string
	for i, v := range all {
		want = append(want, fmt.Sprintf("key-%d@%d=%s", i, 10+i, v))
	}
	check := func(what string, r Reader) {
		t.Helper()
		got, err := versions(r)
		if err != nil || strings.Join(got, " ") != strings.Join(want, " ") {
			t.Fatalf("%s: %.200v (%v)", what, got, err)
		}
		value, ok, err := r.Get(AppendUserKey(nil, []byte("key-2"), 12, 0))
		if err != nil || !ok || string(value[3:]) != all[2] {
			t.Fatalf("%s: get %t %.20q %v", what, ok, value, err)
		}
	}
	check("store", s)
	view := s.View()
	check("view", view)
	view.Close()
	index, _ := s.Applied()
	b := s.NewBatch(index+1, 1)
	check("batch", b)
	b.Close()
	if total, inUse := s.Size(); total < 5000 || inUse < 5000 {
		t.Fatalf("size %d, in use %d", total, inUse)
	}
	flush(t, s)
	s.Segments.Drop(command.Segment{Log: 1, Number: 2})
	looked, err := OpenReadOnly("db", Options{FS: fs, PlaceBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	check("looked at", looked)
	closeStore(t, looked)

	stream := snapshot(t, s)
	closeStore(t, s)
	s = withPlaces(t, fs, nil)
	check("after a start", s)
	if got := s.Segments.Stats(); got.Live != 5000 || got.Files != 1 {
		t.Fatalf("after a start: %+v", got)
	}

	other := open(t, vfs.NewMem(), "other")
	defer closeStore(t, other)
	in, err := other.ReceiveSnapshot(t.Context(), bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Install(in); err != nil {
		t.Fatal(err)
	}
	check("another store", other)
	if lower, upper := PlacesSpan(); !emptySpan(t, other, lower, upper) {
		t.Fatal("the snapshot holds places")
	}
	if got := formatOf(t, other); got != "belay store 1\n" {
		t.Fatalf("format of the other store %q", got)
	}

	// Back, over the places.
	write(t, other, "a", "b")
	in, err = s.ReceiveSnapshot(t.Context(), bytes.NewReader(snapshot(t, other)))
	if err != nil {
		t.Fatal(err)
	}
	old := s.View()
	if err := s.Install(in); err != nil {
		t.Fatal(err)
	}
	s.Segments.Drop(command.Segment{Log: 1, Number: 2})
	check("after an installation", s)
	check("a view from before it", old)
	if got := s.Segments.Stats(); got.Live != 0 || got.Files != 0 || got.Dropped != 0 {
		t.Fatalf("before that is closed: %+v", got)
	}
	old.Close()
	s.Segments.drain()
	if got := s.Segments.Stats(); got.Live != 0 || got.Files != 0 || got.Dropped != 1 {
		t.Fatalf("after an installation: %+v", got)
	}
	closeStore(t, s)
}

func emptySpan(t testing.TB, s *Store, lower, upper []byte) bool {
	t.Helper()
	it, err := s.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	return !it.First()
}

// TestDamagedSegment: a value that is damaged, or cut off, is an error that names the file, and the
// others can be read; a store that lacks a segment is not opened.
func TestDamagedSegment(t *testing.T) {
	all := values(3, 500)
	for name, c := range map[string]struct {
		change func([]byte) []byte
		says   string
	}{
		"a byte":  {func(b []byte) []byte { b[700] ^= 1; return b }, "checksum"},
		"cut off": {func(b []byte) []byte { return b[:900] }, "EOF"},
		"missing": {nil, "is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewMem()
			var told atomic.Int64
			s := withPlaces(t, fs, nil)
			placeAll(t, s, keep(t, s, 1, all...), 10, all...)
			flush(t, s)
			path := s.Segments.path(command.Segment{Log: 1, Number: 1})
			closeStore(t, s)
			if c.change == nil {
				if err := fs.Remove(path); err != nil {
					t.Fatal(err)
				}
				s, err := Open("db", Options{FS: fs})
				if err == nil {
					closeStore(t, s)
				}
				if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), c.says) || !IsDamage(err) {
					t.Fatalf("opened: %v", err)
				}
				looked, err := OpenReadOnly("db", Options{FS: fs}) // for who wants what is left of it
				if err != nil {
					t.Fatal(err)
				}
				defer closeStore(t, looked)
				if _, _, err := looked.Get(AppendUserKey(nil, []byte("key-1"), 11, 0)); !IsDamage(err) || !strings.Contains(err.Error(), path) {
					t.Errorf("looked at: %v", err)
				}
				return
			}
			if err := rewriteFile(fs, path, c.change); err != nil {
				t.Fatal(err)
			}
			s = withPlaces(t, fs, func(error) { told.Add(1) })
			defer closeStore(t, s)
			if _, ok, err := s.Get(AppendUserKey(nil, []byte("key-0"), 10, 0)); err != nil || !ok {
				t.Fatal("a value that is whole:", ok, err)
			}
			_, _, err := s.Get(AppendUserKey(nil, []byte("key-1"), 11, 0))
			if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), c.says) || !IsDamage(err) || told.Load() == 0 {
				t.Fatalf("%v, told %d times", err, told.Load())
			}
		})
	}
}

// TestSegmentsThatCannotBeKept: where the log is on another file system, or the disk fails, the log is
// told, and the store stays as it was.
func TestSegmentsThatCannotBeKept(t *testing.T) {
	s := withPlaces(t, vfs.NewMem(), nil)
	defer closeStore(t, s)
	segment := command.Segment{Log: 1, Number: 1}
	if err := s.Segments.Keep(segment, "nowhere"); err == nil || s.Segments.Stats().Files > 0 {
		t.Fatal(err)
	}
	write(t, s, "a", "b")
	flush(t, s)
}

// TestReadersBesideDrops: whoever reads a version reads its value, while versions and the
// segments under them come and go.
func TestReadersBesideDrops(t *testing.T) {
	s := withPlaces(t, vfs.NewMem(), nil)
	defer closeStore(t, s)
	s.Segments.maxOpen = 4
	var stop atomic.Bool
	var readers sync.WaitGroup
	for r := range 3 {
		readers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(r), 1))
			for !stop.Load() {
				v := s.View()
				it, err := v.NewIter(nil)
				v.Close()
				if err != nil {
					t.Error(err)
					return
				}
				clone, err := it.Clone(pebble.CloneOptions{})
				it.Close()
				if err != nil {
					t.Error(err)
					return
				}
				for ok := clone.First(); ok; ok = clone.Next() {
					if _, key, main, _, ok := ParseUserKey(clone.Key()); ok {
						value, err := clone.ValueAndErr()
						if err != nil || !strings.HasPrefix(string(value[3:]), fmt.Sprintf("%d-", main)) {
							t.Errorf("%q at %d: %.20q, %v", key, main, value, err)
						}
					}
					if rng.IntN(20) == 0 {
						stop.Load() // let others run
					}
				}
				clone.Close()
			}
		})
	}
	rev := uint64(10)
	for number := uint64(1); number <= 150; number++ {
		var all []string
		for i := range uint64(4) {
			all = append(all, fmt.Sprintf("%d-%s", rev+i, strings.Repeat("x", 300)))
		}
		placeAll(t, s, keep(t, s, number, all...), rev, all...)
		if number > 3 { // those of three segments ago go
			b := s.NewLocalBatch()
			it, err := s.NewIter(nil)
			if err != nil {
				t.Fatal(err)
			}
			for i := range uint64(4) {
				key := AppendUserKey(nil, fmt.Append(nil, "key-", i), rev+i-12, 0)
				if !it.SeekGE(key) || !bytes.Equal(it.Key(), key) {
					t.Fatalf("no version %x", key)
				}
				if err := b.DeleteVersion(key, it.Extent()); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(it.Close(), b.Commit()); err != nil {
				t.Fatal(err)
			}
		}
		rev += 4
		flush(t, s)
		s.Segments.Drop(command.Segment{Log: 1, Number: number})
	}
	stop.Store(true)
	readers.Wait()
	s.Segments.Drop(command.Segment{Log: 1, Number: 151})
	s.Segments.Drop(command.Segment{Log: 1, Number: 151})
	if got := s.Segments.Stats(); got.Files != 3 || got.Dropped != 147 {
		t.Fatalf("at the end: %+v", got)
	}
	s.Segments.mu.RLock()
	defer s.Segments.mu.RUnlock()
	if n := len(s.Segments.files); n != 3 || len(s.Segments.dead)+len(s.Segments.draining) > 0 || s.Segments.open > 4 {
		t.Fatalf("%d files, %d and %d that wait for readers, %d open", n, len(s.Segments.dead), len(s.Segments.draining), s.Segments.open)
	}
	names, err := s.fs.List(s.Segments.dir)
	if err != nil || len(names) != 3 {
		t.Fatal(names, err)
	}
}

func FuzzPlaced(f *testing.F) {
	f.Add(appendPlaced(nil, Place{command.Segment{Log: 1, Number: 2}, 3, 4, 5}, []byte("head")))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, header, err := parsePlaced(b)
		if err != nil {
			return
		}
		again, h, err := parsePlaced(appendPlaced(nil, p, header))
		if err != nil || again != p || !bytes.Equal(h, header) {
			t.Fatalf("%+v %x, again %+v %x: %v", p, header, again, h, err)
		}
	})
}

// smallDisk is a file system that says how much of a disk of so many bytes is free.
type smallDisk struct {
	vfs.FS
	bytes int64
}

func (d *smallDisk) GetDiskUsage(path string) (vfs.DiskUsage, error) {
	used, err := d.used(path)
	return vfs.DiskUsage{AvailBytes: uint64(max(d.bytes-used, 0))}, err
}

// used is what the files in a store's folder take.
func (d *smallDisk) used(path string) (n int64, err error) {
	for _, dir := range []string{path, d.PathJoin(path, segmentsDir)} {
		names, err := d.List(dir)
		if err != nil {
			return 0, err
		}
		for _, name := range names {
			if info, err := d.Stat(d.PathJoin(dir, name)); err == nil && !info.IsDir() {
				n += info.Size()
			}
		}
	}
	return n, nil
}

// TestMoveNeedsLittleRoom: values that are moved so that their segments can go take a part of what
// those free; on a disk that has too little for that nothing is moved, and the error says so.
// Otherwise a compaction, by which an operator makes room, fills the disk.
func TestMoveNeedsLittleRoom(t *testing.T) {
	const (
		segments, perSegment, valueBytes = 16, 20, 50_000
		live                             = segments * perSegment * valueBytes * 2 / 5
		least                            = perSegment*valueBytes*2/5 + 1<<20 // of one segment, and a memory table
	)
	fs := &smallDisk{FS: vfs.NewMem()}
	s := withPlaces(t, fs, nil)
	defer closeStore(t, s)
	var all []string
	for i := range perSegment {
		all = append(all, strings.Repeat(fmt.Sprintf("%010d", i), valueBytes/10))
	}
	for n := range uint64(segments) {
		placeAll(t, s, keep(t, s, n+1, all...), 1+100*n, all...)
	}
	b := s.NewLocalBatch()
	lower, upper := UserKeysSpan()
	it, err := s.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		t.Fatal(err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		if _, _, main, _, _ := ParseUserKey(it.Key()); (main-1)%5 >= 2 {
			if err := b.DeleteVersion(it.Key(), it.Extent()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(it.Close(), b.Commit()); err != nil {
		t.Fatal(err)
	}
	flush(t, s)
	s.Segments.Drop(command.Segment{Log: 1, Number: segments + 1})
	if got := s.Segments.Stats(); got.Live != live {
		t.Fatalf("%+v, want %d bytes live", got, live)
	}
	want, err := versions(s)
	if err != nil {
		t.Fatal(err)
	}
	before, err := fs.used(s.dir)
	if err != nil {
		t.Fatal(err)
	}

	fs.bytes = before + least/2
	err = s.Segments.Move(t.Context(), false, context.Context.Err)
	if err == nil || !strings.Contains(err.Error(), "free space") {
		t.Fatalf("on a full disk: %v", err)
	}
	if got := s.Segments.Stats(); got.Moved != 0 || got.Files != segments {
		t.Fatalf("on a full disk: %+v", got)
	}

	fs.bytes = before + 2*least
	var most int64
	if err := s.Segments.Move(t.Context(), false, func(context.Context) error {
		used, err := fs.used(s.dir)
		most = max(most, used)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if most > fs.bytes {
		t.Errorf("%d bytes of a disk of %d were used", most, fs.bytes)
	}
	if got := s.Segments.Stats(); got.Moved < live || got.Files != 0 {
		t.Errorf("%+v", got)
	}
	if got, err := versions(s); err != nil || !slices.Equal(got, want) {
		t.Errorf("%d versions, were %d, or they differ: %v", len(got), len(want), err)
	}
}
