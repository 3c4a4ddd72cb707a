package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// all reports whether the long part is to run, too.
func all() bool { return os.Getenv("BELAY_CLIENTS") == "all" }

// wantAll skips a test that only `make clients` runs.
func wantAll(t testing.TB) {
	t.Helper()
	if !all() {
		t.Skip("runs with BELAY_CLIENTS=all, as in make clients")
	}
}

// wantTime skips a test that starts many processes in short mode.
func wantTime(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts real processes and foreign builds; not with -short")
	}
}

// checkKind is the kind of server that the tests are about.
func checkKind(t testing.TB) cluster.Kind {
	switch kind := os.Getenv("BELAY_CHECK_KIND"); kind {
	case "", string(cluster.Belay):
		return cluster.Belay
	case string(cluster.Etcd):
		return cluster.Etcd
	default:
		t.Fatalf("BELAY_CHECK_KIND is %q", kind)
		return ""
	}
}

var built struct {
	once sync.Once
	path string
	err  error
}

// belay returns the belay binary of this source, built once per process.
func belay(t testing.TB) string {
	t.Helper()
	built.once.Do(func() {
		dir, err := cacheDir("belay-clients")
		if err != nil {
			built.err = err
			return
		}
		built.path, built.err = cluster.BuildBelay(context.Background(), filepath.Join(dir, "belay"))
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

// cacheDir returns a folder that outlives the run.
func cacheDir(name string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, name)
	return dir, os.MkdirAll(dir, 0o755)
}

func etcdTools(t testing.TB) cluster.Tools {
	t.Helper()
	tools, err := cluster.EtcdTools(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return tools
}

func binary(t testing.TB, kind cluster.Kind) string {
	if kind == cluster.Etcd {
		return etcdTools(t).Etcd
	}
	return belay(t)
}

// start starts a cluster that ends with the test; its logs are shown if the test fails.
func start(t testing.TB, kind cluster.Kind, size int, args ...string) *cluster.Cluster {
	t.Helper()
	c, err := startWith(t, cluster.Config{Kind: kind, Size: size, Args: args})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// startWith fills in the program and the folder of cfg, and starts it.
func startWith(t testing.TB, cfg cluster.Config) (*cluster.Cluster, error) {
	t.Helper()
	cfg.Binary, cfg.Dir = binary(t, cfg.Kind), t.TempDir()
	c, err := cluster.New(cfg)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.Tails(15))
		}
		c.Close()
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return c, c.Start(ctx)
}

func urls(c *cluster.Cluster) []string {
	var list []string
	for _, m := range c.Members {
		list = append(list, m.ClientURL)
	}
	return list
}

// tool returns the path of a program, or skips the test and names the package.
func tool(t testing.TB, name, debian string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed; on Debian it is in the package %s", name, debian)
	}
	return path
}

// builtFrom builds a program from a module below this folder into the cache.
func builtFrom(t testing.TB, module, pkg, name string) string {
	t.Helper()
	dir, err := cacheDir("belay-clients")
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, name)
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	if msg, err := exec.CommandContext(ctx, "go", "build", "-C", module, "-o", out, pkg).CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, msg)
	}
	return out
}

// run runs a program to its end and returns what it printed.
func run(t testing.TB, timeout time.Duration, cmd *exec.Cmd) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(timeout, func() { _ = cmd.Process.Kill() })
	err = cmd.Wait()
	if !timer.Stop() {
		err = fmt.Errorf("%s did not end within %v: %w", filepath.Base(cmd.Path), timeout, err)
	}
	return out.String(), errs.String(), err
}

// outcome of one test of a foreign suite: pass, fail or skip.
type outcome struct{ pkg, test, action string }

// suite runs `go test` in a module below this folder and returns what became
// of each test; it fails t for each test that failed, with its output.
func suite(t testing.TB, timeout time.Duration, module string, env []string, args ...string) []outcome {
	t.Helper()
	cmd := exec.Command("go", append([]string{"test", "-C", module, "-count=1", "-p=1", "-json", "-timeout", timeout.String()}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	stdout, stderr, err := run(t, timeout+15*time.Minute, cmd) // it is built, too
	var outcomes []outcome
	printed := make(map[outcome]*strings.Builder)
	failed := false
	for line := range strings.Lines(stdout) {
		var e struct{ Action, Package, Test, Output, ImportPath string }
		if json.Unmarshal([]byte(line), &e) != nil {
			continue
		}
		key := outcome{e.Package, e.Test, ""}
		switch e.Action {
		case "output":
			if printed[key] == nil {
				printed[key] = new(strings.Builder)
			}
			printed[key].WriteString(e.Output)
		case "build-output":
			t.Log(strings.TrimRight(e.Output, "\n"))
		case "pass", "fail", "skip":
			if e.Action == "fail" {
				failed = true
				text := ""
				if b := printed[key]; b != nil {
					text = b.String()
				}
				t.Errorf("%s %s failed:\n%s", e.Package, e.Test, text[max(0, len(text)-4000):])
			}
			if e.Test != "" {
				outcomes = append(outcomes, outcome{e.Package, e.Test, e.Action})
			}
		}
	}
	if err != nil && !failed {
		t.Errorf("go test %s: %v\n%s", strings.Join(args, " "), err, stderr)
	}
	return outcomes
}

// passed counts the tests that passed, and says so.
func passed(t testing.TB, outcomes []outcome) int {
	count := map[string]int{}
	for _, o := range outcomes {
		count[o.action]++
		if o.action == "skip" {
			t.Logf("skipped by itself: %s", o.test)
		}
	}
	t.Logf("%d tests: %d passed, %d failed, %d skipped", len(outcomes), count["pass"], count["fail"], count["skip"])
	return count["pass"]
}
