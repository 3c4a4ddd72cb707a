package replica

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/evidence"
)

// recorded returns the events of some kinds, oldest first, as "kind peer note".
func recorded(m *testMember, kinds ...evidence.Kind) (all []string) {
	for _, e := range m.ring.Tell(0) {
		for _, k := range kinds {
			if e.Kind == k.String() {
				all = append(all, strings.TrimSpace(e.Kind+" "+e.Peer+" "+e.Note))
			}
		}
	}
	return all
}

func wantRecorded(t *testing.T, m *testMember, want string, kinds ...evidence.Kind) {
	t.Helper()
	all := recorded(m, kinds...)
	for _, got := range all {
		if strings.HasPrefix(got, want) {
			return
		}
	}
	t.Errorf("member %d has not recorded %q, but %q", m.id, want, all)
}

// Both sides of a change of leader say why.
func TestBothSidesRecordWhyTheLeaderChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		first := c.leader()
		time.Sleep(2 * time.Second)
		c.partition(first.id, true)
		others := c.others(first)
		for !others[0].replica().IsLeader() && !others[1].replica().IsLeader() {
			time.Sleep(10 * time.Millisecond)
		}
		second := others[0]
		if others[1].replica().IsLeader() {
			second = others[1]
		}
		time.Sleep(2 * time.Second)
		c.partition(first.id, false)
		time.Sleep(2 * time.Second)
		wantRecorded(t, first, "stepped-down  too few members answered", evidence.SteppedDown)
		wantRecorded(t, first, "followed "+command.IDText(second.id), evidence.Followed)
		wantRecorded(t, second, "campaign "+command.IDText(first.id), evidence.Campaign)
		wantRecorded(t, second, "late-heartbeat "+command.IDText(first.id), evidence.LateHeartbeat)
		wantRecorded(t, second, "elected "+command.IDText(first.id)+" nothing had come from "+command.IDText(first.id), evidence.Elected)

		campaigns := len(recorded(first, evidence.Campaign)) // while it was alone
		if err := second.replica().TransferLeader(c.short(), first.id); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		wantRecorded(t, second, "hand-over "+command.IDText(first.id)+" request", evidence.HandOver)
		wantRecorded(t, second, "stepped-down "+command.IDText(first.id)+" it handed over, reason: request", evidence.SteppedDown)
		wantRecorded(t, first, "elected "+command.IDText(second.id)+" "+evidence.AskedToLead+" by "+command.IDText(second.id), evidence.Elected)
		// Nobody campaigned by itself for that.
		if n := len(recorded(first, evidence.Campaign)); n > campaigns {
			t.Errorf("member %d recorded %d more campaigns", first.id, n-campaigns)
		}
	})
}

func TestDiskEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		slow := c.others(c.leader())[0]
		slow.syncTakes.Store(int64(2 * time.Second))
		for range 8 {
			_ = c.leader().put(c.short(), "k", "v")
			time.Sleep(time.Second)
		}
		slow.syncTakes.Store(0)
		time.Sleep(10 * time.Second)
		wantRecorded(t, slow, "disk-slow", evidence.DiskSlow)
		wantRecorded(t, slow, "disk-better  healthy", evidence.DiskBetter)
		if all := recorded(c.leader(), evidence.DiskSlow, evidence.DiskStalled, evidence.LateHeartbeat, evidence.Campaign); len(all) > 0 {
			t.Errorf("a good leader recorded %q", all)
		}
	})
}

// A process that was stopped finds a sync that has been in flight ever since, which
// says nothing of its disk.
func TestStandstillIsNoStall(t *testing.T) {
	now := time.Unix(1000, 0)
	c := &core{env: &env{cfg: Config{Settings: Settings{TickInterval: 100 * time.Millisecond}}, metrics: NewMetrics(nil)}}
	rec := &recorder{core: c, inbox: new(inbox), timeouts: new(timeouts)}
	d := &disks{core: c, rec: rec}
	for range 5 {
		rec.tick(now, 0)
		now = now.Add(100 * time.Millisecond)
	}
	s := diskSample{oldest: 400 * time.Millisecond}
	if got := d.withoutStandstill(now, s); got != s {
		t.Errorf("%v became %v", s, got)
	}
	now = now.Add(10 * time.Second)
	rec.tick(now, 10*time.Second)
	if got := d.withoutStandstill(now, diskSample{oldest: 10 * time.Second}); got.oldest != 0 {
		t.Errorf("the disk has stalled for %v", got.oldest)
	}
	now = now.Add(100 * time.Millisecond)
	rec.tick(now, 0)
	if got := d.withoutStandstill(now, diskSample{oldest: 11 * time.Second}); got.oldest != 100*time.Millisecond {
		t.Errorf("the disk has stalled for %v", got.oldest)
	}
}
