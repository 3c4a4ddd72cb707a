package usage

import (
	"cmp"
	"container/heap"
	"slices"
)

// sketch is Space-Saving over weighted names: the heaviest of them, in at most capacity counters.
//
// Invariants: a counter's weight is at least the name's true weight and at most excess more; the
// excess of each is at most the smallest weight of all counters when it was made; all weights
// together are total, except that a sketch that is scaled loses what rounds to nothing.
type sketch struct {
	capacity int
	byName   map[string]*counter
	heap     counters // by weight, the smallest first
	total    float64
}

type counter struct {
	name   string
	weight float64
	excess float64 // how much of weight may be other names'
	at     int     // in the heap
}

type counters []*counter

func (c counters) Len() int           { return len(c) }
func (c counters) Less(i, j int) bool { return c[i].weight < c[j].weight }
func (c counters) Swap(i, j int) {
	c[i], c[j] = c[j], c[i]
	c[i].at, c[j].at = i, j
}

func (c *counters) Push(x any) {
	n := x.(*counter)
	n.at = len(*c)
	*c = append(*c, n)
}

func (c *counters) Pop() any { panic("usage: no counter is ever taken out") }

func newSketch(capacity int) *sketch {
	return &sketch{capacity: capacity, byName: make(map[string]*counter, capacity)}
}

// add counts weight, which is not negative, for a name. The name is copied if it is kept.
func (s *sketch) add(name []byte, weight float64) {
	s.total += weight
	if c := s.byName[string(name)]; c != nil {
		c.weight += weight
		heap.Fix(&s.heap, c.at)
		return
	}
	if len(s.heap) < s.capacity {
		c := &counter{name: string(name), weight: weight}
		s.byName[c.name] = c
		heap.Push(&s.heap, c)
		return
	}
	// The lightest name makes room; all that it had may have been the new one's.
	c := s.heap[0]
	delete(s.byName, c.name)
	c.name = string(name)
	c.excess = c.weight
	c.weight += weight
	s.byName[c.name] = c
	heap.Fix(&s.heap, 0)
}

// scale multiplies all weights. The order of the heap stays.
func (s *sketch) scale(by float64) {
	s.total *= by
	for _, c := range s.heap {
		c.weight *= by
		c.excess *= by
	}
}

// kept are copies of all counters, in no order.
func (s *sketch) kept() kept {
	k := kept{total: s.total, counters: make([]counter, len(s.heap))}
	for i, c := range s.heap {
		k.counters[i] = *c
	}
	return k
}

// kept is what a sketch held at a moment.
type kept struct {
	total    float64
	counters []counter
}

// heaviest are the counters of which at least half of the weight is surely the name's own,
// heaviest first.
func (k kept) heaviest() []counter {
	all := make([]counter, 0, len(k.counters))
	for _, c := range k.counters {
		if c.weight > 0 && c.excess <= c.weight/2 {
			all = append(all, c)
		}
	}
	sortCounters(all)
	return all
}

// sortCounters puts the heaviest first, equal ones by name.
func sortCounters(all []counter) {
	slices.SortFunc(all, func(a, b counter) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.name, b.name))
	})
}
