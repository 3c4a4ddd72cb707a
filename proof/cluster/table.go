package cluster

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

// Choose returns the rows of a table that patterns match, in the order of the patterns, each once.
// flag and noun name the patterns and a row in errors: "rows" and "row". REQUIRES: the program has
// a flag -list, which errors mention.
func Choose[T any](all []T, name func(T) string, patterns, flag, noun string) (chosen []T, err error) {
	for _, p := range strings.Split(patterns, ",") {
		found := false
		for _, row := range all {
			ok, err := path.Match(p, name(row))
			if err != nil {
				return nil, fmt.Errorf("-%s: %q: %w", flag, p, err)
			}
			if ok && !slices.ContainsFunc(chosen, func(c T) bool { return name(c) == name(row) }) {
				chosen = append(chosen, row)
			}
			found = found || ok
		}
		if !found {
			return nil, fmt.Errorf("-%s: no %s %q; -list prints them", flag, noun, p)
		}
	}
	return chosen, nil
}

// Round rounds a duration to what a table shows.
func Round(d time.Duration) time.Duration {
	if d < 100*time.Millisecond {
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(10 * time.Millisecond)
}
