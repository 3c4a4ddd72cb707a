package top

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/doctor/live"
	"github.com/belaydb/belay/cli/doctor/metrics"
	"github.com/belaydb/belay/usage"
)

const (
	fsyncs     = "etcd_disk_wal_fsync_duration_seconds"
	roundTrips = "etcd_network_peer_round_trip_time_seconds"
	durations  = "etcd_server_request_duration_seconds"
	handled    = "grpc_server_handled_total"
	received   = "grpc_server_msg_received_total"

	// slowRequest is from where on a request is called slow: the least bound of the buckets from here.
	slowRequest = 0.5 // seconds
	// few is how many observations between two looks a percentile needs; with fewer, it is told of
	// all since the member's start.
	few = 10
)

// A Picture is a cluster as two looks tell it, and what -w json prints. Rates are those between the
// looks; what is not known is null, or -1 where it says so.
type Picture struct {
	At        time.Time `json:"at"`
	ClusterID string    `json:"cluster_id,omitempty"`
	Over      float64   `json:"over_seconds"` // between the looks; 0: there was one, and no rate is known
	Leader    string    `json:"leader,omitempty"`
	// LeaderAge is for how long it has led, seconds; with LeaderAtLeast, at least for so long.
	LeaderAge     float64   `json:"leader_seconds"`
	LeaderAtLeast bool      `json:"leader_at_least"`
	Changes       int       `json:"leader_changes"` // as the members count them since they started; -1: not known
	Term          uint64    `json:"term"`
	Revision      int64     `json:"revision"`
	Leases        int       `json:"leases"` // -1: not known
	Alarms        []string  `json:"alarms"`
	Members       []Member  `json:"members"`
	Links         []Link    `json:"links"`
	Requests      []Request `json:"requests"`
	Usage         []Share   `json:"usage"`
	UsageNote     string    `json:"usage_note,omitempty"` // why there is none, or not of all
	Events        []Event   `json:"events"`               // newest first
	Error         string    `json:"error,omitempty"`
}

// A Member is one row.
type Member struct {
	Name     string  `json:"name"`
	ID       string  `json:"id"`
	Endpoint string  `json:"endpoint"`
	Role     string  `json:"role"` // leader, follower, learner, down
	Kind     string  `json:"kind"` // Belay, etcd 3.7.3
	Uptime   float64 `json:"uptime_seconds"`
	Term     uint64  `json:"term"`
	Behind   uint64  `json:"entries_behind"` // of what is committed and this member has not applied
	Size     int64   `json:"db_bytes"`
	InUse    int64   `json:"db_in_use_bytes"`
	Quota    int64   `json:"quota_bytes"` // 0: not known, negative: none
	Disk     string  `json:"disk"`        // healthy, slow, stalled, dead; "" for etcd
	FsyncP50 float64 `json:"fsync_p50_seconds"`
	FsyncP99 float64 `json:"fsync_p99_seconds"`
	Requests float64 `json:"requests_per_second"`
	Watchers int64   `json:"watchers"`
	Slow     int64   `json:"slow_watchers"`
	CPU      float64 `json:"cpu"` // of one processor
	Memory   int64   `json:"memory_bytes"`
	Error    string  `json:"error,omitempty"`
}

// A Link is the way from one member to another.
type Link struct {
	From string  `json:"from"`
	To   string  `json:"to"`
	P50  float64 `json:"p50_seconds"`
	P99  float64 `json:"p99_seconds"` // of Belay, the third longest of a minute
}

// A Request is a kind of request, over all members.
type Request struct {
	Kind   string  `json:"kind"`
	Rate   float64 `json:"per_second"`
	Failed float64 `json:"failed_per_second"`
	P50    float64 `json:"p50_seconds"` // 0: not known
	P99    float64 `json:"p99_seconds"`
	Slow   float64 `json:"slow"` // that took half a second or more, between the looks
}

// A Share is usage.Share over all members.
type Share struct {
	Of    string  `json:"of"`
	By    string  `json:"by"`
	Name  string  `json:"name"`
	Share float64 `json:"share"`
	Rate  float64 `json:"per_second"`
}

// An Event is what a member recorded, judged, or what the looks show.
type Event struct {
	At     time.Time `json:"at"`
	Member string    `json:"member,omitempty"`
	Kind   string    `json:"kind"` // of evidence, "verdict", or of a look: "down", "up", "leader"
	Text   string    `json:"text"`
	Bad    bool      `json:"bad"`
}

// A Story is what one who looks remembers beyond two looks. The zero value is ready.
type Story struct {
	began       time.Time
	previous    *Look
	leader      uint64
	leaderSince time.Time // zero: before began
	down        map[uint64]bool
	events      map[string]Event // by what makes them one; a member's event may grow
	lives       map[uint64]life
	elected     map[uint64]time.Time
}

// life is of a member's process: its events are numbered in each anew.
type life struct {
	number int
	uptime float64
}

// keptEvents bounds what a Story remembers.
const keptEvents = 500

// Add takes a look and makes a picture of it and the one before.
func (s *Story) Add(l *Look) *Picture {
	if s.down == nil {
		s.began, s.down, s.events, s.elected = l.At, map[uint64]bool{}, map[string]Event{}, map[uint64]time.Time{}
		s.lives = map[uint64]life{}
	}
	s.remember(l)
	p := between(s.previous, l)
	if leader := leaderOf(l); leader != nil {
		p.LeaderAge, p.LeaderAtLeast = s.led(l, leader)
	}
	p.Events = s.newest()
	s.previous = l
	return p
}

// newest are the events, newest first, and forgets what is older than the last keptEvents.
func (s *Story) newest() []Event {
	keys := slices.SortedFunc(maps.Keys(s.events), func(a, b string) int {
		return cmp.Or(s.events[b].At.Compare(s.events[a].At), cmp.Compare(a, b))
	})
	for _, key := range keys[min(keptEvents, len(keys)):] {
		delete(s.events, key)
	}
	all := make([]Event, 0, keptEvents)
	for _, key := range keys[:min(keptEvents, len(keys))] {
		all = append(all, s.events[key])
	}
	return all
}

// add is for what happens once.
func (s *Story) add(e Event) { s.events[fmt.Sprint(e.At.UnixNano(), e.Member, e.Kind, e.Text)] = e }

// remember adds what a look tells to the events.
func (s *Story) remember(l *Look) {
	names := map[string]string{}
	for _, m := range l.Members {
		names[fmt.Sprintf("%x", m.ID)] = m.Name
	}
	for i := range l.Members {
		m := &l.Members[i]
		if down := m.Status == nil && m.Started; down != s.down[m.ID] {
			s.down[m.ID] = down
			switch {
			case down:
				s.add(Event{At: l.At, Member: m.Name, Kind: "down", Text: "does not answer: " + m.Err, Bad: true})
			case s.previous != nil:
				s.add(Event{At: l.At, Member: m.Name, Kind: "up", Text: "answers again"})
			}
		}
		if m.Record != nil {
			s.recorded(l.At, m, names)
		}
	}
	if leader := leaderOf(l); leader != nil && leader.ID != s.leader {
		if s.leader != 0 {
			s.leaderSince = l.At
			s.add(Event{At: l.At, Member: leader.Name, Kind: "leader", Text: fmt.Sprintf("leads now, in term %d", leader.Status.RaftTerm)})
		}
		s.leader = leader.ID
	}
}

// quiet are kinds of events that say nothing to who looks on: each verdict is told by itself.
var quiet = map[string]bool{"judged": true, "timeouts": true, "followed": true, "started": true}

func (s *Story) recorded(at time.Time, m *Seen, names map[string]string) {
	for _, v := range m.Record.Verdicts {
		when, err := time.Parse(time.RFC3339Nano, v.Time)
		if err != nil {
			continue
		}
		who := strings.Join(append(slices.Clone(v.Members), v.Links...), ", ")
		text := fmt.Sprintf("%s: %s", who, v.Cause)
		if len(v.Evidence) > 0 {
			text += "; " + v.Evidence[0]
		}
		if v.Advice != "" {
			text += "; " + v.Advice
		}
		s.add(Event{At: when, Member: m.Name, Kind: "verdict", Text: text, Bad: true})
	}
	var pairs []string
	for id, name := range names {
		if len(id) >= 8 { // real ids are longer; a few letters are in any word
			pairs = append(pairs, id, name)
		}
	}
	named := strings.NewReplacer(pairs...) // notes have ids
	l := s.lives[m.ID]
	if m.Record.Uptime < l.uptime {
		l.number++
	}
	l.uptime = m.Record.Uptime
	s.lives[m.ID] = l
	for _, e := range m.Record.Events {
		when := at.Add(-time.Duration(e.Ago * float64(time.Second))).Truncate(time.Second)
		if e.Kind == "elected" && !e.Past && when.After(s.elected[m.ID]) {
			s.elected[m.ID] = when
		}
		if quiet[e.Kind] || e.Past {
			continue
		}
		if e.Time != "" {
			// Its own clock tells the same time at each look.
			if t, err := time.Parse(time.RFC3339Nano, e.Time); err == nil {
				when = t
			}
		}
		var parts []string
		if e.Peer != "" {
			peer := names[e.Peer]
			if peer == "" {
				peer = e.Peer
			}
			parts = append(parts, peer)
		}
		if e.Took > 0 {
			parts = append(parts, metrics.Seconds(e.Took))
		}
		if e.Count > 1 {
			parts = append(parts, fmt.Sprintf("%d times", e.Count))
		}
		if e.Note != "" {
			parts = append(parts, e.Note)
		}
		s.events[fmt.Sprint(m.ID, " ", l.number, " ", e.Seq)] = Event{At: when, Member: m.Name, Kind: e.Kind, Text: named.Replace(strings.Join(parts, ", "))}
	}
}

// led is for how long a leader has led. Belay's records tell; else it is known since the looks
// began, or since the start of a member that has seen no other.
func (s *Story) led(l *Look, leader *Seen) (seconds float64, atLeast bool) {
	if at, ok := s.elected[leader.ID]; ok && at.After(s.leaderSince.Add(-time.Minute)) {
		return max(0, l.At.Sub(at).Seconds()), false
	}
	if !s.leaderSince.IsZero() {
		return l.At.Sub(s.leaderSince).Seconds(), false
	}
	if changes, ok := leader.Scrape.Value("etcd_server_leader_changes_seen_total"); ok && changes <= 1 {
		return uptimeOf(leader), false
	}
	return l.At.Sub(s.began).Seconds(), true
}

// leaderOf is the member that most others name, if it answers; nil: none.
func leaderOf(l *Look) *Seen {
	votes := map[uint64]int{}
	for _, m := range l.Members {
		if m.Status != nil && m.Status.Leader != 0 {
			votes[m.Status.Leader]++
		}
	}
	var leader *Seen
	for i := range l.Members {
		m := &l.Members[i]
		if m.Status != nil && votes[m.ID] > 0 && (leader == nil || votes[m.ID] > votes[leader.ID]) {
			leader = m
		}
	}
	return leader
}

func uptimeOf(m *Seen) float64 {
	if start, ok := m.Scrape.Value("process_start_time_seconds"); ok && start > 0 {
		return max(0, m.Scrape.At.Sub(time.Unix(0, int64(start*1e9))).Seconds())
	}
	return 0
}

// between is the picture of a look, with rates since the one before; nil: there was none.
func between(before, now *Look) *Picture {
	p := &Picture{At: now.At, Error: now.Err, Leases: now.Leases, Changes: -1, Alarms: []string{}, Members: []Member{}, Links: []Link{}, Requests: []Request{}, Usage: []Share{}, Events: []Event{}}
	if now.ClusterID != 0 {
		p.ClusterID = fmt.Sprintf("%x", now.ClusterID)
	}
	if before != nil {
		p.Over = now.At.Sub(before.At).Seconds()
	}
	if l := leaderOf(now); l != nil {
		p.Leader = l.Name
	}
	names := map[uint64]string{}
	var committed uint64
	for _, m := range now.Members {
		names[m.ID] = m.Name
		if m.Status != nil {
			committed = max(committed, m.Status.RaftIndex)
			p.Term, p.Revision = max(p.Term, m.Status.RaftTerm), max(p.Revision, m.Status.Header.Revision)
		}
		if changes, ok := m.Scrape.Value("etcd_server_leader_changes_seen_total"); ok {
			p.Changes = max(p.Changes, int(changes))
		}
	}
	p.Alarms = alarmsOf(now, names)
	requests := map[string]*sum{}
	for i := range now.Members {
		m := &now.Members[i]
		old := previously(before, m)
		p.Members = append(p.Members, memberOf(m, old, committed))
		p.Links = append(p.Links, linksOf(m, old, now.Members)...)
		rate := addRequests(requests, m.Scrape, old)
		if old != nil {
			p.Members[i].Requests = rate / m.Scrape.At.Sub(old.At).Seconds()
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(requests)) {
		if r := requests[kind].request(kind); r.Rate > 0 || r.P99 > 0 {
			p.Requests = append(p.Requests, r)
		}
	}
	slices.SortStableFunc(p.Requests, func(a, b Request) int { return cmp.Compare(b.Rate, a.Rate) })
	p.Usage, p.UsageNote = mergeUsage(now.Members)
	return p
}

// alarmsOf are those that the members' status tells: etcd puts a request for alarms through the log,
// which one who looks each second must not.
func alarmsOf(l *Look, names map[uint64]string) []string {
	all := map[string]bool{}
	for _, m := range l.Members {
		if m.Status == nil {
			continue
		}
		for _, text := range m.Status.Errors {
			var id uint64
			var alarm string
			if n, _ := fmt.Sscanf(text, "memberID:%d alarm:%s", &id, &alarm); n == 2 {
				text = alarm + " of " + cmp.Or(names[id], fmt.Sprintf("%x", id))
			}
			if text != noLeader {
				all[text] = true
			}
		}
	}
	list := slices.AppendSeq([]string{}, maps.Keys(all)) // not nil, in JSON
	slices.Sort(list)
	return list
}

// noLeader stands among the errors of a status, and is shown elsewhere.
const noLeader = "etcdserver: no leader"

// previously is a member's scrape of the look before, unless its process was started since.
func previously(before *Look, m *Seen) *metrics.Scrape {
	if before == nil || m.Scrape == nil {
		return nil
	}
	at := slices.IndexFunc(before.Members, func(o Seen) bool { return o.ID == m.ID })
	if at < 0 || before.Members[at].Scrape == nil {
		return nil
	}
	old := before.Members[at].Scrape
	a, _ := old.Value("process_start_time_seconds")
	b, _ := m.Scrape.Value("process_start_time_seconds")
	if a != b || !m.Scrape.At.After(old.At) {
		return nil
	}
	return old
}

// since is by how much a histogram's series grew, or all of it if that is too little to tell.
func since(now metrics.Histogram, name string, old *metrics.Scrape) metrics.Histogram {
	if before, ok := now.Among(old.Histograms(name)); ok {
		if diff, ok := now.Since(before); ok && diff.Count >= few {
			return diff
		}
	}
	return now
}

func quantile(h metrics.Histogram, q float64) float64 {
	v, _ := h.Quantile(q)
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	return v
}

func memberOf(m *Seen, old *metrics.Scrape, committed uint64) Member {
	out := Member{Name: m.Name, ID: fmt.Sprintf("%x", m.ID), Endpoint: m.Endpoint, Role: "down", Error: m.Err, Uptime: uptimeOf(m)}
	if st := m.Status; st != nil {
		out.Role = "follower"
		switch {
		case st.Leader == m.ID:
			out.Role = "leader"
		case m.Learner || st.IsLearner:
			out.Role = "learner"
		case st.Leader == 0:
			out.Role = "no leader"
		}
		out.Kind = "etcd " + st.Version
		out.Term, out.Size, out.InUse, out.Quota = st.RaftTerm, st.DbSize, st.DbSizeInUse, st.DbSizeQuota
		out.Behind = committed - min(committed, st.RaftAppliedIndex)
	}
	if m.Record != nil {
		out.Kind = "Belay"
	}
	value := func(name string) float64 {
		v, _ := m.Scrape.Value(name)
		return v
	}
	_, out.Disk, _ = live.DiskState(m.Scrape)
	if out.Quota == 0 {
		out.Quota = int64(value("etcd_server_quota_backend_bytes"))
	}
	if h, ok := m.Scrape.Histogram(fsyncs); ok {
		h = since(h, fsyncs, old)
		out.FsyncP50, out.FsyncP99 = quantile(h, 0.5), quantile(h, 0.99)
	}
	out.Watchers, out.Slow = int64(value("etcd_debugging_mvcc_watcher_total")), int64(value("etcd_debugging_mvcc_slow_watcher_total"))
	out.Memory = int64(value("process_resident_memory_bytes"))
	if old != nil {
		before, _ := old.Value("process_cpu_seconds_total")
		out.CPU = max(0, value("process_cpu_seconds_total")-before) / m.Scrape.At.Sub(old.At).Seconds()
	}
	if m.ScrapeErr != "" && out.Error == "" {
		out.Error = "no metrics: " + m.ScrapeErr
	}
	return out
}

func linksOf(m *Seen, old *metrics.Scrape, all []Seen) (links []Link) {
	name := func(id string) string {
		for _, o := range all {
			if fmt.Sprintf("%x", o.ID) == id {
				return o.Name
			}
		}
		return ""
	}
	if m.Record != nil {
		for _, l := range m.Record.Links {
			if to := name(l.Peer); to != "" && l.RTT > 0 {
				links = append(links, Link{From: m.Name, To: to, P50: l.RTT, P99: l.Tail})
			}
		}
		return links
	}
	for _, h := range m.Scrape.Histograms(roundTrips) {
		if to := name(h.Labels["To"]); to != "" && h.Count > 0 {
			h = since(h, roundTrips, old)
			links = append(links, Link{From: m.Name, To: to, P50: quantile(h, 0.5), P99: quantile(h, 0.99)})
		}
	}
	return links
}

// sum is a kind of request over the members.
type sum struct {
	rate, failed, slow float64
	recent, all        metrics.Histogram // between the looks, and since the start
}

func (s *sum) request(kind string) Request {
	r := Request{Kind: kind, Rate: s.rate, Failed: s.failed, Slow: s.slow}
	h := s.recent
	if h.Count < few {
		h = s.all
	}
	if h.Count > 0 {
		r.P50, r.P99 = quantile(h, 0.5), quantile(h, 0.99)
	}
	return r
}

func plus(a, b metrics.Histogram) metrics.Histogram {
	if len(a.Buckets) == 0 {
		b.Buckets = slices.Clone(b.Buckets)
		return b
	}
	if len(a.Buckets) != len(b.Buckets) {
		return a // another version's buckets
	}
	for i := range a.Buckets {
		a.Buckets[i].Count += b.Buckets[i].Count
	}
	a.Count, a.Sum = a.Count+b.Count, a.Sum+b.Sum
	return a
}

// addRequests adds a member's, and returns how many it served between the looks.
func addRequests(to map[string]*sum, now, old *metrics.Scrape) (served float64) {
	of := func(kind string) *sum {
		if to[kind] == nil {
			to[kind] = new(sum)
		}
		return to[kind]
	}
	seconds := 0.0
	if old != nil {
		seconds = now.At.Sub(old.At).Seconds()
	}
	timed, olds := map[string]bool{}, old.Histograms(durations)
	for _, h := range now.Histograms(durations) {
		kind := h.Labels["type"]
		timed[kind] = true
		s := of(kind)
		s.all = plus(s.all, h)
		before := metrics.Histogram{Buckets: make([]metrics.Bucket, len(h.Buckets))}
		for i := range h.Buckets {
			before.Buckets[i].Upper = h.Buckets[i].Upper
		}
		if b, ok := h.Among(olds); ok {
			before = b
		}
		diff, ok := h.Since(before)
		if !ok || old == nil {
			continue
		}
		s.recent = plus(s.recent, diff)
		s.rate += diff.Count / seconds
		served += diff.Count
		if h.Labels["success"] == "false" {
			s.failed += diff.Count / seconds
		}
		for _, b := range diff.Buckets {
			if b.Upper >= slowRequest {
				s.slow += diff.Count - b.Count
				break
			}
		}
	}
	if old == nil {
		return served
	}
	// What is not timed is counted by gRPC's metrics.
	count := func(name string, wanted func(metrics.Labels) (kind string, failed bool)) {
		before := map[string]float64{}
		for _, s := range old.Samples(name) {
			before[s.Labels.Text()] = s.Value
		}
		for _, s := range now.Samples(name) {
			kind, failed := wanted(s.Labels)
			by := s.Value - before[s.Labels.Text()]
			if kind == "" || by <= 0 {
				continue
			}
			of(kind).rate += by / seconds
			served += by
			if failed {
				of(kind).failed += by / seconds
			}
		}
	}
	count(handled, func(l metrics.Labels) (string, bool) {
		method := l["grpc_method"]
		if method == "Compact" {
			method = "Compaction"
		}
		// With etcd's names for requests through the log, a user's command is Auth and a verb.
		if l["grpc_type"] != "unary" || timed[method] || timed["Auth"+method] || len(timed) > 0 && (method == "Txn" && timed["ReadonlyTxn"]) {
			return "", false
		}
		return method, l["grpc_code"] != "OK"
	})
	count(received, func(l metrics.Labels) (string, bool) {
		if l["grpc_method"] == "LeaseKeepAlive" {
			return "LeaseKeepAlive", false
		}
		return "", false
	})
	return served
}

// mergeUsage makes shares of the whole cluster of each member's.
func mergeUsage(members []Seen) (all []Share, note string) {
	type group struct{ of, by string }
	totals := map[group]float64{}
	rates := map[Share]float64{} // by name
	all = []Share{}
	told := 0
	for _, m := range members {
		if m.Usage == nil {
			if m.UsageErr != "" && m.Status != nil {
				note = m.Name + ": " + m.UsageErr
			}
			continue
		}
		told++
		whole := map[group]float64{}
		for _, s := range m.Usage.Top {
			if s.Share <= 0 {
				continue
			}
			whole[group{s.Of, s.By}] = s.Rate / s.Share
			rates[Share{Of: s.Of, By: s.By, Name: s.Name}] += s.Rate
		}
		for g, rate := range whole {
			totals[g] += rate
		}
	}
	if told == 0 && note == "" {
		note = "etcd does not count who uses it"
	}
	for s, rate := range rates {
		s.Rate = rate
		if total := totals[group{s.Of, s.By}]; total > 0 {
			s.Share = rate / total
		}
		all = append(all, s)
	}
	order := func(s Share) int {
		return slices.Index([]string{usage.Prefix.String(), usage.Client.String(), usage.User.String(), usage.Watch.String()}, s.Of)
	}
	slices.SortFunc(all, func(a, b Share) int {
		return cmp.Or(cmp.Compare(order(a), order(b)), cmp.Compare(a.By, b.By), cmp.Compare(b.Rate, a.Rate), cmp.Compare(a.Name, b.Name))
	})
	return all, note
}

// count is a number as it is shown: 12, 1.2k, 3.4M.
func count(n float64) string {
	switch {
	case n == 0:
		return "0"
	case n < 0.05:
		return "<0.1"
	case n < 10 && n != math.Trunc(n):
		return strconv.FormatFloat(n, 'f', 1, 64)
	case n < 10_000:
		return strconv.FormatFloat(n, 'f', 0, 64)
	case n < 1e6:
		return strconv.FormatFloat(n/1e3, 'f', 0, 64) + "k"
	}
	return strconv.FormatFloat(n/1e6, 'f', 1, 64) + "M"
}
