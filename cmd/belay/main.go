// Command belay is the whole of Belay in one binary. Its first argument selects what it does;
// called through a link named etcd, etcdctl, etcdutl or benchmark, it behaves like that program.
package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/belaydb/belay/cli/bench"
	"github.com/belaydb/belay/cli/ctl"
	"github.com/belaydb/belay/cli/dev"
	"github.com/belaydb/belay/cli/doctor"
	"github.com/belaydb/belay/cli/offline"
	"github.com/belaydb/belay/cli/proxy"
	"github.com/belaydb/belay/config"
)

const usage = `Belay is a distributed, strongly consistent key-value store that speaks etcd's v3 API.

Usage:
  belay server [flags]    run one member (etcd's flags and ETCD_* variables; --help lists them)
  belay dev [flags]       run a cluster of three members on this machine
  belay ctl COMMAND       talk to a cluster (etcdctl's commands, flags and output)
  belay proxy [flags]     stand between many clients and a cluster, Belay's or etcd's
  belay doctor            look at a cluster, Belay's or etcd's: which member is in trouble, why, what to do
  belay bench COMMAND     measure a cluster (etcd's benchmark tool: its commands, flags and output, and more)
  belay util COMMAND      work on files: restore a snapshot of etcd's, look into one, look into a raft log
  belay completion SHELL  print a completion script: source <(belay completion bash)
  belay version           print versions

Called by the name etcd, etcdctl, etcdutl or benchmark (a link to this binary), it behaves as that program.
`

func main() {
	if servesMember(os.Args) {
		boundMalloc()
	}
	os.Exit(run(os.Args, os.Stdin, os.Stdout, os.Stderr))
}

// servesMember: the command line runs a member until it ends.
func servesMember(args []string) bool {
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	if filepath.Base(args[0]) == "etcd" {
		return arg(1) != "grpc-proxy" && arg(1) != "gateway" && !strings.HasPrefix(arg(1), "__complete")
	}
	return arg(1) == "server" || arg(1) == "dev" && arg(2) == dev.MemberCommand
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	switch name := strings.TrimSuffix(filepath.Base(args[0]), ".exe"); name {
	case "etcd":
		if len(args) > 2 && (args[1] == "__complete" || args[1] == "__completeNoDesc") {
			return completeServer(stdout, args[1] == "__complete", args[2:])
		}
		if len(args) > 1 && (args[1] == "grpc-proxy" || args[1] == "gateway") {
			return proxy.Main("etcd", args[1:], stdout, stderr)
		}
		return serve(config.Etcd, args[1:], stdout, stderr)
	case "etcdctl":
		return ctl.Main("etcdctl", args[1:], stdin, stdout, stderr)
	case "etcdutl":
		return offline.Main("etcdutl", args[1:], stdout, stderr)
	case "benchmark":
		return bench.Main("benchmark", args[1:], stdin, stdout, stderr)
	}
	if len(args) < 2 {
		fmt.Fprint(stderr, usage)
		return 2
	}
	switch args[1] {
	case "server":
		return serve(config.Belay, args[2:], stdout, stderr)
	case "dev":
		if len(args) > 2 && args[2] == dev.MemberCommand {
			return serveBroken(args[3:], stdin, stdout, stderr)
		}
		return dev.Main(args[2:], stdin, stdout, stderr)
	case "ctl":
		return ctl.Main("belay ctl", args[2:], stdin, stdout, stderr)
	case "proxy":
		return proxy.Main("belay proxy", args[2:], stdout, stderr)
	case "doctor":
		return doctor.Main(args[2:], stdin, stdout, stderr)
	case "bench":
		return bench.Main("belay bench", args[2:], stdin, stdout, stderr)
	case "util":
		return offline.Main("belay util", args[2:], stdout, stderr)
	case "__complete", "__completeNoDesc": // what a shell asks whose completion came from `belay completion`
		return complete(args[1], args[2:], stdin, stdout, stderr)
	case "completion":
		return completion(args[2:], stdout, stderr)
	case "version", "--version", "-v":
		printVersion(stdout)
		return 0
	case "help":
		if len(args) > 2 && args[2] != "help" && !strings.HasPrefix(args[2], "-") { // belay help ctl get
			return run(append(append(args[:1:1], args[2:]...), "--help"), stdin, stdout, stderr)
		}
		fmt.Fprint(stdout, usage)
		return 0
	case "--help", "-h":
		fmt.Fprint(stdout, usage)
		return 0
	}
	fmt.Fprintf(stderr, "belay: unknown command %q%s\n\n%s", args[1], meant(args[1]), usage)
	return 2
}

// meant names the commands whose sub-command the word is, as of who typed `belay get`.
func meant(word string) string {
	var full []string
	for _, group := range []string{"ctl", "util", "doctor", "bench"} {
		var offered strings.Builder
		complete("__completeNoDesc", []string{group, word}, strings.NewReader(""), &offered, io.Discard)
		if slices.Contains(strings.Split(offered.String(), "\n"), word) {
			full = append(full, "belay "+group+" "+word)
		}
	}
	if len(full) == 0 {
		return ""
	}
	return "; did you mean " + strings.Join(full, " or ") + "?"
}
