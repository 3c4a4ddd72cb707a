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

// formerFlags are flags that were renamed, and names that people try first.
func formerFlags() map[string]string {
	return map[string]string{
		"discovery":                                      "discovery-endpoints",
		"experimental-initial-corrupt-check":             "feature-gates=" + GateInitialCorruptCheck + "=true",
		"experimental-compact-hash-check-enabled":        "feature-gates=" + GateCompactHashCheck + "=true",
		"experimental-enable-lease-checkpoint":           "feature-gates=" + gateLeaseCheckpoint + "=true",
		"experimental-enable-lease-checkpoint-persist":   "feature-gates=" + gateLeaseCheckpointPersist + "=true",
		"experimental-set-member-localaddr":              "feature-gates=" + GateSetMemberLocalAddr + "=true",
		"experimental-stop-grpc-service-on-defrag":       "feature-gates=StopGRPCServiceOnDefrag=true",
		"experimental-txn-mode-write-with-shared-buffer": "feature-gates=TxnModeWriteWithSharedBuffer=true",
		"experimental-compact-hash-check-time":           "compact-hash-check-time",
		"debug":                                          "log-level=debug",
		"verbose":                                        "log-level=debug",
		"port":                                           "listen-client-urls",
		"addr":                                           "listen-client-urls",
		"endpoints":                                      "advertise-client-urls",
		"cacert":                                         "trusted-ca-file",
		"ca-file":                                        "trusted-ca-file",
	}
}

// nearest is the flag that an unknown name was most likely meant to be; "" if none is near.
func nearest(name string) string {
	if now, ok := formerFlags()[name]; ok {
		return now
	}
	known := []string{}
	for _, d := range flagDefs() {
		known = append(known, d.name)
	}
	// Flags that are no longer experimental kept the rest of their name.
	return nearestOf(strings.TrimPrefix(name, "experimental-"), append(known, "config-file"))
}

// nearestOf is the known name that was most likely meant: one or two typing errors away, or with
// the same first or last words.
func nearestOf(name string, known []string) string {
	best, distance := "", max(1, len(name)/3)+1
	for _, candidate := range known {
		if d := editDistance(name, candidate); d < distance {
			best, distance = candidate, d
		}
	}
	if best != "" || len(name) < 3 {
		return best
	}
	for _, candidate := range known {
		if strings.HasPrefix(candidate, name+"-") {
			return candidate
		}
	}
	for _, candidate := range known {
		if strings.HasSuffix(candidate, "-"+name) {
			return candidate
		}
	}
	return ""
}

// editDistance counts the letters to insert, delete, replace or exchange with the next between a
// and b.
func editDistance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(a)][len(b)]
}
