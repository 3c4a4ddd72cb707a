package show

import "testing"

func TestCount(t *testing.T) {
	for n, want := range map[int]string{0: "0 leases", 1: "1 lease", 2: "2 leases"} {
		if got := Count(n, "lease"); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
