// Package rules makes the alerts that watch a cluster of etcd's or Belay's, as a rule file for
// Prometheus. File and Tune decide and ask nobody.
//
// Each expression is written in lines: what is measured, then from the comparison on, which begins a
// line, what makes an alert of it, then guards, each of which begins with "and". So whoever leaves
// out what begins with the comparison sees the measured value, and a test can ask that there is one.
//
// Files: rules.go (what a rule file is), table.go (the rules), bounds.go (the figures in them, and
// how they are tuned).
package rules

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A Kind is which program the members run.
type Kind string

// The kinds there are.
const (
	Etcd  Kind = "etcd"
	Belay Kind = "belay"
)

// Program is how one writes it.
func (k Kind) Program() string {
	if k == Belay {
		return "Belay"
	}
	return "etcd"
}

// Runbook is where the sections of docs/runbook.md are found, unless Options say otherwise.
const Runbook = "https://github.com/belaydb/belay/blob/main/docs/runbook.md"

// Options say what to make.
type Options struct {
	Kind Kind
	// Selector is what selects the members' series, without braces, as in job="etcd". Never empty.
	Selector string
	// By are the labels that name one cluster among those that Selector selects. At least one.
	By []string
	// Runbook is the address of a page with a section for each alert.
	Runbook string
	Bounds  Bounds
	// Notes stand at the head of the file: where the bounds are from.
	Notes []string
}

// DefaultSelector is that of members whose job is named after the program.
func DefaultSelector(kind Kind) string { return fmt.Sprintf("job=~\".*%s.*\"", kind) }

// A File is a rule file.
type File struct {
	notes  []string
	Groups []Group `yaml:"groups" json:"groups"`
}

// A Group is evaluated in its order, all at the same time.
type Group struct {
	Name  string `yaml:"name" json:"name"`
	Rules []Rule `yaml:"rules" json:"rules"`
}

// A Rule records a series or is an alert.
type Rule struct {
	Record      string            `yaml:"record,omitempty" json:"record,omitempty"`
	Alert       string            `yaml:"alert,omitempty" json:"alert,omitempty"`
	Expr        string            `yaml:"expr" json:"expr"`
	For         string            `yaml:"for,omitempty" json:"for,omitempty"`
	Labels      map[string]string `yaml:"labels,omitempty" json:"labels,omitempty"`
	Annotations map[string]string `yaml:"annotations,omitempty" json:"annotations,omitempty"`
}

// Make makes the rule file: the recorded series first, for the alerts use them.
func Make(o Options) File {
	f := File{notes: o.Notes}
	recorded := Group{Name: string(o.Kind) + "-recorded"}
	for _, r := range records() {
		if r.only == "" || r.only == o.Kind {
			recorded.Rules = append(recorded.Rules, Rule{Record: r.name, Expr: o.expand(r.expr)})
		}
	}
	f.Groups = append(f.Groups, recorded)
	for _, part := range parts() {
		g := Group{Name: string(o.Kind) + "-" + part.name}
		for _, a := range part.alerts(o) {
			if a.only != "" && a.only != o.Kind {
				continue
			}
			expr := []string{a.measure}
			if a.when != "" {
				expr = append(expr, a.when)
			}
			for _, guard := range a.and {
				expr = append(expr, "and "+guard)
			}
			g.Rules = append(g.Rules, Rule{
				Alert:  o.name(a.name),
				Expr:   o.expand(strings.Join(expr, "\n")),
				For:    a.holds,
				Labels: map[string]string{"severity": a.severity},
				Annotations: map[string]string{
					"summary":     o.expand(a.summary),
					"description": o.expand(a.says),
					"runbook_url": o.Runbook + "#" + strings.ToLower(a.name),
				},
			})
		}
		if len(g.Rules) > 0 {
			f.Groups = append(f.Groups, g)
		}
	}
	return f
}

// name is an alert's own: two kinds may be watched by one Prometheus.
func (o Options) name(base string) string {
	if o.Kind == Belay {
		return "Belay" + base
	}
	return "Etcd" + base
}

// expand puts the selector, the labels and the words of the options into a text of the table.
func (o Options) expand(text string) string {
	var cluster []string
	for _, l := range o.By {
		cluster = append(cluster, "{{ $labels."+l+" }}")
	}
	return strings.NewReplacer(
		"SEL", o.Selector,
		"BY", strings.Join(o.By, ", "),
		"CLUSTER", strings.Join(cluster, "/"),
		"MEMBER", "{{ $labels.instance }}",
		"PROGRAM", o.Kind.Program(),
	).Replace(text)
}

// YAML writes the file as Prometheus reads it.
func (f File) YAML(w io.Writer) error {
	var b bytes.Buffer
	for _, note := range f.notes {
		fmt.Fprintf(&b, "# %s\n", note)
	}
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(f); err != nil {
		return err
	}
	if err := enc.Close(); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}

// JSON writes the same for scripts. Prometheus reads that, too.
func (f File) JSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(f)
}
