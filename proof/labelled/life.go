package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/proof/cluster"
	"github.com/belaydb/belay/proof/inject"
)

const (
	// perLife is how many incidents one cluster serves.
	perLife = 12
	// notNews is for how long Belay does not repeat a verdict on a near miss: a cluster is not given
	// the same one again before.
	notNews = 6 * time.Minute
	// settles is how long after a fault nothing is done: a near miss is judged after 6 s, and etcd
	// takes 5 s to notice that a stream is dead.
	settles = 9 * time.Second
	// longestSettle bounds the wait for a verdict, which may wait half a minute for a member.
	longestSettle = 50 * time.Second
	// lastWord is how long after a verdict no other must have come.
	lastWord = 3 * time.Second
	// calm is the pause between two incidents; it belongs to the first.
	calm = 2 * time.Second
)

// life is one cluster, from its start to its end.
type life struct {
	kind    cluster.Kind
	dir     string // of what is kept
	work    string // of disks and data; goes
	binary  string
	slowfs  string
	machine *sync.RWMutex // held for writing by a fault that takes the whole machine
	verbose func(format string, args ...any)
	c       *cluster.Cluster
	net     *inject.Network
	disks   []*inject.Disk
	leader  int
	term    uint64
	recent  map[string]time.Time // when a fault was last made, by what Belay would say of it
	load    *clients
}

// serve starts a cluster and has it meet incidents, until next has no more for it, its time is
// over, or something breaks that is no fault of ours.
func (l *life) serve(ctx context.Context, next func(fits func(plan) bool) (plan, bool)) (err error) {
	if err := errors.Join(os.MkdirAll(l.dir, 0o755), os.MkdirAll(l.work, 0o755)); err != nil {
		return err
	}
	defer os.RemoveAll(l.work)
	defer func() {
		for _, d := range l.disks {
			d.Close()
		}
	}()
	for i := range 3 {
		d, err := inject.MountDisk(l.slowfs, l.disk(i))
		if err != nil {
			return err
		}
		l.disks = append(l.disks, d)
	}
	l.c, err = cluster.New(cluster.Config{Kind: l.kind, Binary: l.binary, Size: 3, Dir: l.work,
		DataDir: func(i int) string { return filepath.Join(l.disk(i), "data") }})
	if err != nil {
		return err
	}
	if l.net, err = inject.NewNetwork(l.c); err != nil {
		return err
	}
	defer l.net.Close()
	defer func() { err = errors.Join(err, l.keepLogs()) }()
	defer l.c.Close()
	defer l.unhang()
	start, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := l.c.Start(start); err != nil {
		return err
	}
	l.recent = make(map[string]time.Time)
	inject.Think(ctx, settles) // the start is no part of the first incident
	for range perLife {
		if err := l.find(ctx); err != nil {
			return err
		}
		p, ok := next(l.fits)
		if !ok {
			return nil
		}
		if err := l.meet(ctx, p); err != nil {
			return fmt.Errorf("incident %d: %w", p.number, err)
		}
	}
	return nil
}

func (l *life) disk(i int) string { return filepath.Join(l.work, fmt.Sprintf("disk%d", i+1)) }

func (l *life) unhang() {
	for _, d := range l.disks {
		_, _ = d.Tell("clear") // it may be gone, and what hung with it
	}
}

// keepLogs keeps the members' logs, whole.
func (l *life) keepLogs() error {
	for _, m := range l.c.Members {
		data, err := os.ReadFile(m.LogPath)
		if err == nil {
			err = keep(filepath.Join(l.dir, m.Name+".log.gz"), data)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *life) client(endpoints ...string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
}

// find waits until all members answer, and learns who leads.
func (l *life) find(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := l.c.WaitReady(ctx); err != nil {
		return err
	}
	for ctx.Err() == nil {
		leaders, term := map[int]int{}, uint64(0)
		for i, m := range l.c.Members {
			conn, err := m.Dial()
			if err != nil {
				return err
			}
			call, cancel := context.WithTimeout(ctx, time.Second)
			st, err := pb.NewMaintenanceClient(conn).Status(call, &pb.StatusRequest{})
			cancel()
			conn.Close()
			if err != nil {
				continue
			}
			l.net.Name(st.Header.MemberId, i)
			if n, ok := l.net.Member(st.Leader); ok {
				leaders[n]++
			}
			term = max(term, st.RaftTerm)
		}
		for n, times := range leaders {
			if times == len(l.c.Members) {
				l.leader, l.term = n, term
				return nil
			}
		}
		inject.Think(ctx, 100*time.Millisecond)
	}
	return errors.New("the members do not agree on a leader")
}

// member is who has a fault.
func (l *life) member(f planned) int {
	if f.leader || f.name == "transfer" {
		return l.leader
	}
	return (l.leader + 1 + f.follower) % 3
}

// members are who has which fault of a plan. The second of a pair is another's.
func (l *life) members(p plan) (all []int) {
	for i, f := range p.faults {
		m := l.member(f)
		if i > 0 && m == all[0] {
			m = (m + 1) % 3
		}
		all = append(all, m)
	}
	return all
}

// sayings are what Belay would say of a plan, each as one text.
func (l *life) sayings(p plan) (all []string) {
	members := l.members(p)
	for i, f := range p.faults {
		what := string(toolOf(f.name))
		if f.name == "delay" || f.name == "loss" {
			what = "round trips"
		}
		who := l.c.Members[members[i]].Name
		if f.name == "all-slow" {
			who = "all"
		}
		all = append(all, what+" of "+who+" says "+l.c.Members[l.leader].Name)
	}
	return all
}

// fits says whether an incident is none that this cluster's leader has just spoken of.
func (l *life) fits(p plan) bool {
	for _, s := range l.sayings(p) {
		if at, ok := l.recent[s]; ok && l.kind == cluster.Belay && time.Since(at) < notNews {
			return false
		}
	}
	return true
}

// meet makes one incident and keeps it.
func (l *life) meet(ctx context.Context, p plan) error {
	for _, f := range p.faults {
		if toolOf(f.name) == machine {
			l.machine.Lock()
			defer l.machine.Unlock()
		}
	}
	if len(p.faults) == 0 || toolOf(p.faults[0].name) != machine {
		l.machine.RLock()
		defer l.machine.RUnlock()
	}
	dir := filepath.Join(l.dir, strconv.Itoa(p.number))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var err error
	if l.load, err = startClients(ctx, l, p.load); err != nil {
		return err
	}
	defer l.load.stop()
	inject.Think(ctx, 2*time.Second) // the load is as usual
	if err := l.find(ctx); err != nil {
		return err
	}
	l.load.reset()
	l.keepMetrics(ctx, dir, "before")
	t := Truth{Number: p.number, Seed: p.seed, Row: p.row, Kind: l.kind, Load: p.load, Began: time.Now(), Before: l.c.Members[l.leader].Name, Faults: []Fault{}}
	before := l.term
	told := l.sayings(p)
	if len(p.faults) == 0 {
		inject.Think(ctx, p.idle)
	}
	if err := l.harmAll(ctx, p, &t); err != nil {
		return err
	}
	for _, m := range l.c.Members {
		select {
		case <-m.Exited():
		default:
			continue
		}
		t.Revived = append(t.Revived, m.Name)
		_ = m.Kill() // only records that it has ended
		if err := m.Start(); err != nil {
			return err
		}
	}
	ended := time.Now()
	if len(p.faults) > 0 {
		if err := l.settle(ctx, ended); err != nil {
			return err
		}
	}
	if err := l.find(ctx); err != nil {
		return err
	}
	for _, s := range told {
		// The leader now has spoken, if leadership moved.
		about, _, _ := strings.Cut(s, " says ")
		l.recent[s], l.recent[about+" says "+l.c.Members[l.leader].Name] = time.Now(), time.Now()
	}
	if l.kind == cluster.Belay {
		if err := l.keepEvents(ctx, dir); err != nil {
			return err
		}
	}
	l.keepMetrics(ctx, dir, "after")
	inject.Think(ctx, calm)
	t.Settled, t.After, t.Terms = time.Now(), l.c.Members[l.leader].Name, l.term-before
	t.Worst, t.Failed = l.load.worst()
	t.Machine = loadOfMachine()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	data, err := json.MarshalIndent(t, "", " ")
	if err != nil {
		return err
	}
	l.verbose("%s %d %s: %s, %d terms, worst request %.1f s", l.kind, t.Number, t.names(), t.Began.Format(time.TimeOnly), t.Terms, t.Worst)
	return keep(filepath.Join(dir, "truth.json"), append(data, '\n'))
}

// harmAll makes the faults of a plan, each at its time, and tells them in the truth.
func (l *life) harmAll(ctx context.Context, p plan, t *Truth) error {
	faults := make([]Fault, len(p.faults))
	errs := make([]error, len(p.faults))
	members := l.members(p)
	var running sync.WaitGroup
	for i, f := range p.faults {
		member := members[i]
		running.Go(func() {
			inject.Think(ctx, f.after)
			window, cancel := context.WithTimeout(ctx, f.hold)
			defer cancel()
			began := time.Now()
			at, err := l.harm(window, f, member)
			faults[i], errs[i] = Fault{Name: f.name, Role: "follower", Severity: f.severity, Began: began, Ended: time.Now()}, err
			if member == l.leader {
				faults[i].Role = "leader"
			}
			if len(at) == 3 {
				faults[i].Role = "all"
			}
			for _, m := range at {
				faults[i].Members = append(faults[i].Members, l.c.Members[m].Name)
			}
		})
	}
	running.Wait()
	t.Faults = faults
	return errors.Join(errs...)
}

// settle waits until all is as before and all is said.
func (l *life) settle(ctx context.Context, ended time.Time) error {
	ready, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := l.c.WaitReady(ready); err != nil {
		return err
	}
	inject.Think(ctx, time.Until(ended.Add(settles)))
	for l.kind == cluster.Belay && time.Since(ended) < longestSettle && ctx.Err() == nil {
		open, last := false, time.Time{}
		for _, m := range l.c.Members {
			r, err := l.report(ctx, m)
			if err != nil {
				return err
			}
			open = open || r.Open != ""
			for _, v := range r.Verdicts {
				if v.Time.After(last) {
					last = v.Time
				}
			}
		}
		if !open && time.Since(last) > lastWord {
			break
		}
		inject.Think(ctx, 250*time.Millisecond)
	}
	return nil
}

// get asks a member for a page.
func (l *life) get(ctx context.Context, m *cluster.Member, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.ClientURL+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s%s: %s", m.Name, path, resp.Status)
	}
	return io.ReadAll(resp.Body)
}

func (l *life) report(ctx context.Context, m *cluster.Member) (r memberReport, err error) {
	data, err := l.get(ctx, m, "/debug/belay/events?within=1s")
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	return r, err
}

func (l *life) keepEvents(ctx context.Context, dir string) error {
	for _, m := range l.c.Members {
		data, err := l.get(ctx, m, "/debug/belay/events?within=2m")
		if err == nil {
			err = keep(filepath.Join(dir, "events-"+m.Name+".json.gz"), data)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// keepMetrics keeps what members answer at /metrics; one that does not answer has none.
func (l *life) keepMetrics(ctx context.Context, dir, when string) {
	for _, m := range l.c.Members {
		data, err := l.get(ctx, m, "/metrics")
		if err == nil {
			err = keep(filepath.Join(dir, "metrics-"+m.Name+"-"+when+".txt.gz"), data)
		}
		if err != nil {
			l.verbose("%s: no metrics: %v", m.Name, err)
		}
	}
}

func loadOfMachine() float64 {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	f, _ := strconv.ParseFloat(strings.Fields(string(data) + " 0")[0], 64)
	return f
}

// clients write and read through all members at a rate.
type clients struct {
	cancel  context.CancelFunc
	running sync.WaitGroup
	all     []*clientv3.Client

	mu     sync.Mutex
	slow   time.Duration
	failed int
}

const clientCount = 4

func startClients(ctx context.Context, l *life, rate float64) (*clients, error) {
	ctx, cancel := context.WithCancel(ctx)
	c := &clients{cancel: cancel}
	for n := range clientCount {
		cl, err := l.client(l.c.Endpoints()...)
		if err != nil {
			c.stop()
			return nil, err
		}
		c.all = append(c.all, cl)
		c.running.Go(func() {
			value := strings.Repeat("v", 200)
			for i := 0; ctx.Err() == nil; i++ {
				start := time.Now()
				call, cancel := context.WithTimeout(ctx, 5*time.Second)
				key := fmt.Sprintf("k/%d/%d", n, i%1000)
				var err error
				if i%4 == 3 {
					_, err = cl.Get(call, key)
				} else {
					_, err = cl.Put(call, key, value)
				}
				cancel()
				if ctx.Err() == nil {
					c.mu.Lock()
					c.slow = max(c.slow, time.Since(start))
					if err != nil {
						c.failed++
					}
					c.mu.Unlock()
				}
				inject.Think(ctx, time.Duration(float64(clientCount)*float64(time.Second)/rate))
			}
		})
	}
	return c, nil
}

func (c *clients) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slow, c.failed = 0, 0
}

func (c *clients) worst() (seconds float64, failed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.slow.Seconds(), c.failed
}

func (c *clients) stop() {
	c.cancel()
	c.running.Wait()
	for _, cl := range c.all {
		_ = cl.Close() // nothing is asked of it any more
	}
}
