package watch

import "github.com/belaydb/belay/internal/invariants"

// The asserts of a build with the tag invariants: see package invariants.

// checkedPerCall is how many watchers a call may cost to be looked at.
const checkedPerCall = 32

// checkInvariants holds the index against its order. It is called where the index has changed.
func (x *index) checkInvariants() {
	if !invariants.Enabled || !x.checks.Due(checkedPerCall) {
		return
	}
	x.checks.Spent(x.n)
	n := 0
	for key, l := range x.exact {
		if !l.sp.single || l.sp.start != key {
			invariants.Broken("watch", "the watchers of %v stand at the key %q", l.sp, key)
		}
		n += l.check()
	}
	var before *node
	n += x.root.check(func(at *node) {
		if before != nil && compareSpan(before.list.sp, at.list.sp) >= 0 {
			invariants.Broken("watch", "the range %v stands after %v", at.list.sp, before.list.sp)
		}
		before = at
	})
	if n != x.n {
		invariants.Broken("watch", "an index of %d watchers has %d", x.n, n)
	}
}

// check: a list is never empty, and each watcher of it knows it and its place.
func (l *watchList) check() int {
	if len(l.ws) == 0 {
		invariants.Broken("watch", "nobody watches %v, which has a list", l.sp)
	}
	for i, w := range l.ws {
		if w.list != l || w.pos != i || w.span != l.sp {
			invariants.Broken("watch", "a watcher of %v stands at %d among those of %v and believes that it stands at %d", w.span, i, l.sp, w.pos)
		}
	}
	return len(l.ws)
}

// check calls fn for each node in order and gives how many watchers the subtree has. A node has no
// lower priority than those below it, and its max is the largest end of the subtree.
func (n *node) check(fn func(*node)) (watchers int) {
	if n == nil {
		return 0
	}
	watchers = n.left.check(fn)
	fn(n)
	watchers += n.list.check() + n.right.check(fn)
	most := n.list.sp.end
	for _, child := range []*node{n.left, n.right} {
		if child == nil {
			continue
		}
		if child.prio > n.prio {
			invariants.Broken("watch", "the range %v of a higher priority stands below %v", child.list.sp, n.list.sp)
		}
		if child.max.compare(most) > 0 {
			most = child.max
		}
	}
	if most.compare(n.max) != 0 {
		invariants.Broken("watch", "the ranges from %v down end at %v, not at %v", n.list.sp, most, n.max)
	}
	return watchers
}
