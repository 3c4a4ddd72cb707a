package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
	"github.com/belaydb/belay/proof/inject"
)

// A label is the expected verdict of a row.
type label struct {
	members who      // the members at fault; nil: none, it is the links
	causes  []string // one of these
	// or is a second pair that is accepted as well, and one that is required too.
	or, and *label
	// quiet: nothing happens that calls for a verdict, so there may be none; one that is given must
	// still be right.
	quiet bool
}

// verdict is what a test needs of evidence.Verdict.
type verdict struct {
	Time     time.Time `json:"time"`
	Incident string    `json:"incident"`
	Cause    string    `json:"cause"`
	Members  []string  `json:"members"`
	Links    []string  `json:"links"`
	Evidence []string  `json:"evidence"`
	Also     []string  `json:"also"`
	by       string
}

// labels are the rows of the table that make a verdict, and what it should be.
func labels() map[string]label {
	slow, stalled, partition := []string{"disk-slow"}, []string{"disk-stalled", "disk-dead"}, []string{"partition"}
	return map[string]label{
		"leader-slow":       {members: leader, causes: slow},
		"follower-slow":     {members: oneFollower, causes: slow},
		"followers-slow":    {members: followers, causes: slow},
		"all-slow":          {members: everyone, causes: slow},
		"leader-hang":       {members: leader, causes: stalled},
		"leader-store-hang": {members: leader, causes: []string{"store-stalled"}},
		"leader-hang-follower-down": {members: leader, causes: stalled,
			and: &label{members: oneFollower, causes: []string{"member-killed"}}},
		"leader-eio":       {members: leader, causes: []string{"disk-error"}},
		"follower-eio":     {members: oneFollower, causes: []string{"disk-error"}},
		"leader-full":      {members: leader, causes: []string{"disk-full"}},
		"follower-full":    {members: oneFollower, causes: []string{"disk-full"}},
		"logs-hang":        {members: everyone, causes: []string{"log-output"}},
		"neighbour-disk":   {members: everyone, causes: slow, quiet: true},
		"neighbour-cpu":    {members: everyone, causes: []string{"cpu-starved"}, quiet: true},
		"leader-starved":   {members: leader, causes: []string{"cpu-starved"}},
		"leader-pause-1":   {members: leader, causes: []string{"process-paused"}},
		"leader-pause-3":   {members: leader, causes: []string{"process-paused"}},
		"leader-pause-10":  {members: leader, causes: []string{"process-paused"}},
		"leader-pause-20":  {members: leader, causes: []string{"process-paused"}},
		"follower-pause-5": {members: oneFollower, causes: []string{"process-paused"}},
		"leader-cut":       {members: leader, causes: partition},
		"follower-cut":     {members: oneFollower, causes: partition},
		"leader-cut-out":   {members: leader, causes: partition},
		"leader-cut-in":    {members: leader, causes: partition},
		"follower-cut-out": {members: oneFollower, causes: partition},
		"follower-cut-in":  {members: oneFollower, causes: partition},
		"leader-flap":      {members: leader, causes: partition},
		"follower-flap":    {members: oneFollower, causes: partition},
		"delay-50":         {quiet: true},
		"delay-200":        {causes: []string{"slow-link"}},
		"delay-400":        {causes: []string{"slow-link"}},
		"leader-delay":     {members: leader, causes: []string{"slow-link"}},
		"loss-1":           {causes: []string{"lossy-link"}, quiet: true},
		"loss-10":          {causes: []string{"lossy-link"}, or: &label{causes: []string{"slow-link"}}},
		"leader-kill":      {members: leader, causes: []string{"member-killed"}},
		"follower-kill":    {members: oneFollower, causes: []string{"member-killed"}},
		"leader-stop":      {members: leader, causes: []string{"member-stopped"}},
		"transfer":         {members: leader, causes: []string{"transfer-requested"}},
		"none":             {quiet: true},
	}
}

// verdictRows are rows only for their verdict; the table of the clients' view leaves them out.
func verdictRows() []scenario {
	return []scenario{
		{name: "leader-pause-3", about: "the leader is stopped (SIGSTOP) for 3 s", fault: pause(leader), during: 3 * time.Second},
		{name: "follower-pause-5", about: "one follower is stopped (SIGSTOP) for 5 s", fault: pause(oneFollower), during: 5 * time.Second},
		{name: "leader-starved", about: "the leader gets no CPU (nice 19, and others at nice 10 burn all of it)", fault: starve(leader), during: 12 * time.Second},
		{name: "leader-delay", about: "400ms and up to a fifth more, one way, between the leader and both others", fault: delayed(leader, 400*time.Millisecond)},
		{name: "leader-kill", about: "the leader is killed (SIGKILL)", fault: killed(leader), during: 4 * time.Second},
		{name: "follower-kill", about: "one follower is killed (SIGKILL)", fault: killed(oneFollower), during: 4 * time.Second},
		{name: "leader-stop", about: "the leader is asked to stop (SIGTERM)", fault: stopped(leader), during: 4 * time.Second},
		{name: "transfer", about: "a client moves leadership to another member", fault: transfer, during: 2 * time.Second},
	}
}

func killed(w who) func(context.Context, *run) error {
	return func(ctx context.Context, r *run) error {
		m := r.c.Members[w(r)[0]]
		if err := m.Kill(); err != nil {
			return err
		}
		<-ctx.Done()
		return m.Start()
	}
}

func stopped(w who) func(context.Context, *run) error {
	return func(ctx context.Context, r *run) error {
		m := r.c.Members[w(r)[0]]
		if err := m.Stop(ctx); err != nil {
			return err
		}
		<-ctx.Done()
		return m.Start()
	}
}

func transfer(ctx context.Context, r *run) error {
	cl, err := newClient([]string{r.c.Members[r.leader].Endpoint()})
	if err != nil {
		return err
	}
	defer cl.Close()
	st, err := cl.Status(ctx, r.c.Members[oneFollower(r)[0]].Endpoint())
	if err != nil {
		return err
	}
	if _, err = clientv3.NewMaintenance(cl).MoveLeader(ctx, st.Header.MemberId); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func delayed(w who, d time.Duration) func(context.Context, *run) error {
	return func(ctx context.Context, r *run) error {
		l := inject.Link{Delay: d, Jitter: d / 5}
		r.net.Set(w(r), everyone(r), l)
		r.net.Set(everyone(r), w(r), l)
		<-ctx.Done()
		r.net.Set(everyone(r), everyone(r), inject.Link{})
		return nil
	}
}

// starve gives all threads of a member the lowest priority, and makes other processes compete for
// the CPU, at a lower priority than the other members.
func starve(w who) func(context.Context, *run) error {
	return func(ctx context.Context, r *run) error {
		m := r.c.Members[w(r)[0]]
		if err := inject.Renice(m.PID(), 19); err != nil {
			return err
		}
		err := inject.BurnCPU(ctx, 8, 10)
		return errors.Join(err, inject.Renice(m.PID(), 0))
	}
}

// report is what a test needs of evidence.Report.
type report struct {
	Verdicts []verdict `json:"verdicts"`
	Events   []event   `json:"events"`
}

type event struct {
	Kind string  `json:"kind"`
	Ago  float64 `json:"seconds_ago"`
}

func ask(ctx context.Context, m *cluster.Member, query string) (answer report, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.ClientURL+"/debug/belay/events"+query, nil)
	if err != nil {
		return answer, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer, err
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return answer, fmt.Errorf("%s: %w", m.Name, err)
	}
	return answer, nil
}

func eventsOf(ctx context.Context, m *cluster.Member) ([]event, error) {
	answer, err := ask(ctx, m, "")
	return answer.Events, err
}

// verdictsOf asks a member for its verdicts.
func verdictsOf(ctx context.Context, m *cluster.Member) ([]verdict, error) {
	answer, err := ask(ctx, m, "?within=1s")
	if err != nil {
		return nil, err
	}
	for i := range answer.Verdicts {
		answer.Verdicts[i].by = m.Name
	}
	return answer.Verdicts, nil
}

// How long to wait for a verdict, and after the last one for another.
const (
	verdictWait  = 40 * time.Second
	verdictQuiet = 9 * time.Second
)

// awaitVerdicts returns the verdicts given since from, once the right one has come and none has
// followed for a while, or after verdictWait.
func (r *run) awaitVerdicts(ctx context.Context, from time.Time) (all []verdict) {
	began := time.Now()
	for ctx.Err() == nil {
		all = all[:0]
		for _, m := range r.c.Members {
			call, cancel := context.WithTimeout(ctx, 2*time.Second)
			given, err := verdictsOf(call, m)
			cancel()
			if err != nil {
				continue // it does not run, say
			}
			for _, v := range given {
				if v.Time.After(from) {
					all = append(all, v)
				}
			}
		}
		last := began
		for _, v := range all {
			if v.Time.After(last) {
				last = v.Time
			}
		}
		right, _ := r.label.judge(r, all)
		switch {
		case time.Since(began) >= verdictWait, right && time.Since(last) >= r.verdictQuiet:
			return all
		}
		inject.Think(ctx, 250*time.Millisecond)
	}
	return all
}

// matches reports whether a verdict is what the label says.
func (l *label) matches(r *run, v *verdict) bool {
	if l == nil {
		return false
	}
	var wanted []string
	if l.members != nil {
		for _, i := range l.members(r) {
			wanted = append(wanted, r.c.Members[i].Name)
		}
	}
	slices.Sort(wanted)
	got := slices.Sorted(slices.Values(v.Members))
	return slices.Contains(l.causes, v.Cause) && slices.Equal(wanted, got) || l.or.matches(r, v) || l.and.matches(r, v)
}

// mentions reports whether a verdict with another cause mentions it as well.
func (l *label) mentions(r *run, v *verdict) bool {
	for _, also := range v.Also {
		for _, c := range l.causes {
			if strings.HasPrefix(also, c+":") {
				return true
			}
		}
	}
	return false
}

// judge reports whether the right verdict was given, and counts those that are wrong.
func (l *label) judge(r *run, all []verdict) (right bool, wrong int) {
	one, other := l.quiet, l.and == nil
	for i := range all {
		v := &all[i]
		if !l.matches(r, v) {
			wrong++
			continue
		}
		if l.and == nil {
			one = true
			continue
		}
		own := *l
		own.and = nil
		one = one || own.matches(r, v) || own.mentions(r, v)
		other = other || l.and.matches(r, v) || l.and.mentions(r, v)
	}
	return one && other, wrong
}

// score prints the verdicts, row by row, and how many were right.
func score(out io.Writer, results []*result) (missed int) {
	fmt.Fprintln(out, "| fault | label | verdicts | |")
	fmt.Fprintln(out, "| --- | --- | --- | --- |")
	right, given, wrong := 0, 0, 0
	for _, res := range results {
		r := res.run
		text := "right"
		if res.err != nil {
			text = "could not be run: " + strings.ReplaceAll(res.err.Error(), "\n", " ")
			missed++
		} else {
			ok, bad := r.label.judge(r, res.verdicts)
			given += len(res.verdicts)
			wrong += bad
			switch {
			case bad > 0:
				text = fmt.Sprintf("%d wrong", bad)
			case !ok:
				text = "none"
			case len(res.verdicts) == 0:
				text = "right: nothing to say"
			}
			if ok && bad == 0 {
				right++
			} else {
				missed++
			}
		}
		var said []string
		for _, v := range res.verdicts {
			said = append(said, fmt.Sprintf("%s %s %s", v.Cause, strings.Join(v.Members, "+"), strings.Join(v.Links, " ")))
		}
		fmt.Fprintf(out, "| %s | %s | %s | %s |\n", r.about, r.labelText(), strings.Join(said, "; "), text)
	}
	fmt.Fprintf(out, "\n%d of %d faults have the right verdict and no other; %d verdicts were given, %d of them wrong\n\n", right, len(results), given, wrong)
	for _, res := range results {
		for _, v := range res.verdicts {
			fmt.Fprintf(out, "%s: by %s, %s\n  %s %s: %s\n", res.run.name, v.by, v.Incident, v.Cause, strings.Join(v.Members, ", "), strings.Join(v.Evidence, "; "))
			for _, also := range v.Also {
				fmt.Fprintf(out, "  also %s\n", also)
			}
		}
	}
	return missed
}

func (r *run) labelText() string {
	var text []string
	for l := r.label; l != nil; l = cmp.Or(l.or, l.and) {
		names := "links"
		if l.members != nil && r.c != nil {
			names = ""
			for _, i := range l.members(r) {
				names += "+" + r.c.Members[i].Name
			}
			names = names[1:]
		}
		t := strings.Join(l.causes, "/") + " " + names
		if l.quiet {
			t = strings.TrimSpace(strings.Join(l.causes, "/")) + " or none"
		}
		text = append(text, t)
	}
	return strings.Join(text, ", ")
}
