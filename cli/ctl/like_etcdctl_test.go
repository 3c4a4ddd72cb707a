package ctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// TestLikeEtcdctl runs testdata/like_etcdctl through etcdctl and through this package and compares
// standard output, exit code and the "Error:" line. Both talk to an etcd that starts empty on the
// same ports, so that member and cluster IDs, revisions and hashes are equal; what cannot be
// (leases, durations, sizes) is masked.
func TestLikeEtcdctl(t *testing.T) {
	etcdctl, etcd := os.Getenv("BELAY_ETCDCTL"), os.Getenv("BELAY_ETCD")
	if etcdctl == "" || etcd == "" {
		t.Skip("set BELAY_ETCDCTL and BELAY_ETCD to the paths of the programs to compare with")
	}
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "ETCDCTL_") {
			t.Setenv(name, "")
			os.Unsetenv(name)
		}
	}
	script := readScript(t)
	client, peer := freePort(t), freePort(t)

	play := func(name string, run runner) []outcome {
		session := startEtcd(t, etcd, client, peer)
		defer session.stop()
		var all []outcome
		for _, st := range script {
			all = append(all, session.play(t, name, st, run))
		}
		return all
	}
	want := play("etcdctl", runProgram(etcdctl))
	got := play("ctl", runHere)
	for i, st := range script {
		g, w := got[i], want[i]
		if st.codeOnly {
			g.stdout, w.stdout = "", ""
		}
		if w.errLine == "" && w.code != 0 || st.ownError {
			g.errLine, w.errLine = "", "" // where etcdctl is silent, or logs JSON, we may say why
		}
		if g.stdout != w.stdout || g.errLine != w.errLine || (g.code != w.code && w.code >= 0) {
			t.Errorf("line %d: %s\n--- etcdctl: exit code %d, %s\n%s\n--- here: exit code %d, %s\n%s",
				st.number, st.line, w.code, w.errLine, w.stdout, g.code, g.errLine, g.stdout)
		}
	}
	t.Logf("%d command lines compared", len(script))
}

type step struct {
	number   int // in the file
	line     string
	env      []string
	codeOnly bool
	ownError bool
	until    int // interrupt after so many lines; 0: let it end
	args     []string
	stdin    string
}

func readScript(t *testing.T) []step {
	data, err := os.ReadFile("testdata/like_etcdctl")
	if err != nil {
		t.Fatal(err)
	}
	word := regexp.MustCompile(`^(?:[^\s"']|"(?:[^"\\]|\\.)*"|'[^']*')+`)
	var steps []step
	for i, line := range strings.Split(string(data), "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		st := step{number: i + 1, line: line}
		var here bool
		for rest := strings.TrimSpace(line); rest != ""; rest = strings.TrimSpace(rest) {
			w := word.FindString(rest)
			if w == "" {
				t.Fatalf("line %d: cannot split %q", i+1, rest)
			}
			rest = rest[len(w):]
			if strings.HasPrefix(w, `"`) {
				var err error
				if w, err = strconv.Unquote(w); err != nil {
					t.Fatalf("line %d: %v", i+1, err)
				}
			}
			switch {
			case here:
				st.stdin = w
			case w == "<<<":
				here = true
			case len(st.args) == 0 && strings.HasPrefix(w, "until="):
				st.until, _ = strconv.Atoi(w[len("until="):])
			case len(st.args) == 0 && w == "only=code":
				st.codeOnly = true
			case len(st.args) == 0 && w == "error=own":
				st.ownError = true
			case len(st.args) == 0 && strings.HasPrefix(w, "ETCDCTL_"):
				st.env = append(st.env, w)
			default:
				st.args = append(st.args, w)
			}
		}
		steps = append(steps, st)
	}
	return steps
}

type outcome struct {
	stdout, errLine string
	code            int // negative: killed by the interrupt
}

// A runner runs one command line until ctx ends; until then it writes to stdout and stderr.
type runner func(ctx context.Context, args, env []string, stdin string, stdout, stderr *watchedBuffer) (code int)

func runHere(ctx context.Context, args, env []string, stdin string, stdout, stderr *watchedBuffer) int {
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		os.Setenv(name, value)
		defer os.Unsetenv(name)
	}
	return MainContext(ctx, "etcdctl", args, strings.NewReader(stdin), stdout, stderr)
}

func runProgram(path string) runner {
	return func(ctx context.Context, args, env []string, stdin string, stdout, stderr *watchedBuffer) int {
		cmd := exec.CommandContext(ctx, path, args...)
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
		cmd.WaitDelay = 5 * time.Second
		cmd.Env = append(os.Environ(), env...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), stdout, stderr
		var exit *exec.ExitError
		if err := cmd.Run(); err != nil && !errors.As(err, &exit) && cmd.ProcessState == nil {
			fmt.Fprintln(stderr, "Error: cannot run:", err)
		}
		return cmd.ProcessState.ExitCode()
	}
}

// watchedBuffer calls full once it holds a number of lines.
type watchedBuffer struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	lines int // 0: never
	full  func()
}

func (w *watchedBuffer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.buf.Write(p)
	if w.lines > 0 && bytes.Count(w.buf.Bytes(), []byte("\n")) >= w.lines {
		w.full()
	}
	return n, err
}

func (w *watchedBuffer) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// A etcdSession is one empty etcd and the names that commands have printed so far.
type etcdSession struct {
	endpoint string
	dir      string
	leases   []string // hexadecimal, in order of appearance
	members  []string
	self     string
	stop     func()
}

func startEtcd(t *testing.T, program string, client, peer int) *etcdSession {
	s := &etcdSession{endpoint: fmt.Sprintf("127.0.0.1:%d", client), dir: t.TempDir()}
	peerURL := fmt.Sprintf("http://127.0.0.1:%d", peer)
	log, err := os.Create(filepath.Join(s.dir, "etcd.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--name=m1", "--data-dir="+filepath.Join(s.dir, "data"),
		"--listen-client-urls=http://"+s.endpoint, "--advertise-client-urls=http://"+s.endpoint,
		"--listen-peer-urls="+peerURL, "--initial-advertise-peer-urls="+peerURL, "--initial-cluster=m1="+peerURL)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
	}
	// Ready when it counts itself among the started members.
	for deadline := time.Now().Add(20 * time.Second); ; {
		var out bytes.Buffer
		code := Main("etcdctl", []string{"--endpoints=" + s.endpoint, "--command-timeout=1s", "member", "list"}, strings.NewReader(""), &out, &bytes.Buffer{})
		if code == 0 && strings.Contains(out.String(), ", started, ") {
			s.self, _, _ = strings.Cut(out.String(), ",")
			return s
		}
		if time.Now().After(deadline) {
			b, _ := os.ReadFile(log.Name())
			s.stop()
			t.Fatalf("etcd did not start:\n%s", b)
		}
	}
}

func (s *etcdSession) play(t *testing.T, who string, st step, run runner) outcome {
	names := []string{"$SELF", s.self, "$DIR", s.dir}
	for i, id := range s.leases {
		names = append(names, fmt.Sprintf("$LEASE%d", i+1), id)
	}
	for i, id := range s.members {
		names = append(names, fmt.Sprintf("$MEMBER%d", i+1), id)
	}
	args := slices.Clone(st.args)
	for i := range args {
		args[i] = strings.NewReplacer(names...).Replace(args[i])
	}
	if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--endpoints") }) {
		args = append([]string{"--endpoints=" + s.endpoint}, args...)
	}

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	stdout, stderr := &watchedBuffer{lines: st.until, full: cancel}, &watchedBuffer{}
	code := run(ctx, args, st.env, st.stdin, stdout, stderr)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Errorf("%s: line %d: %s: did not end; printed so far:\n%s%s", who, st.number, st.line, stdout, stderr)
	}

	for _, m := range regexp.MustCompile(`lease ([0-9a-f]{16}) granted`).FindAllStringSubmatch(stdout.String(), -1) {
		if !slices.Contains(s.leases, m[1]) {
			s.leases = append(s.leases, m[1])
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^Member +([0-9a-f]+) added|^([0-9a-f]+), unstarted`).FindAllStringSubmatch(stdout.String(), -1) {
		if id := m[1] + m[2]; !slices.Contains(s.members, id) {
			s.members = append(s.members, id)
		}
	}
	o := outcome{stdout: s.mask(stdout.String()), code: code}
	for line := range strings.Lines(stderr.String()) {
		if strings.HasPrefix(line, "Error:") {
			o.errLine = s.mask(strings.TrimRight(line, "\n"))
		}
	}
	return o
}

// mask replaces what differs from run to run.
func (s *etcdSession) mask(text string) string {
	for i, id := range s.leases {
		n, _ := strconv.ParseInt(id, 16, 64)
		text = strings.NewReplacer(id, fmt.Sprintf("LEASE%d", i+1), strings.TrimLeft(id, "0"), fmt.Sprintf("LEASE%d", i+1),
			strconv.FormatInt(n, 10), fmt.Sprintf("LEASE%d", i+1)).Replace(text)
	}
	for i, id := range s.members {
		n, _ := strconv.ParseUint(id, 16, 64)
		text = strings.NewReplacer(id, fmt.Sprintf("MEMBER%d", i+1), strconv.FormatUint(n, 10), fmt.Sprintf("MEMBER%d", i+1)).Replace(text)
	}
	text = strings.ReplaceAll(text, s.dir, "DIR")
	for _, m := range []struct{ pattern, with string }{
		{`0x[0-9a-f]+`, "POINTER"},
		{`[0-9.]+(µs|ms|s)\b`, "DURATION"},
		{`remaining\(\d+s\)`, "remaining"},
		{`"(ID|id|Lease|lease)" ?: ?\d+`, `"$1":LEASE`}, // leases that were not granted in the simple format
		{`"(TTL|ttl)" ?: ?\d+`, `"$1":TTL`},
		{`\b[0-9a-f]{16}\b/[0-9a-f]+`, "KEY"},
		{`\b(e|l)/[0-9a-f]+`, "$1/SESSION"},
		{`[0-9.]+ [kM]?B\b`, "SIZE"},
		{`(?i)"(db_?size(_?in_?use)?|raft_?(applied_?)?index)" ?: ?\d+`, `"$1":N`},
		{`\d+%`, "PERCENT"},
		{`(true|false), (true|false), \d+, \d+, \d+,`, "$1, $2, N, N, N,"},
		{` {2,}`, " "}, {`─+`, "─"},
		{`│ \d+ │ \d+ │ \d+ │`, "│ N │ N │ N │"},
		{`(?s)usage of .*`, "usage"},
	} {
		text = regexp.MustCompile(m.pattern).ReplaceAllString(text, m.with)
	}
	if strings.Contains(text, "MEMBER") || strings.Contains(text, `"isLearner":true`) {
		// IDs of added members hold the time, and lists are ordered by ID: compare them as bags of
		// words.
		words := regexp.MustCompile(`[^,\n{}\[\]"]+`).FindAllString(text, -1)
		slices.Sort(words)
		text = strings.Join(words, "\n")
	}
	return text
}

func freePort(t *testing.T) int {
	port, err := cluster.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}
