package auth

import (
	"bytes"
	"slices"
	"sort"

	"go.etcd.io/etcd/api/v3/authpb"
)

// span is the keys in [begin, end). A nil end is beyond every key.
type span struct{ begin, end []byte }

// spans are sorted and disjoint, and do not touch.
type spans []span

// ranges are what a user's roles grant.
type ranges struct{ read, write spans }

// openEnd reports whether a range's end means "all keys from here on".
func openEnd(end []byte) bool { return len(end) == 1 && end[0] == 0 }

// endBefore reports whether end a lies before end b.
func endBefore(a, b []byte) bool {
	switch {
	case a == nil:
		return false
	case b == nil:
		return true
	}
	return bytes.Compare(a, b) < 0
}

func spanOf(key, end []byte) span {
	switch {
	case len(end) == 0:
		return span{key, append(append(make([]byte, 0, len(key)+1), key...), 0)}
	case openEnd(end):
		return span{key, nil}
	}
	return span{key, end}
}

// merge sorts and joins spans; it works in place.
func merge(all spans) spans {
	slices.SortFunc(all, func(a, b span) int { return bytes.Compare(a.begin, b.begin) })
	out := all[:0]
	for _, s := range all {
		if n := len(out); n > 0 && !endBefore(out[n-1].end, s.begin) {
			if endBefore(out[n-1].end, s.end) {
				out[n-1].end = s.end
			}
			continue
		}
		out = append(out, s)
	}
	return slices.Clip(out)
}

// mergeRoles joins the ranges of roles.
func mergeRoles(names []string, roles map[string]*authpb.Role) *ranges {
	r := &ranges{}
	for _, name := range names {
		role := roles[name]
		if role == nil {
			continue // the role root, which need not exist to be granted
		}
		for _, p := range role.KeyPermission {
			s := spanOf(p.Key, p.RangeEnd)
			switch p.PermType { // another, of a newer client say, opens nothing
			case authpb.Permission_READWRITE:
				r.read, r.write = append(r.read, s), append(r.write, s)
			case authpb.Permission_READ:
				r.read = append(r.read, s)
			case authpb.Permission_WRITE:
				r.write = append(r.write, s)
			}
		}
	}
	r.read, r.write = merge(r.read), merge(r.write)
	return r
}

// contains reports whether all keys of a request's range are within. A range that ends before it
// begins has no keys; as in etcd it is within if its key is. (With several permissions etcd refuses
// some of these too, depending on the shape of its tree.)
func (s spans) contains(key, end []byte) bool {
	// The last span that begins at or before the key.
	i := sort.Search(len(s), func(i int) bool { return bytes.Compare(s[i].begin, key) > 0 }) - 1
	if i < 0 || (s[i].end != nil && bytes.Compare(s[i].end, key) <= 0) {
		return false
	}
	switch {
	case len(end) == 0:
		return true
	case openEnd(end):
		return s[i].end == nil
	}
	return !endBefore(s[i].end, end)
}

// validRange reports whether a permission may be given for a range.
func validRange(key, end []byte) bool {
	if len(key) == 0 {
		return false
	}
	return len(end) == 0 || openEnd(end) || bytes.Compare(key, end) < 0
}
