package clients

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

const kubernetesStorage = "k8s.io/apiserver/pkg/storage/"

// slowInKubernetes are tests of the etcd3 storage that wait for clocks; they run with all.
const slowInKubernetes = `^TestWatchChanSync|^TestWatchWithShardSelector$|^TestCreateWithTTL$|^TestGuaranteedUpdateWithTTL$|^TestWatch$/^(WatchDispatchBookmarkEvents|RangeStream=false|WatchFromZero|DelayedWatchDelivery)$`

// serverEnv is the environment that says what package embed starts.
func serverEnv(t testing.TB, kind cluster.Kind, size int) []string {
	program := binary(t, kind)
	if kind == cluster.Belay {
		program += " server"
	}
	return []string{"BELAY_CLIENTS_SERVER=" + program, fmt.Sprintf("BELAY_CLIENTS_SIZE=%d", size)}
}

// TestKubernetesOwnTests runs the tests of Kubernetes' storage layer as they
// are, each with a new and empty Belay where it wants an embedded etcd.
func TestKubernetesOwnTests(t *testing.T) {
	wantTime(t)
	t.Parallel() // much of it is waiting
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d", size), func(t *testing.T) {
			env := serverEnv(t, checkKind(t), size)
			if all() {
				if n := passed(t, suite(t, 15*time.Minute, "kubernetes", env, kubernetesStorage+"etcd3",
					kubernetesStorage+"cacher/...", kubernetesStorage+"storagebackend/...")); n < 1100 {
					t.Errorf("%d tests passed; there are 1,100 and more", n)
				}
				return
			}
			if size > 1 {
				wantAll(t)
			}
			if n := passed(t, suite(t, 5*time.Minute, "kubernetes", env, "-skip", slowInKubernetes, kubernetesStorage+"etcd3")); n < 350 {
				t.Errorf("%d tests passed; there are 350 and more", n)
			}
		})
	}
}

// TestKubernetesObjects takes some thousands of objects through their life in the storage layer,
// and requires that Belay's transcript equals etcd's: versions, pages and their tokens, events,
// errors. It logs the time of each step and the servers' CPU time; with BELAY_CLIENTS=all the
// servers wait for their disks and there is also an etcd of three.
func TestKubernetesObjects(t *testing.T) {
	wantTime(t)
	t.Parallel() // much of it is waiting
	env := []string{"BELAY_CLIENTS_OBJECTS=2000"}
	if all() {
		env = []string{"BELAY_CLIENTS_OBJECTS=10000", "BELAY_CLIENTS_FSYNC=1"}
	}
	program := filepath.Join(t.TempDir(), "objects.test")
	if stdout, stderr, err := run(t, 15*time.Minute, exec.Command("go", "test", "-C", "kubernetes", "-c", "-o", program, ".")); err != nil {
		t.Fatalf("build: %v\n%s%s", err, stdout, stderr)
	}
	var names []string
	costs := make(map[string][]string) // of each step, in the order of names
	var steps []string
	life := func(t *testing.T, kind cluster.Kind, size int) string {
		dir := t.TempDir()
		file, usage := filepath.Join(dir, "transcript"), filepath.Join(dir, "usage")
		cmd := exec.Command(program, "-test.run", "^TestObjects$", "-test.v", "-test.timeout", "9m")
		cmd.Env = slices.Concat(os.Environ(), serverEnv(t, kind, size), env, []string{"BELAY_CLIENTS_TRANSCRIPT=" + file, "BELAY_CLIENTS_USAGE=" + usage})
		stdout, stderr, err := run(t, 10*time.Minute, cmd)
		if err != nil {
			t.Fatalf("%s of %d: %v\n%s%s", kind, size, err, stdout, stderr)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		cpu, err := os.ReadFile(usage)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, fmt.Sprintf("%s of %d", kind, size))
		tell := func(step, cost string) {
			if !slices.Contains(steps, step) {
				steps = append(steps, step)
			}
			costs[step] = append(costs[step], cost)
		}
		for _, m := range regexp.MustCompile(`step (\w+): (\d+) operations, (\d+ ms)`).FindAllStringSubmatch(stdout, -1) {
			tell(m[1], m[2]+" in "+m[3])
		}
		tell("servers' CPU", strings.TrimSpace(string(cpu))+" s")
		return string(data)
	}
	defer func() {
		t.Logf("%-14s%s", "", columns(names))
		for _, step := range steps {
			t.Logf("%-14s%s", step, columns(costs[step]))
		}
	}()
	want := life(t, cluster.Etcd, 1)
	if lines := strings.Count(want, "\n"); lines < 8000 {
		t.Fatalf("etcd's transcript has %d lines; it shows too little", lines)
	}
	equal := func(t *testing.T, got string) {
		if line, a, b := firstDifference(got, want); line > 0 {
			t.Fatalf("line %d of the transcript is\n%s\nand on etcd\n%s", line, a, b)
		}
		t.Logf("%d lines, all equal", strings.Count(got, "\n"))
	}
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d", size), func(t *testing.T) { equal(t, life(t, checkKind(t), size)) })
	}
	if all() {
		t.Run("etcd of 3", func(t *testing.T) { equal(t, life(t, cluster.Etcd, 3)) })
	}
}

func columns(cells []string) string {
	var b strings.Builder
	for _, c := range cells {
		fmt.Fprintf(&b, "%20s", c)
	}
	return b.String()
}

// firstDifference returns the first line, counted from 1, in which two texts
// differ; 0 if they are equal.
func firstDifference(a, b string) (line int, inA, inB string) {
	la, lb := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range max(len(la), len(lb)) {
		x, y := "(nothing)", "(nothing)"
		if i < len(la) {
			x = la[i]
		}
		if i < len(lb) {
			y = lb[i]
		}
		if x != y {
			return i + 1, x, y
		}
	}
	return 0, "", ""
}
