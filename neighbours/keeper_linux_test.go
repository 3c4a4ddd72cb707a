package neighbours

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestKeeper records by a clock of the test's own: it stays within its bytes, keeps the last half at
// least, and goes on after a kill in the middle of a line.
func TestKeeper(t *testing.T) {
	dir := t.TempDir()
	target, err := Self(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(target.Disks) == 0 {
		t.Skipf("%s is on no disk", dir)
	}
	now, fsyncs := time.Unix(1_800_000_000, 0), 0.0
	var failed []error
	begin := func() *Keeper {
		k, err := newKeeper(KeepOptions{
			Dir: dir, Bytes: LeastRecord, Target: target, Failed: func(err error) { failed = append(failed, err) },
			Fsyncs: func() (Fsync, time.Duration) {
				fsyncs += 3
				return Fsync{Upper: []float64{0.001, 0}, Count: []float64{fsyncs, 1}}, 0
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		k.look(now) // only remembers
		return k
	}
	k := begin()
	looks := func(n int) {
		for range n {
			now = now.Add(keepInterval)
			k.look(now)
		}
	}
	tell := func(since time.Time) (all []Sample, skipped int) {
		var text bytes.Buffer
		if err := k.Tell(&text, since); err != nil {
			t.Fatal(err)
		}
		skipped, err := Read(&text, time.Time{}, func(s Sample) {
			if n := len(all); n > 0 && !s.Begin().Equal(all[n-1].At) {
				t.Errorf("a sample begins at %s, the one before ends at %s", s.Begin(), all[n-1].At)
			}
			all = append(all, s)
		})
		if err != nil {
			t.Fatal(err)
		}
		return all, skipped
	}
	looks(5)
	if all, _ := tell(time.Time{}); len(all) != 5 || !all[4].At.Equal(now) || all[4].Fsync.Total() != 3 || len(all[4].Fsync.Upper) != 1 {
		t.Errorf("five looks: %+v", all)
	}
	if all, _ := tell(now.Add(-keepInterval)); len(all) != 1 {
		t.Errorf("since the last but one: %+v", all)
	}
	size := func() (n int64) {
		for _, name := range fileNames {
			if info, err := os.Stat(filepath.Join(dir, name)); err == nil {
				n += info.Size()
			}
		}
		return n
	}
	// Most lines are made up: a look reads all of /proc.
	least := 0
	for range 40 {
		for range 20 {
			now = now.Add(keepInterval)
			if err := k.append(Sample{At: now, Took: keepInterval, Writers: []Writer{{Name: "w", Bytes: 1}}}); err != nil {
				t.Fatal(err)
			}
		}
		if size() > LeastRecord {
			t.Fatalf("%d bytes", size())
		}
		all, _ := tell(time.Time{})
		if !all[len(all)-1].At.Equal(now) || len(all) < min(least, 20) {
			t.Fatalf("%d samples, the last of %s; it is %s", len(all), all[len(all)-1].At, now)
		}
		least += 20
	}

	// kill -9 in the middle of a line: nothing else is lost, and a new life goes on behind it.
	last := filepath.Join(dir, fileNames[k.turn])
	info, err := os.Stat(last)
	if err != nil {
		t.Fatal(err)
	}
	before, _ := tell(time.Time{})
	if err := os.Truncate(last, info.Size()-7); err != nil {
		t.Fatal(err)
	}
	turn := k.turn
	k = begin()
	looks(1)
	if k.turn != turn {
		t.Errorf("it goes on in file %d, and was in %d", k.turn, turn)
	}
	after, err := RecordFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	log := Log{Limit: 1 << 20}
	skipped, err := ReadFiles(after, time.Time{}, &log)
	if got := log.Samples(); err != nil || skipped != 1 || len(got) != len(before) || !got[len(got)-1].At.Equal(now) {
		t.Errorf("after a kill: %d samples of %d, %d skipped, %v", len(got), len(before), skipped, err)
	}

	// A disk that takes nothing is told once.
	if err := errors.Join(os.RemoveAll(dir), k.file.Close()); err != nil {
		t.Fatal(err)
	}
	looks(8)
	if len(failed) != 1 {
		t.Errorf("told %d times: %v", len(failed), failed)
	}
}
