package dev

import "strings"

// Flags are the flags of belay dev as its help has them: --name, and what it is.
func Flags() (flags [][2]string) {
	for line := range strings.Lines(usage) {
		words := strings.Fields(line)
		if !strings.HasPrefix(line, "  --") || len(words) < 2 {
			continue
		}
		about := words[1:]
		if about[0] == strings.ToUpper(about[0]) { // the value's name
			about = about[1:]
		}
		flags = append(flags, [2]string{words[0], strings.Join(about, " ")})
	}
	return flags
}
