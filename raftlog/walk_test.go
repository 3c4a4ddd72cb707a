package raftlog

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
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

// The oldest segment is never without a header: a walk calls that damage, as Open does, and Check says
// what Open says.
func TestDamagedHeaderOfTheOldest(t *testing.T) {
	t.Parallel()
	fs := vfs.NewMem()
	l := mustOpen(t, "log", testOptions(fs, &sink{}))
	l.Append(Append{HardState: hardState(1, 1, 0), Entries: entries(1, 3, 1), Responses: response(3)})
	mustSync(t, l)
	mustClose(t, l)
	im := takeImage(t, fs)
	if err := Check("log", im.restore(t), 0); err != nil {
		t.Fatal(err)
	}
	for name, b := range im {
		if !strings.HasPrefix(name, "segment-") {
			continue
		}
		bad := slices.Clone(b)
		bad[300] ^= 1
		damaged := im.with(name, bad).restore(t)
		found := 0
		if err := Walk("log", damaged, func(f Found) error {
			if f.Kind == "damage" && strings.HasSuffix(f.File, name) {
				found++
			}
			return nil
		}); err != nil || found != 1 {
			t.Errorf("the walk found %d damages: %v", found, err)
		}
		_, opened := Open("log", testOptions(damaged, &sink{}))
		if err := Check("log", damaged, 0); opened == nil || err == nil || err.Error() != opened.Error() {
			t.Errorf("Check says %v, and Open %v", err, opened)
		}
	}
}
