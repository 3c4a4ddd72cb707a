package check

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// TestBackups: the leader of three members makes backups into a directory that they share; when it
// is killed the next one goes on where it ended; and each revision can be restored by the program
// alone, with the HashKV that the members have.
func TestBackups(t *testing.T) {
	t.Parallel()
	depot := t.TempDir()
	c := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 3, Args: []string{"--backup-to=" + depot, "--backup-increment-interval=1h"}})
	ctl := historian{t, c.Endpoints()}
	for i := range 5 {
		ctl.run("put", fmt.Sprint("a", i%2), fmt.Sprint(i))
	}
	ctl.settles(`: good, revision 6`, "backup", "now")
	var statuses []struct {
		Member  string
		Leading bool
	}
	ctl.settles(`(?s)"leading":true`, "backup", "status", "-w", "json")
	if err := json.Unmarshal([]byte(ctl.run("backup", "status", "-w", "json")), &statuses); err != nil || len(statuses) != 3 {
		t.Fatalf("%v: %v", statuses, err)
	}
	// Once there is one, a member that follows makes them.
	leads := ""
	for _, s := range statuses {
		if s.Leading {
			leads = s.Member
		}
	}
	for start, by := time.Now(), ""; by == "" || by == leads; {
		var made struct{ By, Error string }
		ctl.run("put", "a1", "4") // a change, or there is nothing to be made
		if out := ctl.run("backup", "now", "-w", "json"); json.Unmarshal([]byte(out), &made) != nil || time.Since(start) > time.Minute {
			t.Fatalf("%s leads; the last backup: %s", leads, out)
		}
		by = made.By
	}
	var left []string
	for i, m := range c.Members {
		if s := statuses[i]; !s.Leading || len(left) < i { // one
			left = append(left, m.Endpoint())
		} else if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	ctl = historian{t, left}
	ctl.settles(`OK`, "put", "b", "after") // perhaps more than once
	ctl.run("del", "a0")
	var answer struct{ Header struct{ Revision int } }
	if err := json.Unmarshal([]byte(ctl.run("get", "a0", "-w", "json")), &answer); err != nil {
		t.Fatal(err)
	}
	last := answer.Header.Revision
	ctl.settles(fmt.Sprintf(`increment-r%d-.*: good, revision %d`, last, last), "backup", "now")
	ctl.settles(fmt.Sprintf(`(?s)full .*\bgood\b.*increment +%d .*\bgood\b`, last), "backup", "list")
	ctl.settles(`there is no backup nothing`, "backup", "verify", "nothing")

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	util := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(ctx, Belay(t), append([]string{"util"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	if out := util("backup", "verify", "--from", depot, "--all"); strings.Count(out, "good: restored to revision") < 2 {
		t.Error(out)
	}
	for _, rev := range []int{3, 6, last} {
		to := filepath.Join(t.TempDir(), "restored")
		util("backup", "restore", "--from", depot, "--revision", fmt.Sprint(rev), "--data-dir", to)
		restored := strings.Split(strings.TrimSpace(util("hashkv", to)), ", ")
		live := strings.Split(strings.TrimSpace(strings.SplitN(ctl.run("endpoint", "hashkv", "--rev", fmt.Sprint(rev)), "\n", 2)[0]), ", ")
		if len(restored) != 3 || len(live) < 2 || restored[0] != live[1] || restored[1] != fmt.Sprint(rev) {
			t.Errorf("revision %d: restored %q, and a member has %q", rev, restored, live)
		}
	}
}

// settles is says for what may take a while: a leader may be about to change.
func (h historian) settles(pattern string, args ...string) {
	h.t.Helper()
	want, out := regexp.MustCompile(pattern), ""
	for start := time.Now(); time.Since(start) < time.Minute; time.Sleep(100 * time.Millisecond) {
		if out = h.run(args...); want.MatchString(out) {
			return
		}
	}
	h.t.Fatalf("ctl %s printed\n%s\nwant a match of\n%s", strings.Join(args, " "), out, pattern)
}
