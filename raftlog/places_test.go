package raftlog

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/internal/crc32c"
)

// testKeeper keeps segments in a folder of its own.
type testKeeper struct {
	fs      vfs.FS
	least   int
	refuses bool
	asked   int
}

func (k *testKeeper) path(s command.Segment) string {
	return fmt.Sprintf("kept/%x-%x", s.Log, s.Number)
}

func (k *testKeeper) Keep(s command.Segment, path string) error {
	if k.asked++; k.refuses {
		return errors.New("not here")
	}
	if err := k.fs.MkdirAll("kept", 0o700); err != nil {
		return err
	}
	if err := k.fs.Link(path, k.path(s)); err != nil {
		return err
	}
	for _, name := range []string{"kept", ""} {
		dir, err := k.fs.OpenDir(name)
		if err != nil {
			return err
		}
		if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (k *testKeeper) LeastEntry() int { return k.least }

// at reads what is kept at a place.
func (k *testKeeper) at(p command.EntryPlace, length int) (string, error) {
	f, err := k.fs.Open(k.path(p.Segment))
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, length)
	if _, err := f.ReadAt(b, p.Offset); err != nil {
		return "", err
	}
	if sum := crc32c.Checksum(b); sum != p.Sum {
		return "", fmt.Errorf("checksum %08x, and the place says %08x", sum, p.Sum)
	}
	return string(b), nil
}

// TestPlaces: where Place says that an entry is, there it is: at once, after segments were let go of
// and their successors written, after entries were replaced, and after crashes that lose all that was
// not synced.
func TestPlaces(t *testing.T) {
	seed, rng := newSeed(t)
	fs := vfs.NewCrashableMem()
	keeper := &testKeeper{fs: fs, least: 1000}
	given := map[command.EntryPlace]string{}
	verify := func(fs *vfs.MemFS, when string) {
		t.Helper()
		k := &testKeeper{fs: fs}
		for p, data := range given {
			if got, err := k.at(p, len(data)); err != nil || got != data {
				t.Fatalf("seed %d: %s: %+v has %.20q (%v), not %.20q", seed, when, p, got, err, data)
			}
		}
	}
	applied, appliedTerm := uint64(0), uint64(0)
	var log uint64
	for life := range 6 {
		o := testOptions(fs, &sink{})
		o.SegmentBytes, o.noSpares, o.Keeper, o.random = 16*pageBytes, false, keeper, rng.Uint64
		l := mustOpen(t, "log", o)
		log = l.Metadata().LogID
		if _, err := l.Adopt(applied, appliedTerm, nil); err != nil {
			t.Fatal(err)
		}
		term := l.tail.lastTerm + 1
		last, commit := l.tail.last, l.hard.commit
		terms := map[uint64]uint64{}
		datas := map[uint64]string{}
		for i := commit + 1; i <= last; i++ {
			terms[i], datas[i] = l.tail.term(i), string(l.tail.at(i).Data)
		}
		for n := range 120 {
			if rng.IntN(10) == 0 && last > commit { // another leader
				term++
				last = commit + uint64(rng.IntN(int(last-commit)+1))
			}
			var es []*raftpb.Entry
			for range 1 + rng.IntN(4) {
				last++
				data := strings.Repeat(string(rune('a'+rng.IntN(26))), rng.IntN(900)) // small
				if rng.IntN(3) > 0 || life == 2 {
					data = fmt.Sprintf("%d.%d.%d ", life, term, last) + strings.Repeat(string(rune('a'+rng.IntN(26))), 1000+rng.IntN(6000))
				}
				es = append(es, entry(last, term, data))
				terms[last], datas[last] = term, data
			}
			l.Append(Append{HardState: hardState(term, 1, commit), Entries: es})
			if rng.IntN(2) == 0 {
				mustSync(t, l)
			}
			commit += uint64(rng.IntN(int(last-commit) + 1))
			for i := max(applied+1, 1); i <= commit && terms[i] != 0; i++ {
				if p, ok := l.Places().Of(i, terms[i]); ok {
					if len(datas[i]) < keeper.least {
						t.Fatalf("seed %d: entry %d of %d bytes has a place", seed, i, len(datas[i]))
					}
					given[p] = datas[i]
				}
				applied, appliedTerm = i, terms[i]
			}
			if n%10 == 9 {
				l.Append(Append{HardState: hardState(term, 1, commit)})
				mustSync(t, l)
				if err := l.Compact(applied, 20_000); err != nil {
					t.Fatal(err)
				}
				for p := range given {
					if from := l.Places().From(applied); p.Segment.Number > from.Number && p.Segment.Log == log && l.Places().From(1<<60).Number < p.Segment.Number {
						t.Fatalf("seed %d: a place in segment %d, beyond the last", seed, p.Segment.Number)
					}
				}
				verify(fs, "after a compaction")
			}
		}
		next := fs.CrashClone(vfs.CrashCloneCfg{})
		mustClose(t, l)
		verify(next, "after a crash")
		fs = next
		keeper.fs = fs
	}
	if len(given) < 100 {
		t.Fatalf("seed %d: only %d entries got a place", seed, len(given))
	}
}

// TestPlacesOnlyWhereTheyPay: small entries have none, nor do large ones among many small ones, nor any
// that a Keeper refuses, which is asked once for a segment; and what is not kept is recycled.
func TestPlacesOnlyWhereTheyPay(t *testing.T) {
	for name, c := range map[string]struct {
		large, small int // entries of 4000 and of 100 bytes in each round
		refuses      bool
		want         bool
	}{
		"large":         {large: 1, want: true},
		"large, mostly": {large: 1, small: 20, want: true},
		"small":         {small: 10},
		"small, mostly": {large: 1, small: 200}, // a segment may begin with a large one
		"refused":       {large: 1, refuses: true},
	} {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewMem()
			keeper := &testKeeper{fs: fs, least: 1000, refuses: c.refuses}
			o := testOptions(fs, &sink{})
			o.SegmentBytes, o.noSpares, o.Keeper = 16*pageBytes, false, keeper
			l := mustOpen(t, "log", o)
			defer mustClose(t, l)
			index, placed := uint64(0), 0
			for range 100 {
				var entries []*raftpb.Entry // of one group
				for i := range c.large + c.small {
					size := 100
					if i < c.large {
						size = 4000
					}
					index++
					entries = append(entries, entry(index, 1, strings.Repeat("x", size)))
				}
				l.Append(Append{HardState: hardState(1, 1, index-uint64(len(entries))), Entries: entries})
				mustSync(t, l)
				for i := index - uint64(c.large+c.small) + 1; i <= index; i++ {
					if _, ok := l.Places().Of(i, 1); ok {
						placed++
					}
				}
			}
			if c.want != (placed > 50) || !c.want && placed > 20 || c.refuses && placed > 0 {
				t.Errorf("%d entries got a place", placed)
			}
			segments := int(l.Places().From(1 << 60).Number)
			if c.refuses && keeper.asked > segments {
				t.Errorf("the Keeper was asked %d times for %d segments", keeper.asked, segments)
			}
		})
	}
}

// TestKeptSegmentsAreNotRecycledLater: a member whose store refers to kept segments is started
// once with
// --unsafe-no-fsync, or by a command that knows no Keeper.
func TestKeptSegmentsAreNotRecycledLater(t *testing.T) {
	fs := vfs.NewMem()
	keeper := &testKeeper{fs: fs, least: 1000}
	o := testOptions(fs, &sink{})
	o.SegmentBytes, o.noSpares, o.Keeper = 16*pageBytes, false, keeper
	l := mustOpen(t, "log", o)
	given := map[command.EntryPlace]string{}
	last := uint64(0)
	write := func(l *Log, n int) {
		for range n {
			last++
			data := strings.Repeat(string(rune('a'+last%26)), 3000)
			l.Append(Append{HardState: hardState(1, 1, last), Entries: []*raftpb.Entry{entry(last, 1, data)}})
			mustSync(t, l)
			if p, ok := l.Places().Of(last, 1); ok {
				given[p] = data
			}
		}
	}
	if _, err := l.Adopt(0, 0, nil); err != nil {
		t.Fatal(err)
	}
	write(l, 100)
	if len(given) < 50 {
		t.Fatal(len(given))
	}
	mustClose(t, l)

	o.NoSync, o.Applied = true, last
	l = mustOpen(t, "log", o)
	if _, err := l.Adopt(last, 1, nil); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		write(l, 20)
		if err := l.Compact(last, 0); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, l)
	bad := 0
	for p, data := range given {
		if got, err := keeper.at(p, len(data)); err != nil || got != data {
			bad++
		}
	}
	if bad > 0 {
		t.Fatalf("%d of %d values that the store refers to are overwritten", bad, len(given))
	}
}
