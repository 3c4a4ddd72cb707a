package node

import "testing"

// A start that failed never ran; listeners end then, and at a stop.
func TestLife(t *testing.T) {
	for _, c := range []struct {
		p         phase
		ran, ends bool
	}{{starting, false, false}, {abandoned, false, true}, {running, true, false}, {stopping, true, true}} {
		var l life
		if l.enter(c.p); l.ran() != c.ran || l.ends() != c.ends {
			t.Errorf("phase %d: ran %v, ends %v", c.p, l.ran(), l.ends())
		}
	}
}
