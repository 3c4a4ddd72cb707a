package dev

import (
	"slices"
	"strings"
	"testing"
)

// TestDirFirst: --data-dir is found before and behind the fault.
func TestDirFirst(t *testing.T) {
	for args, want := range map[string]string{
		"pause m1 --data-dir d":             "--data-dir d pause m1",
		"pause m1 --data-dir=d --for 5s":    "--data-dir=d pause m1 --for 5s",
		"--data-dir d pause m1":             "--data-dir d pause m1",
		"disk m1 slow 300ms --data-dir":     "disk m1 slow 300ms --data-dir",
		"partition m1 m2 one-way for 5s":    "partition m1 m2 one-way for 5s",
		"disk m1 stall -data-dir d for 10s": "-data-dir d disk m1 stall for 10s",
	} {
		if got := dirFirst(strings.Fields(args)); !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%s: %v", args, got)
		}
	}
}
