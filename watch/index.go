package watch

import "github.com/belaydb/belay/internal/invariants"

// bound is the exclusive end of a range; inf is beyond every key.
type bound struct {
	key string
	inf bool
}

// after reports whether key lies before the bound.
func (b bound) after(key []byte) bool { return b.inf || string(key) < b.key }

func (b bound) compare(o bound) int {
	switch {
	case b.inf && o.inf:
		return 0
	case b.inf:
		return 1
	case o.inf:
		return -1
	case b.key < o.key:
		return -1
	case b.key > o.key:
		return 1
	}
	return 0
}

// span is what a watcher watches: one key, or the range from start to before end.
type span struct {
	single bool
	start  string
	end    bound // of a range
}

func (s span) contains(key []byte) bool {
	if s.single {
		return string(key) == s.start
	}
	return string(key) >= s.start && s.end.after(key)
}

// rangeOf is the span as a watcher with the id asked for it.
func (s span) rangeOf(id int64) Range {
	r := Range{ID: id, Key: []byte(s.start)}
	switch {
	case s.single:
	case s.end.inf:
		r.End = []byte{0}
	default:
		r.End = []byte(s.end.key)
	}
	return r
}

// watchList is the watchers of one span. Order has no meaning.
type watchList struct {
	ws []*watcher
	sp span
}

// index finds the watchers of a key: those of exactly this key by a map, those of
// a range by an interval treap with one node for each distinct range. A watcher
// is in at most one index. Not safe for concurrent use.
type index struct {
	exact map[string]*watchList
	root  *node
	seed  uint64 // of the treap's priorities; the shape has no meaning to anybody
	n     int

	checks invariants.Budget
}

func newIndex() *index { return &index{exact: make(map[string]*watchList)} }

func (x *index) len() int { return x.n }

// add puts w in the index. REQUIRES: w is in no index.
func (x *index) add(w *watcher) {
	if w.list != nil {
		panic("watch: watcher added to an index twice")
	}
	var l *watchList
	if w.span.single {
		l = x.exact[w.span.start]
		if l == nil {
			l = &watchList{sp: w.span}
			x.exact[w.span.start] = l
		}
	} else {
		l = x.find(w.span)
		if l == nil {
			l = &watchList{sp: w.span}
			x.root = insert(x.root, &node{list: l, prio: x.random(), max: w.span.end})
		}
	}
	w.list, w.pos = l, len(l.ws)
	l.ws = append(l.ws, w)
	x.n++
	x.checkInvariants()
}

// remove takes w out. REQUIRES: w is in this index.
func (x *index) remove(w *watcher) {
	l := w.list
	if l == nil || l.ws[w.pos] != w {
		panic("watch: watcher removed from an index that does not hold it")
	}
	last := len(l.ws) - 1
	l.ws[w.pos] = l.ws[last]
	l.ws[w.pos].pos = w.pos
	l.ws[last] = nil
	l.ws = l.ws[:last]
	w.list = nil
	x.n--
	if last == 0 && l.sp.single {
		delete(x.exact, l.sp.start)
	} else if last == 0 {
		x.root = erase(x.root, l.sp)
	}
	x.checkInvariants()
}

// lists calls fn with each list of watchers that watch key.
func (x *index) lists(key []byte, fn func(*watchList)) {
	if l := x.exact[string(key)]; l != nil {
		fn(l)
	}
	stab(x.root, key, fn)
}

// covers reports whether any watcher's span holds a key.
func (x *index) covers(key []byte) bool {
	found := false
	x.lists(key, func(*watchList) { found = true })
	return found
}

// all calls fn with every watcher; fn must not change the index.
func (x *index) all(fn func(*watcher)) {
	for _, l := range x.exact {
		for _, w := range l.ws {
			fn(w)
		}
	}
	walk(x.root, func(l *watchList) {
		for _, w := range l.ws {
			fn(w)
		}
	})
}

// list returns every watcher.
func (x *index) list() []*watcher {
	ws := make([]*watcher, 0, x.n)
	x.all(func(w *watcher) { ws = append(ws, w) })
	return ws
}

func (x *index) random() uint64 { // splitmix64
	x.seed += 0x9e3779b97f4a7c15
	z := x.seed
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// node of the interval treap: ordered by (start, end), a heap by prio, and max is the largest end
// in the subtree, so that a search skips the subtrees whose ranges all end before the key.
type node struct {
	list        *watchList
	left, right *node
	prio        uint64
	max         bound
}

func compareSpan(a, b span) int {
	if a.start != b.start {
		if a.start < b.start {
			return -1
		}
		return 1
	}
	return a.end.compare(b.end)
}

func (n *node) update() {
	n.max = n.list.sp.end
	if n.left != nil && n.left.max.compare(n.max) > 0 {
		n.max = n.left.max
	}
	if n.right != nil && n.right.max.compare(n.max) > 0 {
		n.max = n.right.max
	}
}

func (x *index) find(sp span) *watchList {
	for n := x.root; n != nil; {
		switch c := compareSpan(sp, n.list.sp); {
		case c == 0:
			return n.list
		case c < 0:
			n = n.left
		default:
			n = n.right
		}
	}
	return nil
}

// insert adds a node whose span is not in the treap, and returns the new root.
func insert(n, add *node) *node {
	if n == nil {
		return add
	}
	if add.prio > n.prio {
		add.left, add.right = split(n, add.list.sp)
		add.update()
		return add
	}
	if compareSpan(add.list.sp, n.list.sp) < 0 {
		n.left = insert(n.left, add)
	} else {
		n.right = insert(n.right, add)
	}
	n.update()
	return n
}

// split parts the treap into the spans below sp and those above.
func split(n *node, sp span) (below, above *node) {
	if n == nil {
		return nil, nil
	}
	if compareSpan(n.list.sp, sp) < 0 {
		n.right, above = split(n.right, sp)
		n.update()
		return n, above
	}
	below, n.left = split(n.left, sp)
	n.update()
	return below, n
}

func erase(n *node, sp span) *node {
	if n == nil {
		panic("watch: range missing from the index")
	}
	switch c := compareSpan(sp, n.list.sp); {
	case c == 0:
		return merge(n.left, n.right)
	case c < 0:
		n.left = erase(n.left, sp)
	default:
		n.right = erase(n.right, sp)
	}
	n.update()
	return n
}

// merge joins two treaps; every span of a is below every span of b.
func merge(a, b *node) *node {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case a.prio > b.prio:
		a.right = merge(a.right, b)
		a.update()
		return a
	}
	b.left = merge(a, b.left)
	b.update()
	return b
}

// stab calls fn with the list of each range that contains key.
func stab(n *node, key []byte, fn func(*watchList)) {
	for n != nil && n.max.after(key) {
		stab(n.left, key, fn)
		if string(key) < n.list.sp.start {
			return // and so is everything to the right
		}
		if n.list.sp.end.after(key) {
			fn(n.list)
		}
		n = n.right
	}
}

func walk(n *node, fn func(*watchList)) {
	for ; n != nil; n = n.right {
		walk(n.left, fn)
		fn(n.list)
	}
}
