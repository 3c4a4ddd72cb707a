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

	"github.com/belaydb/belay/check/cluster"
)

// TestEtcdctlSideBySide runs etcdctl's commands against Belay and against etcd,
// line by line as testdata/etcdctl says, and wants equal output, on standard
// output and behind "Error:", and equal exit codes. What differs by nature is
// masked: addresses, member IDs, leases, durations, sizes, raft's indexes.
func TestEtcdctlSideBySide(t *testing.T) {
	wantAll(t)
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d", size), func(t *testing.T) {
			program := etcdTools(t).Etcdctl
			got, want := newSession(t, checkKind(t), size), newSession(t, cluster.Etcd, size)
			lines := commandLines(t)
			if !authentication(t, got) {
				t.Log("authentication is not supported by this server yet: its commands are left out")
				lines = slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, "auth:") })
			}
			for _, line := range lines {
				line = strings.TrimPrefix(line, "auth:")
				if only, rest, ok := strings.Cut(line, " nodes: "); ok {
					if only != strconv.Itoa(size) {
						continue
					}
					line = rest
				}
				g, w := got.play(program, line), want.play(program, line)
				if g != w {
					t.Errorf("%s\n--- on %s:\n%s\n--- on etcd:\n%s", line, got.kind, g, w)
				}
			}
			t.Logf("%d command lines compared", len(lines))
		})
	}
}

// TestBelayCtlSideBySide does so with belay's own client, by the name etcdctl,
// for commands that ctl's comparison with etcdctl does not run to their end.
func TestBelayCtlSideBySide(t *testing.T) {
	wantAll(t)
	ours := filepath.Join(t.TempDir(), "etcdctl")
	if err := os.Symlink(belay(t), ours); err != nil {
		t.Fatal(err)
	}
	got, want := newSession(t, checkKind(t), 1), newSession(t, cluster.Etcd, 1)
	compared := 0
	for _, line := range append([]string{"for i in 1 2 3; do $ctl put p/$i $i; done"}, commandLines(t)...) {
		if !strings.Contains(line, "make-mirror") && !strings.Contains(line, "datascale") && !strings.Contains(line, "downgrade") && !strings.Contains(line, "put p/") || strings.HasPrefix(line, "auth:") {
			continue
		}
		compared++
		if g, w := got.play(ours, line), want.play(etcdTools(t).Etcdctl, line); g != w {
			t.Errorf("%s\n--- belay ctl on %s:\n%s\n--- etcdctl on etcd:\n%s", line, got.kind, g, w)
		}
	}
	t.Logf("%d command lines compared", compared)
}

// TestCheckPerf runs `check perf` of both clients. Whether it passes is the
// machine's affair; the words and the exit code must be those of the verdict,
// and nothing may fail.
func TestCheckPerf(t *testing.T) {
	wantAll(t)
	cl := start(t, checkKind(t), 3)
	want := regexp.MustCompile(`^Compacting with revision \d+\nCompacted with revision \d+\n` +
		`(Defragmenting "127.0.0.1:\d+"\nDefragmented "127.0.0.1:\d+"\n){3}` +
		`(PASS: Throughput is|FAIL: Throughput too low:) \d+ writes/s\n` +
		`(PASS: Slowest request took|Slowest request took too long:) [0-9.]+s\n` +
		`(PASS: Stddev is|Stddev too high:) [0-9.]+s\n(PASS|FAIL)\n$`)
	var wg sync.WaitGroup
	for i, program := range [][]string{{etcdTools(t).Etcdctl}, {belay(t), "ctl"}} {
		wg.Go(func() {
			args := append(program[1:], "--endpoints", strings.Join(cl.Endpoints(), ","), "check", "perf", "--prefix", fmt.Sprintf("/perf-%d/", i), "--auto-compact", "--auto-defrag")
			out, err := exec.Command(program[0], args...).Output()
			t.Logf("%s: %v\n%s", strings.Join(program, " "), err, out)
			if !want.Match(out) || (err == nil) != strings.HasSuffix(string(out), "\nPASS\n") {
				t.Errorf("%s: %v: it did not say its verdict", strings.Join(program, " "), err)
			}
		})
	}
	wg.Wait()
}

func commandLines(t *testing.T) []string {
	data, err := os.ReadFile(filepath.Join("testdata", "etcdctl"))
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
	cluster *cluster.Cluster
	other   *cluster.Cluster // where make-mirror goes; nil before
	dir     string
	names   []string // pairs for a strings.Replacer: what is masked, and by what
	known   map[string]string
}

func newSession(t *testing.T, kind cluster.Kind, size int) *session {
	s := &session{t: t, kind: kind, cluster: start(t, kind, size), dir: t.TempDir(), known: make(map[string]string)}
	for i, m := range s.cluster.Members {
		s.mask(m.ClientURL, fmt.Sprintf("http://client-%d", i))
		s.mask(m.Endpoint(), fmt.Sprintf("client-%d", i))
		s.mask(m.PeerURL, fmt.Sprintf("http://peer-%d", i))
	}
	s.mask(s.dir, "DIR")
	out, _, err := run(t, time.Minute, exec.Command(etcdTools(t).Etcdctl, "--endpoints", s.endpoints(), "member", "list", "-w", "json"))
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		Header  struct{ Cluster_id uint64 }
		Members []struct {
			ID   uint64
			Name string
		}
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	s.maskID(list.Header.Cluster_id, "CLUSTER")
	for _, m := range list.Members {
		s.maskID(m.ID, "ID-"+m.Name)
	}
	return s
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

// authentication says whether the server knows users.
func authentication(t *testing.T, s *session) bool {
	_, stderr, _ := run(t, time.Minute, exec.Command(etcdTools(t).Etcdctl, "--endpoints", s.endpoints(), "role", "get", "nobody"))
	return !strings.Contains(stderr, "not supported")
}

// play runs one line, by a shell where $ctl is etcdctl with the endpoints, and
// returns all that is to be equal.
func (s *session) play(program, line string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	if strings.Contains(line, "$OTHER") && s.other == nil {
		s.other = start(s.t, s.kind, 1)
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", line)
	cmd.Dir = s.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that all of the line can be ended
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Env = append(os.Environ(), "ctl="+program+" --endpoints="+s.endpoints(), "one="+program+" --endpoints="+s.cluster.Endpoints()[0])
	if s.other != nil {
		cmd.Env = append(cmd.Env, "OTHER="+s.other.Endpoints()[0], "other="+program+" --endpoints="+s.other.Endpoints()[0])
	}
	if id, err := leaderID(ctx, s.cluster); err == nil {
		for _, m := range s.cluster.Members {
			if s.known["$ID-"+m.Name] != strconv.FormatUint(id, 16) {
				cmd.Env = append(cmd.Env, "FOLLOWER="+s.known["$ID-"+m.Name])
				break
			}
		}
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
		{`(took|Stddev is|Slowest request took) [0-9.]+s`, "$1 DURATION"},
		{`writes/s|is \d+ `, "N "},
		{`used : -?[0-9.]+ MB`, "used : N MB"},
		{`remaining\(\d+s\)`, "remaining"},
		{`[0-9.]+ [kM]?B\b`, "SIZE"}, {`\d+%`, "PERCENT"},
		{`(?i)"?(db_?size(_?in_?use)?|raft_?(applied_?)?(index|term))"? ?: ?\d+`, "$1:N"},
		{`"(ID|id|Lease|lease|TTL|ttl)" ?: ?\d+`, `"$1":N`},
		{`"(took)":"[^"]*"`, `"$1":T`},
		{`(true|false), (true|false), \d+, \d+, \d+,`, "BOOL, $2, N, N, N,"}, // who leads is chance
		{`│ (true|false) │ (true|false) │ \d+ │ \d+ │ \d+ │`, "│ BOOL │ N │"},
		{`/[0-9a-f]{12,16}\b`, "/SESSION"},
		{`(to|from) ID-m\d`, "$1 ID"},
		{`"?[Ll]eader"? ?: ?ID-m\d`, "leader:ID"}, {`(member_id|MemberID)" ?: ?"?ID-m\d"?`, "$1:ID"},
		{`Member +[0-9a-f]{16} `, "Member NEW "}, {`\b[0-9a-f]{15,16}, unstarted`, "NEW, unstarted"},
	} {
		text = regexp.MustCompile(m.pattern).ReplaceAllString(text, m.with)
	}
	if strings.Contains(text, "client-1") || strings.Contains(text, "peer-1") {
		// Lists of members come in the order of IDs: they are compared as bags of words.
		words := regexp.MustCompile(`[^,\s{}\[\]"]+`).FindAllString(text, -1)
		slices.Sort(words)
		text = strings.Join(words, "\n")
	}
	return text
}

func leaderID(ctx context.Context, cl *cluster.Cluster) (uint64, error) {
	m, err := leader(ctx, cl)
	if err != nil {
		return 0, err
	}
	conn, err := m.Dial()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	return memberID(ctx, conn)
}
