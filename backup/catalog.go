package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

// A State says how far a backup can be relied on.
type State string

const (
	Proved     State = "good"       // restored, alone or as an ancestor, and compared
	ReadBack   State = "read back"  // its files were read back and their sums compared
	Unproved   State = "unproved"   // whole by its manifest, and never tried
	Bad        State = "bad"        // tried, and refused
	Damaged    State = "damaged"    // its manifest cannot be read, or is no backup's
	Orphaned   State = "orphaned"   // an increment whose parent is not there, or is damaged
	Incomplete State = "incomplete" // no manifest: it is being made, or was interrupted
)

// An Entry is a folder of a depot: a backup, or what is left of one.
type Entry struct {
	Name     string
	Manifest *Manifest // nil: there is none that can be read
	Proof    *Proof    // nil: none, or of another manifest
	State    State
	Err      error // why it is Bad, Damaged or Orphaned

	seal   string // of the manifest
	parent *Entry
}

// Bytes is how much its parts take.
func (e *Entry) Bytes() int64 {
	if e.Manifest == nil {
		return 0
	}
	return e.Manifest.bytes()
}

// chain is the entry with its ancestors, the full one first.
func (e *Entry) chain() (chain []*Entry) {
	for ; e != nil; e = e.parent {
		chain = append(chain, e)
	}
	slices.Reverse(chain)
	return chain
}

// root is the full backup that the entry goes back to.
func (e *Entry) root() *Entry {
	for e.parent != nil {
		e = e.parent
	}
	return e
}

// usable: what it says can be restored, unless a file turns out to be damaged.
func (s State) usable() bool { return s == Proved || s == ReadBack || s == Unproved }

// A Catalog is what a depot holds of one cluster.
type Catalog struct {
	Cluster string   // its folder: the id in hexadecimal
	Entries []*Entry // oldest first
}

func clusterFolder(id uint64) string { return fmt.Sprintf("%016x", id) }

// Clusters are the clusters that a depot has folders of.
func Clusters(ctx context.Context, d Depot) (clusters []string, err error) {
	items, err := d.List(ctx, "")
	for _, item := range items {
		if item.Folder && len(item.Name) == 16 && strings.Trim(item.Name, "0123456789abcdef") == "" {
			clusters = append(clusters, item.Name)
		}
	}
	return clusters, err
}

// Load reads all manifests of a cluster. known, if not nil, is an earlier catalog of the same, from
// which what cannot have changed is taken.
func Load(ctx context.Context, d Depot, cluster string, known *Catalog) (*Catalog, error) {
	items, err := d.List(ctx, cluster)
	if err != nil {
		return nil, err
	}
	c := &Catalog{Cluster: cluster}
	for _, item := range items {
		if _, ok := timeOf(item.Name); !ok || !item.Folder {
			continue // it is none of ours
		}
		e := &Entry{Name: item.Name}
		if known != nil {
			if old := known.find(item.Name); old != nil && old.Manifest != nil {
				e.Manifest, e.seal, e.Proof = old.Manifest, old.seal, old.Proof
			}
		}
		if err := c.read(ctx, d, e); err != nil {
			return nil, err
		}
		c.Entries = append(c.Entries, e)
	}
	c.judge()
	return c, nil
}

// nameTime begins the name of a backup.
const nameTime = "20060102T150405.000Z"

// timeOf is the time in a backup's name; false: that is no backup's name.
func timeOf(name string) (time.Time, bool) {
	if len(name) <= len(nameTime) || name[len(nameTime)] != '-' {
		return time.Time{}, false
	}
	t, err := time.Parse(nameTime, name[:len(nameTime)])
	return t, err == nil
}

func (c *Catalog) find(name string) *Entry {
	for _, e := range c.Entries {
		if e.Name == name {
			return e
		}
	}
	return nil
}

// read reads manifest and proof. An error is one of the depot's, not of what is in it.
func (c *Catalog) read(ctx context.Context, d Depot, e *Entry) error {
	if e.Manifest == nil {
		b, err := readAll(ctx, d, path.Join(c.Cluster, e.Name, manifestName), maxSealedBytes)
		if errors.Is(err, iofs.ErrNotExist) {
			e.State, e.Err = Incomplete, errors.New("it has no manifest: it is being made, or was interrupted")
			return nil
		}
		if err != nil {
			return err
		}
		m := new(Manifest)
		sum, err := unseal(b, m)
		if err == nil {
			err = m.check()
		}
		if err == nil && m.Cluster != c.Cluster {
			err = fmt.Errorf("it is of the cluster %s", m.Cluster)
		}
		if err != nil {
			e.State, e.Err = Damaged, fmt.Errorf("%s: %w", manifestName, err)
			return nil
		}
		e.Manifest, e.seal = m, sum
	}
	if e.Proof != nil && e.Proof.Good {
		return nil
	}
	b, err := readAll(ctx, d, path.Join(c.Cluster, e.Name, proofName), maxSealedBytes)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	p := new(Proof)
	// One that cannot be read proves nothing, and condemns nothing.
	if _, err := unseal(b, p); err == nil && p.Seal == e.seal {
		e.Proof = p
	}
	return nil
}

// judge finds parents, and gives the entries their states.
func (c *Catalog) judge() {
	byName := make(map[string]*Entry, len(c.Entries))
	for _, e := range c.Entries {
		byName[e.Name] = e
	}
	// By time, as their names begin; but a parent before its children, whatever the clocks said.
	depth := func(e *Entry) (n int) {
		for ; e.Manifest != nil && e.Manifest.Parent != "" && n <= len(c.Entries); n++ {
			if e = byName[e.Manifest.Parent]; e == nil {
				break
			}
		}
		return n
	}
	depths := make(map[*Entry]int, len(c.Entries))
	for _, e := range c.Entries {
		depths[e] = depth(e)
	}
	order := slices.Clone(c.Entries)
	slices.SortStableFunc(order, func(a, b *Entry) int { return depths[a] - depths[b] })
	for _, e := range order {
		if e.Manifest == nil {
			continue
		}
		e.parent, e.Err = nil, nil
		if name := e.Manifest.Parent; name != "" {
			p := byName[name]
			switch {
			case depths[e] > len(c.Entries):
				e.Err = errors.New("its ancestors form a circle")
			case p == nil:
				e.Err = fmt.Errorf("its parent %s is not there", name)
			case p.Manifest == nil || !p.State.usable():
				e.Err = fmt.Errorf("its parent %s is %s", name, p.State)
			case p.seal != e.Manifest.ParentSeal || p.Manifest.Revision != e.Manifest.After:
				e.Err = fmt.Errorf("its parent %s is another one than it was made from", name)
			}
			if e.Err != nil {
				e.State = Orphaned
				continue
			}
			e.parent = p
		}
		switch {
		case e.Proof == nil:
			e.State = Unproved
		case !e.Proof.Good:
			e.State, e.Err = Bad, errors.New(e.Proof.Error)
		case e.Proof.Restored:
			e.State = Proved
		default:
			e.State = ReadBack
		}
	}
	// Who was restored was so with its ancestors.
	for _, e := range slices.Backward(order) {
		if e.State == Proved && e.parent != nil {
			e.parent.State = Proved
		}
	}
}

// readAll reads a file of at most limit bytes.
func readAll(ctx context.Context, d Depot, name string, limit int64) ([]byte, error) {
	r, err := d.Read(ctx, name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is longer than %d bytes", name, limit)
	}
	return b, err
}

// A Target is what to restore. The zero value: the newest that can be.
type Target struct {
	Name     string    // a backup; empty: any
	Revision int64     // 0: any
	Time     time.Time // zero: any
}

// A Plan is how to restore a target: backups one after the other, and up to where.
type Plan struct {
	Cluster  string
	Chain    []*Entry // the full one first
	Revision int64
	// Seen is when Revision was seen to be the newest, and Next when a later one was; zero: not known.
	Seen, Next time.Time
}

// Last is the newest backup of the chain.
func (p *Plan) Last() *Entry { return p.Chain[len(p.Chain)-1] }

// whole: the last backup is restored to its end, so that its leases, users and roles are the right
// ones.
func (p *Plan) whole() bool { return p.Revision == p.Last().Manifest.Revision }

// before is the backup whose compaction, users, roles and alarms hold at the revision: the last one
// if it is restored to its end, else its parent.
func (p *Plan) before() *Entry {
	if last := p.Last(); p.whole() || last.parent == nil {
		return last
	}
	return p.Last().parent
}

func (c *Catalog) planOf(e *Entry, rev int64) *Plan {
	return &Plan{Cluster: c.Cluster, Chain: e.chain(), Revision: rev}
}

// Plan finds the backups for a target. The error says what there is instead.
func (c *Catalog) Plan(t Target) (*Plan, error) {
	var usable []*Entry
	for _, e := range c.Entries {
		if e.State.usable() {
			usable = append(usable, e)
		}
	}
	if t.Name != "" {
		e := c.find(t.Name)
		switch {
		case e == nil:
			return nil, fmt.Errorf("there is no backup %s", t.Name)
		case !e.State.usable():
			return nil, fmt.Errorf("the backup %s is %s: %w", e.Name, e.State, e.Err)
		}
		usable = []*Entry{e}
	}
	if len(usable) == 0 {
		return nil, fmt.Errorf("no backup of the cluster %s can be restored: %d folders are there, none of them a whole one", c.Cluster, len(c.Entries))
	}
	switch {
	case t.Revision != 0:
		return c.toRevision(usable, t.Revision)
	case !t.Time.IsZero():
		return c.toTime(usable, t.Time)
	}
	last := slices.MaxFunc(usable, func(a, b *Entry) int { return a.Manifest.Time.Compare(b.Manifest.Time) })
	return c.planOf(last, last.Manifest.Revision), nil
}

// toRevision takes the backup that ends soonest after the revision, of several the newest.
func (c *Catalog) toRevision(usable []*Entry, rev int64) (*Plan, error) {
	var best *Entry
	oldest, newest := usable[0].floor(), usable[0].Manifest.Revision
	for _, e := range usable {
		oldest, newest = min(oldest, e.floor()), max(newest, e.Manifest.Revision)
		if rev < e.floor() || rev > e.Manifest.Revision {
			continue
		}
		if best == nil || e.Manifest.Revision < best.Manifest.Revision ||
			e.Manifest.Revision == best.Manifest.Revision && !e.Manifest.Time.Before(best.Manifest.Time) {
			best = e
		}
	}
	if best == nil {
		return nil, fmt.Errorf("no backup holds revision %d: those that can be restored hold %d to %d, not each of them all", rev, oldest, newest)
	}
	return c.planOf(best, rev), nil
}

// floor is the oldest revision to which the entry is restored: a full backup holds what compactions
// had left, and what is older than an increment is its parent's.
func (e *Entry) floor() int64 {
	if e.Manifest.Kind == Increment {
		return e.Manifest.After
	}
	return max(e.Manifest.Compacted, 1)
}

// sightings are those of the manifest, and its own.
func (m *Manifest) sightings() []Sighting {
	return append(slices.Clone(m.Times), Sighting{m.Time, m.Revision})
}

// toTime takes the last sighting at or before t, of all backups.
func (c *Catalog) toTime(usable []*Entry, t time.Time) (*Plan, error) {
	var best *Plan
	var oldest time.Time
	for _, e := range usable {
		for _, s := range e.Manifest.sightings() {
			if s.Revision < e.floor() || s.Revision > e.Manifest.Revision {
				continue
			}
			if oldest.IsZero() || s.Time.Before(oldest) {
				oldest = s.Time
			}
			if s.Time.After(t) {
				continue
			}
			// Of several backups that hold it, the one that ends soonest knows best of its leases.
			if best == nil || s.Time.After(best.Seen) || s.Time.Equal(best.Seen) &&
				(s.Revision > best.Revision || s.Revision == best.Revision && e.Manifest.Revision <= best.Last().Manifest.Revision) {
				best = c.planOf(e, s.Revision)
				best.Seen = s.Time
			}
		}
	}
	if best == nil {
		return nil, fmt.Errorf("%s is before what the backups that can be restored hold: they begin at %s", t.UTC().Format(time.RFC3339), oldest.UTC().Format(time.RFC3339))
	}
	best.Next = nextAfter(usable, best, t)
	return best, nil
}

// nextAfter is the first sighting after t of a later revision; zero: none.
func nextAfter(usable []*Entry, p *Plan, t time.Time) (next time.Time) {
	for _, e := range usable {
		for _, s := range e.Manifest.sightings() {
			if s.Time.After(t) && s.Revision > p.Revision && (next.IsZero() || s.Time.Before(next)) {
				next = s.Time
			}
		}
	}
	return next
}
