package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestComplete(t *testing.T) {
	for line, want := range map[string]string{
		"belay __completeNoDesc ":                             "bench\ncompletion\nctl\ndev\ndoctor\nhelp\nproxy\nserver\nutil\nversion\n:4\n",
		"belay __complete ct":                                 "ctl\ttalk to a cluster\n:4\n",
		"belay __completeNoDesc server --na":                  "--name\n:4\n",
		"belay __completeNoDesc server --log-l":               "--log-level\n:4\n",
		"belay __completeNoDesc server --log-level er":        "error\n:4\n",
		"belay __completeNoDesc server --log-format=c":        "--log-format=console\n:4\n",
		"belay __completeNoDesc server --data-dir ":           ":0\n",
		"belay __completeNoDesc server --pre-vote --cert-f":   "--cert-file\n:4\n",
		"belay __completeNoDesc dev --mem":                    "--members\n:4\n",
		"belay __completeNoDesc dev --data-dir ":              ":0\n",
		"belay __completeNoDesc dev --clean -- --quota":       "--quota-backend-bytes\n:4\n",
		"belay __completeNoDesc proxy --resolver-t":           "--resolver-ttl\n:4\n",
		"belay __completeNoDesc completion z":                 "zsh\n:4\n",
		"belay __completeNoDesc ctl member pro":               "promote\n:4\n",
		"belay __completeNoDesc ctl get --consis":             "--consistency\n:4\n",
		"belay __completeNoDesc ctl --write-out ":             "fields\njson\n",
		"belay __completeNoDesc util snapshot re":             "restore\n:",
		"belay __completeNoDesc util snapshot restore --bump": "--bump-revision\n:",
		"belay __completeNoDesc bench txn-m":                  "txn-mixed\n:4\n",
		"belay __completeNoDesc bench put --val":              "--val-size\n:4\n",
		"benchmark __completeNoDesc watch-l":                  "watch-latency\n:4\n",
		"etcd __completeNoDesc --election":                    "--election-timeout\n:4\n",
		"etcdctl __completeNoDesc member pro":                 "promote\n:4\n",
		"etcdutl __completeNoDesc snapshot re":                "restore\n:",
	} {
		var out, errs bytes.Buffer
		if code := run(strings.Split(line, " "), nil, &out, &errs); code != 0 || !strings.HasPrefix(out.String(), want) {
			t.Errorf("%s: code %d, %q, want %q", line, code, out.String(), want)
		}
	}
}

// TestHelpOfCommands: help with a command's name is that command's, on standard output. It printed
// the overview, and a command of ctl or util without its "ctl" was only unknown.
func TestHelpOfCommands(t *testing.T) {
	for line, want := range map[string]string{
		"belay help":                 "Belay is a distributed",
		"belay help help":            "Belay is a distributed",
		"belay help server":          "--initial-cluster",
		"belay help dev":             "--members",
		"belay help proxy":           "--listen-addr",
		"belay help ctl get":         "belay ctl get [options] <key> [range_end]",
		"belay help util snapshot":   "belay util snapshot",
		"belay help doctor disk":     "belay doctor disk",
		"belay help bench put":       "belay bench put",
		"belay help completion":      "source <(belay completion bash)",
		"belay help version":         "belay version:",
		"belay completion --help":    "source <(belay completion bash)",
		"belay ctl help member list": "belay ctl member list",
	} {
		var out, errs bytes.Buffer
		if code := run(strings.Split(line, " "), nil, &out, &errs); code != 0 || !strings.Contains(out.String(), want) || errs.Len() > 0 {
			t.Errorf("%s: code %d, %q, and on stderr %q; want %q", line, code, out.String(), errs.String(), want)
		}
	}
	for line, want := range map[string]string{
		"belay get":         "belay: unknown command \"get\"; did you mean belay ctl get?\n",
		"belay top":         "belay: unknown command \"top\"; did you mean belay ctl top?\n",
		"belay snapshot":    "belay: unknown command \"snapshot\"; did you mean belay ctl snapshot or belay util snapshot?\n",
		"belay neighbours":  "belay: unknown command \"neighbours\"; did you mean belay doctor neighbours?\n",
		"belay xyz":         "belay: unknown command \"xyz\"\n",
		"belay help xyz":    "belay: unknown command \"xyz\"\n",
		"belay help top":    "belay: unknown command \"top\"; did you mean belay ctl top?\n",
		"belay --data-dir=": "belay: unknown command \"--data-dir=\"\n",
	} {
		var out, errs bytes.Buffer
		if code := run(strings.Split(line, " "), nil, &out, &errs); code != 2 || !strings.HasPrefix(errs.String(), want) || out.Len() > 0 {
			t.Errorf("%s: code %d, %q, and on stdout %q; want %q", line, code, errs.String(), out.String(), want)
		}
	}
}

// TestCompletionInBash has bash itself complete with the scripts, for belay and for links to it.
func TestCompletionInBash(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("bash is not installed")
	}
	dir := t.TempDir()
	for _, name := range []string{"belay", "etcd", "etcdctl", "etcdutl", "benchmark"} {
		if err := os.Symlink(must(os.Executable()), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for line, want := range map[string]string{
		"belay se": "server", "belay server --na": "--name", "belay dev --mem": "--members", "belay dev fau": "fault", "belay dev fault part": "partition", "belay ctl member pro": "promote",
		"belay util snapshot sta": "status", "etcd --election": "--election-timeout", "etcdctl member pro": "promote", "etcdutl snapshot sta": "status", "belay bench lease": "lease-keepalive", "benchmark watch-g": "watch-get",
	} {
		program, _, _ := strings.Cut(line, " ")
		cmd := exec.CommandContext(t.Context(), bash, "--norc", "-c", `
source <(belay completion bash)
# bash-completion's own function, which the scripts use where it is there
_get_comp_words_by_ref() { cur=${COMP_WORDS[COMP_CWORD]}; prev=${COMP_WORDS[COMP_CWORD-1]}; words=("${COMP_WORDS[@]}"); cword=$COMP_CWORD; }
_init_completion() { _get_comp_words_by_ref; }
__ltrim_colon_completions() { :; }
compopt() { :; }
COMP_WORDS=($LINE); COMP_CWORD=$((${#COMP_WORDS[@]}-1)); COMP_LINE=$LINE; COMP_POINT=${#LINE}; COMP_TYPE=9
__start_$PROGRAM 2>&1
printf '%s\n' "${COMPREPLY[@]}"
`)
		cmd.Env = append(os.Environ(), mainVariable+"=1", "PATH="+dir+":"+os.Getenv("PATH"), "LINE="+line, "PROGRAM="+program)
		out, err := cmd.CombinedOutput()
		if have := strings.TrimSpace(string(out)); err != nil || have != want {
			t.Errorf("%s: %q, %v, want %q", line, have, err, want)
		}
	}
	for _, shell := range []string{"zsh", "fish", "powershell"} {
		var out, errs bytes.Buffer
		if code := run([]string{"belay", "completion", shell}, nil, &out, &errs); code != 0 || !strings.Contains(out.String(), "etcdutl") {
			t.Errorf("%s: code %d, %s", shell, code, &errs)
		}
	}
}

// mainVariable makes this test's binary belay itself.
const mainVariable = "BELAY_MAIN_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(mainVariable) != "" {
		main()
	}
	os.Exit(m.Run())
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
