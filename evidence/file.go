package evidence

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// The record on disk is two files, each a line of JSON for each event:
//
//	{"at":"2026-11-21T05:41:15.123456789Z","kind":"disk-slow","took":1.2,...}
//
// Lines are appended to one until it is full; then the other is emptied and gets the next. So they
// hold at least the last 256 KiB, at most 512 KiB. Nothing is ever synced: a power failure costs
// the last seconds of evidence, and a sync is just what a failing disk cannot do. A torn line is
// skipped.
const (
	fileBytes    = 256 << 10
	keepInterval = 500 * time.Millisecond
	// retryAfter is the pause after a write that failed.
	retryAfter = 30 * time.Second
	// pastEvents bounds what is read back.
	pastEvents = 1024
)

var fileNames = [2]string{"events-0.json", "events-1.json"}

type keptEvent struct {
	At    time.Time     `json:"at"`
	Kind  string        `json:"kind"`
	Peer  uint64        `json:"peer,omitempty"`
	Took  time.Duration `json:"took_ns,omitempty"`
	Value int64         `json:"value,omitempty"`
	Term  uint64        `json:"term,omitempty"`
	Count int64         `json:"count,omitempty"`
	Note  string        `json:"note,omitempty"`
}

// Keeper writes a ring's events to disk, in a goroutine of its own that may hang as long as the
// disk does: nobody waits for it. It uses the operating system directly, not vfs: it must not share
// a health check or a budget with the store.
type Keeper struct {
	ring *Ring
	dir  string
	last End // of the last life

	stop   chan struct{}
	done   chan struct{}
	flush  chan chan struct{}
	failed time.Time // the last write that failed; the writer's own

	file *os.File // the writer's own
	size int64
	turn int // of fileNames
}

// Keep reads the record of earlier lives in dir into the ring, and continues writing there. A
// record that cannot be read must not prevent a start: the error is returned for the log, with a
// working Keeper.
func Keep(ring *Ring, dir string) (*Keeper, error) {
	k := &Keeper{ring: ring, dir: dir, stop: make(chan struct{}), done: make(chan struct{}), flush: make(chan chan struct{})}
	var err error
	k.last, err = k.readPast()
	go k.run()
	return k, err
}

// LastEnd is how the previous process ended, for the Started event.
func (k *Keeper) LastEnd() End { return k.last }

func (k *Keeper) readPast() (ended End, err error) {
	var newest [2]time.Time
	var past []Event
	for i, name := range fileNames {
		events, readErr := readEvents(filepath.Join(k.dir, name))
		err = errors.Join(err, readErr)
		if n := len(events); n > 0 {
			newest[i] = events[n-1].At
			if newest[i].After(newest[1-i]) {
				past = append(past, events...)
			} else {
				past = append(events, past...)
			}
		}
	}
	if newest[1].After(newest[0]) {
		k.turn = 1
	}
	past = past[max(0, len(past)-pastEvents):]
	now := k.ring.now()
	for i := range past {
		past[i].Past = true
		if past[i].At.After(now) {
			past[i].At = now // the clock was set back
		}
	}
	k.ring.past = past
	if len(past) == 0 {
		return FirstStart, err
	}
	for i := len(past) - 1; i >= 0; i-- {
		switch past[i].Kind {
		case Stopping:
			return AfterStop, err
		case Failing:
			return AfterFailure(past[i].Note), err
		case Started:
			return AfterCrash, err
		}
	}
	return AfterCrash, err
}

func readEvents(path string) (events []Event, err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewReader(io.LimitReader(f, 4*fileBytes))
	for {
		line, err := lines.ReadBytes('\n')
		var k keptEvent
		if json.Unmarshal(bytes.TrimSpace(line), &k) == nil && kindOf(k.Kind) != 0 {
			events = append(events, Event{Kind: kindOf(k.Kind), Peer: k.Peer, Took: max(0, k.Took), Value: k.Value, Term: k.Term, Note: k.Note, At: k.At, Count: max(1, k.Count)})
		}
		switch {
		case err == io.EOF:
			return events, nil
		case err != nil:
			return events, err
		}
	}
}

// Flush writes everything that waits, and waits at most this long for it.
func (k *Keeper) Flush(wait time.Duration) {
	limit := time.After(wait)
	written := make(chan struct{})
	select {
	case k.flush <- written:
	case <-k.done:
		return
	case <-limit:
		return
	}
	select {
	case <-written:
	case <-limit:
	}
}

// Close flushes and ends the writer, and waits at most this long: a writer that hangs with its disk
// is left behind.
func (k *Keeper) Close(wait time.Duration) {
	k.Flush(wait)
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
	tick := time.NewTicker(keepInterval)
	defer tick.Stop()
	for {
		select {
		case <-k.stop:
			return
		case <-tick.C:
			// An event that may still be extended waits.
			k.write(mergeWithin)
		case written := <-k.flush:
			k.write(0)
			close(written)
		}
	}
}

// write appends the events that are at least age old.
func (k *Keeper) write(age time.Duration) {
	r := k.ring
	now := r.now()
	r.mu.Lock()
	kept := r.kept
	r.mu.Unlock()
	var text bytes.Buffer
	var last uint64
	for _, e := range r.since(kept, nil) {
		if now.Sub(e.At) < age {
			break
		}
		line, err := json.Marshal(keptEvent{At: e.At.Round(0), Kind: e.Kind.String(), Peer: e.Peer, Took: e.Took, Value: e.Value, Term: e.Term, Count: e.Count, Note: e.Note})
		if err != nil {
			continue // a struct of numbers and text has a JSON form
		}
		text.Write(line)
		text.WriteByte('\n')
		last = e.Seq
	}
	if last == 0 {
		return
	}
	err := fmt.Errorf("the last write failed a moment ago")
	if k.failed.IsZero() || now.Sub(k.failed) >= retryAfter {
		err = k.append(text.Bytes())
		if err != nil {
			k.failed = now
		}
	}
	r.mu.Lock()
	if err != nil {
		r.unkept += last - kept
	}
	r.kept = last
	r.mu.Unlock()
}

func (k *Keeper) append(text []byte) error {
	if k.file != nil && k.size+int64(len(text)) > fileBytes {
		k.file.Close()
		k.file, k.turn = nil, 1-k.turn
		if err := os.Truncate(filepath.Join(k.dir, fileNames[k.turn]), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if k.file == nil {
		f, err := os.OpenFile(filepath.Join(k.dir, fileNames[k.turn]), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		st, err := f.Stat()
		if err != nil {
			f.Close()
			return err
		}
		k.file, k.size = f, st.Size()
		if k.size > 0 {
			// The last line may be torn: this one must begin on a new line.
			text = append([]byte{'\n'}, text...)
		}
	}
	n, err := k.file.Write(text)
	k.size += int64(n)
	if err != nil {
		k.file.Close()
		k.file = nil
	}
	return err
}

// ReadRecord calls each for every event of the record in dir, the folder member of a data directory:
// the older file first. line is its JSON as it is written; a line that is torn or unknown has no
// event, and its offset. It changes nothing; the member may be running.
func ReadRecord(dir string, each func(file string, offset int64, line []byte, event *Event) error) error {
	var files [2]string
	var newest [2]time.Time
	for i, name := range fileNames {
		files[i] = filepath.Join(dir, name)
		events, err := readEvents(files[i])
		if err != nil {
			return err
		}
		if n := len(events); n > 0 {
			newest[i] = events[n-1].At
		}
	}
	if newest[0].After(newest[1]) {
		files[0], files[1] = files[1], files[0]
	}
	for _, path := range files {
		if err := readRecordFile(path, each); err != nil {
			return err
		}
	}
	return nil
}

func readRecordFile(path string, each func(file string, offset int64, line []byte, event *Event) error) error {
	content, err := os.ReadFile(path) // fileBytes at most, or little more
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	offset := int64(0)
	for line := range bytes.Lines(content) {
		var k keptEvent
		var event *Event
		if json.Unmarshal(bytes.TrimSpace(line), &k) == nil && kindOf(k.Kind) != 0 {
			event = &Event{Kind: kindOf(k.Kind), Peer: k.Peer, Took: max(0, k.Took), Value: k.Value, Term: k.Term, Note: k.Note, At: k.At, Count: max(1, k.Count)}
		}
		if err := each(path, offset, bytes.TrimSpace(line), event); err != nil {
			return err
		}
		offset += int64(len(line))
	}
	return nil
}
