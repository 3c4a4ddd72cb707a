package check

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
)

// TestMoveRun and TestMoveRunOlder move a running etcd to Belay and back by `belay util move --run`,
// under load. A step fails on the way, a run is killed, and the next ones go on.
func TestMoveRun(t *testing.T) {
	moveNewest(t, moveRun)
}

func TestMoveRunOlder(t *testing.T) {
	moveOlder(t, moveRun)
}

// unit is an init system of shell scripts: start-KIND and stop, with a pid file, for each member.
func unit(t *testing.T, dir string, m *cluster.Member, programs map[cluster.Kind]string, minor string) {
	t.Helper()
	pid := filepath.Join(dir, m.Name+".pid")
	script := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte("set -e\n"+text+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for kind, program := range programs {
		args := slices.Clone(m.Args())
		if kind == cluster.Belay {
			program += " server"
			args = append(args, "--max-cluster-version", minor)
		}
		script(fmt.Sprintf("start-%s-%s", kind, m.Name), fmt.Sprintf("%s '%s' >>%s 2>&1 & echo $! >%s", program, strings.Join(args, "' '"), m.LogPath, pid))
	}
	script("stop-"+m.Name, fmt.Sprintf("if [ -f %s ]; then kill $(cat %[1]s) 2>/dev/null || true; while kill -0 $(cat %[1]s) 2>/dev/null; do sleep 0.05; done; rm %[1]s; fi", pid))
	t.Cleanup(func() {
		text, err := os.ReadFile(pid)
		if n, aerr := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && aerr == nil {
			_ = syscall.Kill(n, syscall.SIGKILL) // it may have ended
		}
		if t.Failed() {
			t.Log(m.LogTail(8))
		}
	})
}

func moveRun(t *testing.T, version, etcd string) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	minor := version[:strings.LastIndexByte(version, '.')]
	belay := Belay(t)
	c := newCluster(t, cluster.Config{Kind: cluster.Etcd, Binary: etcd, Size: 3})
	dir := t.TempDir()
	for _, m := range c.Members {
		unit(t, dir, m, map[cluster.Kind]string{cluster.Etcd: etcd, cluster.Belay: belay}, minor)
		if out, err := exec.CommandContext(ctx, "sh", filepath.Join(dir, "start-etcd-"+m.Name)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	client := newClient(t, c.Endpoints())
	if err := eventually(ctx, func() error { _, err := client.Put(ctx, "first", "1"); return err }); err != nil {
		t.Fatal(err)
	}

	// The load: what is acknowledged must be there.
	acked, failed := 0, 0
	loading, stop := context.WithCancel(ctx)
	var writing sync.WaitGroup
	writing.Go(func() {
		for n := 0; loading.Err() == nil; n++ {
			put, done := context.WithTimeout(loading, 2*time.Second)
			if _, err := client.Put(put, fmt.Sprintf("load/%06d", n), strconv.Itoa(n)); err == nil {
				acked++
			} else if loading.Err() == nil {
				failed++
			}
			done()
			select {
			case <-loading.Done():
			case <-time.After(2 * time.Millisecond):
			}
		}
	})
	defer writing.Wait()
	defer stop()

	move := func(args ...string) (string, error) {
		t.Helper()
		args = append([]string{"util", "move", "--endpoints", strings.Join(c.Endpoints(), ",")}, args...)
		out, err := exec.CommandContext(ctx, belay, args...).CombinedOutput()
		return string(out), err
	}
	if err := os.Symlink(belay, filepath.Join(dir, "belay")); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(filepath.Dir(c.Members[0].DataDir), "{{.Name}}")
	commands := func(start string) []string {
		return []string{"--step-timeout", "1m", "--data-dir", data, "--stop-command", "sh " + dir + "/stop-{{.Name}}",
			"--migrate-command", dir + "/{{.Migrate}}", "--start-command", start}
	}
	start := "sh " + dir + "/start-{{.To}}-{{.Name}}"
	leader := leaderOf(ctx, t, c, client)
	said, err := move("--plan")
	if err != nil || !strings.Contains(said, "3 become Belay") || !strings.Contains(said, "--max-cluster-version="+minor) {
		t.Fatalf("%v: %s", err, said)
	}
	if at := strings.LastIndex(said, "hand over"); at < strings.LastIndex(said, "\n"+leader.Name+" (") || strings.Count(said, "hand over") != 1 {
		t.Errorf("the leader is not last: %s", said)
	}
	t.Log(said)
	if said, err := move("--run"); err == nil || !strings.Contains(said, "nobody can be asked") {
		t.Errorf("%v: %s", err, said)
	}
	said, err = move(append([]string{"--run"}, commands(start)...)...)
	t.Log(said)
	if err != nil || !strings.Contains(said, "All 3 members are belay; 3 moved by this run") {
		t.Fatal(err)
	}
	if said, err := move("--plan"); err != nil || !strings.Contains(said, "nothing is to be done") {
		t.Errorf("%v: %s", err, said)
	}

	// Back: the second member does not start at first; then a run is killed while a member is stopped.
	for _, m := range c.Members {
		if err := os.RemoveAll(filepath.Join(m.DataDir, "member.etcd")); err != nil {
			t.Fatal(err)
		}
	}
	second := fmt.Sprintf("if [ -f %s/once ] && [ ! -f %s/twice ]; then touch %s/twice; echo no such unit; exit 7; fi; touch %s/once; %s", dir, dir, dir, dir, start)
	said, err = move(append([]string{"--run", "--to-etcd"}, commands(second)...)...)
	t.Log(said)
	if err == nil || !strings.Contains(said, "no such unit") || !strings.Contains(said, "What to do: ") {
		t.Fatalf("a step failed: %v", err)
	}
	said, err = move("--plan", "--to-etcd="+minor)
	if err != nil || !strings.Contains(said, "an earlier run may have stopped it") {
		t.Errorf("%v: %s", err, said)
	}
	killed := exec.CommandContext(ctx, belay, append([]string{"util", "move", "--run", "--to-etcd", "--endpoints", strings.Join(c.Endpoints(), ",")},
		commands(fmt.Sprintf("if [ -f %s/killed ]; then %s; else touch %s/killed; sleep 600 & echo $! >%s/sleeper; wait; fi", dir, start, dir, dir))...)...)
	if err := killed.Start(); err != nil {
		t.Fatal(err)
	}
	if err := eventually(ctx, func() error { _, err := os.Stat(filepath.Join(dir, "sleeper")); return err }); err != nil {
		t.Fatal(err)
	}
	if said, err := move(append([]string{"--run", "--to-etcd=" + minor}, commands(start)...)...); err == nil || !strings.Contains(said, "another util move --run is at work") {
		t.Errorf("two runs at once: %v: %s", err, said)
	}
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = killed.Wait() // it was killed
	if text, err := os.ReadFile(filepath.Join(dir, "sleeper")); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	said, err = move(append([]string{"--run", "--to-etcd=" + minor}, commands(start)...)...)
	t.Log(said)
	if err != nil || !strings.Contains(said, "All 3 members are etcd") || !strings.Contains(said, "going on where an earlier run ended") {
		t.Fatal(err)
	}
	stop()
	writing.Wait()
	got, err := client.Get(ctx, "load/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil || got.Count < int64(acked) || acked < 500 {
		t.Errorf("%v, %d keys of %d acknowledged", err, got.Count, acked)
	}
	t.Logf("etcd %s: %d writes acknowledged, %d failed", version, acked, failed)
}
