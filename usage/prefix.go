package usage

import "bytes"

const (
	// maxDepth is how many components of a key a prefix has at most. A namespace of a custom
	// resource of Kubernetes has four: /registry/group/resources/namespace/.
	maxDepth = 4
	// maxNameBytes bounds a name; longer prefixes are not told apart, longer names are cut.
	maxNameBytes = 128
)

// separators, by which comes first: keys that have one of these are parted by it alone. A colon is
// common in Kubernetes' names of roles, and a dot in those of its resources; there the slash rules.
const separators = "/:|."

// prefixes are where the prefixes of a key end, each behind a separator: 3 and 5 for "a//b/c". A
// separator that the key begins with, or that follows another, ends no component. n is how many
// there are.
func prefixes(key []byte) (ends [maxDepth]int, n int) {
	key = key[:min(len(key), maxNameBytes)]
	var separator byte
	for i := 0; i < len(separators); i++ {
		if bytes.IndexByte(key, separators[i]) >= 0 {
			separator = separators[i]
			break
		}
	}
	if separator == 0 {
		return ends, 0
	}
	component := false
	for i, b := range key {
		if b != separator {
			component = true
			continue
		}
		switch {
		case component && n == maxDepth:
			return ends, n
		case component:
			ends[n] = i + 1
			n++
		case n > 0:
			ends[n-1] = i + 1
		}
		component = false
	}
	return ends, n
}

// common is what all keys of a range begin with; end as in a request: empty for the key alone, "\0"
// for all keys from it on.
func common(key, end []byte) []byte {
	switch {
	case len(end) == 0:
		return key
	case len(end) == 1 && end[0] == 0:
		return nil
	}
	n := 0
	for n < len(key) && n < len(end) && key[n] == end[n] {
		n++
	}
	// "a/x" to "a0": what comes before "a0" begins with "a/".
	if n < len(key) && n == len(end)-1 && end[n] == key[n]+1 {
		n++
	}
	return key[:n]
}

// RangeName is how a range is told: a key, a prefix as "a/*", or "[a, b)". Ends as in a request.
func RangeName(key, end []byte) string {
	shown := func(b []byte) string { return string(b[:min(len(b), maxNameBytes)]) }
	switch {
	case len(end) == 0:
		return shown(key)
	case len(end) == 1 && end[0] == 0:
		if len(key) == 0 || len(key) == 1 && key[0] == 0 {
			return "*"
		}
		return "[" + shown(key) + ", )"
	}
	if c := common(key, end); len(c) == len(key) && len(end) <= len(key) {
		return shown(key) + "*"
	}
	return "[" + shown(key) + ", " + shown(end) + ")"
}
