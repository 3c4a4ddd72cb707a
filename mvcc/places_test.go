package mvcc

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	raftcommand "github.com/belaydb/belay/command"
	"github.com/belaydb/belay/internal/crc32c"
	"github.com/belaydb/belay/store"
)

// segmentWriter stands for a raft log whose segments are kept: it writes the values of a batch, and
// says where they are.
type segmentWriter struct {
	r       *rig
	rng     *rand.Rand
	number  uint64 // of the last segment
	batches int    // how many the last segment gets still
	off     int64
}

// keepValues has values stay in segments from now on, some of them.
func (r *rig) keepValues(rng *rand.Rand) { r.segments = &segmentWriter{r: r, rng: rng} }

// place writes a value and returns where it is; or no place.
func (s *segmentWriter) place(values [][]byte, value []byte) store.Place {
	if s == nil || len(value) == 0 || s.rng.IntN(4) == 0 {
		return store.Place{}
	}
	t, fs := s.r.t, s.r.fs
	path := func() string { return fmt.Sprintf("log-%d", s.number) }
	if s.batches == 0 {
		s.number, s.batches, s.off = s.number+1, 1+s.rng.IntN(5), 0
		f, err := fs.Create(path(), vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		if err := s.r.st.Segments.Keep(s.segment(), path()); err != nil {
			t.Fatal(err)
		}
	}
	s.batches--
	data := bytes.Join(values, []byte{0xff})
	f, err := fs.OpenReadWrite(path(), vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, s.off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	at := raftcommand.EntryPlace{Segment: s.segment(), Offset: s.off, Sum: crc32c.Checksum(data)}
	s.off += int64(len(data))
	p, _ := s.r.st.Segments.Find(value, data, at, s.rng.IntN(len(data)+1))
	return p
}

func (s *segmentWriter) segment() store.LogSegment {
	return store.LogSegment{Log: 7, Number: s.number}
}

// restarted: what a log of an older process began is not written on.
func (s *segmentWriter) restarted() {
	if s != nil {
		s.batches = 0
	}
}

// drop lets go of segments as after a flush. The last one is written on.
func (s *segmentWriter) drop() {
	if s != nil {
		s.r.st.Segments.Drop(s.segment())
	}
}

// TestValuesInSegments: segments go when what refers to them is compacted, or when little of them is
// referred to, whose values are then moved; everything stays readable, in old views too.
func TestValuesInSegments(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	r := newRig(t, Options{CompactionSleep: -1})
	r.keepValues(rng)
	m := newModel()
	apply := func(c command) {
		t.Helper()
		want := m.apply(c)
		if got := r.apply(c); got[0] != want {
			t.Fatalf("got %s, want %s", got[0], want)
		}
	}
	value := func() string {
		b := make([]byte, 2000)
		for i := range b {
			b[i] = 'a' + byte(rng.IntN(26))
		}
		return string(b)
	}
	for i := range 200 {
		key := fmt.Sprintf("key-%d", i%20)
		if i%10 == 5 {
			key = fmt.Sprintf("once-%d", i) // what stays in a segment of which the rest goes
		}
		apply(command{ops: []op{{key: key, value: value()}}})
	}
	r.flush()
	r.segments.drop()
	before := r.st.Segments.Stats()
	if before.Files < 10 || before.Live < 100*2000 || before.Dropped != 0 {
		t.Fatalf("after the puts: %+v", before)
	}
	view := r.st.View()
	old := dumpVersions(t, view)

	compactTo := m.rev
	apply(command{compact: compactTo})
	<-r.Compacted(compactTo)
	if err := r.MoveValues(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 3 { // what is dropped is dead, durably, and final
		r.flush()
		r.segments.drop()
	}
	after := r.st.Segments.Stats()
	if after.Files > before.Files/2 || after.Moved == 0 || after.Live >= before.Live/2 {
		t.Fatalf("after the compaction: %+v, before it %+v", after, before)
	}
	if got := dumpVersions(t, view); !bytes.Equal(got, old) {
		t.Fatal("a view from before shows something else")
	}
	view.Close()
	r.segments.drop()
	r.segments.drop()
	if again := r.st.Segments.Stats(); again.Dropped < int64(before.Files)/2 {
		t.Fatalf("after nobody reads the past any more: %+v", again)
	}
	r.check(m, rng)
	m.hashes = nil
	r.close()
	r.open()
	r.check(m, rng)
	if again := r.st.Segments.Stats(); again.Live != after.Live {
		t.Fatalf("after a start %d bytes are live, before it %d", again.Live, after.Live)
	}
}

func dumpVersions(t *testing.T, r store.Reader) []byte {
	t.Helper()
	it, err := r.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	var out []byte
	it.SetBounds(store.UserKeysSpan())
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			t.Fatal(err)
		}
		out = append(append(out, it.Key()...), value...)
	}
	return out
}

// TestSegmentsOfWhichLittleIsNeeded: values move out of segments that were full of what came to
// nothing, without a compaction.
func TestSegmentsOfWhichLittleIsNeeded(t *testing.T) {
	r := newRig(t, Options{CompactionSleep: -1})
	for number := uint64(1); number <= 10; number++ {
		path := fmt.Sprintf("log-%d", number)
		f, err := r.fs.Create(path, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		value := bytes.Repeat([]byte{'a' + byte(number)}, 100)
		data := append(bytes.Repeat([]byte("nothing"), 1000), value...)
		if _, err := f.Write(bytes.Clone(data)); err != nil { // it may be changed
			t.Fatal(err)
		}
		f.Close()
		segment := store.LogSegment{Log: 1, Number: number}
		if err := r.st.Segments.Keep(segment, path); err != nil {
			t.Fatal(err)
		}
		index, _ := r.st.Applied()
		b := r.st.NewBatch(index+1, 1)
		w := r.NewWriter(b)
		w.Begin()
		place, _ := r.st.Segments.Find(value, data, raftcommand.EntryPlace{Segment: segment, Sum: crc32c.Checksum(data)}, 0)
		if _, _, err := w.PutPlaced(fmt.Append(nil, "key-", number), value, 0, place); err != nil || !place.IsSet() {
			t.Fatalf("%d: %+v, %v", number, place, err)
		}
		w.End()
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		w.Publish()
	}
	r.flush()
	r.DropSegments(store.LogSegment{Log: 1, Number: 11})
	for start := time.Now(); r.st.Segments.Stats().Files > 0; time.Sleep(time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Fatalf("%+v", r.st.Segments.Stats())
		}
	}
	res, err := r.Range(t.Context(), []byte("key-"), []byte("key-z"), RangeOptions{})
	if err != nil || len(res.KVs) != 10 || len(res.KVs[3].Value) != 100 {
		t.Fatal(len(res.KVs), err)
	}
}
