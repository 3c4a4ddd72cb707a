package dev

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	proof "github.com/belaydb/belay/proof/cluster"
)

// The test binary, run again with fakeEnv set, is the member: it logs, answers /health and dies as
// told. The value names a behaviour, which a member has if it is followed by the member's name:
// "deaf:m2" for one deaf to SIGTERM.
const fakeEnv = "BELAY_DEV_TEST_MEMBER"

func TestMain(m *testing.M) {
	if behaviour, ok := os.LookupEnv(fakeEnv); ok {
		os.Exit(fakeMember(behaviour, os.Args[1:]))
	}
	os.Exit(m.Run())
}

func fakeMember(behaviour string, args []string) int {
	flags := map[string]string{}
	for _, arg := range args {
		name, value, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		flags[name] = value
	}
	name := flags["name"]
	if args[0] != "dev" || args[1] != MemberCommand || name == "" {
		fmt.Fprintln(os.Stderr, "not how a member is started:", args)
		return 9
	}
	if behaviour == "unfit:"+name {
		fmt.Fprintln(os.Stderr, "cannot start")
		return 3
	}
	if err := os.MkdirAll(flags["data-dir"], 0o700); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	exit := make(chan int)
	mux := http.NewServeMux()
	var asked atomic.Int32
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {
		if asked.Load() < 3 {
			fmt.Fprintln(os.Stderr, "asked for its health without a leader")
		}
		fmt.Fprint(w, `{"health":"true","reason":""}`)
	})
	mux.HandleFunc("/version", func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) < 3 {
			fmt.Fprint(w, `{"etcdserver":"3.7.3","etcdcluster":"not_decided"}`)
			return
		}
		fmt.Fprint(w, `{"etcdserver":"3.7.3","etcdcluster":"3.7.0"}`)
	})
	mux.HandleFunc("/die", func(http.ResponseWriter, *http.Request) { exit <- 7 })
	l, err := net.Listen("tcp", strings.TrimPrefix(flags["listen-client-urls"], "http://"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go http.Serve(l, mux)
	fmt.Println("to stdout")
	fmt.Fprintf(os.Stderr, "serving with ETCD_NAME=%q ETCD_LOG_LEVEL=%q extra=%q\n", os.Getenv("ETCD_NAME"), os.Getenv("ETCD_LOG_LEVEL"), flags["extra"])
	for {
		select {
		case <-term:
			if behaviour == "deaf:"+name {
				fmt.Fprintln(os.Stderr, "no, I stay")
				continue
			}
			fmt.Fprint(os.Stderr, "bye") // without a line's end
			return 0
		case code := <-exit:
			return code
		}
	}
}

// A run is a cluster of fakes under test.
type run struct {
	t          *testing.T
	opts       Options
	interrupts chan os.Signal
	out, log   *transcript
	result     chan error
}

func launch(t *testing.T, behaviour string, edit func(*Options)) *run {
	t.Helper()
	t.Setenv(fakeEnv, behaviour)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := &run{t: t, interrupts: make(chan os.Signal, 2), out: newTranscript(), log: newTranscript(), result: make(chan error, 1)}
	r.opts = Options{
		Members: 3, DataDir: filepath.Join(t.TempDir(), "data"), BasePort: freePorts(t, 6), Program: program,
		Interrupts: r.interrupts, Stdout: r.out, Stderr: r.log,
	}
	if edit != nil {
		edit(&r.opts)
	}
	go func() { r.result <- Run(r.opts) }()
	return r
}

func (r *run) wait() error {
	r.t.Helper()
	select {
	case err := <-r.result:
		return err
	case <-time.After(20 * time.Second):
		r.t.Fatalf("did not end; printed:\n%s\nlog:\n%s", r.out, r.log)
		return nil
	}
}

func TestRunAndStop(t *testing.T) {
	t.Setenv("ETCD_NAME", "from-environment")
	t.Setenv("ETCD_LOG_LEVEL", "debug")
	r := launch(t, "", func(o *Options) { o.ServerArgs = []string{"--extra=yes"} })
	r.out.await(t, "Ctrl-C stops all members")
	r.interrupts <- os.Interrupt
	if err := r.wait(); err != nil {
		t.Errorf("stopped cleanly, yet: %v", err)
	}

	hint := fmt.Sprintf("export ETCDCTL_ENDPOINTS=127.0.0.1:%d,127.0.0.1:%d,127.0.0.1:%d\n", r.opts.BasePort, r.opts.BasePort+2, r.opts.BasePort+4)
	r.out.has(t, "The cluster is ready", hint, "stopping 3 members")
	if strings.Contains(r.log.String(), "without a leader") {
		t.Errorf("members are asked for their health, which they log, before they have a leader:\n%s", r.log)
	}
	if text := r.out.String(); !(strings.Index(text, "m3 stopped") < strings.Index(text, "m2 stopped") && strings.Index(text, "m2 stopped") < strings.Index(text, "m1 stopped")) || !strings.Contains(text, "m3 stopped") {
		t.Errorf("not stopped in order, the last first:\n%s", text)
	}
	// A variable for a flag that is given is kept from the members; others reach them.
	for _, name := range []string{"m1", "m2", "m3"} {
		r.log.has(t, name+" | to stdout\n", name+` | serving with ETCD_NAME="" ETCD_LOG_LEVEL="debug" extra="yes"`+"\n", name+" | bye\n")
	}
	if _, err := os.Stat(filepath.Join(r.opts.DataDir, markerName)); err != nil {
		t.Error(err)
	}
}

func TestMemberDies(t *testing.T) {
	r := launch(t, "", nil)
	r.out.await(t, "Ctrl-C stops all members")
	_, _ = http.Get(fmt.Sprintf("http://127.0.0.1:%d/die", r.opts.BasePort+2)) // cut off: it dies before it answers
	r.out.await(t, "To start it again")
	r.out.has(t, "m2 ended with exit code 7; its log is above. 2 of 3 members still run.\n", " server --name=m2 --data-dir="+filepath.Join(r.opts.DataDir, "m2"))
	_, _ = http.Get(fmt.Sprintf("http://127.0.0.1:%d/die", r.opts.BasePort))
	r.out.await(t, "1 of 3 members still run, too few for a quorum")
	r.interrupts <- os.Interrupt
	if err := r.wait(); err == nil || err.Error() != "2 members failed, see above" {
		t.Errorf("got %v", err)
	}
}

func TestMemberKilled(t *testing.T) {
	r := launch(t, "", func(o *Options) { o.Members = 1 })
	r.out.await(t, "Ctrl-C stops all members")
	_, rest, _ := strings.Cut(r.out.String(), " pid ")
	var pid int
	if _, err := fmt.Sscan(rest, &pid); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := r.wait(); err == nil {
		t.Error("no error though the only member was killed")
	}
	r.out.has(t, "m1 ended by signal 9 (killed)", "0 of 1 members still run")
}

func TestMemberDoesNotStart(t *testing.T) {
	r := launch(t, "unfit:m3", nil)
	r.out.await(t, "Ctrl-C stops all members")
	r.out.has(t, "m3 ended with exit code 3")
	r.log.has(t, "m3 | cannot start\n")
	r.interrupts <- syscall.SIGTERM
	if err := r.wait(); err == nil {
		t.Error("no error though m3 did not start")
	}
}

func TestStubbornMember(t *testing.T) {
	for _, second := range []bool{false, true} {
		r := launch(t, "deaf:m2", func(o *Options) {
			o.Grace = time.Hour
			if !second {
				o.Grace = 300 * time.Millisecond
			}
		})
		r.out.await(t, "Ctrl-C stops all members")
		r.interrupts <- os.Interrupt
		r.log.await(t, "m2 | no, I stay")
		if second {
			r.interrupts <- os.Interrupt
			if err := r.wait(); err != nil {
				t.Errorf("killed on demand, yet: %v", err)
			}
		} else {
			if err := r.wait(); err == nil {
				t.Error("no error though m2 had to be killed")
			}
			r.out.has(t, "m2 did not stop within 300ms: killing it")
		}
		r.out.has(t, "m2 stopped", "m1 stopped")
	}
}

func TestRefusals(t *testing.T) {
	base := freePorts(t, 6)
	options := func(dir string) Options {
		return Options{Members: 3, BasePort: base, DataDir: dir, Program: "/does/not/exist", Stdout: io.Discard, Stderr: io.Discard}
	}
	refused := func(what string, opts Options, want ...string) {
		t.Helper()
		err := Run(opts)
		for _, w := range want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%s: got %v, want %q", what, err, w)
			}
		}
	}

	ours := filepath.Join(t.TempDir(), "ours")
	refused("no binary", options(ours), "cannot start m1")

	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", base+3))
	if err != nil {
		t.Fatal(err)
	}
	refused("port taken", options(ours), fmt.Sprintf("port %d, for the peers of m2", base+3), "--base-port")
	l.Close()

	more := options(ours)
	more.Members = 2
	refused("another layout", more, "holds a cluster of 3 members", "--clean")

	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "thesis.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	withClean := options(foreign)
	withClean.Clean = true
	refused("somebody else's directory", withClean, "no belay dev made", "another --data-dir")
	if _, err := os.Stat(filepath.Join(foreign, "thesis.txt")); err != nil {
		t.Error(err)
	}

	if err := os.WriteFile(filepath.Join(ours, markerName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("damaged marker", options(ours), markerName+" is damaged")
}

func TestCleanKeepsTheRest(t *testing.T) {
	opts := Options{Members: 2, BasePort: freePorts(t, 4), DataDir: t.TempDir()}
	if err := opts.prepare(opts.members()); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"m1/raft", "m2", "m7", "mine", "m1x"} {
		if err := os.MkdirAll(filepath.Join(opts.DataDir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	opts.Members, opts.Clean = 1, true // another layout is fine when the old one goes
	if err := opts.prepare(opts.members()); err != nil {
		t.Fatal(err)
	}
	var left []string
	entries, err := os.ReadDir(opts.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := []string{markerName, "m1x", "mine"}; !slices.Equal(left, want) {
		t.Errorf("left %v, want %v", left, want)
	}
}

func TestFlags(t *testing.T) {
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--help"}, 0, "Usage:"},
		{[]string{"--members=0"}, 2, "at least one member"},
		{[]string{"--members", "7"}, 2, "only for 6 members"},
		{[]string{"--members=100"}, 2, "more than 50"},
		{[]string{"--base-port=65533"}, 2, "beyond 65535"},
		{[]string{"--base-port=-5"}, 2, "between 1 and 65535"},
		{[]string{"--data-dir="}, 2, "must not be empty"},
		{[]string{"--sparkle"}, 2, "not defined: -sparkle"},
		{[]string{"start"}, 2, `unexpected argument "start"`},
	} {
		var out bytes.Buffer
		if code := Main(test.args, nil, &out, &out); code != test.code || !strings.Contains(out.String(), test.want) {
			t.Errorf("%v: exit code %d, want %d with %q:\n%s", test.args, code, test.code, test.want, &out)
		}
	}
	opts, err := parse([]string{"-members", "5", "--clean", "--", "--log-level=debug", "--clean"})
	if err != nil || opts.Members != 5 || !opts.Clean || !slices.Equal(opts.ServerArgs, []string{"--log-level=debug", "--clean"}) {
		t.Errorf("got %+v, %v", opts, err)
	}
	all := opts.members()
	if first, last := all[0], all[4]; first.client() != "127.0.0.1:2379" || first.peerURL() != "http://127.0.0.1:2380" || last.client() != "127.0.0.1:52379" {
		t.Errorf("ports of %+v and %+v", first, last)
	}
}

func TestPrefixer(t *testing.T) {
	var out bytes.Buffer
	p := &prefixer{mu: &sync.Mutex{}, w: &out, prefix: memberPrefix(0, "m1", 3, false)}
	for _, part := range []string{"one\ntw", "o\n", "\n", "thr", "ee"} {
		fmt.Fprint(p, part)
	}
	p.flush()
	if want := "m1  | one\nm1  | two\nm1  | \nm1  | three\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	out.Reset()
	fmt.Fprint(p, strings.Repeat("x", maxLineBytes+1))
	if out.Len() == 0 {
		t.Error("an endless line is held back for ever")
	}
}

// TestPrefixerHushed: what is said of an orderly stop is held back, errors are not.
func TestPrefixerHushed(t *testing.T) {
	var mu sync.Mutex
	var out strings.Builder
	p := &prefixer{mu: &mu, w: &out, prefix: "m1 | "}
	for _, line := range []string{"2026\tinfo\tbefore\n", "", "2026\tinfo\tstopping\n", `{"level":"warn","msg":"lost"}` + "\n", `{"level":"error","msg":"bad"}` + "\n", "panic: x\n"} {
		if line == "" {
			p.hush()
		}
		if _, err := p.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	const loud = "m1 | 2026\tinfo\tbefore\nm1 | {\"level\":\"error\",\"msg\":\"bad\"}\nm1 | panic: x\n"
	if out.String() != loud {
		t.Errorf("%q", out.String())
	}
	p.reveal()
	if out.String() != loud+"m1 | 2026\tinfo\tstopping\nm1 | {\"level\":\"warn\",\"msg\":\"lost\"}\n" {
		t.Errorf("%q", out.String())
	}
}

func TestCommandLine(t *testing.T) {
	got := commandLine("/opt/my belay", []string{"server", "--name=m1", "--x=it's", ""})
	if want := `'/opt/my belay' server --name=m1 '--x=it'\''s' ''`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func freePorts(t *testing.T, n int) int {
	t.Helper()
	base, err := proof.FreePorts(n)
	if err != nil {
		t.Fatal(err)
	}
	return base
}

// A transcript collects output and lets a test wait for a text in it.
type transcript struct {
	mu      sync.Mutex
	text    strings.Builder
	changed *sync.Cond
}

func newTranscript() *transcript {
	tr := &transcript{}
	tr.changed = sync.NewCond(&tr.mu)
	return tr
}

func (tr *transcript) Write(p []byte) (int, error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.changed.Broadcast()
	return tr.text.Write(p)
}

func (tr *transcript) String() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.text.String()
}

func (tr *transcript) await(t *testing.T, text string) {
	t.Helper()
	late := false
	timer := time.AfterFunc(20*time.Second, func() {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		late = true
		tr.changed.Broadcast()
	})
	defer timer.Stop()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for !strings.Contains(tr.text.String(), text) {
		if late {
			t.Fatalf("waited in vain for %q in:\n%s", text, tr.text.String())
		}
		tr.changed.Wait()
	}
}

func (tr *transcript) has(t *testing.T, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(tr.String(), text) {
			t.Errorf("%q is missing in:\n%s", text, tr)
		}
	}
}
