package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
	"github.com/belaydb/belay/proof/inject"
)

// A scenario is one row of the table.
type scenario struct {
	name, about string
	fault       func(ctx context.Context, r *run) error // makes the fault, waits for ctx, undoes it
	during      time.Duration                           // 0: as -during says
	diskBytes   int64                                   // not 0: a tmpfs of this size in place of slowfs
	slowLogs    bool                                    // the members log to a slowfs of their own, at level debug
	walApart    bool                                    // the raft logs are not on slowfs: --wal-dir
	want        []want
	label       *label                                  // the expected verdict; nil: not checked
	prepare     func(ctx context.Context, r *run) error // before the load begins
	args        []string                                // more flags of the members
}

// A want is a requirement on a result; it returns "" or what was seen instead.
type want func(r *result) string

func failedAtMost(n int) want {
	return func(r *result) string {
		if r.failed > n {
			return fmt.Sprintf("%d failed requests", r.failed)
		}
		return ""
	}
}

func changesAtMost(n int) want {
	return func(r *result) string {
		if r.changes > n {
			return fmt.Sprintf("%d leader changes", r.changes)
		}
		return ""
	}
}

func writesUnder(d time.Duration) want {
	return func(r *result) string {
		if r.worstWrite > d {
			return fmt.Sprintf("a write took %v", cluster.Round(r.worstWrite))
		}
		return ""
	}
}

func readsUnder(d time.Duration) want {
	return func(r *result) string {
		if r.worstRead > d {
			return fmt.Sprintf("a read took %v", cluster.Round(r.worstRead))
		}
		return ""
	}
}

// replacedWithin requires a new leader within this many election timeouts (of 1 s, the default),
// plus half a second for clients to notice.
func replacedWithin(timeouts int) want {
	return func(r *result) string {
		switch {
		case r.changes == 0:
			return "the leader was not replaced"
		case r.firstChange > time.Duration(timeouts)*time.Second+500*time.Millisecond:
			return fmt.Sprintf("a new leader after %v", cluster.Round(r.firstChange))
		}
		return ""
	}
}

func pauseUnder(d time.Duration) want {
	return func(r *result) string {
		if r.longestGap > d {
			return fmt.Sprintf("no write for %v", cluster.Round(r.longestGap))
		}
		return ""
	}
}

func throughputAtLeast(part float64) want {
	return func(r *result) string {
		if r.before > 0 && r.within < part*r.before {
			return fmt.Sprintf("%.0f %% of the throughput before", 100*r.within/r.before)
		}
		return ""
	}
}

// A stall as in reports of etcd's users: each sync of the disk takes this long.
const stall = 2140 * time.Millisecond

func scenarios() []scenario {
	nobodyNotices := []want{failedAtMost(0), changesAtMost(0), writesUnder(250 * time.Millisecond), readsUnder(100 * time.Millisecond), throughputAtLeast(0.8)}
	list := []scenario{
		{name: "none", about: "no fault at all", fault: func(ctx context.Context, _ *run) error { <-ctx.Done(); return nil }, want: nobodyNotices},

		{name: "leader-slow", about: "every sync of the leader takes 2.14 s", fault: slow(leader), want: nobodyNotices},
		{name: "follower-slow", about: "every sync of one follower takes 2.14 s", fault: slow(oneFollower), want: nobodyNotices},
		{name: "followers-slow", about: "every sync of both followers takes 2.14 s", fault: slow(followers), want: []want{changesAtMost(0), readsUnder(100 * time.Millisecond)}},
		{name: "all-slow", about: "every sync of all members takes 2.14 s", fault: slow(everyone), want: []want{changesAtMost(0), readsUnder(100 * time.Millisecond)}},
		{name: "leader-hang", about: "the leader's disk never returns (20 s)", fault: hang(leader), during: 20 * time.Second,
			want: []want{failedAtMost(0), changesAtMost(1), pauseUnder(300 * time.Millisecond), leaderHandedOver}},
		{name: "leader-store-hang", about: "the disk of the leader's store never returns, its log has another (20 s)", fault: hang(leader), during: 20 * time.Second,
			walApart: true, args: []string{"--snapshot-count=2000"}, want: []want{changesAtMost(1), leaderHandedOver}},
		{name: "leader-hang-follower-down", about: "the leader's disk never returns, and one follower is down", fault: hangAndDown, want: []want{changesAtMost(0), readsUnder(250 * time.Millisecond)}},

		{name: "leader-eio", about: "each write and sync of the leader's disk fails (EIO)", fault: fails(leader), want: []want{changesAtMost(1), exited(leader)}},
		{name: "follower-eio", about: "each write and sync of one follower's disk fails (EIO)", fault: fails(oneFollower), want: []want{changesAtMost(0), exited(oneFollower)}},
		{name: "leader-full", about: "the leader's disk fills up", fault: full(leader), diskBytes: 768 << 20, want: []want{changesAtMost(0), noExit}},
		{name: "follower-full", about: "one follower's disk fills up", fault: full(oneFollower), diskBytes: 768 << 20, want: []want{changesAtMost(0), noExit}},
		{name: "logs-hang", about: "the disk of all members' log files never returns", fault: hangLogs, slowLogs: true, want: nobodyNotices},

		{name: "neighbour-disk", about: "another process writes up to 4 GB to the same disk", fault: hammer, want: []want{changesAtMost(0)}},
		{name: "neighbour-cpu", about: "other processes burn all CPUs, twice over", fault: func(ctx context.Context, _ *run) error { return inject.BurnCPU(ctx, 2, 0) }, want: []want{changesAtMost(0)}},

		{name: "leader-pause-1", about: "the leader is stopped (SIGSTOP) for 1 s", fault: pause(leader), during: time.Second, want: []want{changesAtMost(1)}},
		{name: "leader-pause-10", about: "the leader is stopped (SIGSTOP) for 10 s", fault: pause(leader), during: 10 * time.Second, want: []want{changesAtMost(1), replacedWithin(2)}},

		{name: "leader-pause-20", about: "the leader is stopped (SIGSTOP) for 20 s", fault: pause(leader), during: 20 * time.Second, want: []want{changesAtMost(1), replacedWithin(2)}},

		{name: "leader-cut", about: "the leader is cut off from both others", fault: cut(leader, true, true), want: []want{changesAtMost(1), replacedWithin(2)}},
		{name: "follower-cut", about: "one follower is cut off from both others", fault: cut(oneFollower, true, true), want: []want{changesAtMost(0)}},
		{name: "leader-cut-out", about: "nothing that the leader sends arrives", fault: cut(leader, true, false), want: []want{changesAtMost(1), replacedWithin(2)}},
		// The majority hears it until it has noticed that nobody answers it.
		{name: "leader-cut-in", about: "nothing that is sent to the leader arrives", fault: cut(leader, false, true), want: []want{changesAtMost(1), replacedWithin(2)}},
		{name: "follower-cut-in", about: "nothing that is sent to one follower arrives", fault: cut(oneFollower, false, true), want: []want{changesAtMost(0)}},
		{name: "follower-cut-out", about: "nothing that one follower sends arrives", fault: cut(oneFollower, true, false), want: []want{changesAtMost(0)}},
		{name: "leader-flap", about: "the leader is cut off and back every 3 s", fault: flap(leader)},
		{name: "follower-flap", about: "one follower is cut off and back every 3 s", fault: flap(oneFollower), want: []want{changesAtMost(0)}},
	}
	list = append(list, scenario{name: "snapshot", about: "a new member joins and gets a snapshot of 2 GB", prepare: fillAndRemove, fault: newMember, during: 10 * time.Minute,
		args: []string{"--quota-backend-bytes", "17179869184"}, want: []want{changesAtMost(0), p99AtMostDoubled, snapshotMemoryBounded, heartbeatsInTime}})
	list = append(list, scenario{name: "snapshot-under-load", about: "a new member joins a store of 4 GB that is written to at the full rate", prepare: fillRemoveAndWrite,
		fault: newMemberUnderLoad, during: 10 * time.Minute, args: []string{"--quota-backend-bytes", "34359738368"},
		want: []want{changesAtMost(0), p99AtMostDoubled, snapshotMemoryBounded}})
	for _, ms := range []time.Duration{50, 200, 400} {
		d := ms * time.Millisecond
		list = append(list, scenario{name: fmt.Sprintf("delay-%d", ms), fault: shaped(inject.Link{Delay: d, Jitter: d / 5}), want: []want{changesAtMost(0)},
			about: fmt.Sprintf("%v and up to a fifth more, one way, between all members", d)})
	}
	list = append(list, scenario{name: "far-and-lossy", fault: shaped(inject.Link{Delay: 200 * time.Millisecond, Jitter: 40 * time.Millisecond, Loss: 0.05}), during: time.Minute, want: []want{changesAtMost(0)},
		about: "200ms and up to a fifth more, one way, and 5 % is lost once, for a minute"})
	for _, percent := range []int{1, 10} {
		list = append(list, scenario{name: fmt.Sprintf("loss-%d", percent), fault: shaped(inject.Link{Delay: time.Millisecond, Loss: float64(percent) / 100}), during: 15 * time.Second, want: []want{changesAtMost(0)},
			about: fmt.Sprintf("%d %% of what members send is lost once", percent)})
	}
	return list
}

// who selects members, by number, depending on the leader before the fault.
type who func(r *run) []int

func leader(r *run) []int      { return []int{r.leader} }
func followers(r *run) []int   { return []int{(r.leader + 1) % 3, (r.leader + 2) % 3} }
func oneFollower(r *run) []int { return []int{(r.leader + 1) % 3} }
func everyone(*run) []int      { return []int{0, 1, 2} }

// exited requires that exactly these members have ended.
func exited(w who) want {
	return func(r *result) string {
		if wanted := w(r.run); fmt.Sprint(r.exited) != fmt.Sprint(wanted) {
			return fmt.Sprintf("members %v ended, not %v", r.exited, wanted)
		}
		return ""
	}
}

func noExit(r *result) string {
	if len(r.exited) > 0 {
		return fmt.Sprintf("members %v ended", r.exited)
	}
	return ""
}

func leaderHandedOver(r *result) string {
	if r.changes == 0 {
		return "the leader was not replaced"
	}
	return ""
}

// diskFault sends a command to the disks of some members, and undoes it when ctx ends.
func diskFault(w who, command string) func(context.Context, *run) error {
	return func(ctx context.Context, r *run) (err error) {
		return faultOn(ctx, r, w, r.disks, command)
	}
}

func faultOn(ctx context.Context, r *run, w who, disks []*inject.Disk, command string) (err error) {
	if disks == nil {
		return errors.New("this row needs slowfs (-disk fuse)")
	}
	for _, i := range w(r) {
		if _, err := disks[i].Tell("%s", command); err != nil {
			return err
		}
		defer func() {
			n, statErr := disks[i].Met()
			_, clearErr := disks[i].Tell("clear")
			err = errors.Join(err, statErr, clearErr)
			if n == 0 {
				r.note("no operation of %s met the fault", r.c.Members[i].Name)
			}
		}()
	}
	<-ctx.Done()
	return nil
}

func slow(w who) func(context.Context, *run) error {
	return diskFault(w, fmt.Sprintf("set sync delay %v", stall))
}
func hang(w who) func(context.Context, *run) error  { return diskFault(w, "set sync,write,meta hang") }
func fails(w who) func(context.Context, *run) error { return diskFault(w, "set sync,write fail 5") }

func hangLogs(ctx context.Context, r *run) error {
	return faultOn(ctx, r, everyone, r.logDisks, "set sync,write,meta hang")
}

func hangAndDown(ctx context.Context, r *run) error {
	m := r.c.Members[oneFollower(r)[0]]
	if err := m.Kill(); err != nil {
		return err
	}
	return errors.Join(hang(leader)(ctx, r), m.Start())
}

// full fills the disk in two steps, as another program's log or backup would: up to 100 MB free,
// where a member has time to raise NOSPACE, and in the second half of the time to the last byte.
// Meanwhile it tries a delete and a compaction. Afterwards it frees the space and disarms the
// alarm.
func full(w who) func(context.Context, *run) error {
	return func(ctx context.Context, r *run) error {
		filler := filepath.Join(r.diskRoot(w(r)[0]), "filler")
		defer os.Remove(filler)
		cl, err := newClient(r.c.Endpoints())
		if err != nil {
			return err
		}
		defer cl.Close()
		if err := inject.Fill(ctx, filler, 100<<20, 400<<20); err != nil {
			return err
		}
		inject.Think(ctx, r.during/2)
		r.tryAll(ctx, cl, "at 100 MB free")
		if err := inject.Fill(ctx, filler, 0, 400<<20); err != nil {
			return err
		}
		inject.Think(ctx, time.Second)
		r.tryAll(ctx, cl, "at 0 bytes free")
		<-ctx.Done()
		if err := os.Remove(filler); err != nil {
			return err
		}
		// As docs say: space first, then the alarm.
		after, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if _, err := cl.AlarmDisarm(after, &clientv3.AlarmMember{}); err != nil {
			r.note("disarm: %s", errText(err))
		}
		return nil
	}
}

// tryAll records which kinds of request are still served.
func (r *run) tryAll(ctx context.Context, cl *clientv3.Client, when string) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var said []string
	try := func(name string, err error) {
		if err != nil {
			said = append(said, name+": "+errText(err))
		} else {
			said = append(said, name+" served")
		}
	}
	resp, err := cl.Get(ctx, "d/1")
	try("get", err)
	_, err = cl.Put(ctx, "d/2", "x")
	try("put", err)
	_, err = cl.Delete(ctx, "d/1")
	try("delete", err)
	if resp != nil {
		_, err = cl.Compact(ctx, max(1, resp.Header.Revision-10_000))
		if err != nil && strings.Contains(err.Error(), "has been compacted") {
			err = nil
		}
		try("compact", err)
	}
	r.note("%s: %s", when, strings.Join(said, ", "))
}

func hammer(ctx context.Context, r *run) error {
	n, err := inject.HammerDisk(ctx, r.dir)
	r.note("the neighbour wrote %d MB", n>>20)
	return err
}

func pause(w who) func(context.Context, *run) error {
	return func(ctx context.Context, r *run) error {
		m := r.c.Members[w(r)[0]]
		if err := m.Signal(syscall.SIGSTOP); err != nil {
			return err
		}
		<-ctx.Done()
		return m.Signal(syscall.SIGCONT)
	}
}

func cut(w who, out, in bool) func(context.Context, *run) error {
	return func(ctx context.Context, r *run) error {
		if out {
			r.net.Set(w(r), everyone(r), inject.Link{Cut: true})
		}
		if in {
			r.net.Set(everyone(r), w(r), inject.Link{Cut: true})
		}
		<-ctx.Done()
		r.net.Set(everyone(r), everyone(r), inject.Link{})
		return nil
	}
}

func flap(w who) func(context.Context, *run) error {
	return func(ctx context.Context, r *run) error {
		r.net.Flap(ctx, w(r), everyone(r), 3*time.Second)
		r.net.Set(everyone(r), everyone(r), inject.Link{})
		return nil
	}
}

func shaped(l inject.Link) func(context.Context, *run) error {
	return func(ctx context.Context, r *run) error {
		r.net.Set(everyone(r), everyone(r), l)
		<-ctx.Done()
		r.net.Set(everyone(r), everyone(r), inject.Link{})
		return nil
	}
}
