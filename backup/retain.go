package backup

import (
	"context"
	"path"
	"slices"
	"strings"
	"time"
)

// A Retention says what may be removed.
type Retention struct {
	For   time.Duration // what is younger is kept; 0: everything
	Least int           // of the full backups that are good, with their increments, so many are kept however old
}

// aheadBy is how far a backup's time may be ahead of this member's clock before one of the clocks is
// wrong.
const aheadBy = time.Minute

// An aging says how old backups are, by the clock of whoever asks, which may be wrong. A clock that is
// years ahead must not cost every backup but the last ones, and nothing tells it from a cluster that
// stood still for years. So of the time between two backups at most a step counts, and so of that
// since the last one: the others stay until new ones have taken their place, which needs no more room
// than there always is. What is ahead of the clock has no age.
type aging struct {
	now   time.Time
	step  time.Duration
	times []time.Time     // of the backups that are not ahead, oldest first, and now
	ages  []time.Duration // of each of times
}

func newAging(times []time.Time, now time.Time, step time.Duration) *aging {
	a := &aging{now: now, step: step}
	for _, t := range times {
		if t.Before(now) {
			a.times = append(a.times, t)
		}
	}
	slices.SortFunc(a.times, time.Time.Compare)
	a.times = append(a.times, now)
	a.ages = make([]time.Duration, len(a.times))
	for i := len(a.times) - 2; i >= 0; i-- {
		a.ages[i] = a.ages[i+1] + min(a.times[i+1].Sub(a.times[i]), step)
	}
	return a
}

// ahead reports whether t cannot be in the past of the clock.
func (a *aging) ahead(t time.Time) bool { return t.Sub(a.now) > aheadBy }

// of is the age of something that was made at t.
func (a *aging) of(t time.Time) time.Duration {
	i, _ := slices.BinarySearchFunc(a.times, t, time.Time.Compare)
	if i == len(a.times) {
		return 0
	}
	return a.ages[i] + min(a.times[i].Sub(t), a.step)
}

// agingStep is what of a time without backups counts: one that was missed does not matter.
func (s Settings) agingStep() time.Duration { return max(2*s.Every, s.For/8) }

// abandonedAfter is when a folder without a manifest, that another member began, counts as
// interrupted.
const abandonedAfter = 24 * time.Hour

// expired are the entries that may go, in the order in which they must: an increment before its
// parent. A full backup goes with its increments, when the youngest of them is old enough. While
// no full backup is good, none goes. member has begun nothing that is still going on. now and step
// are aging's.
func (c *Catalog) expired(r Retention, member string, now time.Time, step time.Duration) (gone []*Entry) {
	youngest := map[*Entry]time.Time{} // by full backup
	var times []time.Time
	for _, e := range c.Entries {
		if e.State.usable() || e.State == Bad {
			times = append(times, e.Manifest.Time)
			root := e.root()
			if t := e.Manifest.Time; t.After(youngest[root]) {
				youngest[root] = t
			}
		}
	}
	ages := newAging(times, now, step)
	var good []*Entry
	for root := range youngest {
		if root.State == Proved && !ages.ahead(youngest[root]) {
			good = append(good, root)
		}
	}
	slices.SortFunc(good, func(a, b *Entry) int { return youngest[b].Compare(youngest[a]) })
	kept := good[:min(len(good), max(r.Least, 1))]
	old := func(t time.Time) bool { return r.For > 0 && len(good) > 0 && ages.of(t) > r.For }
	for _, e := range slices.Backward(c.Entries) {
		began, _ := timeOf(e.Name)
		var goes bool
		switch {
		case e.State == Incomplete:
			goes = strings.HasSuffix(e.Name, "-"+member) || ages.of(began) > abandonedAfter
		case e.State == Damaged || e.State == Orphaned:
			goes = old(began)
		default:
			root := e.root()
			goes = !slices.Contains(kept, root) && old(youngest[root])
		}
		if goes {
			gone = append(gone, e)
		}
	}
	depth := func(e *Entry) (n int) {
		for ; e != nil; e = e.parent {
			n++
		}
		return n
	}
	slices.SortStableFunc(gone, func(a, b *Entry) int { return depth(b) - depth(a) })
	return gone
}

// remove removes a backup: first what makes it one, so that nothing that is left can be taken for it.
func remove(ctx context.Context, d Depot, cluster string, e *Entry) error {
	folder := path.Join(cluster, e.Name)
	if err := d.Remove(ctx, path.Join(folder, manifestName)); err != nil {
		return err
	}
	return d.RemoveFolder(ctx, folder)
}
