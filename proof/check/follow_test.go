package check

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
)

// A leaderReport is what the check reads of a line of `belay doctor follow -o json`.
type leaderReport struct {
	Event  string
	From   string `json:"old_leader"`
	To     string `json:"new_leader"`
	Term   uint64
	Member string
	Cause  string
	Missed bool
}

// A doctorFollow is a `belay doctor follow` that runs.
type doctorFollow struct {
	t     *testing.T
	cmd   *exec.Cmd
	ended chan error
	said  *shown // beside the reports

	mu  sync.Mutex
	all []leaderReport
}

func startFollow(t *testing.T, c *cluster.Cluster, args ...string) *doctorFollow {
	t.Helper()
	f := &doctorFollow{t: t, ended: make(chan error, 1), said: &shown{}}
	f.cmd = exec.Command(Belay(t), append([]string{"doctor", "follow", "-o", "json", "--endpoints", strings.Join(c.Endpoints(), ",")}, args...)...)
	f.cmd.Env, f.cmd.Stderr = withoutClientVariables(), f.said
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	t.Cleanup(func() { _ = f.cmd.Process.Kill(); <-gone }) // an error: it has ended
	go func() {
		defer close(gone)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var r leaderReport
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				t.Errorf("%v: %s", err, lines.Text())
			}
			f.mu.Lock()
			f.all = append(f.all, r)
			f.mu.Unlock()
		}
		f.ended <- f.cmd.Wait()
	}()
	return f
}

func (f *doctorFollow) reports() []leaderReport {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]leaderReport(nil), f.all...)
}

// await waits for a report.
func (f *doctorFollow) await(what string, is func(leaderReport) bool) leaderReport {
	f.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		for _, r := range f.reports() {
			if is(r) {
				return r
			}
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("no report of %s: %+v\n%s", what, f.reports(), f.said)
		}
	}
}

// end ends it by one signal.
func (f *doctorFollow) end() {
	f.t.Helper()
	if err := f.cmd.Process.Signal(syscall.SIGINT); err != nil {
		f.t.Fatal(err)
	}
	select {
	case err := <-f.ended:
		if err != nil {
			f.t.Errorf("it ends with %v", err)
		}
	case <-time.After(time.Minute):
		f.t.Error("it goes on after SIGINT")
	}
}

// TestDoctorFollow has leadership moved, a leader killed and all members stopped, on Belay and on
// etcd, and compares what follow says.
func TestDoctorFollow(t *testing.T) {
	for _, kind := range []cluster.Kind{cluster.Belay, cluster.Etcd} {
		t.Run(fmt.Sprint(kind), func(t *testing.T) {
			t.Parallel()
			binary := Belay(t)
			if kind == cluster.Etcd {
				binary = EtcdTools(t).Etcd
			}
			testFollow(t, kind, binary)
		})
	}
}

// TestDoctorFollowOlder is TestDoctorFollow on the etcds that came before.
func TestDoctorFollowOlder(t *testing.T) {
	forOlder(t, "BELAY_FOLLOW", "`make follow` runs it", func(t *testing.T, _ string, tools cluster.Tools) {
		testFollow(t, cluster.Etcd, tools.Etcd)
	})
}

func testFollow(t *testing.T, kind cluster.Kind, binary string) {
	c := startCluster(t, cluster.Config{Kind: kind, Size: 3, Binary: binary, Dir: t.TempDir()})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	f := startFollow(t, c)
	f.said.await(t, "following "+map[cluster.Kind]string{cluster.Belay: "Belay", cluster.Etcd: "etcd"}[kind], 1)

	old, next, term := passLeadership(ctx, t, c)
	moved := f.await("a hand-over", func(r leaderReport) bool { return r.Event == "leader-change" && r.Term > term })
	if moved.From != old.Name || moved.To != next.Name || moved.Missed {
		t.Errorf("%+v, want %s -> %s after term %d", moved, old.Name, next.Name, term)
	}
	switch {
	case kind == cluster.Belay && (moved.Cause != "transfer-requested" || moved.Member != old.Name):
		t.Errorf("%+v", moved)
	case kind == cluster.Etcd && (moved.Cause == "process-ended" || moved.Cause == "unreachable"):
		t.Errorf("accused of what it did not do: %+v", moved)
	}

	if kind == cluster.Etcd && os.Getenv("BELAY_FOLLOW") != "" {
		next, moved = pauseLeader(t, f, c, next, moved)
	}
	if err := next.Kill(); err != nil {
		t.Fatal(err)
	}
	killed := f.await("a killed leader", func(r leaderReport) bool {
		// An election that the same one won again comes before it on a machine without CPU.
		return r.Event == "leader-change" && r.Term > moved.Term && r.From != r.To
	})
	if killed.From != next.Name || killed.Member != next.Name || killed.Cause != map[cluster.Kind]string{cluster.Belay: "member-killed", cluster.Etcd: "process-ended"}[kind] {
		t.Errorf("%+v, want %s killed", killed, next.Name)
	}
	f.await("a silent member", func(r leaderReport) bool { return r.Event == "silent" && r.Member == next.Name })
	if err := next.Start(); err != nil {
		t.Fatal(err)
	}
	f.await("its return", func(r leaderReport) bool { return r.Event == "answers" && r.Member == next.Name })

	// What was before is in Belay's records, and not in etcd's.
	again := startFollow(t, c, "--since", "1h")
	again.said.await(t, "following", 1)
	if kind == cluster.Belay {
		again.await("what it missed", func(r leaderReport) bool {
			return r.Missed && r.Term == killed.Term && r.To == killed.To && r.Cause == killed.Cause
		})
	} else {
		again.said.await(t, "etcd keeps no record", 1)
	}
	again.end()

	// All are lost, which is said once, and it goes on when they are back.
	for _, m := range c.Members {
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	f.await("the loss of all", func(r leaderReport) bool { return r.Event == "silent" && r.Member == "" })
	for _, m := range c.Members {
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
	}
	f.await("a leader after the loss of all", func(r leaderReport) bool { return r.Event == "leader-change" && r.Term > killed.Term })
	f.end()
	n := 0
	for _, r := range f.reports() {
		if r.Event == "silent" && r.Member == "" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("the loss of all is told %d times", n)
	}
}

// pauseLeader stops a leader as it is until another leads, and returns that one with the report.
func pauseLeader(t *testing.T, f *doctorFollow, c *cluster.Cluster, leader *cluster.Member, before leaderReport) (*cluster.Member, leaderReport) {
	t.Helper()
	if err := leader.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	f.await("a leader that does not answer", func(r leaderReport) bool { return r.Event == "silent" && r.Member == leader.Name })
	if err := leader.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	paused := f.await("a paused leader", func(r leaderReport) bool { return r.Event == "leader-change" && r.Term > before.Term })
	if paused.From != leader.Name || paused.Member != leader.Name || paused.Cause != "stood-still" && paused.Cause != "unreachable" {
		t.Errorf("%+v, want %s, which stood still", paused, leader.Name)
	}
	for _, m := range c.Members {
		if m.Name == paused.To {
			return m, paused
		}
	}
	t.Fatalf("%+v: no such member", paused)
	return nil, paused
}

// passLeadership has the leader hand over to another member, and says the term before.
func passLeadership(ctx context.Context, t *testing.T, c *cluster.Cluster) (old, next *cluster.Member, term uint64) {
	t.Helper()
	ids := map[uint64]*cluster.Member{}
	for {
		var leader uint64
		for _, m := range c.Members {
			cli, err := clientv3.New(clientv3.Config{Endpoints: []string{m.Endpoint()}, Context: ctx})
			if err != nil {
				t.Fatal(err)
			}
			st, err := cli.Status(ctx, m.Endpoint())
			if err == nil {
				ids[st.Header.MemberId], leader, term = m, st.Leader, st.RaftTerm
			}
			if err == nil && old == nil && st.Leader == st.Header.MemberId {
				old = m
			}
			_ = cli.Close() // nothing of it is used any more
		}
		if len(ids) == 3 && old != nil && ids[leader] == old {
			break
		}
		old = nil
		if ctx.Err() != nil {
			t.Fatal("no leader")
		}
	}
	for id, m := range ids {
		if m == old {
			continue
		}
		cli, err := clientv3.New(clientv3.Config{Endpoints: []string{old.Endpoint()}, Context: ctx})
		if err != nil {
			t.Fatal(err)
		}
		defer cli.Close()
		if _, err := cli.MoveLeader(ctx, id); err != nil {
			t.Fatal(err)
		}
		return old, m, term
	}
	return nil, nil, 0
}
