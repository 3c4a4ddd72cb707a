package usage

import (
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Path is where a member answers who uses it.
const Path = "/debug/belay/usage"

// MaxTop is how many names of each kind and measure are answered at most.
const MaxTop = 100

// An Answer is who uses a member, as JSON.
type Answer struct {
	MemberID string    `json:"member_id"`
	Name     string    `json:"name"` // of the member
	Now      time.Time `json:"now"`  // by its clock
	// HalfLife is how fast it forgets, in seconds; Uptime is since when it counts.
	HalfLife float64 `json:"half_life_seconds"`
	Uptime   float64 `json:"uptime_seconds"`
	// Every is of how many small requests one is counted now.
	Every uint32 `json:"sampled_one_of"`
	// Rates are those of all, by measure, each second. Of requests on keys, operations of
	// transactions count each.
	Rates map[string]float64 `json:"per_second"`
	Top   []Share            `json:"top"`
}

// A Share is what one name has of a kind and measure.
type Share struct {
	Of    string  `json:"of"` // prefix, client, user, watch
	By    string  `json:"by"` // requests, bytes, keys, churn
	Name  string  `json:"name"`
	Share float64 `json:"share"`      // of all, 0 to 1
	Rate  float64 `json:"per_second"` // of the measure
	Error float64 `json:"error"`      // how much of Share may be others'
}

// Answer tells up to top names of each kind and measure, heaviest first, of those with a share of
// at least a thousandth. A prefix is left out where a longer one that is told has nearly all of it.
func (t *Tracker) Answer(top int) Answer {
	if t == nil {
		return Answer{Rates: map[string]float64{}, Top: []Share{}}
	}
	top = min(max(top, 1), MaxTop)
	a := Answer{HalfLife: t.halfLife.Seconds(), Every: t.every.Load(), Rates: map[string]float64{}, Top: []Share{}}
	now := t.now()
	var prefixes [measures][maxDepth]kept
	var others [measures][kinds]kept
	// What sorts and compares is done without the lock: requests wait for it.
	t.mu.Lock()
	grown := t.growth(now)
	for m := range measures {
		for d := range t.prefixes {
			prefixes[m][d] = t.prefixes[d][m].kept()
		}
		for k := range t.others {
			others[m][k] = t.others[k][m].kept()
		}
	}
	t.mu.Unlock()

	a.Now, a.Uptime = now.UTC(), now.Sub(t.began).Seconds()
	// What came at a constant rate of 1 since the beginning weighs this many seconds now.
	lives := math.Ln2 * max(a.Uptime, 1) / a.HalfLife
	perSecond := 1 / (grown * a.HalfLife / math.Ln2 * -math.Expm1(-lives))
	for m := range measures {
		a.Rates[m.String()] = others[m][Prefix].total * perSecond
	}
	for k := range kinds {
		for m := range measures {
			total := others[m][k].total
			var list []counter
			if k == Prefix {
				list = heaviestPrefixes(&prefixes[m])
			} else {
				list = others[m][k].heaviest()
			}
			for _, c := range list[:min(top, len(list))] {
				share := c.weight / total
				// What is nearly forgotten may be all that there is.
				if share < 0.001 || c.weight < grown/2 {
					break
				}
				a.Top = append(a.Top, Share{
					Of: k.String(), By: m.String(), Name: text(c.name),
					Share: share, Rate: c.weight * perSecond, Error: c.excess / total,
				})
			}
		}
	}
	return a
}

// heaviestPrefixes are those of all depths that are to be told.
func heaviestPrefixes(depths *[maxDepth]kept) (all []counter) {
	hidden := map[string]bool{}
	for d, k := range depths {
		parents := map[string]float64{}
		if d > 0 {
			for _, c := range depths[d-1].counters {
				parents[c.name] = c.weight
			}
		}
		for _, c := range k.heaviest() {
			all = append(all, c)
			// A prefix that had to be cut may have fewer ends than its depth.
			if ends, n := prefixes([]byte(c.name)); d > 0 && n == d+1 {
				parent := c.name[:ends[d-1]]
				if weight, known := parents[parent]; known && c.weight-c.excess >= 0.95*weight {
					hidden[parent] = true
				}
			}
		}
	}
	all = slices.DeleteFunc(all, func(c counter) bool { return hidden[c.name] })
	sortCounters(all)
	return all
}

// text is a name as JSON and labels can have it: what is not UTF-8 is replaced.
func text(name string) string {
	if utf8.ValidString(name) {
		return name
	}
	return strings.ToValidUTF8(name, "\uFFFD")
}
