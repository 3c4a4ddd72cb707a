package timemap

import (
	"sort"
	"sync"
	"time"
)

// A Point is a moment at which a revision was the newest that the member had applied.
type Point struct {
	Time     time.Time `json:"time"`
	Revision int64     `json:"revision"`
}

// An Interval is where an answer lies: not before From, and not after To. A nil one is not known.
type Interval struct {
	From *Point `json:"from,omitempty"`
	To   *Point `json:"to,omitempty"`
}

// point is Point in the form that is kept.
type point struct {
	at  int64 // Unix time in milliseconds
	rev int64
}

func (p point) public() *Point {
	return &Point{Time: time.UnixMilli(p.at).UTC(), Revision: p.rev}
}

// tiers say how far apart points are kept, by their age: at most one in each step.
var tiers = []struct{ within, step time.Duration }{
	{time.Hour, time.Second},
	{24 * time.Hour, 10 * time.Second},
	{30 * 24 * time.Hour, 5 * time.Minute},
}

// thinEvery is after how many new points the map is thinned. With the tiers it bounds the map to
// some 22,000 points of 16 bytes.
const thinEvery = 1024

// A clock that is farBack behind the newest point is believed when it has been so for backLasts: a
// machine that starts in 1970, until it has asked for the time, must not cost a month of points.
const (
	farBack   = time.Minute
	backLasts = 10 * time.Minute
)

// A Map is the points of one member. Any goroutine. The zero value is empty.
type Map struct {
	mu     sync.Mutex
	points []point   // both fields grow strictly, but for holds: see note
	seen   point     // the last comparison, noted or not; zero: none
	fresh  int       // points noted since the last thinning
	back   time.Time // since when the clock has been far behind the newest point; zero: it is not
}

// note records that rev is the newest revision at now, and returns the points that are new: none if
// nothing was written since the last call; two if nothing had been written for a while, since then
// the end of that while is known as well. replaced: points were dropped, and a file of them has to
// be written anew. rev 0 is not known yet, and one below what is known is that of a member that
// replays its log after a crash.
func (m *Map) note(now time.Time, rev int64) (added []point, replaced bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if rev <= 0 {
		return nil, false
	}
	p := point{now.UnixMilli(), rev}
	if n := len(m.points); n > 0 && rev < m.points[n-1].rev {
		return nil, false
	}
	if m.farBack(now) {
		return nil, false
	}
	keep := sort.Search(len(m.points), func(i int) bool { return m.points[i].at >= p.at })
	if keep < len(m.points) {
		m.points, replaced = m.points[:keep], true
	}
	if p.at < m.seen.at {
		m.seen = point{}
	}
	n := len(m.points)
	if n > 0 && m.points[n-1].rev == rev {
		m.seen = p
		return nil, replaced
	}
	if n > 0 && m.seen.rev == m.points[n-1].rev && m.seen.at > m.points[n-1].at && m.seen.at < p.at {
		added = append(added, m.seen) // until then nothing was written
	}
	added = append(added, p)
	m.seen = p
	m.points = append(m.points, added...)
	if m.fresh += len(added); m.fresh >= thinEvery {
		m.fresh = 0
		m.points = thin(m.points, p.at)
	}
	return added, replaced
}

// farBack reports whether the clock is too far behind to be believed yet.
func (m *Map) farBack(now time.Time) bool {
	n := len(m.points)
	if n == 0 || now.UnixMilli() >= m.points[n-1].at-farBack.Milliseconds() {
		m.back = time.Time{}
		return false
	}
	if m.back.IsZero() {
		m.back = now
	}
	return now.Sub(m.back) < backLasts // by the monotonic clock
}

// thin keeps the last point of each step of its tier, and drops what is older than the last tier.
func thin(points []point, now int64) []point {
	kept := make([]point, 0, len(points))
	for i, p := range points {
		age, step := time.Duration(now-p.at)*time.Millisecond, time.Duration(0)
		for _, t := range tiers {
			if age <= t.within {
				step = t.step
				break
			}
		}
		if step == 0 {
			continue
		}
		if i+1 < len(points) && points[i+1].at/step.Milliseconds() == p.at/step.Milliseconds() {
			continue
		}
		kept = append(kept, p)
	}
	return kept
}

// At says which revision was the newest at t: From is the last sighting at or before t, To the first
// after it. Without To nothing was written between From and the last comparison; without From the
// map does not reach back to t.
func (m *Map) At(t time.Time) (in Interval) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := t.UnixMilli()
	i := sort.Search(len(m.points), func(i int) bool { return m.points[i].at > at })
	if i > 0 {
		in.From = m.points[i-1].public()
	}
	if i < len(m.points) {
		in.To = m.points[i].public()
	}
	return in
}

// Of says when rev was written: after From, the last sighting of an earlier revision, and not after
// To, the first of it or a later one. Without To it has not been seen yet; without From it is older
// than the map.
func (m *Map) Of(rev int64) (in Interval) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := sort.Search(len(m.points), func(i int) bool { return m.points[i].rev >= rev })
	if i > 0 {
		in.From = m.points[i-1].public()
	}
	if i < len(m.points) {
		in.To = m.points[i].public()
	}
	return in
}

// Span is the oldest point that is kept, and the newest revision as of the last comparison; nil if
// there is none.
func (m *Map) Span() (in Interval) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.points) > 0 {
		in.From = m.points[0].public()
	}
	if m.seen.rev > 0 {
		in.To = m.seen.public()
	}
	return in
}

// Since are the points after t, oldest first.
func (m *Map) Since(t time.Time) (points []Point) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := t.UnixMilli()
	for _, p := range m.points[sort.Search(len(m.points), func(i int) bool { return m.points[i].at > at }):] {
		points = append(points, *p.public())
	}
	return points
}

// snapshot copies the points.
func (m *Map) snapshot() []point {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]point(nil), m.points...)
}
