package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/proof/cluster"
	"github.com/belaydb/belay/proof/inject"
)

// settings are those of all runs.
type settings struct {
	binaries map[cluster.Kind]string
	slowfs   string // the program; "": the members' folders lie on the plain disk
	dir      string // of all runs; on the disk that is meant
	logs     string // folder to keep the members' logs in; "": they go

	before, during, after time.Duration
	verdictQuiet          time.Duration // how long no further verdict must come
	snapshotBytes         int64         // what the snapshot row fills the store with
}

// run is one scenario on one kind.
type run struct {
	settings
	scenario
	kind   cluster.Kind
	dir    string
	during time.Duration

	c        *cluster.Cluster
	disks    []*inject.Disk
	logDisks []*inject.Disk
	tmpfs    []string
	net      *inject.Network
	load     *load
	heavy    *heavyLoad // nil: none
	leader   int        // number of the member that led when the fault began

	// For the snapshot row: how much the sender's memory grew, and how much memory the receiver had
	// at most.
	senderGrowth, receiver int64
	lateHeartbeats         int      // of more than half an election timeout, as reported by any member
	free                   int      // the member that was taken out
	freeURLs               []string // its peer URLs

	mu    sync.Mutex
	notes []string
}

// result is one row of one kind.
type result struct {
	run *run
	err error // the run itself could not be made

	requests, failed      int
	errors                map[string]int // failed requests by "write: text"
	worstWrite, worstRead time.Duration  // of requests that touched the fault or came after it
	p99Write, p99Before   time.Duration
	changes               int           // leaders that followed the first
	firstChange           time.Duration // from the fault to the first of them
	leaders               string        // who, and when, in words
	longestGap, noWrites  time.Duration // the longest time without a write, and the sum of those over 250 ms
	before, within        float64       // writes acknowledged in a second
	acked, lost, doubled  int
	renewalGap            time.Duration // longest time between two answers to the lease's keepalive
	exited                []int         // members that ended during the fault
	faults                []string      // what verify found
	missed                []string      // wants that were not met
	verdicts              []verdict     // since the fault, if there is a label
}

func (r *run) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

func (r *run) diskRoot(i int) string { return filepath.Join(r.dir, fmt.Sprintf("disk%d", i+1)) }

// perform runs the scenario; everything that it has started ends with it.
func perform(ctx context.Context, s settings, sc scenario, kind cluster.Kind) *result {
	r := &run{settings: s, scenario: sc, kind: kind, during: cmp.Or(sc.during, s.during)}
	res := &result{run: r, errors: make(map[string]int)}
	res.err = r.perform(ctx, res)
	for _, w := range sc.want {
		if res.err != nil {
			break
		}
		if text := w(res); text != "" {
			res.missed = append(res.missed, text)
		}
	}
	return res
}

func (r *run) perform(ctx context.Context, res *result) (err error) {
	if r.dir, err = os.MkdirTemp(r.settings.dir, r.name+"-"+string(r.kind)+"-"); err != nil {
		return err
	}
	defer os.RemoveAll(r.dir) // last: everything is unmounted by then
	defer r.unmount()
	if err := r.mount(); err != nil {
		return err
	}
	r.c, err = cluster.New(cluster.Config{
		Kind: r.kind, Binary: r.binaries[r.kind], Size: 3, Dir: r.dir,
		DataDir: func(i int) string { return filepath.Join(r.diskRoot(i), "data") },
	})
	if err != nil {
		return err
	}
	if r.net, err = inject.NewNetwork(r.c); err != nil {
		return err
	}
	for _, m := range r.c.Members {
		m.SetArgs(func(args []string) []string { return append(args, r.args...) })
	}
	defer r.net.Close()
	if r.walApart {
		for i, m := range r.c.Members {
			m.SetArgs(func(args []string) []string {
				return append(args, "--wal-dir", filepath.Join(r.dir, fmt.Sprint("wal-", i)))
			})
		}
	}
	if r.slowLogs {
		for i, m := range r.c.Members {
			m.SetArgs(func(args []string) []string {
				return append(args, "--log-level", "debug", "--log-outputs", filepath.Join(r.logDisks[i].Path, "log"))
			})
		}
	}
	defer r.keepLogs()
	defer r.c.Close()
	defer r.unhang() // before the members are killed, or they would wait for their disk

	start, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := r.c.Start(start); err != nil {
		return err
	}
	if err := r.findLeader(start); err != nil {
		return err
	}
	defer func() { r.heavy.close() }()
	if r.prepare != nil {
		if err := r.prepare(ctx, r); err != nil {
			return fmt.Errorf("prepare: %w", err)
		}
	}
	loadCtx, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	longCtx, stopLong := context.WithCancel(ctx)
	defer stopLong()
	if r.load, err = startLoad(loadCtx, longCtx, r.c); err != nil {
		return err
	}
	defer r.load.close()
	began := time.Now()
	inject.Think(ctx, r.before)
	if err := r.findLeader(ctx); err != nil {
		return err
	}

	from := time.Now()
	window, endFault := context.WithTimeout(ctx, r.during)
	err = r.fault(window, r)
	endFault()
	to := time.Now()
	if err != nil {
		return fmt.Errorf("make the fault: %w", err)
	}
	if err := r.revive(res); err != nil {
		return err
	}
	inject.Think(ctx, r.after)
	if r.label != nil {
		res.verdicts = r.awaitVerdicts(ctx, from)
	}
	stopLoad()
	r.load.wg.Wait()
	if r.heavy != nil {
		r.heavy.stop()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}

	check, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	ended := time.Now()
	r.measure(res, began, from, to)
	if err := r.c.WaitReady(check); err != nil {
		res.faults = append(res.faults, "after the fault: "+strings.SplitN(err.Error(), "\n", 2)[0])
		return nil
	}
	if d := time.Since(ended); d > time.Second {
		r.note("all were ready %v after the load", cluster.Round(d))
	}
	var faults []string
	res.lost, res.doubled, faults = r.load.verify(check, r.c)
	res.faults = append(res.faults, faults...)
	return nil
}

func (r *run) mount() error {
	for i := range 3 {
		root := r.diskRoot(i)
		switch {
		case r.diskBytes > 0:
			if err := os.Mkdir(root, 0o700); err != nil {
				return err
			}
			if err := syscall.Mount("tmpfs", root, "tmpfs", 0, fmt.Sprintf("size=%d", r.diskBytes)); err != nil {
				return fmt.Errorf("mount a tmpfs: %w", err)
			}
			r.tmpfs = append(r.tmpfs, root)
		case r.slowfs != "":
			d, err := inject.MountDisk(r.slowfs, root)
			if err != nil {
				return err
			}
			r.disks = append(r.disks, d)
		default:
			if err := os.Mkdir(root, 0o700); err != nil {
				return err
			}
		}
		if r.slowLogs && r.slowfs != "" {
			d, err := inject.MountDisk(r.slowfs, filepath.Join(r.dir, fmt.Sprintf("logs%d", i+1)))
			if err != nil {
				return err
			}
			r.logDisks = append(r.logDisks, d)
		}
	}
	if r.slowLogs && r.slowfs == "" {
		return errors.New("this row needs slowfs (-disk fuse)")
	}
	return nil
}

func (r *run) unhang() {
	for _, d := range slices.Concat(r.disks, r.logDisks) {
		_, _ = d.Tell("clear") // it may be gone, and what hung with it
	}
}

func (r *run) unmount() {
	for _, d := range slices.Concat(r.disks, r.logDisks) {
		d.Close()
	}
	for _, root := range r.tmpfs {
		_ = syscall.Unmount(root, syscall.MNT_DETACH)
	}
}

func (r *run) keepLogs() {
	if r.logs == "" {
		return
	}
	for i, m := range r.c.Members {
		path := m.LogPath
		if r.slowLogs {
			path = filepath.Join(r.logDisks[i].Path, "log")
		}
		data, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(filepath.Join(r.logs, fmt.Sprintf("%s-%s-%s.log", r.name, r.kind, m.Name)), data, 0o644)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "faults: keep a log: %v\n", err)
		}
	}
}

// findLeader asks the members until one says that it leads, and tells the network their ids.
func (r *run) findLeader(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		found := false
		for i, m := range r.c.Members {
			conn, err := m.Dial()
			if err != nil {
				return err
			}
			st, err := pb.NewMaintenanceClient(conn).Status(ctx, &pb.StatusRequest{})
			conn.Close()
			if err != nil {
				continue
			}
			r.net.Name(st.Header.MemberId, i)
			if st.Leader == st.Header.MemberId {
				r.leader, found = i, true
			}
		}
		if found {
			return nil
		}
		inject.Think(ctx, 20*time.Millisecond)
	}
	return errors.New("no member says that it leads")
}

// revive starts the members that have ended, as their supervisor would.
func (r *run) revive(res *result) error {
	for i, m := range r.c.Members {
		select {
		case <-m.Exited():
		default:
			continue
		}
		res.exited = append(res.exited, i)
		r.note("%s%s ended (%v): %s", m.Name, r.role(i), m.ExitErr(), m.LastWords())
		_ = m.Kill() // only records that it has ended
		if err := m.Start(); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) role(i int) string {
	if i == r.leader {
		return " (the leader)"
	}
	return ""
}

// measure fills in what the clients saw. The fault lasted from from to to.
func (r *run) measure(res *result, began, from, to time.Time) {
	l := r.load
	l.mu.Lock()
	defer l.mu.Unlock()
	var acks []time.Time
	var writes, earlier []time.Duration
	before, within := 0, 0
	for _, o := range l.ops {
		if !o.read && o.err == "" {
			acks = append(acks, o.end)
			switch {
			case o.end.Before(from):
				before++
			case o.end.Before(to):
				within++
			}
		}
		if o.end.Before(from) {
			if !o.read {
				earlier = append(earlier, o.end.Sub(o.start))
			}
			if o.err != "" {
				r.note("failed before the fault: %s", o.err)
			}
			continue
		}
		res.requests++
		took := o.end.Sub(o.start)
		name := "write"
		if o.read {
			name = "read"
			res.worstRead = max(res.worstRead, took)
		} else {
			res.worstWrite = max(res.worstWrite, took)
			writes = append(writes, took)
		}
		if o.err != "" {
			res.failed++
			res.errors[name+": "+o.err]++
		}
	}
	res.acked = len(l.acked)
	res.before = float64(before) / from.Sub(began).Seconds()
	res.within = float64(within) / to.Sub(from).Seconds()
	p99 := func(all []time.Duration) time.Duration {
		if len(all) == 0 {
			return 0
		}
		slices.Sort(all)
		return all[len(all)*99/100]
	}
	res.p99Write, res.p99Before = p99(writes), p99(earlier)
	slices.SortFunc(acks, time.Time.Compare)
	last := from
	gap := func(d time.Duration) {
		res.longestGap = max(res.longestGap, d)
		if d > 250*time.Millisecond {
			res.noWrites += d
		}
	}
	end := last
	for _, a := range acks {
		if a.After(from) {
			gap(a.Sub(last))
			last = a
		}
	}
	for _, o := range l.ops {
		if o.end.After(end) {
			end = o.end
		}
	}
	gap(end.Sub(last))
	var lastRenewal time.Time
	for _, at := range l.renewals {
		if !lastRenewal.IsZero() {
			res.renewalGap = max(res.renewalGap, at.Sub(lastRenewal))
		}
		lastRenewal = at
	}
	// One leader for each term: the one that most answers named.
	slices.SortFunc(l.leaders, func(a, b sighting) int {
		return cmp.Or(cmp.Compare(a.term, b.term), cmp.Compare(b.times, a.times))
	})
	terms := slices.CompactFunc(slices.Clone(l.leaders), func(a, b sighting) bool { return a.term == b.term })
	var said []string
	for i, s := range terms {
		name := "?"
		if m, ok := r.net.Member(s.leader); ok {
			name = r.c.Members[m].Name
		}
		if i == 0 {
			said = append(said, name)
			continue
		}
		if res.changes++; res.changes == 1 {
			res.firstChange = s.at.Sub(from)
		}
		said = append(said, fmt.Sprintf("%s at %+.1f s (term +%d)", name, s.at.Sub(from).Seconds(), s.term-terms[0].term))
	}
	res.leaders = strings.Join(said, ", ")
}
