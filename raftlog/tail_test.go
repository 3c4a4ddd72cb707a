package raftlog

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// TestAgainstMemoryStorage makes the same random steps on the log and on raft's own MemoryStorage
// and compares what raft would see. Slices handed out early must stay as they were.
func TestAgainstMemoryStorage(t *testing.T) {
	seed, rng := newSeed(t)
	l := mustOpen(t, "log", testOptions(vfs.NewMem(), &sink{}))
	ms := raft.NewMemoryStorage()
	term := uint64(1)
	type held struct{ got, want []*raftpb.Entry }
	var handed []held
	fatalf := func(format string, args ...any) {
		t.Helper()
		t.Fatalf("seed %d: %s", seed, fmt.Sprintf(format, args...))
	}
	for range 3000 {
		first, _ := ms.FirstIndex()
		last, _ := ms.LastIndex()
		if f, _ := l.FirstIndex(); f != first {
			fatalf("first %d instead of %d", f, first)
		}
		if n, _ := l.LastIndex(); n != last {
			fatalf("last %d instead of %d", n, last)
		}
		switch rng.IntN(6) {
		case 0, 1:
			from := last + 1
			if last >= first && rng.IntN(3) == 0 {
				from = first + uint64(rng.IntN(int(last-first)+1))
				term++
			}
			var es []*raftpb.Entry
			for i := range uint64(1 + rng.IntN(300)) {
				es = append(es, entry(from+i, term, strings.Repeat("x", rng.IntN(50))))
			}
			l.Append(Append{Entries: es})
			if err := ms.Append(es); err != nil {
				fatalf("%v", err)
			}
		case 2:
			if last > first && rng.IntN(4) == 0 {
				to := first + uint64(rng.IntN(int(last-first)))
				if err := ms.Compact(to); err != nil {
					fatalf("%v", err)
				}
				l.mu.Lock()
				l.tail.trim(to)
				l.mu.Unlock()
			}
		default:
			if last < first {
				continue
			}
			lo := first - 1 + uint64(rng.IntN(int(last-first)+2))
			hi := lo + uint64(rng.IntN(int(last+1-lo)+1))
			maxSize := uint64(rng.IntN(40000))
			if rng.IntN(3) == 0 {
				maxSize = math.MaxUint64
			}
			if lo == hi {
				continue
			}
			got, gerr := l.Entries(lo, hi, maxSize)
			want, werr := ms.Entries(lo, hi, maxSize)
			if gerr != werr || !slices.Equal(got, want) {
				fatalf("entries(%d, %d, %d): %d entries, %v instead of %d, %v", lo, hi, maxSize, len(got), gerr, len(want), werr)
			}
			if cap(got) != len(got) {
				fatalf("the caller may append into the log")
			}
			if rng.IntN(10) == 0 {
				handed = append(handed, held{got, slices.Clone(got)})
			}
			gt, gerr := l.Term(lo)
			wt, werr := ms.Term(lo)
			if gt != wt || gerr != werr {
				fatalf("term(%d): %d, %v instead of %d, %v", lo, gt, gerr, wt, werr)
			}
		}
		var bytes int64
		l.mu.Lock()
		for i := l.tail.base + 1; i <= l.tail.last; i++ {
			bytes += entryBytes(l.tail.at(i))
		}
		if bytes != l.tail.bytes || l.tail.bytesAfter(l.tail.base) != bytes {
			fatalf("counts %d bytes instead of %d", l.tail.bytes, bytes)
		}
		lo := l.tail.base + uint64(rng.IntN(int(l.tail.last-l.tail.base)+1))
		hi := lo + uint64(rng.IntN(int(l.tail.last-lo)+3))
		var between int64
		for i := lo + 1; i <= min(hi, l.tail.last); i++ {
			between += entryBytes(l.tail.at(i))
		}
		if got := l.tail.bytesBetween(lo, hi); got != between {
			fatalf("bytesBetween(%d, %d) is %d instead of %d", lo, hi, got, between)
		}
		limit := l.tail.base + uint64(rng.IntN(int(l.tail.last-l.tail.base)+1))
		keep := rng.Int64N(bytes + 1)
		cut := l.tail.trimPoint(limit, keep)
		var rest int64
		for i := cut + 1; i <= l.tail.last; i++ {
			rest += entryBytes(l.tail.at(i))
		}
		if cut > limit || (rest > keep && cut != limit) ||
			(cut > l.tail.base && rest+entryBytes(l.tail.at(cut)) <= keep) {
			fatalf("trimPoint(%d, %d) of %d bytes is %d, leaves %d", limit, keep, bytes, cut, rest)
		}
		l.mu.Unlock()
	}
	for _, h := range handed {
		if !slices.Equal(h.got, h.want) {
			fatalf("a slice that was handed out has changed")
		}
	}
	mustClose(t, l)
}

func TestEncodedSize(t *testing.T) {
	for _, e := range []*raftpb.Entry{
		{}, entry(1, 1, ""), entry(127, 128, "x"), entry(1<<40, 1<<63, strings.Repeat("x", 200)),
		{Data: []byte{}}, {Type: raftpb.EntryConfChange.Enum()},
	} {
		if got, want := encodedSize(e), uint64(proto.Size(e)); got != want {
			t.Errorf("%v: %d instead of %d", e, got, want)
		}
	}
}
