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

// abandonedAfter is when a folder without a manifest, that another member began, counts as
// interrupted.
const abandonedAfter = 24 * time.Hour

// expired are the entries that may go, in the order in which they must: an increment before its
// parent. A full backup goes with its increments, when the youngest of them is old enough. While
// no full backup is good, none goes. member has begun nothing that is still going on.
func (c *Catalog) expired(r Retention, member string, now time.Time) (gone []*Entry) {
	youngest := map[*Entry]time.Time{} // by full backup
	for _, e := range c.Entries {
		if e.State.usable() || e.State == Bad {
			root := e.root()
			if t := e.Manifest.Time; t.After(youngest[root]) {
				youngest[root] = t
			}
		}
	}
	var good []*Entry
	for root := range youngest {
		if root.State == Proved {
			good = append(good, root)
		}
	}
	slices.SortFunc(good, func(a, b *Entry) int { return youngest[b].Compare(youngest[a]) })
	kept := good[:min(len(good), max(r.Least, 1))]
	old := func(t time.Time) bool { return r.For > 0 && len(good) > 0 && now.Sub(t) > r.For }
	for _, e := range slices.Backward(c.Entries) {
		began, _ := timeOf(e.Name)
		var goes bool
		switch {
		case e.State == Incomplete:
			goes = strings.HasSuffix(e.Name, "-"+member) || now.Sub(began) > abandonedAfter
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
