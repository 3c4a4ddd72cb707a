package backup

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/belaydb/belay/datadir"
)

// A trio is members that make backups of one state, by turns. Who leads is said, not elected.
type trio struct {
	t  *testing.T
	m  *member
	by map[uint64]*deputized

	mu      sync.Mutex
	leader  uint64
	term    uint64
	changed chan struct{}

	writes map[string]*writing // by backup
	old    map[uint64]bool     // members that have not heard of the last election
	deaf   atomic.Bool         // no question of the leader's arrives, but raft's messages do
	more   sync.WaitGroup      // orders
}

// deputized is one of them.
type deputized struct {
	*Maker
	id     uint64
	root   string // of its depot
	stop   context.CancelFunc
	ended  chan struct{}
	cut    atomic.Bool // nobody hears it, and it hears nobody
	behind atomic.Bool
	unwell atomic.Value // string
	// hold, if not nil, keeps its manifests from being written; held are those. broken: writes fail.
	hold   atomic.Pointer[chan struct{}]
	held   atomic.Int64
	broken atomic.Bool
}

func newTrio(t *testing.T, m *member, roots ...string) *trio {
	g := &trio{t: t, m: m, by: map[uint64]*deputized{}, leader: 1, term: 1, changed: make(chan struct{}), writes: map[string]*writing{}}
	g.m.some(10)
	for i, root := range roots {
		g.by[uint64(i+1)] = &deputized{id: uint64(i + 1), root: root}
	}
	for _, d := range g.by {
		g.start(d)
	}
	return g
}

func (g *trio) start(d *deputized) {
	o := who
	o.Member, o.MemberName = d.id, string('a'+rune(d.id-1))
	s := hourly()
	s.Every = 1000 * time.Hour // only what is ordered
	s.Increments = s.Every
	watched := &watchedDepot{Depot: Dir(datadir.FS(), d.root), d: d, g: g}
	maker := New(s, Env{
		Origin: o, Depot: watched, View: g.m.kv.View,
		Applied: func() uint64 {
			if d.behind.Load() {
				return 0
			}
			index, _ := g.m.Applied()
			return index
		},
		Leading: func() bool { id, _ := g.led(d); return id == d.id }, Leader: func() (uint64, uint64) { return g.led(d) },
		Changed: func() <-chan struct{} { g.mu.Lock(); defer g.mu.Unlock(); return g.changed },
		Times:   func(time.Time) []Sighting { return nil },
		Unwell:  func() string { why, _ := d.unwell.Load().(string); return why },
		Deputies: func() (list []Deputy) {
			for id := uint64(1); id <= 3; id++ {
				if other := g.by[id]; id != d.id {
					list = append(list, Deputy{ID: id, Name: string('a' + rune(id-1)), Ask: func(ctx context.Context, q TurnQuestion) (TurnAnswer, error) {
						if d.cut.Load() || other.cut.Load() || g.deaf.Load() {
							return TurnAnswer{}, errors.New("cut off")
						}
						g.mu.Lock()
						maker := other.Maker // the one that runs now
						g.mu.Unlock()
						return maker.Turn(d.id, q), nil
					}})
				}
			}
			return list
		},
		Scratch: scratch, ScratchDir: filepath.Join(g.t.TempDir(), "scratch"), Free: func() (uint64, error) { return 1 << 50, nil },
		Logger: zap.NewNop(), Metrics: NewMetrics(prometheus.NewRegistry()),
	})
	g.mu.Lock()
	d.Maker = maker
	g.mu.Unlock()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	d.stop, d.ended = stop, ended
	go func() { defer close(ended); maker.Run(ctx) }()
	g.t.Cleanup(func() {
		d.release()
		stop()
		<-ended
	})
}

// led is who leads, as a member sees it: one that is cut off from the leader sees none.
func (g *trio) led(d *deputized) (id, term uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.old[d.id] {
		return 1, 1
	}
	if l := g.by[g.leader]; l != nil && l != d && (l.cut.Load() || d.cut.Load()) {
		return 0, g.term
	}
	return g.leader, g.term
}

// elect makes one the leader; old are those that do not hear of it.
func (g *trio) elect(id uint64, old ...uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.old = map[uint64]bool{}; id != g.leader {
		g.leader, g.term = id, g.term+1
	}
	for _, o := range old {
		g.old[o] = true
	}
	close(g.changed)
	g.changed = make(chan struct{})
}

// A watchedDepot remembers who wrote to which backup, and when.
type watchedDepot struct {
	Depot
	d *deputized
	g *trio
}

type writing struct {
	by          uint64
	first, last time.Time
}

func (w *watchedDepot) Write(ctx context.Context, name string, b []byte) error {
	folder, file := path.Split(name)
	if file != proofName {
		at := func() {
			w.g.mu.Lock()
			defer w.g.mu.Unlock()
			if w.g.writes[folder] == nil {
				w.g.writes[folder] = &writing{w.d.id, time.Now(), time.Now()}
			}
			w.g.writes[folder].last = time.Now()
		}
		at()
		if hold := w.d.hold.Load(); hold != nil && file == manifestName {
			w.d.held.Add(1)
			select {
			case <-*hold:
			case <-ctx.Done():
			}
			w.d.held.Add(-1)
			at()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if w.d.broken.Load() {
			return errors.New("broken")
		}
	}
	return w.Depot.Write(ctx, name, b)
}

// alone: no two members wrote backups at the same time.
func (g *trio) alone() {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	for a, x := range g.writes {
		for b, y := range g.writes {
			if a < b && x.by != y.by && x.first.Before(y.last) && y.first.Before(x.last) {
				g.t.Errorf("%s by %d from %v to %v, %s by %d from %v to %v", a, x.by, x.first, x.last, b, y.by, y.first, y.last)
			}
		}
	}
}

// order has a member make a backup.
func (g *trio) order(id uint64) Outcome {
	g.t.Helper()
	g.m.some(3)
	return g.ask(id, &order{done: make(chan Outcome, 1)})
}

// verify has a member try a backup.
func (g *trio) verify(id uint64, name string) Outcome {
	g.t.Helper()
	return g.ask(id, &order{verify: name, done: make(chan Outcome, 1)})
}

func (g *trio) ask(id uint64, o *order) Outcome {
	g.t.Helper()
	out, err := g.by[id].order(g.t.Context(), o)
	if err != nil {
		g.t.Fatal(err)
	}
	return out
}

// is wants a good backup, made by one.
func (g *trio) is(out Outcome, by string) {
	g.t.Helper()
	if out.Error != "" || out.State != Proved || out.By != by {
		g.t.Errorf("%+v, want a good one by %s", out, by)
	}
}

// TestTurn: the leader makes the first backup, and has others made by a member that is well, has
// caught up and sees the same depot; itself if there is none.
func TestTurn(t *testing.T) {
	t.Parallel()
	root, other := t.TempDir(), t.TempDir()
	m := newMember(t)
	synctest.Test(t, func(t *testing.T) {
		g := newTrio(t, m, root, root, root)
		g.is(g.order(1), "a")
		g.is(g.order(1), "b")
		g.is(g.order(1), "b")
		g.by[2].unwell.Store("its disk is slow")
		g.is(g.order(1), "c")
		g.by[2].unwell.Store("")
		g.is(g.order(1), "c") // it knows what there is
		g.by[3].behind.Store(true)
		g.is(g.order(1), "b")
		g.by[2].behind.Store(true)
		g.is(g.order(1), "a")
		late := TurnQuestion{ID: "x", Begin: true, Term: 1, Now: time.Now().Add(time.Minute)}
		if a := g.by[2].Turn(1, late); a.Refused != "its clock differs from the leader's by 1m0s" {
			t.Errorf("by a clock that is ahead: %+v", a)
		}
		if code, body := ask(g.by[2].Maker); code != http.StatusConflict {
			t.Errorf("who follows takes an order: %d %s", code, body)
		}
		if s := g.by[2].Status(); s.LastGood != nil || s.Leading || s.Running != nil {
			t.Errorf("who follows says %+v", s)
		}
		g.alone()
	})
	m = newMember(t)
	synctest.Test(t, func(t *testing.T) {
		g := newTrio(t, m, t.TempDir(), other, other)
		g.is(g.order(1), "a")
		g.is(g.order(1), "a")
	})
}

// TestTurnVerifies: another member tries a backup for the leader, and that it is bad is no reason to
// ask another one, or to pass it over.
func TestTurnVerifies(t *testing.T) {
	t.Parallel()
	root, m := t.TempDir(), newMember(t)
	synctest.Test(t, func(t *testing.T) {
		g := newTrio(t, m, root, root, root)
		one := g.order(1)
		g.is(one, "a")
		g.is(g.verify(1, one.Name), "b")
		g.by[2].unwell.Store("its disk is slow")
		g.is(g.verify(1, one.Name), "c")
		g.by[3].unwell.Store("its disk is slow")
		g.is(g.verify(1, one.Name), "a")
		g.by[2].unwell.Store("")
		if out := g.verify(1, "none"); out.Error != "there is no backup none" || out.By != "" {
			t.Errorf("one that is not there: %+v", out)
		}
		if s := g.by[1].Status(); s.LastError != "" {
			t.Errorf("a name that was mistyped is told as %q", s.LastError)
		}

		two := g.order(1)
		g.is(two, "b")
		part := filepath.Join(root, clusterFolder(who.Cluster), two.Name, "0001.part")
		whole, err := os.ReadFile(part)
		if err != nil {
			t.Fatal(err)
		}
		damaged := bytes.Clone(whole)
		damaged[len(damaged)/2] ^= 1
		if err := os.WriteFile(part, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if out := g.verify(1, two.Name); out.State != Bad || out.By != "b" || !strings.Contains(out.Error, "0001.part is damaged") {
			t.Errorf("a damaged one: %+v", out)
		}
		if s := g.by[1].Status(); !strings.Contains(s.LastError, "0001.part is damaged") {
			t.Errorf("the leader says %+v", s)
		}
		if got := states(load(t, Dir(datadir.FS(), root))); got != "good;bad;" {
			t.Error(got)
		}
		if err := os.WriteFile(part, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		g.is(g.verify(1, two.Name), "b")
		if got := states(load(t, Dir(datadir.FS(), root))); got != "good;good;" {
			t.Error(got)
		}
		g.alone()
	})
}

// TestTurnEnds fails the leader, the deputy and what is between them while a deputy makes a backup.
// Nobody else begins one before it has ended, and the next order gives a good one.
func TestTurnEnds(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		fail func(g *trio)
		lead uint64 // who leads then
		by   string // who makes the backup that was ordered; "": its leader is gone
	}{
		{"the leader is cut off", func(g *trio) { g.by[1].cut.Store(true); time.Sleep(time.Second); g.elect(3) }, 3, ""},
		{"leadership moves", func(g *trio) { g.elect(3) }, 3, ""},
		{"the deputy is elected", func(g *trio) { g.elect(2) }, 2, ""},
		{"leader and deputy hear late of another", func(g *trio) {
			g.elect(3, 1, 2)
			g.more.Go(func() {
				if out := g.order(3); out.Error != "" {
					g.t.Errorf("by the new leader: %+v", out)
				}
			})
			time.Sleep(3 * time.Second)
			g.elect(3)
		}, 3, ""},
		{"the leader's questions are lost", func(g *trio) { g.deaf.Store(true) }, 1, "a"},
		{"the deputy is cut off", func(g *trio) { g.by[2].cut.Store(true) }, 1, "a"},
		{"the deputy is killed", func(g *trio) { g.by[2].cut.Store(true); g.by[2].stop() }, 1, "a"},
		{"the deputy is started anew", func(g *trio) {
			g.by[2].stop()
			<-g.by[2].ended
			g.start(g.by[2])
		}, 1, "c"},
		{"its depot fails", func(g *trio) { g.by[2].broken.Store(true); g.by[2].release() }, 1, "a"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			root, m := t.TempDir(), newMember(t)
			synctest.Test(t, func(t *testing.T) {
				g := newTrio(t, m, root, root, root)
				g.is(g.order(1), "a")
				hold := make(chan struct{})
				g.by[2].hold.Store(&hold)
				var out Outcome
				var ordering sync.WaitGroup
				ordering.Go(func() { out = g.order(1) })
				for g.by[2].held.Load() == 0 {
					time.Sleep(10 * time.Millisecond)
				}
				if s := g.by[1].Status(); s.Running == nil {
					t.Errorf("the leader does not say what is being done: %+v", s)
				}
				tc.fail(g)
				ordering.Wait()
				if tc.by != "" {
					g.is(out, tc.by)
				} else if out.Error != errLeads.Error() {
					t.Errorf("who led says %+v", out)
				}
				g.more.Wait()
				time.Sleep(time.Second) // so that one that had not ended is seen
				g.by[2].release()
				if next := g.order(tc.lead); next.Error != "" || next.State != Proved {
					t.Errorf("the next one: %+v", next)
				}
				g.alone()
				for _, e := range load(t, Dir(datadir.FS(), root)).Entries {
					if e.State != Proved && !((e.State == Incomplete || e.State == Unproved) && strings.HasSuffix(e.Name, "2")) {
						t.Errorf("%s is %s: %v", e.Name, e.State, e.Err)
					}
				}
			})
		})
	}
}

func ask(m *Maker) (code int, body string) {
	w := httptest.NewRecorder()
	m.ServeHTTP(w, httptest.NewRequest(http.MethodPost, Path, nil))
	return w.Code, w.Body.String()
}

func (d *deputized) release() {
	if hold := d.hold.Swap(nil); hold != nil {
		close(*hold)
	}
}
