package clients

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/belaydb/belay/check/cluster"
)

const kubernetesStorage = "k8s.io/apiserver/pkg/storage/"

// slowInKubernetes are tests of the etcd3 storage that wait for clocks; they
// run with all.
const slowInKubernetes = `^TestWatchChanSync|^TestWatchWithShardSelector$|^TestCreateWithTTL$|^TestGuaranteedUpdateWithTTL$|^TestWatch$/^(WatchDispatchBookmarkEvents|RangeStream=false|WatchFromZero|DelayedWatchDelivery)$`

// serverEnv tells the stand-in for an embedded etcd what to start.
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

// TestKubernetesObjects takes some thousands of objects through their life in
// the storage layer, and wants Belay's transcript equal to etcd's: versions,
// pages and their tokens, events, errors.
func TestKubernetesObjects(t *testing.T) {
	wantTime(t)
	t.Parallel() // much of it is waiting
	objects := "2000"
	if all() {
		objects = "10000"
	}
	program := filepath.Join(t.TempDir(), "objects.test")
	if stdout, stderr, err := run(t, 15*time.Minute, exec.Command("go", "test", "-C", "kubernetes", "-c", "-o", program, ".")); err != nil {
		t.Fatalf("build: %v\n%s%s", err, stdout, stderr)
	}
	transcript := func(t *testing.T, kind cluster.Kind, size int) string {
		file := filepath.Join(t.TempDir(), "transcript")
		cmd := exec.Command(program, "-test.run", "^TestObjects$", "-test.v", "-test.timeout", "5m")
		cmd.Env = append(append(os.Environ(), serverEnv(t, kind, size)...), "BELAY_CLIENTS_OBJECTS="+objects, "BELAY_CLIENTS_TRANSCRIPT="+file)
		stdout, stderr, err := run(t, 6*time.Minute, cmd)
		if err != nil {
			t.Fatalf("%s of %d: %v\n%s%s", kind, size, err, stdout, stderr)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	want := transcript(t, cluster.Etcd, 1)
	if lines := strings.Count(want, "\n"); lines < 8000 {
		t.Fatalf("etcd's transcript has %d lines; it shows too little", lines)
	}
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d", size), func(t *testing.T) {
			got := transcript(t, checkKind(t), size)
			if line, a, b := firstDifference(got, want); line > 0 {
				t.Fatalf("line %d of the transcript is\n%s\nand on etcd\n%s", line, a, b)
			}
			t.Logf("%d lines, all equal", strings.Count(got, "\n"))
		})
	}
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
