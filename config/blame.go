package config

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.uber.org/zap"
)

// Explain is what err says, and which of the flags and variables that were given
// it speaks of: many of etcd's texts, and all of the operating system's, show a
// value and leave the reader to find out where it came from.
func (c *Config) Explain(err error) string {
	text := err.Error()
	if strings.Contains(text, "--") {
		return text // it names its flag
	}
	if c.given["initial-cluster"] != "" && strings.HasPrefix(text, "error setting up initial cluster: ") {
		return text + " (see --initial-cluster)" // its URLs may stand in other flags as well, and be right there
	}
	names := slices.Clone(flagsOfText()[text])
	for _, name := range slices.Sorted(maps.Keys(c.given)) {
		for value := range strings.SplitSeq(c.given[name], ",") {
			if shows(text, value) {
				names = append(names, name)
				break
			}
		}
	}
	if len(names) == 0 {
		return text
	}
	return text + " (see --" + strings.Join(slices.Compact(names), ", --") + ")"
}

// flagsOfText are those of texts that show no value.
func flagsOfText() map[string][]string {
	return map[string][]string{"auth: invalid auth options": {"auth-token"}}
}

// shows reports whether a text shows a value: in quotes, as a path, a URL or what a path begins with,
// or behind a colon. Anything less would find "new" and "m1" everywhere.
func shows(text, value string) bool {
	if value == "" {
		return false
	}
	for rest := text; ; {
		before, after, found := strings.Cut(rest, value)
		if !found {
			return false
		}
		switch {
		case strings.HasSuffix(before, `"`) && strings.HasPrefix(after, `"`):
			return true
		case strings.Contains(value, "/") && (before == "" || strings.ContainsAny(before[len(before)-1:], " (")) && (after == "" || strings.ContainsAny(after[:1], "/:;, )")):
			return true
		case strings.HasSuffix(before, ": ") && (after == "" || strings.HasPrefix(after, ",")):
			return true
		}
		rest = rest[len(before)+1:]
	}
}

// remember keeps what was given, for Explain.
func (p *parser) remember() {
	p.cfg.given = map[string]string{}
	if p.file != "" {
		p.cfg.given["config-file"] = p.file
		return // all else that was given is ignored
	}
	p.fs.Visit(func(f *flag.Flag) { p.cfg.given[f.Name] = f.Value.String() })
}

// tell has Load say once more, behind the log and where a person looks, what is
// wrong. By the name of etcd nothing is added to what etcd says.
func (p *parser) tell(err error, where []zap.Field) {
	if p.o.Program == Etcd {
		return
	}
	p.remember()
	text := p.cfg.Explain(err)
	if len(where) > 0 {
		text = fmt.Sprintf("%v (see %s", err, p.file)
		if i := slices.IndexFunc(where, func(f zap.Field) bool { return f.Key == "line" }); i >= 0 {
			text += fmt.Sprint(":", where[i].Integer)
		}
		text += ")"
	}
	p.plain = "belay: " + text + "\n"
}
