package config

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// command is how the server is called.
func (p *parser) command() string {
	if p.o.Program == Etcd {
		return "etcd"
	}
	return "belay server"
}

func (p *parser) usage(w io.Writer) {
	fmt.Fprintf(w, `Usage:

  %[1]s [flags]
    Start a member.

  %[1]s --config-file FILE
    Start a member with the configuration in a file; flags and variables are ignored.

  %[1]s --version
    Show the version.

  %[1]s -h | --help
    Show all flags.
`, p.command())
}

// help prints what etcd prints where: the usage on stderr, the flags on stdout.
func (p *parser) help() {
	w := p.o.Stdout
	if p.o.Program == Etcd {
		p.usage(p.o.Stderr)
	} else {
		p.usage(w)
	}
	fresh := &parser{o: p.o, cfg: Default()} // defaults, not what came before --help
	fresh.flags()
	last := group("")
	inert := ignoredFlags()
	for _, d := range flagDefs() {
		if d.inert != "" {
			inert = append(inert, d.name)
			continue
		}
		if d.group != last {
			last = d.group
			fmt.Fprintf(w, "\n%s:\n", d.group)
		}
		def := cmp.Or(d.shown, fresh.fs.Lookup(d.name).Value.String())
		if d.name == "data-dir" {
			def = "${name}." + string(p.o.Program)
		}
		fmt.Fprintf(w, "  --%s '%s'\n", d.name, def)
		wrap(w, "    ", strings.Fields(d.usage))
	}
	fmt.Fprintf(w, "\nConfiguration file:\n  --config-file ''\n    YAML or JSON with the flags' names as keys. All flags and variables are ignored then.\n")
	fmt.Fprint(w, "\nEach flag can be set by a variable: ETCD_ and its name in capitals, as ETCD_DATA_DIR for --data-dir.\n"+
		"A flag that is set both ways is an error.\n\nTaken for etcd's sake, without effect:\n")
	slices.Sort(inert)
	for i := range inert {
		inert[i] = "--" + inert[i]
	}
	wrap(w, "  ", inert)
}

// wrap prints words in lines of no more than helpWidth.
func wrap(w io.Writer, indent string, words []string) {
	const helpWidth = 140
	line := indent
	for _, word := range words {
		if len(line)+len(word) > helpWidth && line != indent {
			fmt.Fprintln(w, strings.TrimRight(line, " "))
			line = indent
		}
		line += word + " "
	}
	fmt.Fprintln(w, strings.TrimRight(line, " "))
}

// usageError prints an error of the command line with the usage, and a guess at what was meant.
func (p *parser) usageError(text string) {
	w := p.o.Stderr
	fmt.Fprintln(w, text)
	if name, unknown := strings.CutPrefix(text, "flag provided but not defined: -"); unknown {
		if near := nearest(name); near != "" {
			fmt.Fprintf(w, "Did you mean --%s?\n", near)
		}
	}
	p.usage(w)
}

// nearest is the flag that an unknown name was most likely meant to be; "" if none is near.
func nearest(name string) string {
	// Flags that left the experiment kept the rest of their name.
	name = strings.TrimPrefix(name, "experimental-")
	best, distance := "", max(2, len(name)/3)+1
	consider := func(candidate string) {
		if d := editDistance(name, candidate); d < distance {
			best, distance = candidate, d
		}
	}
	for _, d := range flagDefs() {
		consider(d.name)
	}
	consider("config-file")
	return best
}

// editDistance counts the letters to insert, delete or replace between a and b.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
