package evidence

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// clock is one that a test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func TestRingMergesAndForgets(t *testing.T) {
	c := newClock()
	r := newRing(4, c.now)
	for range 5 {
		r.Record(Event{Kind: DiskSlow, Took: time.Second})
		c.pass(time.Second)
	}
	r.Record(Event{Kind: Silent, Peer: 2, Took: 2 * time.Second})
	r.Record(Event{Kind: Silent, Peer: 3, Took: 2 * time.Second}) // another peer is another event
	c.pass(time.Minute)
	r.Record(Event{Kind: DiskSlow, Took: 3 * time.Second}) // too late to extend the first
	got := r.since(0, nil)
	if len(got) != 4 {
		t.Fatalf("%d events: %+v", len(got), got)
	}
	if e := got[0]; e.Count != 5 || e.First != 4*time.Second || e.Kind != DiskSlow {
		t.Errorf("five as one: %+v", e)
	}
	r.Record(Event{Kind: GCPause, Took: time.Second})
	if got = r.since(0, nil); len(got) != 4 || got[3].Kind != GCPause || got[0].Kind != Silent {
		t.Errorf("the ring does not drop its oldest: %+v", got)
	}
	if rep := r.Report(0); rep.Lost != 1 || rep.NearMiss != got[2].Seq {
		t.Errorf("lost %d, near miss %d", rep.Lost, rep.NearMiss)
	}
	if told := r.Tell(30 * time.Second); len(told) != 2 {
		t.Errorf("of the last half minute: %+v", told)
	}
}

func TestRecordAllocatesNothing(t *testing.T) {
	r := NewRing(8)
	n := testing.AllocsPerRun(100, func() {
		r.Record(Event{Kind: LateTick, Took: time.Second})
		r.Record(Event{Kind: Elected, Peer: 1, Note: "constant"})
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
	var none *Ring
	none.Record(Event{Kind: LateTick}) // a nil ring takes everything
}

func TestRingManyRecorders(t *testing.T) {
	r := NewRing(16)
	var all sync.WaitGroup
	for id := range uint64(4) {
		all.Go(func() {
			for range 500 {
				r.Record(Event{Kind: HandOver, Peer: id})
				r.Tell(0)
			}
		})
	}
	all.Wait()
	events := r.since(0, nil)
	if len(events) != 16 || events[15].Seq != 2000 {
		t.Fatalf("%d events, the last %d", len(events), events[len(events)-1].Seq)
	}
	for i := range events[1:] {
		if events[i+1].Seq != events[i].Seq+1 {
			t.Fatal("not in order")
		}
	}
}

func TestToldThereAndBack(t *testing.T) {
	now := time.Now()
	e := Event{Kind: Unreachable, Peer: 0xdeadbeef01234567, Took: 1500 * time.Millisecond, Value: 3, Term: 4, Note: "refused", Seq: 9, At: now.Add(-2 * time.Second), Count: 2, First: time.Second}
	told := e.told(now)
	text, err := json.Marshal(told)
	if err != nil {
		t.Fatal(err)
	}
	var back Told
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	later := now.Add(time.Hour) // another member's clock
	got := back.event(later)
	if ago := later.Sub(got.At); ago != 2*time.Second {
		t.Errorf("%v ago", ago)
	}
	got.At = e.At
	if got != e {
		t.Errorf("%+v became %+v", e, got)
	}
	for k := Kind(1); k < kindCount; k++ {
		if kindOf(k.String()) != k {
			t.Errorf("kind %d has no name of its own: %q", k, k)
		}
	}
	// What a broken peer says must not end this one.
	for _, text := range []string{`{"kind":"silent","seconds_ago":1e300,"took_seconds":-1,"peer":"zz"}`, `{"kind":"?"}`} {
		var told Told
		if err := json.Unmarshal([]byte(text), &told); err != nil {
			t.Fatal(err)
		}
		if e := told.event(now); e.Took < 0 || e.Peer != 0 || e.At.After(now) {
			t.Errorf("%s is %+v", text, e)
		}
	}
}

// keepOnce records events in a life of its own and ends it.
func keepOnce(t *testing.T, dir string, events ...Event) (past []Event, ended string) {
	t.Helper()
	r := NewRing(0)
	k, err := Keep(r, dir)
	if err != nil {
		t.Fatal(err)
	}
	past = r.past
	for _, e := range events {
		r.Record(e)
	}
	k.Flush(5 * time.Second)
	k.Close(5 * time.Second)
	return past, string(k.LastEnd())
}

func TestKeeper(t *testing.T) {
	dir := t.TempDir()
	start := Event{Kind: Started}
	if past, ended := keepOnce(t, dir, start, Event{Kind: Paused, Took: 3 * time.Second, Note: "x"}); len(past) != 0 || ended != "first start" {
		t.Errorf("a new member: %v, %s", past, ended)
	}
	past, ended := keepOnce(t, dir, start, Event{Kind: Stopping, Note: "asked to stop"})
	if len(past) != 2 || past[1].Kind != Paused || past[1].Took != 3*time.Second || past[1].Note != "x" || !past[1].Past || ended != "after a crash" {
		t.Errorf("after a crash: %+v, %s", past, ended)
	}
	if _, ended := keepOnce(t, dir, start, Event{Kind: Failing, Note: "EIO"}); ended != "after a stop" {
		t.Error(ended)
	}
	if _, ended := keepOnce(t, dir); ended != "after a failure: EIO" {
		t.Error(ended)
	}
}

func TestKeeperToleratesATornTail(t *testing.T) {
	dir := t.TempDir()
	keepOnce(t, dir, Event{Kind: Started}, Event{Kind: Paused, Took: time.Second}, Event{Kind: DiskSlow, Took: time.Second})
	path := filepath.Join(dir, fileNames[0])
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range data {
		if err := os.WriteFile(path, data[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		events, err := readEvents(path)
		if err != nil || len(events) > 3 {
			t.Fatalf("cut at %d: %d events, %v", cut, len(events), err)
		}
	}
	// The next life begins on a line of its own.
	keepOnce(t, dir, Event{Kind: GCPause, Took: time.Second})
	if past, _ := keepOnce(t, dir); len(past) < 3 || past[len(past)-1].Kind != GCPause {
		t.Errorf("%+v", past)
	}
}

func TestKeeperIsBounded(t *testing.T) {
	dir := t.TempDir()
	r := NewRing(1000)
	k, err := Keep(r, dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		for j := range 500 {
			r.Record(Event{Kind: HandOver, Note: fmt.Sprintf("%0100d", i*500+j)})
		}
		k.Flush(5 * time.Second)
	}
	k.Close(5 * time.Second)
	total := int64(0)
	for _, name := range fileNames {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		total += st.Size()
	}
	if total > 2*fileBytes+fileBytes/2 {
		t.Errorf("%d bytes", total)
	}
	past, _ := keepOnce(t, dir)
	if len(past) != pastEvents || past[len(past)-1].Note != fmt.Sprintf("%0100d", 9999) {
		t.Errorf("%d events, the last %+v", len(past), past[len(past)-1])
	}
}

// TestKeeperThatHangs: a disk that never answers delays nobody.
func TestKeeperThatHangs(t *testing.T) {
	dir := t.TempDir()
	r := NewRing(0)
	// A pipe that nobody reads is a file that hangs when it is opened.
	if err := mkfifo(filepath.Join(dir, fileNames[0])); err != nil {
		t.Skipf("no named pipes here: %v", err)
	}
	k := &Keeper{ring: r, dir: dir, stop: make(chan struct{}), done: make(chan struct{}), flush: make(chan chan struct{})}
	go k.run()
	r.Record(Event{Kind: Started})
	k.Flush(time.Millisecond)
	for range 3 * defaultEvents {
		r.Record(Event{Kind: HandOver})
	}
	k.Close(time.Millisecond)
	if n := len(r.since(0, nil)); n != defaultEvents {
		t.Errorf("%d events", n)
	}
	// Let the writer go, and read: what it has may be more than a pipe holds.
	f, err := os.OpenFile(filepath.Join(dir, fileNames[0]), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	go io.Copy(io.Discard, f)
	<-k.done
}
