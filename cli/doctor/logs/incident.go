package logs

import (
	"cmp"
	"slices"
	"time"
)

// An incident is events that are near in time and of which at least one is trouble.
type incident struct {
	number   int
	from, to time.Time
	events   []*Event // by time
	cause    verdict
	also     []verdict
}

const (
	// near is how far apart troubles of one incident may be: a stream is noticed to be dead after 5
	// s, and an election that fails is tried again after the timeout.
	near = 15 * time.Second
	// verdictAfter is how much later than its incident Belay's verdict may come.
	verdictAfter = 40 * time.Second
	// longest bounds an incident that never ends.
	longest = 10 * time.Minute
	// maxIncidents are told of; more are counted.
	maxIncidents = 200
)

// trouble says whether an event makes an incident: 2 by itself, 1 only with others of it, 0 never.
func (e *Event) trouble() int {
	switch e.Kind {
	case kindSignal, kindPanic, kindKilled, kindOOM, kindLost, kindDown, kindHandDisk, kindTransfer, kindNoQuorum, kindDiskFull, kindNoSpace,
		kindCorrupt, kindVerdict, kindCluster, kindInactive, kindSync, kindDiskBad, kindClock, kindTLS:
		return 2
	case kindElected:
		if e.Peer != "" {
			return 2
		}
		return 1
	case kindStart:
		if e.again {
			return 2
		}
		return 1
	case kindLate, kindLateCPU:
		if e.Took >= 500*time.Millisecond || e.Took >= 100*time.Millisecond && e.Count >= 5 {
			return 2
		}
		return 1
	case kindDefrag, kindCompact:
		if e.Took >= 500*time.Millisecond {
			return 2
		}
		return 1
	case kindApply, kindRequest, kindReadIndex:
		if e.Took >= time.Second || e.Count >= 10 {
			return 2
		}
		return 1
	case kindCampaign, kindProbe, kindDropped, kindConnLost, kindIgnored, kindTick, kindLeads, kindSnapshot:
		return 1
	}
	return 0
}

// begins is when what an event tells of began: what took long is told when it is over.
func (e *Event) begins() time.Time {
	switch e.Kind {
	case kindLate, kindLateCPU, kindSync, kindDefrag, kindApply, kindRequest, kindCompact, kindOwnLate:
		return e.At.Add(-min(e.Took, 2*time.Minute))
	}
	return e.At
}

// byTime sorts events; of the same time, in the order in which they were read.
func byTime(events []*Event) {
	slices.SortStableFunc(events, func(a, b *Event) int { return a.At.Compare(b.At) })
}

// beside is how far from an incident's troubles lesser things still belong to it.
const beside = 3 * time.Second

// incidents puts events together: first those that are trouble by themselves, then what is beside
// them. events are by time.
func incidents(events []*Event) []*incident {
	// What took long is put where it began.
	order := slices.Clone(events)
	slices.SortStableFunc(order, func(a, b *Event) int { return a.begins().Compare(b.begins()) })
	var all []*incident
	var open *incident
	for _, e := range order {
		if e.trouble() < 2 || e.ofLoad() {
			continue
		}
		begin := e.begins()
		gap := near
		if e.Kind == kindVerdict {
			gap = verdictAfter
		}
		if open == nil || begin.Sub(open.to) > gap || begin.Sub(open.from) > longest {
			open = &incident{from: begin, to: e.Last}
			all = append(all, open)
		}
		open.events = append(open.events, e)
		if e.Last.After(open.to) {
			open.to = e.Last
		}
	}
	n := 0
	var loads []*Event
	for _, e := range order {
		if e.trouble() == 2 && !e.ofLoad() {
			continue
		}
		for n < len(all) && all[n].to.Add(beside).Before(e.begins()) {
			n++
		}
		// The first that it is beside, or else the next, which it may have led to.
		if n < len(all) && e.Last.After(all[n].from.Add(-beside)) {
			all[n].events = append(all[n].events, e)
			if e.Kind == kindCampaign && e.Last.After(all[n].to) {
				all[n].to = e.Last // until there is a leader
			}
		} else if e.trouble() == 2 {
			loads = append(loads, e)
		}
	}
	// Slow requests beside nothing else are incidents of their own, for as long as they go on.
	open = nil
	for _, e := range loads {
		if open == nil || e.begins().Sub(open.to) > time.Minute {
			open = &incident{from: e.begins(), to: e.Last}
			all = append(all, open)
		}
		open.events = append(open.events, e)
		if e.Last.After(open.to) {
			open.to = e.Last
		}
	}
	slices.SortStableFunc(all, func(a, b *incident) int { return a.from.Compare(b.from) })
	for n, i := range all {
		i.number = n + 1
		byTime(i.events)
	}
	return all
}

// changedLeader says whether somebody came to see another leader, or none. One member that lost the
// leader and found it again, while nobody else had lost it, is no change of leader.
func (i *incident) changedLeader() bool {
	var lost []*Event
	for _, e := range i.events {
		switch {
		case e.Kind == kindElected && e.Peer != "", e.Kind == kindDown, e.Kind == kindLost && e.Peer == e.Member:
			return true
		case e.Kind == kindLost:
			lost = append(lost, e)
		}
	}
	if len(lost) == 0 {
		return false
	}
	return !slices.ContainsFunc(i.events, func(e *Event) bool {
		return e.Kind == kindElected && e.Member == lost[0].Member && e.Leader == lost[0].Peer
	}) ||
		slices.ContainsFunc(i.events, func(e *Event) bool {
			return e.Kind == kindLeads || e.Kind == kindLost && e.Member != lost[0].Member || e.Kind == kindElected && e.Leader != lost[0].Peer
		})
}

// of are the incident's events of these kinds and of this member; "": of all.
func (i *incident) of(member string, kinds ...Kind) []*Event {
	var found []*Event
	for _, e := range i.events {
		if (member == "" || or(e.Member, nobody) == member) && slices.Contains(kinds, e.Kind) {
			found = append(found, e)
		}
	}
	return found
}

// leaders are the members that led before and after, as far as the lines tell.
func (i *incident) leaders() (before, after string, term uint64) {
	for _, e := range i.events {
		switch {
		case e.Kind == kindLost, e.Kind == kindElected && e.Peer != "":
			if before == "" {
				before = e.Peer
			}
		case e.Kind == kindDown && before == "":
			before = e.Member
		}
		if (e.Kind == kindElected || e.Kind == kindLeads) && e.Leader != "" && e.Term >= term {
			after, term = e.Leader, e.Term
		}
	}
	return before, after, term
}

// worst is the event that took longest; nil: none.
func worst(events []*Event) *Event {
	if len(events) == 0 {
		return nil
	}
	return slices.MaxFunc(events, func(a, b *Event) int { return cmp.Compare(a.Took, b.Took) })
}

// lines are how many lines events stand for.
func lines(events []*Event) int {
	n := 0
	for _, e := range events {
		n += e.Count
	}
	return n
}
