package neighbours

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/belaydb/belay/neighbours"
)

// writerEnv makes this test's binary a process that writes a burst into a directory, and syncs it,
// for each byte that it gets on standard input.
const (
	writerEnv  = "BELAY_TEST_WRITER"
	burstBytes = 4 << 20
)

// TestMain is the writer if asked to be.
func TestMain(m *testing.M) {
	if dir := os.Getenv(writerEnv); dir != "" {
		os.Exit(write(dir))
	}
	os.Exit(m.Run())
}

func write(dir string) int {
	one := make([]byte, 1)
	for {
		if n, _ := os.Stdin.Read(one); n == 0 {
			return 0
		}
		f, err := os.Create(filepath.Join(dir, "burst"))
		if err != nil {
			return 1
		}
		for range burstBytes >> 16 {
			if _, err := f.Write(make([]byte, 1<<16)); err != nil {
				return 1
			}
		}
		if f.Sync() != nil {
			return 1
		}
		if _, err := os.Stdout.Write(one); err != nil {
			return 1
		}
		f.Close()
	}
}

// TestWatch has a process that writes in bursts, at a period of the test's own clock, beside a
// member whose /metrics tell of slow fsyncs then: it is found and blamed, by this machine's counters,
// and the record of it says the same.
func TestWatch(t *testing.T) {
	dir := t.TempDir()
	target, err := neighbours.MemberIn(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(target.Disks) == 0 {
		t.Skipf("%s is on no disk", dir)
	}
	if _, err := os.ReadFile("/proc/self/io"); err != nil {
		t.Skipf("the kernel does not count what processes write: %v", err)
	}
	// Under a name of its own: what other tests' binaries write at the same time is not its.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("writer-%d", os.Getpid())
	program := filepath.Join(t.TempDir(), name)
	if err := os.Symlink(self, program); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), writerEnv+"="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the writer: %v", err)
		}
	}()
	burst := func() {
		one := []byte{1}
		if _, err := in.Write(one); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(one); err != nil {
			t.Fatal(err)
		}
	}

	fast, slow := 0, 0
	metrics := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "# TYPE other counter\nother 1\n# TYPE %[1]s histogram\n%[1]s_bucket{le=\"0.004\"} %[2]d\n%[1]s_bucket{le=\"1.024\"} %[3]d\n%[1]s_bucket{le=\"+Inf\"} %[3]d\n%[1]s_sum 1\n%[1]s_count %[3]d\n", fsyncMetric, fast, fast+slow)
	}))
	defer metrics.Close()
	var record bytes.Buffer
	w := watcher{save: &record, log: neighbours.Log{Limit: 100}, member: member{url: metrics.URL, http: metrics.Client()}}
	if w.collector, err = neighbours.New(target); err != nil {
		t.Fatal(err)
	}
	const period, seconds = 10, 52
	now := time.Unix(1_800_000_000, 0)
	for i := range seconds {
		if i%period == 3 {
			burst()
			slow += 5
		}
		fast += 10
		now = now.Add(time.Second)
		if err := w.look(t.Context(), func() time.Time { return now }); err != nil {
			t.Fatal(err)
		}
	}
	check := func(samples []neighbours.Sample) {
		// The test's clock makes a burst of who writes steadily while the writer syncs: others are
		// left out.
		samples = slices.Clone(samples)
		for i := range samples {
			samples[i].Writers = slices.DeleteFunc(slices.Clone(samples[i].Writers), func(w neighbours.Writer) bool { return w.PID != cmd.Process.Pid })
		}
		r := Judge(samples, About{Missing: w.missing})
		for _, f := range r.Findings {
			if f.ID == "neighbour-periodic" && strings.HasPrefix(f.What, name) && strings.Contains(f.What, "every 10 s; each time fsync p99 went from 4.0 ms to ") {
				return
			}
		}
		t.Errorf("%d samples: %+v\n%+v", len(samples), r.Findings, r.Data)
	}
	check(w.log.Samples())

	file := filepath.Join(dir, "record")
	if err := os.WriteFile(file, record.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	log := neighbours.Log{Limit: 100}
	if skipped, err := neighbours.ReadFiles([]string{file}, time.Time{}, &log); err != nil || skipped != 0 {
		t.Errorf("the record: %d lines skipped, %v", skipped, err)
	}
	check(log.Samples())
	if slices.ContainsFunc(log.Samples(), func(s neighbours.Sample) bool {
		return slices.ContainsFunc(s.Writers, func(w neighbours.Writer) bool { return w.PID == os.Getpid() })
	}) {
		t.Error("who looks is among the neighbours")
	}
}
