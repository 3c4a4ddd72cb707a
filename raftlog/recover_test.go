package raftlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
)

// image is a directory as bytes.
type image map[string][]byte

func takeImage(t testing.TB, fs vfs.FS) image {
	t.Helper()
	names, err := fs.List("log")
	if err != nil {
		t.Fatal(err)
	}
	im := image{}
	for _, name := range names {
		b, err := readFile(fs, "log/"+name, 1<<40)
		if err != nil {
			t.Fatal(err)
		}
		im[name] = b
	}
	return im
}

func (im image) restore(t testing.TB) *vfs.MemFS {
	t.Helper()
	fs := vfs.NewMem()
	if err := fs.MkdirAll("log", 0o700); err != nil {
		t.Fatal(err)
	}
	for name, b := range im {
		f, err := fs.Create("log/"+name, diskCategory)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(append([]byte(nil), b...)); err != nil { // Write may change its argument
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return fs
}

func (im image) with(name string, b []byte) image {
	out := image{}
	for n, c := range im {
		out[n] = c
	}
	out[name] = b
	return out
}

// recoverImage opens the image and returns what it holds. It also opens it a second
// time, after more was appended, and checks that this is then there.
func recoverImage(t testing.TB, im image) (model, error) {
	t.Helper()
	fs := im.restore(t)
	var s sink
	l, err := Open("log", testOptions(fs, &s))
	if err != nil {
		return model{}, err
	}
	got := read(l)
	next := got.last() + 1
	term := max(got.hard.term, got.lastTerm())
	l.Append(Append{
		HardState: hardState(term, got.hard.vote, got.hard.commit),
		Entries:   []*raftpb.Entry{entry(next, term, "more")},
		Responses: response(1),
	})
	mustClose(t, l)
	l = mustOpen(t, "log", testOptions(fs, &s))
	if again := read(l); again.last() != next || again.entries[len(again.entries)-1].data != "more" {
		t.Fatalf("what was appended after recovery is not there: last %d instead of %d", again.last(), next)
	}
	mustClose(t, l)
	return got, nil
}

// recycledLog writes a log whose last segment is a recycled one, and returns the
// directory before and after its last group, and where that was written. The last group
// spans several sectors and holds several records.
func recycledLog(t testing.TB) (before, after image, name string, from, to int) {
	t.Helper()
	fs := vfs.NewMem()
	var s sink
	l := mustOpen(t, "log", testOptions(fs, &s))
	index := uint64(0)
	add := func(n, size int) {
		var es []*raftpb.Entry
		for range n {
			index++
			es = append(es, entry(index, 1, strings.Repeat("x", size)))
		}
		l.Append(Append{HardState: hardState(1, 1, index-uint64(n)), Entries: es, Responses: response(index)})
		mustSync(t, l)
	}
	// Until a recycled segment holds a group and has room for another.
	for l.w.number < 4 || !l.w.prepared || l.w.off > 2*pageBytes {
		if l.w.number > 20 {
			t.Fatalf("segment %d is not a recycled one", l.w.number)
		}
		add(3, 900)
		if err := l.Compact(index-3, 0); err != nil {
			t.Fatal(err)
		}
	}
	from = int(l.w.off)
	name = segmentName(l.w.number)
	before = takeImage(t, fs)
	add(3, 400)
	if segmentName(l.w.number) != name {
		t.Fatal("the last group started a segment")
	}
	to = int(l.w.off)
	after = takeImage(t, fs)
	mustClose(t, l)
	return before, after, name, from, to
}

func TestTornWrite(t *testing.T) {
	before, after, name, from, to := recycledLog(t)
	old, err := recoverImage(t, before)
	if err != nil {
		t.Fatal(err)
	}
	full, err := recoverImage(t, after)
	if err != nil {
		t.Fatal(err)
	}
	if full.last() != old.last()+3 {
		t.Fatalf("%d entries, then %d", old.last(), full.last())
	}
	b, a := before[name], after[name]
	h, err := decodeGroupHeader(a[from:], headerSeed(binary.LittleEndian.Uint64(a[16:]), binary.LittleEndian.Uint64(a[24:])))
	if err != nil {
		t.Fatal(err)
	}
	last := from + groupHeaderBytes + int(h.payload) - 1 // zeros follow
	check := func(what string, at int, im []byte, whole bool) {
		t.Helper()
		got, err := recoverImage(t, before.with(name, im))
		if err != nil {
			t.Fatalf("%s at %d: %v", what, at, err)
		}
		want := old
		if whole {
			want = full
		}
		if got.last() != want.last() || got.hard != want.hard {
			t.Fatalf("%s at %d (group at %d-%d): last %d instead of %d", what, at, from, last, got.last(), want.last())
		}
	}
	for cut := from; cut <= to; cut++ { // the beginning arrived
		im := append([]byte(nil), b...)
		copy(im[from:cut], a[from:cut])
		check("beginning", cut, im, bytes.Equal(im[from:last+1], a[from:last+1]))
	}
	for cut := from; cut <= to; cut += 5 { // the end arrived
		im := append([]byte(nil), b...)
		copy(im[cut:to], a[cut:to])
		check("end", cut, im, cut == from)
	}
	_, rng := newSeed(t)
	for n := range 300 { // some sectors arrived
		im := append([]byte(nil), b...)
		for o := from; o < to; o += sectorBytes {
			if rng.IntN(2) == 0 {
				copy(im[o:o+sectorBytes], a[o:o+sectorBytes])
			}
		}
		check("sectors", n, im, bytes.Equal(im[from:last+1], a[from:last+1]))
	}
}

// A torn group is overwritten by another one, which is torn too: sectors of both must
// never make a group.
func TestTornTwice(t *testing.T) {
	before, after, name, from, to := recycledLog(t)
	old, err := recoverImage(t, before)
	if err != nil {
		t.Fatal(err)
	}
	a := after[name]
	_, rng := newSeed(t)
	for range 200 {
		first := append([]byte(nil), before[name]...)
		for o := from + sectorBytes; o < to; o += sectorBytes { // not the group's header
			if rng.IntN(4) > 0 {
				copy(first[o:o+sectorBytes], a[o:o+sectorBytes])
			}
		}
		// Another boot writes a group of the same shape over it.
		fs := before.with(name, first).restore(t)
		o := testOptions(fs, &sink{})
		o.random = rand.Uint64
		l := mustOpen(t, "log", o)
		if int(l.w.off) != from || l.w.mustRoll {
			t.Fatal("does not go on in place")
		}
		var es []*raftpb.Entry
		for i := range uint64(3) {
			es = append(es, entry(old.last()+1+i, 1, strings.Repeat("y", 400)))
		}
		l.Append(Append{HardState: hardState(1, 1, old.last()), Entries: es})
		mustSync(t, l)
		second := takeImage(t, fs)[name]
		mustClose(t, l)
		mixed := append([]byte(nil), first...)
		whole := true
		for o := from; o < to; o += sectorBytes {
			if rng.IntN(3) > 0 {
				copy(mixed[o:o+sectorBytes], second[o:o+sectorBytes])
			} else if !bytes.Equal(mixed[o:o+sectorBytes], second[o:o+sectorBytes]) {
				whole = false
			}
		}
		got, err := recoverImage(t, before.with(name, mixed))
		if err != nil {
			t.Fatal(err)
		}
		if !whole && got.last() != old.last() {
			t.Fatalf("a mixture of two groups was accepted: last %d", got.last())
		}
	}
}

// TestBitFlips flips a bit in every byte of a closed log. Either nothing changes, or
// opening says which file is damaged.
func TestBitFlips(t *testing.T) {
	fs := vfs.NewMem()
	l := mustOpen(t, "log", testOptions(fs, &sink{}))
	for i := uint64(1); i <= 12; i++ {
		l.Append(Append{HardState: hardState(1+i/5, 1, i-1), Entries: []*raftpb.Entry{entry(i, 1+i/5, strings.Repeat("x", int(i*300)))}})
		mustSync(t, l)
	}
	mustClose(t, l)
	im := takeImage(t, fs)
	want, err := recoverImage(t, im)
	if err != nil {
		t.Fatal(err)
	}
	segs, flips, found := 0, 0, 0
	for name, b := range im {
		if name == lockName {
			continue
		}
		segs++
		for i := range b {
			if len(b) > 1000 && i%23 != 0 && i%sectorBytes > groupHeaderBytes {
				continue
			}
			bad := append([]byte(nil), b...)
			bad[i] ^= 1 << (i % 8)
			flips++
			got, err := recoverImage(t, im.with(name, bad))
			var corrupt *CorruptError
			switch {
			case errors.As(err, &corrupt):
				found++
				if !strings.Contains(err.Error(), "log/"+name) {
					t.Fatalf("flip at %d of %s: wrong file: %v", i, name, err)
				}
			case err != nil:
				t.Fatalf("flip at %d of %s: %v", i, name, err)
			default:
				if why := want.holds(got, 0); why != "" || got.hard != want.hard {
					t.Fatalf("flip at %d of %s went unnoticed: %s, %+v", i, name, why, got.hard)
				}
			}
		}
	}
	t.Logf("%d files, %d flips, %d found, the others hit nothing that counts", segs, flips, found)
	if segs < 3 || found < flips/3 {
		t.Fatal("the test does not test")
	}
}

func FuzzDecodeGroup(f *testing.F) {
	_, after, name, from, to := recycledLog(f)
	f.Add(after[name][from:to], uint64(1), uint32(7))
	f.Add([]byte{}, uint64(0), uint32(0))
	f.Fuzz(func(t *testing.T, b []byte, logID uint64, seed uint32) {
		b = append([]byte(nil), b...)
		// As found; then with its header's checksum repaired; then its records' too.
		for i := range 3 {
			if i > 0 && len(b) >= groupHeaderBytes {
				h := groupHeader{number: 3, epoch: 5, payload: uint32(len(b) - groupHeaderBytes), records: 1}
				h.encode(b, seed)
				if r := b[groupHeaderBytes:]; i == 2 && len(r) >= recordHeaderBytes {
					kind := r[8]
					sealRecord(r, 0, kind, recordSeed(logID, h.epoch, h.number))
				}
			}
			h, n, err := decodeGroup(b, logID, seed, func(r record) {
				if r.kind < kindEntry || r.kind > kindBase {
					t.Fatalf("kind %d", r.kind)
				}
			})
			if err == nil && (n < groupHeaderBytes || int64(n) != roundUp(groupHeaderBytes+int64(h.payload), sectorBytes)) {
				t.Fatalf("took %d bytes", n)
			}
		}
		_, _ = decodeMeta(b)
		_, _ = decodeSegmentHeader(b, logID, 1)
	})
}

// FuzzRecover changes bytes of a directory, and separately replays arbitrary records with
// good checksums. Recovery must not panic, and what it accepts must have no gap.
func FuzzRecover(f *testing.F) {
	_, after, name, from, _ := recycledLog(f)
	f.Add(uint32(from), []byte{1, 2, 3})
	f.Add(uint32(8), []byte{0xff})
	f.Add(uint32(from+groupHeaderBytes), binary.LittleEndian.AppendUint64(nil, 1<<40))
	f.Fuzz(func(t *testing.T, at uint32, change []byte) {
		b := append([]byte(nil), after[name]...)
		for i, c := range change {
			b[(int(at)+i)%len(b)] ^= c
		}
		im := after.with(name, b)
		_, err := recoverImage(t, im)
		var out bytes.Buffer
		if ierr := Inspect("log", im.restore(t), &out); ierr != nil && err == nil {
			t.Fatalf("opens, but cannot be inspected: %v", ierr)
		}

		r := &replay{}
		r.tail.reset(uint64(at%64), 1)
		r.last, r.lastTerm = r.tail.base, 1
		for len(change) >= 3 {
			_ = r.apply(record{kind: 1 + change[0]%3, index: uint64(change[1] % 128), term: uint64(change[2]), data: change[:3]})
			change = change[3:]
			for i := r.tail.base + 1; i <= r.tail.last; i++ {
				if r.tail.at(i).GetIndex() != i {
					t.Fatalf("entry %d in the place of %d", r.tail.at(i).GetIndex(), i)
				}
			}
		}
	})
}
