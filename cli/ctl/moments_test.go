package ctl

import "testing"

func TestExcerpt(t *testing.T) {
	for value, want := range map[string]string{
		"":            `""`,
		"a\nb":        `"a\nb"`,
		"\xff":        `"\xff"`,
		long(40, "ä"): `"` + long(40, "ä") + `"`,
		long(41, "ä"): `"` + long(40, "ä") + `"...`,
	} {
		if got := excerpt([]byte(value), false); got != want {
			t.Errorf("%q: %s", value, got)
		}
	}
}

func long(n int, s string) (all string) {
	for range n {
		all += s
	}
	return all
}
