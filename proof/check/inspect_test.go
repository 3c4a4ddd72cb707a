package check

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/proof/cluster"
)

// inspect runs an inspector and returns its lines and its exit code.
func inspect(t *testing.T, args ...string) (lines []map[string]any, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), Belay(t), append([]string{"util", "inspect", "-o", "json"}, args...)...)
	out, err := cmd.Output()
	if exit, ok := err.(*exec.ExitError); ok {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		var v map[string]any
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("%v prints %q: %v", args, line, err)
		}
		lines = append(lines, v)
	}
	return lines, code
}

func ofKind(lines []map[string]any, kind string) []map[string]any {
	return slices.DeleteFunc(slices.Clone(lines), func(l map[string]any) bool { return l["kind"] != kind })
}

// TestInspect looks at the files of a member that runs, without changing one, and at damaged ones.
func TestInspect(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	m := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 1}).Members[0]
	cl, err := clientv3.New(clientv3.Config{Endpoints: []string{m.Endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	put := func(key string) {
		t.Helper()
		if _, err := cl.Put(ctx, key, strings.Repeat("v", 300)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 50 {
		put(fmt.Sprintf("a/%02d", i))
		put(fmt.Sprintf("b/%02d", i))
	}

	// A member that is stopped in the middle holds its locks and changes nothing by itself.
	if err := m.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	before := filesOf(t, m.DataDir)
	log, code := inspect(t, "log", m.DataDir)
	if n := len(ofKind(log, "entry")); code != 0 || n < 100 {
		t.Errorf("%d entries of the log, code %d", n, code)
	}
	some, _ := inspect(t, "log", m.DataDir, "--from-index=20", "--to-index=29")
	if n := len(ofKind(some, "entry")); n != 10 {
		t.Errorf("%d entries from 20 to 29", n)
	}
	if _, code := inspect(t, "identity", m.DataDir); code != 0 {
		t.Errorf("identity: code %d", code)
	}
	if _, code := inspect(t, "events", m.DataDir); code != 0 {
		t.Errorf("events: code %d", code)
	}
	if lines, code := inspect(t, "store", m.DataDir); code != 0 || len(ofKind(lines, "applied")) != 1 {
		t.Errorf("store: code %d, %v", code, lines)
	}
	if after := filesOf(t, m.DataDir); after != before {
		t.Errorf("looking changed files:\n%s\nwere\n%s", after, before)
	}
	if err := m.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	put("c")

	if err := m.Stop(ctx); err != nil && m.ExitErr() == nil {
		t.Fatal(err)
	}
	if events, code := inspect(t, "events", m.DataDir); code != 0 || len(events) == 0 {
		t.Errorf("%d events, code %d", len(events), code)
	}
	before = filesOf(t, m.DataDir)
	all, code := inspect(t, "store", m.DataDir)
	if n := len(ofKind(all, "version")); code != 0 || n != 101 {
		t.Errorf("%d versions, code %d", n, code)
	}
	for args, want := range map[string]int{"--prefix=a/": 50, "--prefix=a/1": 10, "--from-rev=2": 101, "--to-rev=11": 10, "--prefix=none": 0} {
		lines, code := inspect(t, "store", m.DataDir, args)
		if n := len(ofKind(lines, "version")); code != 0 || n != want {
			t.Errorf("store %s: %d versions, code %d, want %d", args, n, code, want)
		}
	}
	if after := filesOf(t, m.DataDir); after != before {
		t.Error("looking at the files of a stopped member changed them")
	}

	segments, err := filepath.Glob(filepath.Join(m.DataDir, "member", "log", "segment-*"))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	groups := ofKind(log, "group")
	middle := groups[len(groups)/2]
	flip(t, middle["file"].(string), int64(middle["offset"].(float64))+60)
	lines, code := inspect(t, "log", m.DataDir)
	damage := ofKind(lines, "damage")
	if code != 1 || len(damage) != 1 || damage[0]["file"] != middle["file"] || damage[0]["offset"] != middle["offset"] {
		t.Errorf("a flipped bit in the log at %v: code %d, %v", middle, code, damage)
	}
	if n, m := len(ofKind(lines, "group")), len(groups); n < m-1 {
		t.Errorf("%d of %d groups around the damage", n, m)
	}

	tables, err := filepath.Glob(filepath.Join(m.DataDir, "member", "store", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatal(tables, err)
	}
	flip(t, tables[len(tables)-1], 100)
	lines, code = inspect(t, "store", m.DataDir)
	if damage := ofKind(lines, "damage"); code != 1 || len(damage) == 0 || damage[0]["file"] != tables[len(tables)-1] {
		t.Errorf("a flipped bit in %s: code %d, %v", tables[len(tables)-1], code, damage)
	}
}

// flip changes one bit of a file.
func flip(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// TestHashKVFile: `belay util hashkv` says of files of both kinds what etcdutl says, and of Belay's
// store the same.
func TestHashKVFile(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	tools := EtcdTools(t)
	for _, kind := range []cluster.Kind{cluster.Etcd, cluster.Belay} {
		source := startCluster(t, cluster.Config{Kind: kind, Size: 1, Args: []string{"--bcrypt-cost=4", "--unsafe-no-fsync"}}).Members[0]
		fillForRestore(t, ctx, source.Endpoint())
		file := filepath.Join(t.TempDir(), "snapshot.db")
		if out, err := exec.CommandContext(ctx, tools.Etcdctl, "--endpoints="+source.ClientURL, "--user=root:pw", "snapshot", "save", file).CombinedOutput(); err != nil {
			t.Fatalf("snapshot save: %v\n%s", err, out)
		}
		before := sumOf(t, file)
		for _, args := range [][]string{
			{file}, {file, "-w", "json"}, {file, "-w", "fields"}, {file, "-w", "table"},
			{file, "--rev=250"}, {file, "--rev=251"}, {file, "--rev=400"}, {file, "--rev=100"}, {file, "--rev=100000"}, {file + ".none"},
		} {
			var answers [2]string
			for i, program := range [][]string{{Belay(t), "util"}, {tools.Etcdutl}} {
				out, err := exec.CommandContext(ctx, program[0], append(append(program[1:], "hashkv"), args...)...).CombinedOutput()
				answers[i] = fmt.Sprintf("%s%v", out, err)
				if i == 0 && sumOf(t, file) != before {
					t.Fatal("hashkv changed the file")
				}
				before = sumOf(t, file) // etcdutl does
			}
			if answers[0] != answers[1] {
				t.Errorf("%s: hashkv %v:\nbelay   %s\netcdutl %s", kind, args, answers[0], answers[1])
			}
		}
		if kind != cluster.Belay {
			continue
		}
		if err := source.Stop(ctx); err != nil && source.ExitErr() == nil {
			t.Fatal(err)
		}
		var answers [2]string
		for i, path := range []string{file, source.DataDir} {
			out, err := exec.CommandContext(ctx, Belay(t), "util", "hashkv", path).CombinedOutput()
			answers[i] = fmt.Sprintf("%s%v", out, err)
		}
		if answers[0] != answers[1] {
			t.Errorf("hashkv of the snapshot %s, of the store %s", answers[0], answers[1])
		}
	}
}
