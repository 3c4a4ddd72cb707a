package clients

import (
	"bytes"
	"context"
	"encoding/json"
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

// TestEtcdctlSideBySide runs etcdctl's commands against Belay and against etcd, line by line as
// testdata/etcdctl says, and wants equal output, on standard output and behind "Error:", and equal
// exit codes: on one member and on three, plain, over TLS with a client's certificate, and with
// users on. What differs by nature is masked: addresses, member IDs, leases, durations, sizes,
// raft's indexes. Without BELAY_CLIENTS=all only the strictest way in is tried, on one member, with
// the lines about users and some of the others.
func TestEtcdctlSideBySide(t *testing.T) {
	wantTime(t)
	if !all() {
		t.Parallel()
		n := 0
		compareLines(t, 1, secured, etcdTools(t).Etcdctl, func(line string) bool {
			n++
			return !waits.MatchString(line) && (n%4 == 0 || asUsers.MatchString(line))
		})
		return
	}
	for _, size := range []int{1, 3} {
		for _, in := range []access{plain, {name: "TLS", tls: true}, {name: "users", auth: true}, secured} {
			t.Run(fmt.Sprintf("%d %s", size, in.name), func(t *testing.T) {
				t.Parallel() // part of it is waiting
				compareLines(t, size, in, etcdTools(t).Etcdctl, func(string) bool { return true })
			})
		}
	}
}

// waits matches the lines that take a second and more, or another cluster.
var waits = regexp.MustCompile(`timeout |sleep |OTHER|check |command-timeout|downgrade enable`)

// asUsers matches the lines that set up users, or are said by some.
var asUsers = regexp.MustCompile(`\$ctl (role|user|auth|--user) |\$nobody`)

// compareLines plays the lines of testdata/etcdctl that are wanted on both, with
// a program on the server that is checked, and with etcdctl on etcd.
func compareLines(t *testing.T, size int, in access, program string, wanted func(string) bool) {
	reference := etcdTools(t).Etcdctl
	var got, want *session
	both(func() { got = newSession(t, checkKind(t), size, in) }, func() { want = newSession(t, cluster.Etcd, size, in) })
	if t.Failed() {
		return
	}
	compared := 0
	for _, line := range commandLines(t) {
		if only, rest, ok := strings.Cut(line, " nodes: "); ok {
			if only != strconv.Itoa(size) {
				continue
			}
			line = rest
		}
		if !wanted(line) {
			continue
		}
		compared++
		var g, w string
		both(func() { g = got.play(program, line) }, func() { w = want.play(reference, line) })
		for range 3 {
			// On etcd a token is unknown to a member that lags behind the one that
			// gave it; Belay's member catches up first. The line did nothing.
			if refused := "invalid auth token"; !strings.Contains(w, refused) || strings.Contains(g, refused) {
				break
			}
			w = want.play(reference, line)
		}
		if program != reference {
			g, w = sayings(g), sayings(w)
		}
		if g != w {
			t.Errorf("%s\n--- on %s:\n%s\n--- on etcd:\n%s", line, got.kind, g, w)
		}
		if os.Getenv("BELAY_CLIENTS_SHOW") != "" {
			t.Logf("%s\n%s", line, g)
		}
	}
	t.Logf("%d command lines compared", compared)
}

// sayings is what belay ctl has in common with etcdctl: all but the help, which
// is in its own words, the hints behind an error, stty's complaints (it asks no
// stty), and what etcdctl says in a line of its log.
func sayings(text string) string {
	text = regexp.MustCompile(`(?m)^stderr: (Hint: |stty: |Error: conflicting environment variable ).*\n`).ReplaceAllString(text, "")
	if before, help, ok := strings.Cut(text, "Usage:"); ok {
		if before = regexp.MustCompile(`(?m)^[^:\n]*\n`).ReplaceAllString(before, ""); !strings.HasPrefix(before, "stderr: ") {
			before = ""
		}
		return before + help[strings.LastIndexByte(help, '\n'):]
	}
	return text
}

// both runs two functions at the same time.
func both(a, b func()) {
	var wg sync.WaitGroup
	wg.Go(a)
	wg.Go(b)
	wg.Wait()
}

// TestBelayCtlSideBySide does the same with belay's own client, under the name etcdctl.
func TestBelayCtlSideBySide(t *testing.T) {
	wantAll(t)
	ours := filepath.Join(t.TempDir(), "etcdctl")
	if err := os.Symlink(belay(t), ours); err != nil {
		t.Fatal(err)
	}
	for _, in := range []access{plain, secured} {
		t.Run(in.name, func(t *testing.T) {
			t.Parallel() // part of it is waiting
			compareLines(t, 1, in, ours, func(line string) bool { return !strings.Contains(line, "completion bash") })
		})
	}
}

// TestBelayCtlMore does it with testdata/etcdctl-more.
func TestBelayCtlMore(t *testing.T) {
	wantAll(t)
	ours := filepath.Join(t.TempDir(), "etcdctl")
	if err := os.Symlink(belay(t), ours); err != nil {
		t.Fatal(err)
	}
	t.Setenv("BELAY_CLIENTS_LINES", filepath.Join("testdata", "etcdctl-more"))
	compareLines(t, 1, plain, ours, func(string) bool { return true })
}

// TestCheckPerf runs `check perf` of both clients. Whether it passes is the machine's affair; the
// words and the exit code must be those of the verdict, and nothing may fail.
func TestCheckPerf(t *testing.T) {
	wantAll(t)
	t.Parallel() // most of it is waiting
	s := newSession(t, checkKind(t), 3, secured)
	if t.Failed() {
		return
	}
	want := regexp.MustCompile(`^Compacting with revision \d+\nCompacted with revision \d+\n` +
		`(Defragmenting "127.0.0.1:\d+"\nDefragmented "127.0.0.1:\d+"\n){3}` +
		`(PASS: Throughput is|FAIL: Throughput too low:) \d+ writes/s\n` +
		`(PASS: Slowest request took|Slowest request took too long:) [0-9.]+s\n` +
		`(PASS: Stddev is|Stddev too high:) [0-9.]+s\n(PASS|FAIL)\n$`)
	var wg sync.WaitGroup
	for i, program := range [][]string{{etcdTools(t).Etcdctl}, {belay(t), "ctl"}} {
		wg.Go(func() {
			args := append(append(program[1:], s.cluster.flags("")...), "--endpoints", s.endpoints(), "check", "perf", "--prefix", fmt.Sprintf("/perf-%d/", i), "--auto-compact", "--auto-defrag")
			out, err := exec.Command(program[0], args...).Output()
			t.Logf("%s: %v\n%s", strings.Join(program, " "), err, out)
			if !want.Match(out) || (err == nil) != strings.HasSuffix(string(out), "\nPASS\n") {
				t.Errorf("%s: %v: it did not say its verdict", strings.Join(program, " "), err)
			}
		})
	}
	wg.Wait()
}

// commandLines are those of testdata/etcdctl, or of the file that BELAY_CLIENTS_LINES names.
func commandLines(t *testing.T) []string {
	file := os.Getenv("BELAY_CLIENTS_LINES")
	if file == "" {
		file = filepath.Join("testdata", "etcdctl")
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			lines = append(lines, line)
		}
	}
	return lines
}

// session is one cluster and what must be said differently of it.
type session struct {
	t       *testing.T
	kind    cluster.Kind
	in      access
	cluster *door
	other   *door // where make-mirror goes; nil before
	dir     string
	names   []string // pairs for a strings.Replacer: what is masked, and by what
	known   map[string]string
}

// newSession starts a cluster with the access asked for. It runs beside
// another, so that it marks the test as failed instead of ending it.
func newSession(t *testing.T, kind cluster.Kind, size int, in access) *session {
	s := &session{t: t, kind: kind, in: in, dir: t.TempDir(), known: make(map[string]string)}
	if s.cluster = s.start(size); s.cluster == nil {
		return s
	}
	for i, m := range s.cluster.Members {
		s.mask(m.ClientURL, fmt.Sprintf("http://client-%d", i))
		s.mask(m.Endpoint(), fmt.Sprintf("client-%d", i))
		s.mask(m.PeerURL, fmt.Sprintf("http://peer-%d", i))
	}
	s.mask(s.dir, "DIR")
	out, msg, err := run(t, time.Minute, s.etcdctl("member", "list", "-w", "json"))
	var list struct {
		Header  struct{ Cluster_id uint64 }
		Members []struct {
			ID   uint64
			Name string
		}
	}
	if err == nil {
		err = json.Unmarshal([]byte(out), &list)
	}
	if err != nil {
		t.Errorf("member list: %v\n%s", err, msg)
	}
	s.maskID(list.Header.Cluster_id, "CLUSTER")
	for _, m := range list.Members {
		s.maskID(m.ID, "ID-"+m.Name)
	}
	return s
}

// start starts a cluster with the session's access.
func (s *session) start(size int) *door {
	d, err := open(s.t, s.kind, size, s.in, "--bcrypt-cost=4", "--unsafe-no-fsync") // etcdctl waits 2 s for a login, which is a write
	if err != nil {
		s.t.Error(err)
		return nil
	}
	return d
}

// etcdctl is a call of etcdctl outside of the lines.
func (s *session) etcdctl(args ...string) *exec.Cmd {
	return exec.Command(etcdTools(s.t).Etcdctl, append(append(s.cluster.flags(""), "--endpoints="+s.endpoints()), args...)...)
}

func (s *session) endpoints() string { return strings.Join(s.cluster.Endpoints(), ",") }

func (s *session) mask(text, by string) {
	s.names = append(s.names, text, by)
	s.known["$"+by] = text
}

func (s *session) maskID(id uint64, by string) {
	hex := strconv.FormatUint(id, 16)
	s.mask(hex, by)
	s.mask(strconv.FormatUint(id, 10), by)
	s.known["$"+by] = hex
}

// play runs one line, by a shell where $ctl is etcdctl with the endpoints, and
// returns all that is to be equal.
func (s *session) play(program, line string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	if strings.Contains(line, "$OTHER") && s.other == nil {
		if s.other = s.start(1); s.other == nil {
			return ""
		}
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", line)
	cmd.Dir = s.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // so that all of the line can be ended, and there is no terminal to ask for passwords
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	// as defines a variable that is etcdctl with those of a cluster's flags that keep accepts.
	as := func(name string, d *door, keep func(flag string) bool, endpoints ...string) {
		var flags []string
		for _, f := range d.flags("") {
			if keep(f) {
				flags = append(flags, f)
			}
		}
		if len(endpoints) > 0 {
			flags = append(flags, "--endpoints="+strings.Join(endpoints, ","))
		}
		cmd.Env = append(cmd.Env, name+"="+strings.Join(append([]string{program}, flags...), " "))
	}
	every, anonymous := func(string) bool { return true }, func(flag string) bool { return !strings.HasPrefix(flag, "--user=") }
	cmd.Env = os.Environ()
	as("ctl", s.cluster, every, s.cluster.Endpoints()...)
	as("one", s.cluster, every, s.cluster.Endpoints()[0])
	as("nobody", s.cluster, anonymous, s.cluster.Endpoints()...)
	as("at", s.cluster, every) // --endpoints is to follow
	cmd.Env = append(cmd.Env, "ENDPOINTS="+s.endpoints(), "ENDPOINT0="+s.cluster.Endpoints()[0])
	if s.other != nil {
		as("other", s.other, every, s.other.Endpoints()...)
		cmd.Env = append(cmd.Env, "OTHER="+s.other.Endpoints()[0], "dest="+strings.Join(s.other.flags("dest-"), " "))
	}
	if strings.Contains(line, "$FOLLOWER") {
		cmd.Env = append(cmd.Env, "FOLLOWER="+s.follower(line))
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	code := 0
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) || ctx.Err() != nil {
			s.t.Errorf("%s: %s: %v\n%s%s", s.kind, line, err, &stdout, &stderr)
		}
		code = cmd.ProcessState.ExitCode()
	}
	text := stdout.String()
	for l := range strings.Lines(stderr.String()) {
		if !strings.HasPrefix(l, "{") && !strings.ContainsAny(l, "[\r") { // neither a log line nor progress
			text += "stderr: " + l
		}
	}
	return fmt.Sprintf("%s(exit code %d)", s.masked(text), code)
}

func (s *session) masked(text string) string {
	for _, m := range regexp.MustCompile(`lease ([0-9a-f]{16}) granted`).FindAllStringSubmatch(text, -1) {
		if s.known[m[1]] == "" {
			s.known[m[1]] = "LEASE"
			id, _ := strconv.ParseUint(m[1], 16, 64)
			s.maskID(id, "LEASE")
			s.mask(m[1], "LEASE")
		}
	}
	text = strings.NewReplacer(s.names...).Replace(text)
	for _, m := range []struct{ pattern, with string }{
		{` {2,}`, " "}, {`─+`, "─"},
		{`\b[0-9.]+(µs|ms|s)\b`, "DURATION"},
		{`(cancel success, cluster version) 3.[67]`, "$1 N"}, // the leader looks every few seconds whether it may go down
		{`(took|Stddev is|Slowest request took) [0-9.]+s`, "$1 DURATION"},
		{`writes/s|is \d+ `, "N "},
		{`used : -?[0-9.]+ MB`, "used : N MB"},
		{`remaining\(\d+s\)`, "remaining"},
		{`[0-9.]+ [kM]?B\b`, "SIZE"}, {`\d+%`, "PERCENT"},
		{`(?i)"?(db_?size(_?in_?use)?|raft_?(applied_?)?(index|term))"? ?: ?\d+`, "$1:N"},
		{`"(ID|id|Lease|lease|TTL|ttl)" ?: ?\d+`, `"$1":N`},
		{`Server version 3\.[67]`, "Server version 3.N"}, // after that downgrade, likewise
		{`"(took)":"[^"]*"`, `"$1":T`},
		{`(true|false), (true|false), \d+, \d+, \d+,`, "BOOL, $2, N, N, N,"}, // who leads is chance
		{`│ (true|false) │ (true|false) │ \d+ │ \d+ │ \d+ │`, "│ BOOL │ N │"},
		{`/[0-9a-f]{12,16}\b`, "/SESSION"}, {`(?m)^[0-9a-f]{13,16}$`, "LEASE"},
		{`(to|from) ID-m\d`, "$1 ID"},
		{`"?[Ll]eader"? ?: ?ID-m\d`, "leader:ID"}, {`(member_id|MemberID)" ?: ?"?ID-m\d"?`, "$1:ID"},
		{`Member +[0-9a-f]{13,16} `, "Member NEW "}, {`\b[0-9a-f]{13,16}, unstarted`, "NEW, unstarted"},
	} {
		text = regexp.MustCompile(m.pattern).ReplaceAllString(text, m.with)
	}
	text = regexp.MustCompile(`ETCD_INITIAL_CLUSTER=".*"`).ReplaceAllStringFunc(text, func(list string) string { // in the order of IDs, too
		parts := strings.Split(strings.Trim(strings.TrimPrefix(list, "ETCD_INITIAL_CLUSTER="), `"`), ",")
		slices.Sort(parts)
		return "ETCD_INITIAL_CLUSTER=" + strings.Join(parts, ",")
	})
	if regexp.MustCompile(`ETCD_INITIAL_CLUSTER=|client-1|peer-1|NEW, unstarted`).MatchString(text) {
		// Lists of members come in the order of IDs: they are compared as bags of words.
		words := regexp.MustCompile(`[^,\s{}\[\]"]+`).FindAllString(text, -1)
		slices.Sort(words)
		text = strings.Join(words, "\n")
	}
	return text
}

// follower returns the ID of a member that does not lead, asked for as the line's user.
func (s *session) follower(line string) string {
	var of []struct {
		Status struct {
			Header struct{ Member_id uint64 }
			Leader uint64
		}
	}
	args := []string{"endpoint", "status", "-w", "json"}
	if root := "--user=root:" + secret; strings.Contains(line, strings.Replace(root, "=", " ", 1)) {
		args = append(args, root)
	}
	out, msg, err := run(s.t, time.Minute, s.etcdctl(args...))
	if err == nil {
		err = json.Unmarshal([]byte(out), &of)
	}
	for _, e := range of {
		if e.Status.Leader != 0 && e.Status.Leader != e.Status.Header.Member_id {
			return strconv.FormatUint(e.Status.Header.Member_id, 16)
		}
	}
	s.t.Errorf("%s: no follower: %v\n%s%s", s.kind, err, out, msg)
	return ""
}
