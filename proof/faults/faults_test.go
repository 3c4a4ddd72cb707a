package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/belaydb/belay/proof/cluster"
	"github.com/belaydb/belay/proof/inject"
)

// slowfsOnce builds slowfs once for all tests of a run.
var slowfsOnce = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "belay-check")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return inject.BuildSlowfs(context.Background(), dir)
})

func slowfsProgram(t *testing.T) string {
	t.Helper()
	if err := inject.Mountable(); err != nil {
		t.Skipf("no slow disk can be made here: %v", err)
	}
	program, err := slowfsOnce()
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// row runs one row, shorter than the table's; Belay's members are asked for their verdict.
func row(t *testing.T, name string, kind cluster.Kind) *result {
	t.Helper()
	if testing.Short() {
		t.Skip("real members, for a quarter of a minute")
	}
	s := settings{slowfs: slowfsProgram(t), dir: t.TempDir(), binaries: make(map[cluster.Kind]string), before: 2 * time.Second, during: 6 * time.Second, after: 2 * time.Second}
	var err error
	if s.binaries[kind], err = cluster.Program(context.Background(), kind, s.dir, "", os.Getenv("BELAY_ETCD")); err != nil {
		t.Fatal(err)
	}
	chosen, err := choose(name, kind == cluster.Belay)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
	defer cancel()
	var res *result
	for try := range 3 {
		res = perform(ctx, s, chosen[0], kind)
		table := newTable(io.Discard)
		table.row(res)
		table.details(t.Output())
		if res.err != nil {
			t.Fatal(res.err)
		}
		if res.run.label == nil {
			break
		}
		score(t.Output(), []*result{res})
		// Where the machine had no CPU for all members at once, it is that which was measured.
		if !slices.ContainsFunc(res.verdicts, func(v verdict) bool { return v.Cause == "cpu-starved" && len(v.Members) == len(res.run.c.Members) }) {
			break
		}
		t.Logf("try %d met a machine without CPU", try+1)
	}
	if label := res.run.label; label != nil {
		// A busy machine may add a true word of its own; the right one must be there.
		right, _ := label.judge(res.run, res.verdicts)
		if !right && !slices.ContainsFunc(res.verdicts, func(v verdict) bool { return label.mentions(res.run, &v) }) {
			t.Errorf("no verdict names the right member and cause: %+v", res.verdicts)
		}
	}
	return res
}

// TestLeaderSlow is the promise that Belay is for: the leader's disk takes
// 2.14 s for each sync, and no client hears of it.
func TestLeaderSlow(t *testing.T) {
	res := row(t, "leader-slow", cluster.Belay)
	t.Logf("worst write %v, worst read %v, %.0f writes/s before and %.0f during", res.worstWrite, res.worstRead, res.before, res.within)
	if res.failed > 0 || res.changes > 0 || len(res.faults) > 0 {
		t.Errorf("%d of %d requests failed %v; leaders: %s; %v", res.failed, res.requests, res.errors, res.leaders, res.faults)
	}
	// The bound of the table is 250 ms; a busy machine gets four times that.
	if res.worstWrite > time.Second || res.worstRead > time.Second {
		t.Errorf("worst write %v, worst read %v", res.worstWrite, res.worstRead)
	}
}

// TestVerdictOnAPause is the verdict that takes most: the member whose word decides is
// silent at first.
func TestVerdictOnAPause(t *testing.T) {
	row(t, "leader-pause-3", cluster.Belay)
}

// TestLeaderSlowIsSeen holds the check against etcd, whose clients do hear of it.
func TestLeaderSlowIsSeen(t *testing.T) {
	res := row(t, "leader-slow", cluster.Etcd)
	if res.failed == 0 && res.changes == 0 && res.worstWrite < time.Second {
		t.Errorf("a leader whose every sync took %v disturbed nobody: %d operations met the fault? worst write %v", stall, res.requests, res.worstWrite)
	}
	if len(res.faults) > 0 {
		t.Errorf("etcd lost something, or the check is wrong: %v", res.faults)
	}
}
