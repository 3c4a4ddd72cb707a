//go:build invariants

package watch

import (
	"fmt"
	"strings"
	"testing"

	"github.com/belaydb/belay/internal/invariants"
)

// TestInvariantsBreak breaks each invariant on purpose: the assert must say so.
func TestInvariantsBreak(t *testing.T) {
	for _, c := range []struct {
		name string
		harm func(x *index)
		want string
	}{
		{"nothing", func(*index) {}, ""},
		{"number", func(x *index) { x.n++ }, "an index of 21 watchers has 20"},
		{"key", func(x *index) { x.exact["other"] = x.exact["k3"]; delete(x.exact, "k3") }, "stand at the key"},
		{"order of ranges", func(x *index) {
			if x.root.left != nil {
				x.root.left, x.root.right = nil, x.root.left
			} else {
				x.root.left, x.root.right = x.root.right, nil
			}
		}, "stands after"},
		{"priority", func(x *index) { x.root.prio = 0 }, "of a higher priority stands below"},
		{"largest end", func(x *index) { x.root.max = bound{key: "zzz"} }, "down end at"},
		{"list without watchers", func(x *index) { x.exact["empty"] = &watchList{sp: span{single: true, start: "empty"}} }, "which has a list"},
		{"place of a watcher", func(x *index) { x.exact["k3"].ws[0].pos = 7 }, "believes that it stands at 7"},
		{"watcher of another span", func(x *index) { x.root.list.ws[0].span.start = "zz" }, "a watcher of"},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newIndex()
			for i := range 10 {
				x.add(&watcher{span: span{single: true, start: fmt.Sprint("k", i)}})
				x.add(&watcher{span: span{start: fmt.Sprint("k", i), end: bound{key: fmt.Sprint("m", i%3)}}})
			}
			c.harm(x)
			x.checks = invariants.Budget{}
			text := invariants.Caught(x.checkInvariants)
			if c.want == "" && text != "" || !strings.Contains(text, c.want) {
				t.Errorf("got %q, want %q", text, c.want)
			}
		})
	}
}
