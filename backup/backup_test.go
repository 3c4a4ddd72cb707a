package backup

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/internal/crash"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
)

// restored is what a plan's content becomes in a store.
type restored struct {
	revision, compacted int64
	hash                uint32
	leases              map[int64]int64 // TTL by id
	lost                int
}

func restorePlan(t testing.TB, d Depot, p *Plan) (r restored) {
	t.Helper()
	src := Read(t.Context(), d, p, nil)
	err := datadir.Scratch(t.Context(), filepath.Join(t.TempDir(), "scratch"), src, func(view *mvcc.View, _ int) (err error) {
		r.revision, r.compacted, r.leases, r.lost = view.Rev(), view.CompactRevision(), map[int64]int64{}, src.Lost
		if r.hash, err = view.HashState(t.Context(), view.Rev()); err != nil {
			return err
		}
		return lease.Records(view.Reader(), func(id lease.ID, ttl, _ int64) error { r.leases[int64(id)] = ttl; return nil })
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustProve(t testing.TB, d Depot, c *Catalog, e *Entry) {
	t.Helper()
	p, err := prove(t.Context(), d, c, e, trial(t), "test", nil)
	if err != nil || !p.Good {
		t.Fatalf("%v, %+v", err, p)
	}
	if err := writeProof(t.Context(), d, c.Cluster, e, p); err != nil {
		t.Fatal(err)
	}
}

// TestEveryRevision restores a full backup and its increments to each revision that they hold, with
// compactions, deletions, leases and users in between, and compares with what the member had.
func TestEveryRevision(t *testing.T) {
	t.Parallel()
	m, d := newMember(t), Dir(datadir.FS(), t.TempDir())
	m.do(grant(7), role("u"), put("leased", "x", 7))
	m.some(30)
	hashes := map[int64]uint32{}
	note := func() {
		for rev := max(m.kv.CompactRevision(), 1); rev <= m.kv.Revision(); rev++ {
			hashes[rev] = m.hash(rev)
		}
	}
	m.do(compact(12))
	full := m.save(d, nil, 0, true)
	note()
	m.some(25)
	one := m.save(d, full, 10, true)
	m.some(5)
	m.do(grant(8), put("second", "y", 8), revoke(7), role("v"))
	two := m.save(d, one, 20, false)
	note() // as of the compaction at 12
	m.do(compact(two.Manifest.Revision - 2))
	m.some(9)
	three := m.save(d, two, 30, true)

	c := load(t, d)
	if got := states(c); got != "unproved;unproved;unproved;unproved;" {
		t.Fatal(got)
	}
	for _, e := range c.Entries {
		mustProve(t, d, c, e)
	}
	if got := states(load(t, d)); got != "good;good;good;good;" {
		t.Error(got)
	}
	for rev := int64(12); rev <= two.Manifest.Revision; rev++ {
		p, err := c.Plan(Target{Revision: rev})
		if err != nil {
			t.Fatal(err)
		}
		r := restorePlan(t, d, p)
		if r.revision != rev || r.compacted != 12 || r.hash != hashes[rev] {
			t.Errorf("revision %d: %+v, want the hash %d; of %s", rev, r, hashes[rev], p.Last().Name)
		}
	}
	p, err := c.Plan(Target{Revision: three.Manifest.Revision})
	if err != nil {
		t.Fatal(err)
	}
	if r := restorePlan(t, d, p); r.hash != *three.Manifest.Hash || r.compacted != two.Manifest.Revision-2 || len(r.leases) != 1 {
		t.Errorf("at the end: %+v", r)
	}
	if len(p.Chain) != 4 || p.Chain[0].Name != full.Name {
		t.Errorf("the chain has %d backups", len(p.Chain))
	}
	for _, rev := range []int64{1, 11, three.Manifest.Revision + 1} {
		if p, err := c.Plan(Target{Revision: rev}); err == nil {
			t.Errorf("revision %d is restored from %s", rev, p.Last().Name)
		}
	}
}

// TestEverySecond restores to times between two backups.
func TestEverySecond(t *testing.T) {
	t.Parallel()
	m, d := newMember(t), Dir(datadir.FS(), t.TempDir())
	m.some(5)
	full := m.save(d, nil, 100, true)
	var times []Sighting
	for s := 101; s < 110; s++ {
		m.some(2)
		times = append(times, Sighting{at(s), m.kv.Revision()})
	}
	m.some(1)
	view := m.kv.View()
	defer view.Close()
	inc, err := save(t.Context(), d, view, saving{Origin: who, Parent: full, Time: at(110), Times: times, Hash: true})
	if err != nil {
		t.Fatal(err)
	}
	c := load(t, d)
	for _, tc := range []struct {
		at   time.Time
		rev  int64
		next time.Time
	}{
		{at(100), full.Manifest.Revision, at(101)},
		{at(100).Add(999 * time.Millisecond), full.Manifest.Revision, at(101)},
		{at(101), times[0].Revision, at(102)},
		{at(105).Add(time.Millisecond), times[4].Revision, at(106)},
		{at(109), times[8].Revision, at(110)},
		{at(110), inc.Manifest.Revision, time.Time{}},
		{at(999), inc.Manifest.Revision, time.Time{}},
	} {
		p, err := c.Plan(Target{Time: tc.at})
		if err != nil {
			t.Fatal(err)
		}
		if p.Revision != tc.rev || !p.Next.Equal(tc.next) {
			t.Errorf("at %v: revision %d, next %v; want %d, %v", tc.at, p.Revision, p.Next, tc.rev, tc.next)
		}
		if r := restorePlan(t, d, p); r.revision != tc.rev || r.hash != m.hash(tc.rev) {
			t.Errorf("at %v: %+v", tc.at, r)
		}
	}
	if p, err := c.Plan(Target{Time: at(99)}); err == nil {
		t.Errorf("before the first: revision %d", p.Revision)
	}
}

// A lease that lived and ended between two backups is made again where a key has it, so that the
// key ends.
func TestLostLease(t *testing.T) {
	t.Parallel()
	m, d := newMember(t), Dir(datadir.FS(), t.TempDir())
	m.do(put("a", "1", 0))
	full := m.save(d, nil, 0, true)
	m.do(grant(9), put("short", "1", 9))
	rev := m.kv.Revision()
	m.do(revoke(9), put("a", "2", 0))
	m.save(d, full, 10, true)
	p, err := load(t, d).Plan(Target{Revision: rev})
	if err != nil {
		t.Fatal(err)
	}
	if r := restorePlan(t, d, p); r.lost != 1 || r.leases[9] != LostLease || r.hash != m.hash(rev) {
		t.Errorf("%+v", r)
	}
}

// An increment is refused where a compaction took a part of it, and where the history is another.
func TestGaps(t *testing.T) {
	t.Parallel()
	m, d := newMember(t), Dir(datadir.FS(), t.TempDir())
	m.some(5)
	full := m.save(d, nil, 0, true)
	m.some(5)
	other := newMember(t)
	other.do(put("other", "x", 0))
	other.some(20)
	if _, err := other.trySave(d, full, 1, false); !errors.Is(err, ErrGap) {
		t.Errorf("of another history: %v", err)
	}
	short := newMember(t)
	if _, err := short.trySave(d, full, 2, false); !errors.Is(err, ErrGap) {
		t.Errorf("of a shorter history: %v", err)
	}
	m.do(compact(m.kv.Revision()))
	if _, err := m.trySave(d, full, 3, false); !errors.Is(err, ErrGap) {
		t.Errorf("after a compaction: %v", err)
	}
	if got := states(load(t, d)); got != "unproved;" {
		t.Error(got)
	}
}

// TestBrokenFiles cuts, changes and removes every file of a backup, at many places: what is left is
// never taken for a whole one, and never proved.
func TestBrokenFiles(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	m, d := newMember(t), Dir(datadir.FS(), root)
	m.do(grant(7), role("u"), put("leased", "x", 7))
	m.some(20)
	full := m.save(d, nil, 0, true)
	m.some(20)
	inc := m.save(d, full, 10, true)
	names := files(t, root)
	if len(names) != 6 { // of each a manifest, state and versions
		t.Fatal(names)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for _, name := range names {
		whole, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		try := func(what string, b []byte) {
			t.Helper()
			if b == nil {
				err = os.Remove(name)
			} else {
				err = os.WriteFile(name, b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			c := load(t, d)
			e := c.mustFind(t, path.Base(filepath.Dir(name)))
			if e.State.usable() {
				p, err := prove(t.Context(), d, c, e, Trial{}, "test", nil)
				if err == nil && p.Good {
					t.Errorf("%s %s: read back as good", name, what)
				}
				p, err = prove(t.Context(), d, c, e, trial(t), "test", nil)
				if err == nil && p.Good {
					t.Errorf("%s %s: proved", name, what)
				}
				if err != nil {
					t.Errorf("%s %s: not about the backup: %v", name, what, err)
				}
			}
			if e.Name == full.Name { // its increment falls with it
				i := c.mustFind(t, inc.Name)
				if i.State.usable() {
					if p, err := prove(t.Context(), d, c, i, trial(t), "test", nil); err == nil && p.Good {
						t.Errorf("%s %s: its increment is proved", name, what)
					}
				}
			}
		}
		try("removed", nil)
		try("empty", []byte{})
		try("longer", append(append([]byte{}, whole...), 'x'))
		for range 2 {
			try("cut", whole[:rng.IntN(len(whole))])
			changed := append([]byte{}, whole...)
			changed[rng.IntN(len(changed))] ^= 1 << rng.IntN(8)
			try("changed", changed)
		}
		if err := os.WriteFile(name, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Parts exchanged between backups, with names that fit.
	a := filepath.Join(root, clusterFolder(who.Cluster), full.Name)
	b := filepath.Join(root, clusterFolder(who.Cluster), inc.Name)
	for _, pair := range [][2]string{{"0002.part", "0002.part"}, {manifestName, manifestName}} {
		left, _ := os.ReadFile(filepath.Join(a, pair[0]))
		right, _ := os.ReadFile(filepath.Join(b, pair[1]))
		for _, w := range []struct {
			dir string
			b   []byte
		}{{a, right}, {b, left}} {
			if err := os.WriteFile(filepath.Join(w.dir, pair[0]), w.b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c := load(t, d)
		for _, e := range c.Entries {
			if p, err := prove(t.Context(), d, c, e, trial(t), "test", nil); err == nil && p.Good {
				t.Errorf("%s exchanged: %s is proved", pair[0], e.Name)
			}
		}
		for _, w := range []struct {
			dir string
			b   []byte
		}{{a, left}, {b, right}} {
			if err := os.WriteFile(filepath.Join(w.dir, pair[0]), w.b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	c := load(t, d)
	mustProve(t, d, c, c.mustFind(t, inc.Name))
}

// stopping fails its nth call that changes something, before or after it was done.
type stopping struct {
	Depot
	left  int
	after bool
}

var errStopped = errors.New("stopped")

func (s *stopping) step(do func() error) error {
	if s.left--; s.left == 0 && !s.after {
		return errStopped
	}
	if s.left < 0 {
		return errStopped
	}
	if err := do(); err != nil {
		return err
	}
	if s.left == 0 {
		return errStopped
	}
	return nil
}

func (s *stopping) Write(ctx context.Context, name string, b []byte) error {
	return s.step(func() error { return s.Depot.Write(ctx, name, b) })
}

func (s *stopping) Remove(ctx context.Context, name string) error {
	return s.step(func() error { return s.Depot.Remove(ctx, name) })
}

func (s *stopping) RemoveFolder(ctx context.Context, folder string) error {
	return s.step(func() error { return s.Depot.RemoveFolder(ctx, folder) })
}

// TestCrashes stops after each step of saving and of removing, with a power failure of every kind
// behind it: what save has acknowledged is whole, and what is not whole is no backup.
func TestCrashes(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(3, 4))
	m := newMember(t)
	m.do(grant(7), put("leased", "x", 7))
	m.some(20)
	// whole reports whether a backup is whole by its manifest, and checks that it then is.
	check := func(fs *vfs.MemFS, acknowledged ...*Entry) error {
		d := Dir(fs, "/backups")
		c, err := Load(t.Context(), d, clusterFolder(who.Cluster), nil)
		if err != nil {
			return err
		}
		for _, e := range c.Entries {
			if e.State == Incomplete {
				continue
			}
			if !e.State.usable() {
				return fmt.Errorf("%s is %s: %w", e.Name, e.State, e.Err)
			}
			if err := readBack(t.Context(), d, c.Cluster, e, nil); err != nil {
				return err
			}
		}
		for _, a := range acknowledged {
			if e := c.find(a.Name); e == nil || !e.State.usable() {
				return fmt.Errorf("%s was acknowledged and is not there", a.Name)
			}
		}
		return nil
	}
	for after := range 2 {
		for n := 1; ; n++ {
			fs := vfs.NewCrashableMem()
			d := &stopping{Dir(fs, "/backups"), 1 << 30, after == 1}
			full := m.save(d, nil, 0, true)
			acknowledged := []*Entry{full}
			d.left = n
			inc, err := m.trySave(d, full, 10, true)
			if err == nil {
				acknowledged = append(acknowledged, inc)
			} else if !errors.Is(err, errStopped) {
				t.Fatal(err)
			}
			if err := crash.Kinds(fs, 8, rng, func(left *vfs.MemFS) error { return check(left, acknowledged...) }); err != nil {
				t.Fatalf("stopped at step %d: %v", n, err)
			}
			if err == nil {
				break
			}
		}
		for n := 1; ; n++ {
			fs := vfs.NewCrashableMem()
			d := &stopping{Dir(fs, "/backups"), 1 << 30, after == 1}
			full := m.save(d, nil, 0, true)
			inc := m.save(d, full, 10, true)
			d.left = n
			err := remove(t.Context(), d, clusterFolder(who.Cluster), inc)
			if err != nil && !errors.Is(err, errStopped) {
				t.Fatal(err)
			}
			if err := crash.Kinds(fs, 8, rng, func(left *vfs.MemFS) error { return check(left, full) }); err != nil {
				t.Fatalf("removing, stopped at step %d: %v", n, err)
			}
			if err == nil {
				break
			}
		}
	}
}

// TestRetention: young ones stay, the last good one stays, and an increment goes before its parent.
func TestRetention(t *testing.T) {
	t.Parallel()
	m, d := newMember(t), Dir(datadir.FS(), t.TempDir())
	const hour = 3600
	var all []*Entry
	for h := range 4 {
		m.some(3)
		full := m.save(d, nil, h*hour, true)
		m.some(3)
		all = append(all, full, m.save(d, full, h*hour+60, true))
	}
	gone := func(r Retention, now int) (text string) {
		for _, e := range load(t, d).expired(r, "", at(now), 1000*time.Hour) {
			for i, known := range all {
				if known.Name == e.Name {
					text += fmt.Sprint(i, " ")
				}
			}
		}
		return text
	}
	r := Retention{For: 2 * time.Hour, Least: 1}
	if got := gone(r, 100*hour); got != "" {
		t.Errorf("without a good one, %s goes", got)
	}
	c := load(t, d)
	for _, i := range []int{1, 3} { // the first two, with their increments
		mustProve(t, d, c, c.mustFind(t, all[i].Name))
	}
	for _, tc := range []struct {
		r    Retention
		now  int
		want string
	}{
		{r, 2 * hour, ""},
		{r, 2*hour + 59, ""},
		{r, 2*hour + 61, "1 0 "},
		{r, 3*hour + 61, "1 0 "}, // the second is the last good one
		{r, 100 * hour, "7 5 1 6 4 0 "},
		{Retention{For: 2 * time.Hour, Least: 2}, 100 * hour, "7 5 6 4 "},
		{Retention{}, 100 * hour, ""},
	} {
		if got := gone(tc.r, tc.now); got != tc.want {
			t.Errorf("%+v at %d h: %q goes, want %q", tc.r, tc.now/hour, got, tc.want)
		}
	}
	// What was interrupted.
	for _, name := range []string{"20261129T120000.000Z-full-r9-00000000000000b1", "20261129T120000.000Z-full-r9-00000000000000a1"} {
		if err := d.Write(t.Context(), path.Join(clusterFolder(who.Cluster), name, "0001.part"), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	c = load(t, d)
	if e := c.expired(r, "00000000000000a1", at(1), 1000*time.Hour); len(e) != 1 || !strings.HasSuffix(e[0].Name, "a1") {
		t.Errorf("%v goes", e)
	}
	if e := c.expired(Retention{}, "00000000000000a1", at(25*hour), 1000*time.Hour); len(e) != 2 {
		t.Errorf("after a day %v goes", e)
	}
	for _, e := range c.expired(r, "00000000000000a1", at(100*hour), 1000*time.Hour) {
		if err := remove(t.Context(), d, c.Cluster, e); err != nil {
			t.Fatal(err)
		}
	}
	if got := states(load(t, d)); got != "good;good;" {
		t.Error(got)
	}
}

// A clock that is wrong costs no backup: one that is years ahead ages them by a step, and what was
// made by it takes nobody's place when the clock is right again.
func TestRetentionByAWrongClock(t *testing.T) {
	t.Parallel()
	const hour, years = 3600, 80 * 365 * 24 * 3600
	c := &Catalog{}
	add := func(second int) *Entry {
		e := &Entry{Name: at(second).UTC().Format(nameTime) + "-full", Manifest: &Manifest{Kind: Full, Time: at(second)}, State: Proved}
		c.Entries = append(c.Entries, e)
		return e
	}
	gone := func(second int) (names []string) {
		s := Settings{Every: time.Hour, Retention: Retention{For: 48 * time.Hour, Least: 1}}
		for _, e := range c.expired(s.Retention, "", at(second), s.agingStep()) {
			names = append(names, e.Name)
		}
		return names
	}
	for h := range 48 {
		add(h * hour)
	}
	if names := gone(47 * hour); len(names) != 0 {
		t.Errorf("%v goes, and is not 48 hours old", names)
	}
	if names := gone(years); len(names) > 6 {
		t.Errorf("with a clock that is 80 years ahead, %d of 48 backups go at once", len(names))
	}
	if names := gone(-years); len(names) != 0 {
		t.Errorf("with a clock that is 80 years behind, %v goes", names)
	}
	wrong := add(years) // and one is made by it
	if names := gone(years + 60); len(names) > 6 {
		t.Errorf("with a backup by that clock, %d of 49 go at once", len(names))
	}
	c.Entries = []*Entry{c.Entries[0], wrong} // the clock is right again, long after
	newest := add(1000 * hour)
	if names := gone(1001 * hour); slices.Contains(names, newest.Name) || slices.Contains(names, wrong.Name) {
		t.Errorf("%v goes, of which one is the last good backup, or ahead of the clock", names)
	}
	for h := range 60 {
		add((1001 + h) * hour)
	}
	if names := gone(1060 * hour); !slices.Contains(names, c.Entries[0].Name) || !slices.Contains(names, newest.Name) {
		t.Errorf("only %v goes: the oldest is 1,060 hours old", names)
	}
}

// A folder that no backup has the name of is nobody's business here.
func TestForeignFolders(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	m, d := newMember(t), Dir(datadir.FS(), root)
	m.some(3)
	m.save(d, nil, 0, true)
	for _, name := range []string{"lost+found", "2026", "20261129T120000.000Z", "x-full"} {
		if err := os.MkdirAll(filepath.Join(root, clusterFolder(who.Cluster), name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	c := load(t, d)
	if got := states(c); got != "unproved;" {
		t.Error(got)
	}
	clusters, err := Clusters(t.Context(), d)
	if err != nil || len(clusters) != 1 || clusters[0] != "00000000000000c1" {
		t.Errorf("%v, %v", clusters, err)
	}
}

// A format of a later version is refused with a text that says so.
func TestLaterFormat(t *testing.T) {
	t.Parallel()
	m, d := newMember(t), Dir(datadir.FS(), t.TempDir())
	m.some(3)
	e := m.save(d, nil, 0, true)
	later := *e.Manifest
	later.Format = formatVersion + 1
	b, _, err := seal(later)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Write(t.Context(), path.Join(clusterFolder(who.Cluster), e.Name, manifestName), b); err != nil {
		t.Fatal(err)
	}
	if e := load(t, d).Entries[0]; e.State != Damaged || !strings.Contains(e.Err.Error(), "use a newer one") {
		t.Errorf("%s: %v", e.State, e.Err)
	}
}

// FuzzRecords: no bytes make the decoders do more than refuse them.
func FuzzRecords(f *testing.F) {
	f.Add(appendAuth(appendLease(appendVersion(nil, 5, 1, true, []byte("x")), 7, 60, 30), "authUsers", "u", []byte("v")))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = eachRecord(b, func(_ byte, body []byte) error {
			_, _ = decodeVersion(body)
			_, _, _, _ = decodeLease(body)
			_, _, _, _ = decodeAuth(body)
			return nil
		})
		_, _ = decodePart(Part{Bytes: int64(len(b)), Raw: 100}, b)
		_, _ = unseal(b, new(Manifest))
	})
}
