package check

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
)

// TestMoveLive and TestMoveLiveOlder move the members of a running etcd to Belay one by one and back,
// under load, with kill -9 in each step: first with their data, then as new members that get it from
// the others. Whoever leads by then, of all mixes each kind leads once. Every round is judged as in
// TestKillThree: no acknowledged write is lost, reads are linearizable, watchers see everything once
// and in order, and all members have the same hash.
func TestMoveLive(t *testing.T) {
	moveNewest(t, moveLive)
}

func TestMoveLiveOlder(t *testing.T) {
	moveOlder(t, moveLive)
}

// moveNewest moves the etcd that Belay is compared with.
func moveNewest(t *testing.T, move func(t *testing.T, version, etcd string)) {
	if os.Getenv("BELAY_MOVE") == "" {
		t.Skip("`make move` runs it")
	}
	move(t, cluster.EtcdVersion, EtcdTools(t).Etcd)
}

// moveOlder moves each older etcd that forms a cluster with Belay.
func moveOlder(t *testing.T, move func(t *testing.T, version, etcd string)) {
	forOlder(t, "BELAY_MOVE", "`make move` runs it", func(t *testing.T, version string, tools cluster.Tools) {
		if strings.HasPrefix(version, "3.4.") {
			t.Skip("it is moved as a whole only")
		}
		move(t, version, tools.Etcd)
	})
}

// mixed is a cluster whose members change their kind.
type mixed struct {
	*kill
	etcd, belay string // programs
	minor       string // of etcd: "3.6"
}

// env keeps the way back open, and has the members of each kind compare their hashes with those of
// the other: at a start, every two seconds, and after a compaction.
func (x *mixed) env() []string {
	env := []string{"ETCD_MAX_CLUSTER_VERSION=" + x.minor, "ETCD_CORRUPT_CHECK_TIME=2s", "ETCD_COMPACT_HASH_CHECK_TIME=2s"}
	if x.minor == "3.5" {
		return append(env, "ETCD_EXPERIMENTAL_INITIAL_CORRUPT_CHECK=true", "ETCD_EXPERIMENTAL_CORRUPT_CHECK_TIME=2s",
			"ETCD_EXPERIMENTAL_COMPACT_HASH_CHECK_ENABLED=true", "ETCD_EXPERIMENTAL_COMPACT_HASH_CHECK_TIME=2s")
	}
	return append(env, "ETCD_FEATURE_GATES=InitialCorruptCheck=true,CompactHashCheck=true")
}

func moveLive(t *testing.T, version, etcd string) {
	x := mixed{etcd: etcd, belay: Belay(t), minor: version[:strings.LastIndexByte(version, '.')]}
	args := slices.Concat(killArgs, []string{"--strict-reconfig-check=false"})
	args[slices.Index(args, "--snapshot-count")+1] = "100"
	x.kill = newKillOf(t, cluster.Config{Kind: cluster.Etcd, Binary: etcd, Size: 3, Args: args, Env: x.env()}, seedOf(t, t.Name()))
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		// The end of a log does not say which comparison raised an alarm.
		about := regexp.MustCompile(`(?i)hash|alarm|corrupt|compact`)
		for _, m := range x.c.Members {
			log, _ := os.ReadFile(m.LogPath)
			n := 0
			for line := range strings.Lines(string(log)) {
				if about.MatchString(line) && !strings.Contains(line, "etcdserver: corrupt cluster") && n < 200 {
					t.Log(m.Name, strings.TrimSpace(line))
					n++
				}
			}
		}
	})
	round := 0
	run := func(what string, disturb func(context.Context, *load) error) {
		t.Helper()
		start := time.Now()
		if err := x.round(t, round, disturb); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		var kinds []string
		for _, m := range x.c.Members {
			kinds = append(kinds, string(m.Kind()))
		}
		t.Logf("%v %s: %d writes acknowledged, %d of unknown outcome, %v", kinds, what, len(x.writes), x.unknown, time.Since(start).Round(time.Millisecond))
		round++
	}
	members := x.c.Members
	settle := func(what string) {
		t.Helper()
		for _, m := range members {
			run(what+", "+m.Name+" leads and is killed", func(ctx context.Context, l *load) error {
				if err := errors.Join(waitAcked(ctx, l, 100), moveLeader(ctx, x.c, m, ""), waitAcked(ctx, l, l.acked.Load()+100)); err != nil {
					return err
				}
				return x.killAndRestart(ctx, l, []*cluster.Member{m})
			})
			// The watchers have seen everything up to here.
			if _, err := x.clients[0].Compact(t.Context(), x.rev-50); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, m := range members {
		run(fmt.Sprintf("%s becomes Belay", m.Name), func(ctx context.Context, l *load) error { return x.move(ctx, l, m, cluster.Belay, i%2 == 0) })
		settle(fmt.Sprintf("%d of 3 are Belay", i+1))
	}
	for i, m := range []*cluster.Member{members[1], members[2], members[0]} {
		run(fmt.Sprintf("%s becomes etcd again", m.Name), func(ctx context.Context, l *load) error { return x.move(ctx, l, m, cluster.Etcd, i%2 == 0) })
		settle(fmt.Sprintf("%d of 3 are etcd again", i+1))
	}
	run("m3 is replaced by a Belay without data", func(ctx context.Context, l *load) error { return x.renewed(ctx, l, members[2], cluster.Belay) })
	run("m1 is replaced by a Belay without data", func(ctx context.Context, l *load) error { return x.renewed(ctx, l, members[0], cluster.Belay) })
	settle("replaced")
	run("m2 is replaced by an etcd without data", func(ctx context.Context, l *load) error { return x.renewed(ctx, l, members[1], cluster.Etcd) })
	run("m3 is replaced by an etcd without data", func(ctx context.Context, l *load) error { return x.renewed(ctx, l, members[2], cluster.Etcd) })
	settle("replaced back")
	if err := x.verifyAll(); err != nil {
		t.Fatal(err)
	}
	admin := newClient(t, x.c.Endpoints())
	if alarms, err := admin.AlarmList(t.Context()); err != nil || len(alarms.Alarms) > 0 {
		t.Errorf("alarms: %v, %v", alarms, err)
	}
	for _, m := range members {
		if s, err := admin.Status(t.Context(), m.Endpoint()); err != nil || !strings.HasPrefix(version, s.StorageVersion[:min(3, len(s.StorageVersion))]) {
			t.Errorf("%s: %v, %v", m.Name, s, err)
		}
		log, err := os.ReadFile(m.LogPath)
		if err != nil || strings.Contains(string(log), "panic") || strings.Contains(string(log), "found different hash values") {
			t.Errorf("the log of %s: %v", m.Name, err)
		}
	}
	t.Logf("etcd %s: %d rounds, %d acknowledged writes, %d requests of unknown outcome, %d operations judged, revision %d, %v",
		version, round, len(x.writes), x.unknown, x.judged, x.rev, time.Since(x.start).Round(time.Second))
}

// move makes a member with its data one of the other kind: stopped in order or killed, moved,
// started, killed as soon as it runs, and started again.
func (x *mixed) move(ctx context.Context, l *load, m *cluster.Member, kind cluster.Kind, killed bool) error {
	if err := waitAcked(ctx, l, 100); err != nil {
		return err
	}
	var exit *exec.ExitError
	if killed {
		m.Kill()
	} else if err := m.Stop(ctx); err != nil && !errors.As(err, &exit) {
		return err
	}
	binary, version := x.belay, ""
	if kind == cluster.Etcd {
		binary, version = x.etcd, x.minor
	}
	if err := migrateData(ctx, m, x.belay, version); err != nil {
		return err
	}
	if err := waitAcked(ctx, l, l.acked.Load()+200); err != nil {
		return fmt.Errorf("without %s: %w", m.Name, err)
	}
	m.Become(kind, binary)
	if err := m.Start(); err != nil {
		return err
	}
	if err := waitAcked(ctx, l, l.acked.Load()+20); err != nil {
		return err
	}
	m.Kill()
	if err := errors.Join(m.Start(), x.c.WaitReady(ctx)); err != nil {
		return err
	}
	return waitAcked(ctx, l, l.acked.Load()+100)
}

// renewed replaces a member by one of another kind that has nothing, killed while it gets it.
func (x *mixed) renewed(ctx context.Context, l *load, m *cluster.Member, kind cluster.Kind) error {
	if err := waitAcked(ctx, l, 100); err != nil {
		return err
	}
	admin, list, err := askOthers(ctx, x.c, m)
	if err != nil {
		return err
	}
	defer admin.Close()
	for _, e := range list {
		if e.Name == m.Name {
			if err := eventually(ctx, func() error { _, err := admin.MemberRemove(ctx, e.ID); return err }); err != nil {
				return fmt.Errorf("remove %s: %w", m.Name, err)
			}
		}
	}
	m.Kill()
	if err := os.RemoveAll(m.DataDir); err != nil {
		return err
	}
	if err := waitAcked(ctx, l, l.acked.Load()+200); err != nil {
		return fmt.Errorf("with two members: %w", err)
	}
	var added *clientv3.MemberAddResponse
	if err := eventually(ctx, func() (err error) {
		added, err = admin.MemberAddAsLearner(ctx, []string{m.PeerURL})
		return err
	}); err != nil {
		return fmt.Errorf("add %s: %w", m.Name, err)
	}
	m.SetArgs(existing)
	m.Become(kind, map[cluster.Kind]string{cluster.Belay: x.belay, cluster.Etcd: x.etcd}[kind])
	if err := m.Start(); err != nil {
		return err
	}
	if err := eventually(ctx, func() error {
		_, err := admin.MemberPromote(ctx, added.Member.ID)
		return err
	}); err != nil {
		return fmt.Errorf("promote %s: %w", m.Name, err)
	}
	m.Kill()
	if err := errors.Join(m.Start(), x.c.WaitReady(ctx)); err != nil {
		return err
	}
	return waitAcked(ctx, l, l.acked.Load()+100)
}
