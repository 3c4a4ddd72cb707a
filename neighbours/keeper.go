package neighbours

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// A member's record is two files. Lines (record.go) are appended to one until it has half of the
// bytes that the record may have; then the other is emptied and gets the next. Nothing is ever
// synced: who looks for what slows down a disk must not, and a power failure costs the last seconds.
var fileNames = [2]string{"neighbours-0.log", "neighbours-1.log"}

const (
	// keepInterval is the time between a member's samples: short enough for a burst of half a minute,
	// long enough for days in some MiB.
	keepInterval = 10 * time.Second
	// keepShare is how much of one CPU looking may take: where there are very many processes, it
	// looks less often.
	keepShare = 200 // one part of so many
	// keepRetry is the pause after a write that failed.
	keepRetry = time.Minute
	// LeastRecord is how many bytes a record may have at least.
	LeastRecord = 64 << 10
)

// KeepOptions say what a member records.
type KeepOptions struct {
	Dir   string // of the two files
	Bytes int64  // of both together, at most; at least LeastRecord
	// Target is the member itself.
	Target Target
	// Fsyncs are all since its start, and Stuck the age of the sync in flight.
	Fsyncs func() (all Fsync, stuck time.Duration)
	// Failed is told when the record cannot be written, once until it can be again.
	Failed func(error)
}

// A Keeper looks at who writes to the member's disk, and keeps what it sees in files, in a goroutine
// of its own that may hang as long as the disk does.
type Keeper struct {
	o         KeepOptions
	collector *Collector
	before    Fsync

	stop chan struct{}
	done chan struct{}

	turn   int // of fileNames; the goroutine's own, as what follows
	file   *os.File
	size   int64
	failed time.Time

	reading sync.RWMutex // held while a file is emptied, and while both are read
}

// Keep begins to record. It continues an earlier record.
func Keep(o KeepOptions) (*Keeper, error) {
	k, err := newKeeper(o)
	if err != nil {
		return nil, err
	}
	go k.run()
	return k, nil
}

func newKeeper(o KeepOptions) (*Keeper, error) {
	collector, err := New(o.Target)
	if err != nil {
		return nil, err
	}
	k := &Keeper{o: o, collector: collector, stop: make(chan struct{}), done: make(chan struct{})}
	// The one that was written last goes on.
	var last [2]time.Time
	for i, name := range fileNames {
		if _, err := readFile(filepath.Join(o.Dir, name), time.Time{}, func(s Sample) { last[i] = s.At }); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("the record of neighbours: %w", err)
		}
	}
	if last[1].After(last[0]) {
		k.turn = 1
	}
	return k, nil
}

// Close ends it, and waits at most this long: one that hangs with its disk is left behind.
func (k *Keeper) Close(wait time.Duration) {
	close(k.stop)
	select {
	case <-k.done:
	case <-time.After(wait):
	}
}

func (k *Keeper) run() {
	defer close(k.done)
	defer func() {
		if k.file != nil {
			k.file.Close()
		}
	}()
	for {
		begin := time.Now()
		k.look(begin)
		select {
		case <-k.stop:
			return
		case <-time.After(max(keepInterval, keepShare*time.Since(begin))):
		}
	}
}

// look takes a sample and writes it.
func (k *Keeper) look(now time.Time) {
	all, stuck := k.o.Fsyncs()
	fsync := all.minus(k.before)
	k.before = all
	s, ok, err := k.collector.Look(now)
	if err == nil && !ok {
		return
	}
	if err == nil && (k.failed.IsZero() || now.Sub(k.failed) >= keepRetry) {
		s.Fsync, s.Stuck = fsync, stuck
		err = k.append(s)
	} else if err == nil {
		return
	}
	if err != nil {
		if k.failed.IsZero() {
			k.o.Failed(err)
		}
		k.failed = now
		return
	}
	k.failed = time.Time{}
}

// append writes a line, to the other file if this one is full.
func (k *Keeper) append(s Sample) error {
	line, err := appendRecord(nil, s)
	if err != nil {
		return err
	}
	if k.file != nil && k.size+int64(len(line)) > k.o.Bytes/2 {
		k.file.Close()
		k.file, k.turn = nil, 1-k.turn
		k.reading.Lock()
		err := os.Truncate(filepath.Join(k.o.Dir, fileNames[k.turn]), 0)
		k.reading.Unlock()
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if k.file == nil {
		f, err := os.OpenFile(filepath.Join(k.o.Dir, fileNames[k.turn]), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err != nil {
			f.Close()
			return err
		}
		k.file, k.size = f, info.Size()
		if k.size > 0 {
			line = append([]byte{'\n'}, line...) // the last line may be torn
		}
	}
	n, err := k.file.Write(line)
	k.size += int64(n)
	if err != nil {
		k.file.Close()
		k.file = nil
	}
	return err
}

// Tell writes the lines of samples that end after since, the oldest first.
func (k *Keeper) Tell(w io.Writer, since time.Time) error {
	k.reading.RLock()
	defer k.reading.RUnlock()
	files, err := RecordFiles(k.o.Dir)
	if err != nil {
		return err
	}
	r := Recorder{w}
	for _, f := range files {
		var failed error
		_, err := readFile(f, since, func(s Sample) {
			if failed == nil {
				failed = r.Add(s)
			}
		})
		if err := errors.Join(err, failed); err != nil {
			return err
		}
	}
	return nil
}

// RecordFiles are the files of a record in a directory, the older first; none if there is no record.
func RecordFiles(dir string) ([]string, error) {
	var files []string
	var first []time.Time
	for _, name := range fileNames {
		name = filepath.Join(dir, name)
		var at time.Time
		_, err := readFile(name, time.Time{}, func(s Sample) {
			if at.IsZero() {
				at = s.At
			}
		})
		if errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		files, first = append(files, name), append(first, at)
	}
	if len(files) == 2 && first[1].Before(first[0]) {
		files[0], files[1] = files[1], files[0]
	}
	return files, nil
}

// minus is what came since before; all of f if that does not fit.
func (f Fsync) minus(before Fsync) Fsync {
	diff := Fsync{Sum: f.Sum - before.Sum}
	was := map[float64]float64{}
	for i, upper := range before.Upper {
		was[upper] = before.Count[i]
	}
	for i, upper := range f.Upper {
		n := f.Count[i] - was[upper]
		if n < 0 {
			return f
		}
		if n > 0 {
			diff.Upper, diff.Count = append(diff.Upper, upper), append(diff.Count, n)
		}
	}
	return diff
}
