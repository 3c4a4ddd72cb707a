package raftlog

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
)

// grow appends entries of about 1 KB up to last, each durable and committed with the next.
func grow(t *testing.T, l *Log, last uint64) {
	t.Helper()
	for from, _ := l.LastIndex(); from < last; from++ {
		l.Append(Append{
			HardState: hardState(1, 1, from),
			Entries:   []*raftpb.Entry{entry(from+1, 1, fmt.Sprint(from+1, strings.Repeat("x", 1000)))},
		})
		mustSync(t, l)
	}
}

// readAll reads from entry index to the end of what is final.
func readAll(t *testing.T, l *Log, index uint64) (entries []*raftpb.Entry, err error) {
	t.Helper()
	rd, err := l.Read(index)
	if err != nil {
		return nil, err
	}
	defer rd.Close()
	base, term := l.Base()
	for {
		got, err := rd.Next(3000, base, term)
		if err != nil || len(got) == 0 {
			return entries, err
		}
		entries = append(entries, got...)
	}
}

// One Next gives as much as fits, also of terms before that of the committed entry that it is told of,
// where the log says group by group what is final.
func TestNextFillsMessages(t *testing.T) {
	var s sink
	l := mustOpen(t, "log", testOptions(vfs.NewMem(), &s))
	defer mustClose(t, l)
	l.Append(Append{HardState: hardState(1, 1, 0)})
	grow(t, l, 40)
	l.Append(Append{HardState: hardState(2, 1, 40), Entries: []*raftpb.Entry{entry(41, 2, "x")}})
	mustSync(t, l)
	rd, err := l.Read(1)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	for _, want := range []struct {
		bytes int64
		n     int
	}{{1, 1}, {10_000, 9}, {1 << 20, 31}, {1 << 20, 0}} {
		if got, err := rd.Next(want.bytes, 41, 2); err != nil || len(got) != want.n {
			t.Errorf("%d entries within %d bytes, want %d; %v", len(got), want.bytes, want.n, err)
		}
	}
}

// What Trim lets go of stays in the files as far as Compact is told to keep it, and no further.
func TestTrimmedIsKeptInFiles(t *testing.T) {
	var s sink
	l := mustOpen(t, "log", testOptions(vfs.NewMem(), &s))
	defer mustClose(t, l)
	l.Append(Append{HardState: hardState(1, 1, 0)})
	const keep = 50_000 // some 44 entries
	check := func(last uint64) {
		t.Helper()
		if err := l.Compact(last-1, keep); err != nil {
			t.Fatal(err)
		}
		if mem, _ := l.Bytes(); mem > 5000 {
			t.Errorf("%d bytes are in memory", mem)
		}
		// Files are dropped as a whole, and one is some 16 entries.
		if n := last - l.Oldest(); n < 40 || n > 90 {
			t.Errorf("the files keep %d entries", n)
		}
		if got, err := readAll(t, l, last-40); err != nil || len(got) < 40 {
			t.Errorf("%d entries, %v", len(got), err)
		}
	}
	for last := uint64(10); last <= 200; last += 10 {
		grow(t, l, last)
		l.Trim(last-1, 4000)
	}
	check(200)
	for last := uint64(210); last <= 500; last += 10 {
		grow(t, l, last)
		l.Trim(last-1, 4000)
		if last%50 == 0 {
			check(last)
		}
	}
	if n := len(l.trimmed); n > 10 {
		t.Errorf("%d trims are remembered", n)
	}
	// Without Trim, memory has what is to be kept, and what was trimmed before is forgotten.
	grow(t, l, 600)
	if err := l.Compact(599, keep); err != nil {
		t.Fatal(err)
	}
	if mem, _ := l.Bytes(); mem > keep || mem < keep/2 || len(l.trimmed) != 0 || l.Oldest() < 500 {
		t.Errorf("%d bytes are in memory, the files begin with %d, %d trims are remembered", mem, l.Oldest(), len(l.trimmed))
	}
}

// Compact leaves in the files what Hold asks for, up to its bound, and drops it from
// memory all the same.
func TestHold(t *testing.T) {
	var s sink
	l := mustOpen(t, "log", testOptions(vfs.NewMem(), &s))
	defer mustClose(t, l)
	l.Append(Append{HardState: hardState(1, 1, 0)})
	l.Hold(10, 1<<30)
	grow(t, l, 100)
	if err := l.Compact(99, 1); err != nil {
		t.Fatal(err)
	}
	if base, _ := l.Base(); base < 95 || l.Oldest() > 10 {
		t.Fatalf("memory begins after %d, the files with %d", base, l.Oldest())
	}
	if l.HeldBytes() < 80_000 {
		t.Errorf("%d bytes are held", l.HeldBytes())
	}
	got, err := readAll(t, l, 10)
	if err != nil || len(got) < 85 || got[0].GetIndex() != 10 || !strings.HasPrefix(string(got[3].GetData()), "13x") {
		t.Fatalf("%d entries, %v", len(got), err)
	}
	if _, err := l.Read(1); l.Oldest() > 1 && !errors.Is(err, ErrNotHeld) {
		t.Error(err)
	}

	const bound = 40_000
	l.Hold(10, bound)
	if err := l.Compact(99, 1); err != nil {
		t.Fatal(err)
	}
	if held := l.HeldBytes(); held > bound || held < bound/2 || l.Oldest() <= 10 {
		t.Errorf("%d bytes are held, from entry %d on", held, l.Oldest())
	}
	if _, err := l.Read(10); !errors.Is(err, ErrNotHeld) {
		t.Error(err)
	}

	rd, err := l.Read(l.Oldest())
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	if got, err := rd.Next(1, 99, 1); err != nil || len(got) != 1 {
		t.Fatal(got, err)
	}
	l.Hold(NoHold, 0)
	if err := l.Compact(99, 1); err != nil {
		t.Fatal(err)
	}
	if held := l.HeldBytes(); held != 0 || l.Oldest() < 70 {
		t.Errorf("%d bytes are held, from entry %d on", held, l.Oldest())
	}
	// Its files are gone, or in use again.
	grow(t, l, 200)
	for err == nil {
		got, err = rd.Next(1<<20, 99, 1)
		for _, e := range got {
			if want := fmt.Sprint(e.GetIndex(), "x"); !strings.HasPrefix(string(e.GetData()), want) {
				t.Fatalf("entry %d holds %.10q", e.GetIndex(), e.GetData())
			}
		}
		if err == nil && len(got) == 0 {
			t.Fatal("the reader waits for what was dropped")
		}
	}
	if !errors.Is(err, ErrNotHeld) {
		t.Error(err)
	}
}

// What the store has applied is not read at the start: it takes no memory, and damage in it stops
// nothing, but a reader gets an error.
func TestHeldLogIsNotReadAtStart(t *testing.T) {
	fs := vfs.NewMem()
	var s sink
	o := testOptions(fs, &s)
	l := mustOpen(t, "log", o)
	l.Append(Append{HardState: hardState(1, 1, 0)})
	l.Hold(1, 1<<30)
	grow(t, l, 100)
	if err := l.Compact(99, 1); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)

	path := fs.PathJoin("log", segmentName(2))
	f, err := fs.OpenReadWrite(path, diskCategory)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damage"), 2*sectorBytes); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open("log", o); err == nil {
		t.Error("the damage is not there")
	}
	o.Applied = 99
	l = mustOpen(t, "log", o)
	defer mustClose(t, l)
	if mem, _ := l.Bytes(); mem > 20_000 {
		t.Errorf("%d bytes are in memory", mem)
	}
	if replaced, err := l.Adopt(99, 1, nil); replaced || err != nil {
		t.Fatal(replaced, err)
	}
	if l.Oldest() > 1 {
		t.Errorf("the files begin with entry %d", l.Oldest())
	}
	got, err := readAll(t, l, 1)
	var corrupt *CorruptError
	if !errors.As(err, &corrupt) || corrupt.File != path || !errors.Is(err, ErrNotHeld) || len(got) == 0 {
		t.Errorf("%d entries, %v", len(got), err)
	}
	if got, err := readAll(t, l, 90); err != nil || len(got) < 9 {
		t.Errorf("%d entries, %v", len(got), err)
	}
}

// Entries that were replaced later are never given, and those that replaced them only once
// they are final.
func TestReaderGivesFinalEntries(t *testing.T) {
	var s sink
	l := mustOpen(t, "log", testOptions(vfs.NewMem(), &s))
	defer mustClose(t, l)
	l.Append(Append{HardState: hardState(1, 1, 0), Entries: entries(1, 30, 1)})
	mustSync(t, l)
	l.Append(Append{HardState: hardState(1, 1, 19)})
	mustSync(t, l)
	rd, err := l.Read(15)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	next := func(committed, term, want, wantTerm uint64) {
		t.Helper()
		got, err := rd.Next(1<<20, committed, term)
		if err != nil {
			t.Fatal(err)
		}
		if want == 0 {
			if len(got) > 0 {
				t.Fatalf("got entries up to %d", got[len(got)-1].GetIndex())
			}
			return
		}
		if e := got[len(got)-1]; e.GetIndex() != want || e.GetTerm() != wantTerm {
			t.Fatalf("got entries up to %d of term %d", e.GetIndex(), e.GetTerm())
		}
	}
	next(0, 0, 19, 1)
	next(0, 0, 0, 0)
	l.Append(Append{HardState: hardState(2, 0, 19), Entries: entries(20, 40, 2)})
	mustSync(t, l)
	next(0, 0, 0, 0)
	next(25, 2, 25, 2) // entry 25 of term 2 is committed
	next(50, 1, 0, 0)  // of term 1 there is none in the log any more
	l.Append(Append{HardState: hardState(2, 0, 38)})
	mustSync(t, l)
	next(0, 0, 38, 2)
	l.Append(Append{HardState: hardState(3, 0, 50), Snapshot: snapshot(50, 3)})
	l.Append(Append{Entries: entries(51, 52, 3)})
	mustSync(t, l)
	if got, err := rd.Next(1, 0, 0); !errors.Is(err, ErrNotHeld) {
		t.Error(got, err)
	}
}
