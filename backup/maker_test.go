package backup

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"

	"github.com/belaydb/belay/datadir"
)

// making is a Maker at work over a member.
type making struct {
	*Maker
	leads   atomic.Bool
	mu      sync.Mutex
	changed chan struct{}
	free    atomic.Uint64
	stop    context.CancelFunc
	ended   chan struct{}
}

func (r *making) lead(leads bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leads.Store(leads)
	close(r.changed)
	r.changed = make(chan struct{})
}

func startMaking(t *testing.T, m *member, root string, id uint64, leads bool, s Settings) *making {
	t.Helper()
	r := &making{changed: make(chan struct{}), ended: make(chan struct{})}
	r.leads.Store(leads)
	r.free.Store(1 << 50)
	o := who
	o.Member = id
	r.Maker = New(s, Env{
		Origin: o, Depot: Dir(datadir.FS(), root), View: m.kv.View, Applied: func() uint64 { index, _ := m.Applied(); return index },
		Leading: r.leads.Load, Times: func(time.Time) []Sighting { return nil },
		Changed: func() <-chan struct{} { r.mu.Lock(); defer r.mu.Unlock(); return r.changed },
		Scratch: scratch, ScratchDir: filepath.Join(t.TempDir(), "scratch"), Free: func() (uint64, error) { return r.free.Load(), nil },
		Logger: zap.NewNop(), Metrics: NewMetrics(prometheus.NewRegistry()),
	})
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() { defer close(r.ended); r.Run(ctx) }()
	t.Cleanup(r.end)
	return r
}

func (r *making) end() { r.stop(); <-r.ended }

// ask is a request to the Maker.
func (r *making) ask(method, query string) (code int, body string) {
	w := httptest.NewRecorder()
	r.ServeHTTP(w, httptest.NewRequest(method, Path+"?"+query, nil))
	return w.Code, w.Body.String()
}

func (r *making) order(t *testing.T, query string) (out Outcome) {
	t.Helper()
	code, body := r.ask(http.MethodPost, query)
	if code != http.StatusOK {
		t.Fatalf("%s: %d %s", query, code, body)
	}
	if err := json.Unmarshal([]byte(body), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// valueOf is what a gauge or a counter shows.
func valueOf(t *testing.T, metric prometheus.Metric) float64 {
	t.Helper()
	var d dto.Metric
	if err := metric.Write(&d); err != nil {
		t.Fatal(err)
	}
	return d.GetGauge().GetValue() + d.GetCounter().GetValue()
}

// eventually polls a condition.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func hourly() Settings {
	return Settings{Place: Place{To: "x"}, Every: time.Hour, Increments: time.Hour, Retention: Retention{For: time.Hour, Least: 1}, MaxAge: time.Hour}
}

// TestMaker: the leader makes a full backup at once and increments when told, each proved; the next
// leader goes on from there, and what is damaged is found, said, and not gone on from.
func TestMaker(t *testing.T) {
	t.Parallel()
	root, m := t.TempDir(), newMember(t)
	m.some(10)
	a, b := startMaking(t, m, root, 0xa1, true, hourly()), startMaking(t, m, root, 0xb1, false, hourly())
	eventually(t, "a first backup is good", func() bool { return a.Status().LastGood != nil })
	if out := a.order(t, ""); !out.Unchanged || out.State != Proved {
		t.Errorf("nothing was written: %+v", out)
	}
	m.some(10)
	one := a.order(t, "kind=increment")
	if one.State != Proved || !strings.Contains(one.Name, "-increment-") {
		t.Errorf("%+v", one)
	}
	if code, body := b.ask(http.MethodPost, ""); code != http.StatusConflict || !strings.Contains(body, "ask the leader") {
		t.Errorf("who follows: %d %s", code, body)
	}
	m.some(5)
	a.lead(false)
	b.lead(true)
	two := b.order(t, "")
	if two.State == "" || !strings.HasSuffix(two.Name, "b1") || two.Error != "" {
		t.Errorf("the next leader: %+v", two)
	}
	c := load(t, Dir(datadir.FS(), root))
	if e := c.mustFind(t, two.Name); len(e.chain()) != 3 {
		t.Errorf("its chain has %d backups", len(e.chain()))
	}
	if out := b.order(t, "verify="+two.Name); out.State != Proved {
		t.Errorf("verified: %+v", out)
	}
	if code, body := b.ask(http.MethodGet, "list=1"); code != http.StatusOK || strings.Count(body, `"state":"good"`) != 3 {
		t.Errorf("the list: %d %s", code, body)
	}

	// Damage in the middle takes what follows with it.
	part := filepath.Join(root, clusterFolder(who.Cluster), one.Name, "0001.part")
	whole, err := os.ReadFile(part)
	if err != nil {
		t.Fatal(err)
	}
	whole[len(whole)/2] ^= 1
	if err := os.WriteFile(part, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := b.order(t, "verify="+one.Name); out.State != Bad || !strings.Contains(out.Error, "0001.part is damaged") {
		t.Errorf("damaged: %+v", out)
	}
	if got := valueOf(t, b.env.Metrics.failures); got != 1 {
		t.Errorf("%v failures", got)
	}
	if got := states(load(t, Dir(datadir.FS(), root))); got != "good;bad;orphaned;" {
		t.Error(got)
	}
	m.some(3)
	three := b.order(t, "")
	c = load(t, Dir(datadir.FS(), root))
	if e := c.mustFind(t, three.Name); len(e.chain()) != 2 || !e.State.usable() {
		t.Errorf("after the damage: %+v, %s of %d backups", three, e.State, len(e.chain()))
	}
	// Each revision from the first backup on can be had again.
	for rev := c.Entries[0].Manifest.Revision; rev <= m.kv.Revision(); rev++ {
		p, err := c.Plan(Target{Revision: rev})
		if err != nil {
			t.Fatal(err)
		}
		if r := restorePlan(t, Dir(datadir.FS(), root), p); r.hash != m.hash(rev) {
			t.Errorf("revision %d differs", rev)
		}
	}
	// A compaction that overtakes the increments.
	m.some(4)
	m.do(compact(m.kv.Revision()))
	if out := b.order(t, ""); out.State != Proved || !strings.Contains(out.Name, "-full-") {
		t.Errorf("after a compaction: %+v", out)
	}
}

// failing fails what writes while it is told to.
type failing struct {
	Depot
	fails atomic.Bool
}

func (f *failing) Write(ctx context.Context, name string, b []byte) error {
	if f.fails.Load() {
		return errors.New("no space left")
	}
	return f.Depot.Write(ctx, name, b)
}

// TestTooOld: a depot that takes nothing makes the last good backup too old, and a disk without room
// for the scratch store is no proof; both are over when they are.
func TestTooOld(t *testing.T) {
	t.Parallel()
	root, m := t.TempDir(), newMember(t)
	m.some(3)
	s := hourly()
	s.MaxAge = time.Nanosecond
	r := startMaking(t, m, root, 0xa1, false, s)
	d := &failing{Depot: r.env.Depot}
	d.fails.Store(true)
	r.env.Depot = d
	r.lead(true)
	eventually(t, "it is too old", func() bool { return valueOf(t, r.env.Metrics.tooOld) == 1 || r.Status().TooOld })
	if out := r.order(t, ""); !strings.Contains(out.Error, "no space left") {
		t.Errorf("%+v", out)
	}
	d.fails.Store(false)
	r.free.Store(1 << 20)
	if out := r.order(t, "kind=full"); out.State != "" || !strings.Contains(out.Error, "--backup-scratch-dir") {
		t.Errorf("without room: %+v", out)
	}
	if r.Status().LastGood != nil {
		t.Error("what was not restored is called good")
	}
	r.free.Store(1 << 50)
	if out := r.order(t, "kind=full"); out.State != Proved {
		t.Errorf("%+v", out)
	}
	eventually(t, "it is good", func() bool { return r.Status().LastGood != nil })
	r.lead(false)
	eventually(t, "who follows does not complain", func() bool { return valueOf(t, r.env.Metrics.tooOld) == 0 && !r.Status().TooOld })
}

// TestUnreadable: while what there is cannot be read, the last good backup is as old as it is, and not
// gone.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	root, m := filepath.Join(t.TempDir(), "backups"), newMember(t)
	m.some(3)
	r := startMaking(t, m, root, 0xa1, true, hourly())
	eventually(t, "it is good", func() bool { return r.Status().LastGood != nil })
	last := *r.Status().LastGood
	if err := os.Rename(root, root+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root, nil, 0o600); err != nil { // root reads what nobody may
		t.Fatal(err)
	}
	for range 3 { // the age is told between orders
		if out := r.order(t, ""); !strings.Contains(out.Error, "cannot be read") {
			t.Fatalf("%+v", out)
		}
		if s := r.Status(); s.LastGood == nil || !s.LastGood.Equal(last) || s.TooOld {
			t.Fatalf("last good %v, was %v; too old %v", s.LastGood, last, s.TooOld)
		}
	}
	if err := errors.Join(os.Remove(root), os.Rename(root+".away", root)); err != nil {
		t.Fatal(err)
	}
	if out := r.order(t, "kind=full"); out.State != Proved {
		t.Errorf("%+v", out)
	}
}

// TestSettings: what cannot be is refused, by the name of the flag.
func TestSettings(t *testing.T) {
	t.Parallel()
	for flag, change := range map[string]func(*Settings){
		"backup-to":                   func(s *Settings) { s.To = "ftp://x" },
		"backup-interval":             func(s *Settings) { s.Every = 0 },
		"backup-increment-interval":   func(s *Settings) { s.Increments = time.Millisecond },
		"backup-retention":            func(s *Settings) { s.For = -1 },
		"backup-keep":                 func(s *Settings) { s.Least = 0 },
		"backup-max-bytes-per-second": func(s *Settings) { s.BytesPerSecond = -1 },
		"backup-max-age":              func(s *Settings) { s.MaxAge = -1 },
	} {
		s := hourly()
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
		change(&s)
		if err := s.Check(); err == nil || !strings.Contains(err.Error(), "--"+flag+" ") {
			t.Errorf("%s: %v", flag, err)
		}
	}
	s := hourly()
	s.Increments = 2 * time.Hour
	if err := s.Check(); err == nil {
		t.Error("increments less often than full ones")
	}
	if err := (Settings{}).Check(); err != nil {
		t.Errorf("without a place: %v", err)
	}
}

// TestPace: what goes through is bounded.
func TestPace(t *testing.T) {
	t.Parallel()
	p := NewPace(1 << 20)
	start := time.Now()
	for range 4 {
		if err := p.wait(t.Context(), 64<<10); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took < 180*time.Millisecond { // three waits of 62.5 ms
		t.Errorf("256 KiB took %v at 1 MiB/s", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.wait(ctx, 1<<40); err == nil {
		t.Error("no end")
	}
}

// TestNextTry: what the log says of a failed backup is when the next one is tried by itself, also
// if the failed one was ordered.
func TestNextTry(t *testing.T) {
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	if got := (&Maker{notBefore: now.Add(time.Minute)}).nextTry(now); got != time.Minute {
		t.Errorf("after a failure: %v", got)
	}
	if got := (&Maker{}).nextTry(now); got != 0 {
		t.Errorf("at once: %v", got)
	}
	made := &Entry{State: Proved, Manifest: &Manifest{Kind: Full, Time: now.Add(-time.Hour)}}
	m := &Maker{s: Settings{Every: 3 * time.Hour}, catalog: &Catalog{Entries: []*Entry{made}}}
	if got := m.nextTry(now); got != 2*time.Hour {
		t.Errorf("an ordered one failed, an hour after the last: %v", got)
	}
}
