package config

import (
	"flag"
	"strings"
)

// A Choice is a word that may be in a command line, and its description.
type Choice struct{ Text, About string }

// Complete is what the last of words, the flags of a server, may become. files: it is a value that
// may be a file's name.
func Complete(words []string) (choices []Choice, files bool) {
	if len(words) == 0 {
		words = []string{""}
	}
	last := words[len(words)-1]
	if name, value, ok := strings.Cut(last, "="); ok && strings.HasPrefix(last, "-") {
		for _, v := range valuesOf(strings.TrimLeft(name, "-")) {
			if strings.HasPrefix(v, value) {
				choices = append(choices, Choice{name + "=" + v, ""})
			}
		}
		return choices, len(choices) == 0
	}
	p := &parser{o: Options{Program: Belay}, cfg: Default()}
	p.flags()
	if len(words) > 1 {
		if before := words[len(words)-2]; strings.HasPrefix(before, "-") && !strings.Contains(before, "=") {
			if f := p.fs.Lookup(strings.TrimLeft(before, "-")); f != nil && !isBool(f) {
				for _, v := range valuesOf(f.Name) {
					if strings.HasPrefix(v, last) {
						choices = append(choices, Choice{v, ""})
					}
				}
				return choices, len(choices) == 0
			}
		}
	}
	add := func(name, about string) {
		if text := "--" + name; strings.HasPrefix(text, last) {
			choices = append(choices, Choice{text, about})
		}
	}
	for _, d := range flagDefs() {
		if d.inert == "" {
			add(d.name, d.usage)
		}
	}
	add("config-file", "YAML or JSON with the flags' names as keys.")
	add("version", "Show the version.")
	add("help", "Show all flags.")
	return choices, false
}

// Booleans are the flags that take no word behind them.
func Booleans() (names []string) {
	p := &parser{o: Options{Program: Belay}, cfg: Default()}
	p.flags()
	p.fs.VisitAll(func(f *flag.Flag) {
		if isBool(f) {
			names = append(names, f.Name)
		}
	})
	return names
}

func isBool(f *flag.Flag) bool {
	b, ok := f.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}

// valuesOf are the values of a flag that has few.
func valuesOf(name string) []string {
	switch name {
	case "log-level":
		return []string{"debug", "info", "warn", "error", "panic", "fatal"}
	case "log-format":
		return []string{"json", "console"}
	case "metrics":
		return []string{"basic", "extensive"}
	case "initial-cluster-state":
		return []string{"new", "existing"}
	case "auto-compaction-mode":
		return []string{CompactionPeriodic, CompactionRevision}
	}
	return nil
}
