package evidence

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
)

const (
	// After an election it takes a moment until the members have recorded their side of it; a near
	// miss may still become an election or a hand-over, which for a disk takes its stall bound of 5
	// s.
	electionSettles = 2500 * time.Millisecond
	nearMissSettles = 6 * time.Second
	// waitForAbsent is how long a verdict waits for a member that does not answer and whose
	// evidence would count.
	waitForAbsent   = 30 * time.Second
	collectTimeout  = 2 * time.Second
	collectAgain    = time.Second
	inspectInterval = 250 * time.Millisecond
	// sameAgain is how long a near miss with the same cause and members as an earlier verdict is
	// not news.
	sameAgain    = 5 * time.Minute
	keptVerdicts = 64
	// TellWithin is how far back the reports between members go.
	TellWithin = 2 * time.Minute
)

// Metrics are belay_verdicts_total by cause.
type Metrics struct{ verdicts *prometheus.CounterVec }

// NewMetrics makes the metrics; reg nil means unregistered but working.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{verdicts: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "belay", Name: "verdicts_total",
		Help: "Verdicts that this member gave, as the leader, on elections, hand-overs and near misses, by cause.",
	}, []string{"cause"})}
	for _, c := range Causes() {
		m.verdicts.WithLabelValues(string(c))
	}
	if reg != nil {
		reg.MustRegister(m.verdicts)
	}
	return m
}

// InspectorOptions configure an Inspector; all but Metrics and Logger are required.
type InspectorOptions struct {
	Self    uint64
	Ring    *Ring
	Links   *Links
	Logger  *zap.Logger // nil: none
	Metrics *Metrics
	// Members are all voting members and learners, this one included, with their
	// names; a name may be empty.
	Members func() map[uint64]string
	Leads   func() bool
	// CaughtUp waits until what has just happened to this member is in its ring, as Sampler's does;
	// nil: nobody records anything late.
	CaughtUp func(ctx context.Context)
	// Collect asks another member for its report of the last TellWithin. A member that has none
	// (etcd) gives an empty one and no error.
	Collect func(ctx context.Context, id uint64) (Report, error)
}

// Inspector opens an incident when something happened to the leadership of this member, or nearly
// did, collects what the members recorded, and gives one verdict. Only the leader does this.
type Inspector struct {
	o       InspectorOptions
	now     func() time.Time
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup

	// Of its goroutine alone.
	seen  uint64 // Seq of the last event looked at
	peers map[uint64]peerSeen
	gone  map[uint64]bool // peers that do not answer and already have an incident
	given map[string]time.Time

	mu       sync.Mutex
	open     *openIncident // written by its goroutine
	verdicts []Verdict
}

type peerSeen struct {
	life     string
	nearMiss uint64
}

type openIncident struct {
	kind     IncidentKind
	began    time.Time
	before   uint64
	due      time.Time
	deadline time.Time
	missing  bool // at the last collection
}

// NewInspector makes an Inspector; Start starts it.
func NewInspector(o InspectorOptions) *Inspector {
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	i := &Inspector{o: o, now: time.Now, peers: make(map[uint64]peerSeen), gone: make(map[uint64]bool), given: make(map[string]time.Time)}
	i.ctx, i.cancel = context.WithCancel(context.Background())
	return i
}

// Start begins to inspect.
func (i *Inspector) Start() {
	i.running.Go(func() {
		tick := time.NewTicker(inspectInterval)
		defer tick.Stop()
		for {
			select {
			case <-i.ctx.Done():
				return
			case <-i.o.Ring.Wake():
			case <-tick.C:
			}
			i.step()
		}
	})
}

// Stop ends it.
func (i *Inspector) Stop() {
	i.cancel()
	i.running.Wait()
}

// Verdicts returns the last verdicts, the newest last, and a description of the open incident.
func (i *Inspector) Verdicts() (given []Verdict, open string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.open != nil {
		open = fmt.Sprintf("%s, %.1f s ago; the verdict is being made", i.open.kind, i.now().Sub(i.open.began).Seconds())
	}
	return append([]Verdict{}, i.verdicts...), open // none is an empty list to JSON
}

func (i *Inspector) setOpen(o *openIncident) {
	i.mu.Lock()
	i.open = o
	i.mu.Unlock()
}

// step looks at what is new, and gives a verdict if one is due.
func (i *Inspector) step() {
	now := i.now()
	leads := i.o.Leads()
	for _, e := range i.o.Ring.since(i.seen, nil) {
		i.seen = e.Seq
		switch {
		case e.Kind == Elected:
			i.elected(&e)
		case e.Kind.nearMiss() && leads:
			i.nearMiss(e.At.Add(-span(&e)), now)
		}
	}
	for _, id := range i.o.Links.Peers() {
		life, seq := i.o.Links.peerNearMiss(id)
		old, known := i.peers[id]
		i.peers[id] = peerSeen{life, seq}
		if leads && known && seq > 0 && (life != old.life || seq != old.nearMiss) && old.life != "" {
			i.nearMiss(now, now)
		}
		gone, _ := i.o.Links.Unanswered(id)
		if gone > 0 && !i.gone[id] && leads {
			i.gone[id] = true
			i.nearMiss(now.Add(-gone), now)
		} else if gone == 0 {
			delete(i.gone, id)
		}
	}
	if !leads {
		i.setOpen(nil) // the present leader has an incident of its own
		return
	}
	if i.open != nil && !now.Before(i.open.due) {
		i.try()
	}
}

func (i *Inspector) elected(e *Event) {
	kind := Election
	switch {
	case e.Peer == 0:
		return // the first leader that this member knows of
	case e.Peer == i.o.Self:
		kind = SameLeaderAgain
	case e.askedToLead():
		kind = LeadershipPassed
	}
	i.setOpen(&openIncident{kind: kind, began: e.At, before: e.Peer, due: e.At.Add(electionSettles), deadline: e.At.Add(waitForAbsent)})
}

func (i *Inspector) nearMiss(began, now time.Time) {
	if i.open == nil {
		i.setOpen(&openIncident{kind: NearMissOnly, began: began, due: now.Add(nearMissSettles), deadline: now.Add(waitForAbsent)})
	}
}

// try collects and judges; it may have to wait for a member.
func (i *Inspector) try() {
	o := i.open
	in := Incident{Kind: o.kind, Began: o.began, Leader: i.o.Self, Before: o.before, Members: i.collect()}
	if i.ctx.Err() != nil || !i.o.Leads() {
		return
	}
	now := i.now()
	v := Judge(in, now)
	missing := len(v.Missing) > 0
	// A member that was missing and is back has recorded why, or does so now.
	if (missing || o.missing) && now.Before(o.deadline) {
		o.missing, o.due = missing, now.Add(collectAgain)
		return
	}
	i.setOpen(nil)
	i.give(v, o, now)
}

func (i *Inspector) give(v Verdict, o *openIncident, now time.Time) {
	v.Time = now.Format("2006-01-02T15:04:05.000Z07:00")
	key := string(v.Cause) + " " + strings.Join(v.Members, ",")
	if last, ok := i.given[key]; ok && o.kind == NearMissOnly && now.Sub(last) < sameAgain {
		i.given[key] = now // it goes on
		return
	}
	if o.kind == NearMissOnly && v.Cause == CauseUnknown {
		return // nothing happened
	}
	for k, at := range i.given {
		if now.Sub(at) >= sameAgain {
			delete(i.given, k)
		}
	}
	i.given[key] = now
	i.mu.Lock()
	i.verdicts = append(i.verdicts, v)
	i.verdicts = i.verdicts[max(0, len(i.verdicts)-keptVerdicts):]
	i.mu.Unlock()
	i.o.Metrics.verdicts.WithLabelValues(string(v.Cause)).Inc()
	i.o.Ring.Record(Event{Kind: Judged, Note: fmt.Sprintf("%s; cause %s; members %s; %s", v.Incident, v.Cause, strings.Join(v.Members, ", "), strings.Join(v.Evidence, "; "))})
	i.o.Logger.Warn("verdict on an incident",
		zap.String("incident", v.Incident), zap.String("cause", string(v.Cause)), zap.Strings("members", v.Members),
		zap.Strings("links", v.Links), zap.Strings("evidence", v.Evidence), zap.Strings("also", v.Also),
		zap.Strings("did-not-answer", v.Missing), zap.String("advice", v.Advice))
}

// collect asks all members at the same time.
func (i *Inspector) collect() []Testimony {
	names := i.o.Members()
	ctx, cancel := context.WithTimeout(i.ctx, collectTimeout)
	defer cancel()
	var mu sync.Mutex
	var all []Testimony
	var asking sync.WaitGroup
	for id, name := range names {
		if id == i.o.Self {
			continue
		}
		asking.Go(func() {
			t := Testimony{ID: id, Name: name, Nameless: name == ""}
			start := i.now()
			report, err := i.o.Collect(ctx, id)
			end := i.now()
			if err != nil {
				t.Absent = WhyNot(err)
			} else {
				// Its ages count from when it wrote the report: half a round trip ago.
				t.Events, t.Links = eventsOf(&report, end.Add(-end.Sub(start)/2)), report.Links
			}
			mu.Lock()
			all = append(all, t)
			mu.Unlock()
		})
	}
	if i.o.CaughtUp != nil {
		i.o.CaughtUp(ctx)
	}
	asking.Wait()
	now := i.now()
	own := Report{Events: i.o.Ring.Tell(TellWithin)}
	all = append(all, Testimony{ID: i.o.Self, Name: names[i.o.Self], Events: eventsOf(&own, now), Links: i.o.Links.Report()})
	for j := range all {
		if all[j].Name == "" {
			all[j].Name = command.IDText(all[j].ID)
		}
	}
	slices.SortFunc(all, func(a, b Testimony) int { return strings.Compare(a.Name, b.Name) })
	return all
}

func eventsOf(r *Report, now time.Time) []Event {
	events := make([]Event, 0, len(r.Events))
	for j := range r.Events {
		if e := r.Events[j].event(now); e.Kind != 0 {
			events = append(events, e)
		}
	}
	return events
}
