package raftlog

import (
	"os"
	"path/filepath"
	"testing"
)

// TestWalkUnused: the rest of a segment that was never written is no end to be told of, whether a
// member runs or has stopped; anything else there is.
func TestWalkUnused(t *testing.T) {
	t.Parallel()
	var s sink
	dir := filepath.Join(t.TempDir(), "log")
	l := mustOpen(t, dir, testOptions(nil, &s))
	l.Append(Append{HardState: hardState(1, 1, 0), Entries: entries(1, 3, 1), Responses: response(3)})
	mustSync(t, l)
	ends := func(when string, want int) {
		t.Helper()
		last, found := uint64(0), 0
		if err := Walk(dir, nil, func(f Found) error {
			switch f.Kind {
			case "entry":
				last = f.Index
			case "end", "damage":
				found++
			}
			return nil
		}); err != nil || last != 3 || found != want {
			t.Errorf("%s: last entry %d, %d ends, want %d: %v", when, last, found, want, err)
		}
	}
	ends("beside a member that runs", 0)
	mustClose(t, l)
	ends("after it has stopped", 0)
	segments, err := filepath.Glob(filepath.Join(dir, "segment-*.log"))
	if err != nil || len(segments) != 1 {
		t.Fatal(segments, err)
	}
	f, err := os.OpenFile(segments[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	end := info.Size()
	if err := f.Truncate(end + 3*pageBytes); err != nil {
		t.Fatal(err)
	}
	ends("with room at its end", 0)
	if _, err := f.WriteAt([]byte("x"), end+2*pageBytes+7); err != nil {
		t.Fatal(err)
	}
	ends("with something in that room", 1)
}
