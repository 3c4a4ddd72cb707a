package timemap

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
)

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

func at(s int) time.Time { return noon.Add(time.Duration(s) * time.Second) }

// sec is the second after noon of a point; -1: there is none.
func sec(p *Point) int {
	if p == nil {
		return -1
	}
	return int(p.Time.Sub(noon) / time.Second)
}

func rev(p *Point) int64 {
	if p == nil {
		return 0
	}
	return p.Revision
}

func TestQuestions(t *testing.T) {
	var m Map
	m.note(at(-5), 0) // not known yet
	m.note(at(0), 10)
	m.note(at(1), 10)
	m.note(at(2), 10)
	m.note(at(3), 14) // nothing between 0 and 2, something between 2 and 3
	m.note(at(4), 15)
	m.note(at(5), 15)
	for _, c := range []struct {
		at             int
		from, to       int
		fromRev, toRev int64
	}{
		{-1, -1, 0, 0, 10},
		{0, 0, 2, 10, 10},
		{1, 0, 2, 10, 10},
		{2, 2, 3, 10, 14},
		{3, 3, 4, 14, 15},
		{4, 4, -1, 15, 0},
		{99, 4, -1, 15, 0},
	} {
		in := m.At(at(c.at))
		if sec(in.From) != c.from || sec(in.To) != c.to || rev(in.From) != c.fromRev || rev(in.To) != c.toRev {
			t.Errorf("at %d: %+v, %+v", c.at, in.From, in.To)
		}
	}
	for _, c := range []struct {
		rev      int64
		from, to int
	}{
		{9, -1, 0}, {10, -1, 0}, {11, 2, 3}, {14, 2, 3}, {15, 3, 4}, {16, 4, -1},
	} {
		in := m.Of(c.rev)
		if sec(in.From) != c.from || sec(in.To) != c.to {
			t.Errorf("of %d: %+v, %+v", c.rev, in.From, in.To)
		}
	}
	if span := m.Span(); sec(span.From) != 0 || sec(span.To) != 5 || rev(span.To) != 15 {
		t.Errorf("span %+v, %+v", span.From, span.To)
	}
}

// A clock that goes back replaces what it contradicts.
func TestBackwards(t *testing.T) {
	var m Map
	for s := range 10 {
		m.note(at(s), int64(10+s))
	}
	if _, replaced := m.note(at(5), 30); !replaced {
		t.Error("the clock went back, and the file is not written anew")
	}
	if in := m.At(at(7)); sec(in.From) != 5 || rev(in.From) != 30 || in.To != nil {
		t.Errorf("after the clock went back: %+v, %+v", in.From, in.To)
	}
}

// A clock that is far back for a while, as that of a machine that starts without one, costs nothing;
// one that stays there is believed.
func TestFarBackwards(t *testing.T) {
	var m Map
	for s := range 10 {
		m.note(at(s), int64(10+s))
	}
	const years = -50 * 365 * 24 * 3600
	for s := range 599 {
		if added, replaced := m.note(at(years+s), int64(20+s)); len(added) > 0 || replaced {
			t.Fatalf("after %d s: %v, %v", s, added, replaced)
		}
	}
	m.note(at(700), 700)
	if in := m.Of(15); sec(in.From) != 4 || sec(in.To) != 5 {
		t.Errorf("when the clock is right again: %+v, %+v", in.From, in.To)
	}
	if in := m.Of(700); sec(in.From) != 9 || sec(in.To) != 700 {
		t.Errorf("what was written meanwhile: %+v, %+v", in.From, in.To)
	}
	for s := range 601 {
		m.note(at(years+s), int64(800+s))
	}
	if in := m.Of(1400); sec(in.To) != years+600 {
		t.Errorf("a clock that stays back is not believed: %+v, %+v", in.From, in.To)
	}
}

// A start by a clock that is far ahead forgets nothing of the file.
func TestFarAheadAtAStart(t *testing.T) {
	dir := t.TempDir()
	old := time.Now().Add(-1000 * 24 * time.Hour)
	points := []point{{old.UnixMilli(), 7}, {old.Add(time.Hour).UnixMilli(), 8}}
	if err := os.WriteFile(filepath.Join(dir, fileName), encode(points), 0o600); err != nil {
		t.Fatal(err)
	}
	k := Keep(dir, func() int64 { return 8 }, zap.NewNop())
	defer k.Close(time.Minute)
	if in := k.Of(8); in.From == nil || in.From.Revision != 7 {
		t.Errorf("%+v, %+v", in.From, in.To)
	}
}

// A member that replays its log after a crash does not forget what it knew before it.
func TestReplay(t *testing.T) {
	var m Map
	for s := range 10 {
		m.note(at(s), int64(10+s))
	}
	for s, rev := range []int64{1, 15, 18} {
		if added, replaced := m.note(at(20+s), rev); len(added) > 0 || replaced {
			t.Errorf("revision %d: %v, %v", rev, added, replaced)
		}
	}
	m.note(at(24), 19)
	m.note(at(25), 20)
	if in := m.Of(15); sec(in.From) != 4 || sec(in.To) != 5 {
		t.Errorf("revision 15: %+v, %+v", in.From, in.To)
	}
	if in := m.Of(20); sec(in.From) != 24 || sec(in.To) != 25 {
		t.Errorf("revision 20: %+v, %+v", in.From, in.To)
	}
}

// Forty days of writes stay within the bound, and each age within its step.
func TestBounded(t *testing.T) {
	var m Map
	const days = 40
	end := days * 24 * 3600
	most := 0
	for s := 0; s < end; s++ {
		if s < end-2*24*3600 {
			s += 59 // there it matters less
		}
		m.note(at(s), int64(s+1))
		most = max(most, len(m.points))
	}
	if most > 25_000 {
		t.Errorf("%d points", most)
	}
	m.points = thin(m.points, at(end).UnixMilli())
	for _, c := range []struct{ age, step int }{{60, 1}, {3500, 1}, {2 * 3600, 10}, {23 * 3600, 10}, {2 * 24 * 3600, 300}, {29 * 24 * 3600, 300}} {
		want := end - c.age
		in := m.At(at(want))
		if in.From == nil || in.To == nil || want-sec(in.From) > c.step || sec(in.To)-want > c.step {
			t.Errorf("%d seconds ago: between %+v and %+v", c.age, in.From, in.To)
		}
	}
	if in := m.At(at(end - 31*24*3600)); in.From != nil {
		t.Errorf("a month ago: %+v", in.From)
	}
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, fileName)
	var now atomic.Int64
	now.Store(7)
	open := func() *Keeper { return Keep(dir, now.Load, zap.NewNop()) }
	end := func(k *Keeper) {
		if err := k.Close(time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	k := open()
	k.take(time.Now().Add(-20 * time.Second))
	now.Store(8)
	k.take(time.Now().Add(-10 * time.Second))
	end(k) // samples once more
	points, whole, err := ReadFile(path)
	if err != nil || !whole || len(points) != 2 || points[1].Revision != 8 {
		t.Fatalf("%v, %v, %v", points, whole, err)
	}

	// A torn record, and one that a bad disk changed.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(make([]byte, RecordBytes+3)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if points, whole, err := ReadFile(path); err != nil || whole || len(points) != 2 {
		t.Errorf("torn: %v, %v, %v", points, whole, err)
	}
	now.Store(9)
	k = open()
	if in := k.Of(8); in.To == nil {
		t.Error("what was known is gone")
	}
	end(k)
	if points, whole, err := ReadFile(path); err != nil || !whole || len(points) != 3 || points[2].Revision != 9 {
		t.Errorf("after a start on a torn file: %v, %v, %v", points, whole, err)
	}

	// A folder that is gone costs the file only.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	k = open()
	k.take(time.Now())
	if in := k.Of(9); in.To == nil {
		t.Error("nothing is known in memory")
	}
	end(k)
}

// The file is written anew before it holds much more than the map.
func TestFileBounded(t *testing.T) {
	dir := t.TempDir()
	k := Keep(dir, func() int64 { return 0 }, zap.NewNop())
	if err := k.Close(time.Minute); err != nil {
		t.Fatal(err)
	}
	began := time.Now().Add(-8 * time.Hour)
	for s := range 8 * 3600 {
		k.revision = func() int64 { return int64(s + 1) }
		k.take(began.Add(time.Duration(s) * time.Second))
		if s%600 == 0 {
			k.flush()
			if k.file != nil {
				info, err := os.Stat(k.path)
				if err != nil {
					t.Fatal(err)
				}
				if most := int64(2*k.len()+rewriteFrom+600) * RecordBytes; info.Size() > most {
					t.Fatalf("%d bytes, of a map of %d points", info.Size(), k.len())
				}
			}
		}
	}
	k.flush()
	if k.file != nil {
		k.file.Close()
	}
	points, whole, err := ReadFile(k.path)
	if err != nil || !whole {
		t.Fatal(whole, err)
	}
	if last := points[len(points)-1]; last.Revision != 8*3600 {
		t.Errorf("the last is %+v", last)
	}
}
