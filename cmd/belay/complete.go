package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/belaydb/belay/cli/bench"
	"github.com/belaydb/belay/cli/ctl"
	"github.com/belaydb/belay/cli/dev"
	"github.com/belaydb/belay/cli/doctor"
	"github.com/belaydb/belay/cli/offline"
	"github.com/belaydb/belay/cli/proxy"
	"github.com/belaydb/belay/config"
	"github.com/belaydb/belay/internal/show"
)

// What a shell should do besides offering the candidates, in cobra's numbers.
const (
	completeFiles = 0 // complete names of files if there is no candidate
	completeNone  = 4
)

// completion prints a shell's completion scripts for belay and for the names that a link to it may
// have.
func completion(args []string, stdout, stderr io.Writer) int {
	const which = "belay completion: which shell? bash, zsh, fish or powershell, as in: source <(belay completion bash)"
	if len(args) != 1 {
		fmt.Fprintln(stderr, which)
		return 2
	}
	if args[0] == "--help" || args[0] == "-h" {
		fmt.Fprintln(stdout, which)
		return 0
	}
	for _, name := range []string{"belay", "etcdctl", "etcdutl", "etcd", "benchmark"} {
		if err := show.Completion(stdout, args[0], name); err != nil {
			fmt.Fprintf(stderr, "belay: %v\n", err)
			return 2
		}
	}
	return 0
}

// complete answers a shell. how is __complete or __completeNoDesc; words are those after "belay",
// of which the last is to be completed.
func complete(how string, words []string, stdin io.Reader, stdout, stderr io.Writer) int {
	describe := how == "__complete"
	if len(words) < 2 {
		return offer(stdout, describe, commandChoices(words), completeNone)
	}
	switch rest := words[1:]; words[0] {
	case "ctl":
		return ctl.Main("belay ctl", append([]string{how}, rest...), stdin, stdout, stderr)
	case "bench":
		return bench.Main("belay bench", append([]string{how}, rest...), stdin, stdout, stderr)
	case "doctor":
		return doctor.Main(append([]string{how}, rest...), stdin, stdout, stderr)
	case "util":
		return offline.Main("belay util", append([]string{how}, rest...), stdout, stderr)
	case "proxy":
		return proxy.Main("belay proxy", append([]string{how}, rest...), stdout, stderr)
	case "server":
		return completeServer(stdout, describe, rest)
	case "dev":
		return completeDev(stdout, describe, rest)
	case "completion":
		var choices []config.Choice
		for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
			if len(rest) == 1 && strings.HasPrefix(shell, rest[0]) {
				choices = append(choices, config.Choice{Text: shell})
			}
		}
		return offer(stdout, describe, choices, completeNone)
	}
	return offer(stdout, describe, nil, completeNone)
}

func commandChoices(words []string) (choices []config.Choice) {
	for _, c := range []config.Choice{
		{Text: "bench", About: "measure a cluster"}, {Text: "completion", About: "print a completion script for a shell"}, {Text: "ctl", About: "talk to a cluster"},
		{Text: "dev", About: "run a cluster on this machine"}, {Text: "doctor", About: "say what is wrong with a cluster"}, {Text: "help", About: "print what there is"},
		{Text: "proxy", About: "stand between many clients and a cluster"}, {Text: "server", About: "run one member"}, {Text: "util", About: "work on files"}, {Text: "version", About: "print versions"},
	} {
		if len(words) == 0 || strings.HasPrefix(c.Text, words[0]) {
			choices = append(choices, c)
		}
	}
	return choices
}

func completeServer(w io.Writer, describe bool, words []string) int {
	choices, files := config.Complete(words)
	if files {
		return offer(w, describe, choices, completeFiles)
	}
	return offer(w, describe, choices, completeNone)
}

// completeDev completes the flags of dev, and after -- those of its members.
func completeDev(w io.Writer, describe bool, words []string) int {
	for i, word := range words[:len(words)-1] {
		if word == "--" {
			return completeServer(w, describe, words[i+1:])
		}
	}
	if len(words) > 1 && words[len(words)-2] == "--data-dir" {
		return offer(w, describe, nil, completeFiles)
	}
	var choices []config.Choice
	if words[0] == dev.FaultCommand && len(words) > 1 {
		for _, c := range dev.CompleteFault(words[1:]) {
			choices = append(choices, config.Choice{Text: c[0], About: c[1]})
		}
		return offer(w, describe, choices, completeNone)
	}
	if last := words[len(words)-1]; len(words) == 1 && last != "" && strings.HasPrefix(dev.FaultCommand, last) {
		choices = append(choices, config.Choice{Text: dev.FaultCommand, About: "break something in a cluster that runs"})
	}
	for _, f := range dev.Flags() {
		if strings.HasPrefix(f[0], words[len(words)-1]) {
			choices = append(choices, config.Choice{Text: f[0], About: f[1]})
		}
	}
	return offer(w, describe, choices, completeNone)
}

// offer prints candidates in cobra's form: one on each line, then what else the shell should do.
func offer(w io.Writer, describe bool, choices []config.Choice, directive int) int {
	for _, c := range choices {
		if describe && c.About != "" {
			fmt.Fprintf(w, "%s\t%s\n", c.Text, c.About)
		} else {
			fmt.Fprintln(w, c.Text)
		}
	}
	fmt.Fprintf(w, ":%d\n", directive)
	return 0
}
