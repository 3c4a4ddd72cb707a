package check

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/proof/cluster"
)

// TestMemberReplace replaces by `ctl member replace` a member that lost its data, interrupted at each
// step that it says, and then one that runs, the leader, by one with addresses of its own. `make
// move` has it with etcd, too.
func TestMemberReplace(t *testing.T) {
	onlyBelay(t) // it starts both kinds itself
	for _, kind := range []cluster.Kind{cluster.Belay, cluster.Etcd} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			if kind == cluster.Etcd && os.Getenv("BELAY_MOVE") == "" {
				t.Skip("`make move` runs it")
			}
			memberReplace(t, kind)
		})
	}
}

// replaceRun is one run of the command, which is interrupted when it says until; "": never.
func replaceRun(ctx context.Context, t *testing.T, endpoints []string, until string, args ...string) (said string, err error) {
	t.Helper()
	args = append([]string{"ctl", "--endpoints", strings.Join(endpoints, ","), "member", "replace"}, args...)
	cmd := exec.CommandContext(ctx, Belay(t), args...)
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(pipe)
	for lines.Scan() {
		said += lines.Text() + "\n"
		if until != "" && strings.HasPrefix(lines.Text(), until) {
			_ = cmd.Process.Signal(os.Interrupt) // it may have ended
		}
	}
	err = cmd.Wait()
	return said + out.String(), err
}

func memberReplace(t *testing.T, kind cluster.Kind) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	c := startCluster(t, cluster.Config{Kind: kind, Size: 3, Args: []string{"--unsafe-no-fsync"}})
	lost := c.Members[2]
	rest := admin(t, c.Members[0], c.Members[1])
	if _, err := rest.Put(ctx, "k", "v"); err != nil {
		t.Fatal(err)
	}
	run := func(until string, args ...string) (string, error) {
		t.Helper()
		return replaceRun(ctx, t, []string{c.Members[0].Endpoint(), c.Members[1].Endpoint()}, until, args...)
	}
	member := func(name string) *pb.Member {
		t.Helper()
		list, err := rest.MemberList(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if i := slices.IndexFunc(list.Members, func(e *pb.Member) bool { return e.Name == name }); i >= 0 {
			return list.Members[i]
		}
		return nil
	}
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{lost.Name}, "runs and answers"},
		{[]string{lost.Name, "--peer-urls", "http://127.0.0.1:1"}, "needs a name of its own"},
		{[]string{"nobody"}, `no member has the ID or name "nobody"`},
	} {
		if said, err := run("", tc.args...); err == nil || !strings.Contains(said, tc.want) {
			t.Fatalf("%q: %v, %s", tc.args, err, said)
		}
	}

	// Its data is gone. What the command says at the end of each run is how the next goes on.
	old := member(lost.Name).ID
	if err := lost.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(lost.DataDir); err != nil {
		t.Fatal(err)
	}
	args := []string{lost.Name}
	for _, until := range []string{lost.Name + " (", "Removing", "Adding", "Start the new member"} {
		said, err := run(until, args...)
		if err == nil {
			t.Fatalf("it ended without the new member: %s", said)
		}
		_, line, ok := strings.Cut(said, "member replace ")
		if !ok {
			t.Fatalf("it does not say how to go on (%v): %s", err, said)
		}
		args = strings.Fields(line)
		if until == "Start the new member" && !strings.Contains(said, "--initial-cluster-state existing") {
			t.Errorf("the command line is missing: %s", said)
		}
	}
	lost.SetArgs(existing)
	if err := lost.Start(); err != nil {
		t.Fatal(err)
	}
	if said, err := run("", args...); err != nil || !strings.Contains(said, "equal at revision") {
		t.Fatalf("%v: %s\n%s", err, said, lost.LogTail(5))
	}
	if m := member(lost.Name); m == nil || m.IsLearner || m.ID == old || !slices.Equal(m.PeerURLs, []string{lost.PeerURL}) {
		t.Errorf("the new one is %v", m)
	}
	if said, err := run("", args...); err != nil || !strings.Contains(said, "is a voter") {
		t.Errorf("once more: %v, %s", err, said)
	}

	// One that runs and leads; then two of three are away.
	if err := moveLeader(ctx, c, lost, ""); err != nil {
		t.Fatal(err)
	}
	extra := newCluster(t, cluster.Config{Kind: kind, Size: 1, Args: []string{"--unsafe-no-fsync"}}).Members[0]
	args = []string{lost.Name, "--name", "m4", "--peer-urls", extra.PeerURL}
	said, err := run("Start the new member", args...)
	fields := strings.Fields(said)
	i := slices.Index(fields, "--initial-cluster")
	if err == nil || i < 0 {
		t.Fatalf("%v: %s", err, said)
	}
	extra.SetArgs(func(args []string) []string {
		args[slices.Index(args, "--name")+1] = "m4"
		args[slices.Index(args, "--initial-cluster")+1] = fields[i+1]
		return existing(args)
	})
	if err := extra.Start(); err != nil {
		t.Fatal(err)
	}
	if said, err := run("", args...); err != nil || !strings.Contains(said, "handing over") || !strings.Contains(said, "equal at revision") {
		t.Fatalf("%v: %s\n%s", err, said, extra.LogTail(5))
	}
	if m := member("m4"); m == nil || m.IsLearner || member(lost.Name) != nil {
		t.Errorf("m4 is %v, %s %v", m, lost.Name, member(lost.Name))
	}
	if got, err := newClient(t, []string{extra.Endpoint()}).Get(ctx, "k"); err != nil || len(got.Kvs) != 1 {
		t.Errorf("%v, %v", got, err)
	}
}
