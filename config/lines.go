package config

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"

	"go.uber.org/zap"
	"go.yaml.in/yaml/v3"
)

// Warnings about unexpected keys, about which etcd is silent.
const (
	unknownKey = "unknown key in the configuration file - ignoring"
	keyTwice   = "a key stands twice in the configuration file; the last one counts"
)

// A fileKey is a key of the configuration file and its place: "a.b" is b in the part a.
type fileKey struct {
	path  string
	line  int
	value string // of a scalar
	twice bool   // it occurs a second time: this one counts
}

// fileKeys are the keys of a configuration file in their order. A file that cannot be read has
// none.
func fileKeys(data []byte) (keys []fileKey) {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil || len(doc.Content) == 0 {
		return nil
	}
	var walk func(prefix string, n *yaml.Node)
	walk = func(prefix string, n *yaml.Node) {
		if n.Kind != yaml.MappingNode {
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			path := prefix + key.Value
			keys = append(keys, fileKey{path: path, line: key.Line, value: value.Value,
				twice: slices.ContainsFunc(keys, func(k fileKey) bool { return k.path == path })})
			walk(path+".", value)
		}
	}
	walk("", doc.Content[0])
	return keys
}

// lineOf is the line of a key; 0: it is not there.
func lineOf(keys []fileKey, path string) int {
	for _, k := range slices.Backward(keys) {
		if k.path == path {
			return k.line
		}
	}
	return 0
}

// keysOf are the keys that decode into a struct. As in encoding/json, case does not matter.
func keysOf(t reflect.Type, prefix string) (keys []string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name := f.Tag.Get("json")
		if name == "" { // embedded
			keys = append(keys, keysOf(f.Type, prefix)...)
			continue
		}
		keys = append(keys, prefix+name)
		keys = append(keys, keysOf(f.Type, prefix+name+".")...)
	}
	return keys
}

// strangeKeys are warnings about keys that have no effect, about which etcd is silent, and about
// repeated keys.
func strangeKeys(path string, present []fileKey, known []string) (warnings []fileWarning) {
	var unknown []string // parts, whose contents need no warning of their own
	for _, k := range present {
		at := []zap.Field{zap.String("path", path), zap.Int("line", k.line), zap.String("key", k.path)}
		switch {
		case slices.ContainsFunc(unknown, func(part string) bool { return strings.HasPrefix(k.path, part+".") }):
		case !slices.ContainsFunc(known, func(name string) bool { return strings.EqualFold(name, k.path) }):
			unknown = append(unknown, k.path)
			if near := nearestOf(k.path, known); near != "" {
				at = append(at, zap.String("did-you-mean", near))
			}
			warnings = append(warnings, fileWarning{unknownKey, at})
		case k.twice:
			warnings = append(warnings, fileWarning{keyTwice, at})
		}
	}
	return warnings
}

type fileWarning struct {
	text   string
	fields []zap.Field
}

// keyError is an error about one key of the configuration file, with etcd's text.
type keyError struct {
	key string
	err error
}

func (e *keyError) Error() string { return e.err.Error() }
func (e *keyError) Unwrap() error { return e.err }

// whereInFile returns which key of the configuration file an error is about, as far as that is
// known; etcd's texts leave that to the reader.
func whereInFile(path string, present []fileKey, err error) []zap.Field {
	fields := []zap.Field{zap.String("path", path)}
	found := func(is func(k fileKey) bool) bool {
		for _, k := range slices.Backward(present) {
			if is(k) {
				fields = append(fields, zap.Int("line", k.line), zap.String("key", k.path))
				return true
			}
		}
		return false
	}
	var wrongType *json.UnmarshalTypeError
	var ofKey *keyError
	switch {
	case errors.As(err, &wrongType):
		// The names of the types precede the key's.
		if found(func(k fileKey) bool { return strings.HasSuffix("."+wrongType.Field, "."+k.path) }) &&
			strings.HasSuffix(wrongType.Type.String(), "Duration") {
			fields = append(fields, zap.String("hint", "durations here are numbers of nanoseconds, as in etcd: 10s is 10000000000"))
		}
	case errors.As(err, &ofKey):
		found(func(k fileKey) bool { return k.path == ofKey.key })
	default:
		text := err.Error()
		_ = found(func(k fileKey) bool { return names(text, k.path) }) ||
			found(func(k fileKey) bool { return k.value != "" && strings.Contains(text, `"`+k.value+`"`) })
	}
	return fields
}

// names reports whether a text mentions a flag.
func names(text, flag string) bool {
	_, after, ok := strings.Cut(text, "--"+flag)
	return ok && (after == "" || !strings.ContainsRune("-abcdefghijklmnopqrstuvwxyz", rune(after[0])))
}
