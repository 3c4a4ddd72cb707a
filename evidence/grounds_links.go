package evidence

import (
	"fmt"
	"slices"
	"time"

	"github.com/belaydb/belay/command"
)

// The evidence for grounds about links: what the two ends report about each other.

// disturbed: a member whose ticks were this late answers late, too, which is not the network's
// fault.
const disturbed = 100 * time.Millisecond

// index is the place of a member in the incident; -1: it is not among them.
func (h *hearing) index(id uint64) int {
	return slices.IndexFunc(h.in.Members, func(m Testimony) bool { return m.ID == id })
}

// stoodStillDuring reports whether a member did not run, or started, while e lasted: then the
// silence was its own.
func stoodStillDuring(m *Testimony, e *Event) bool {
	from := e.At.Add(-span(e))
	for i := range m.Events {
		s := &m.Events[i]
		during := s.At.After(from) && s.At.Add(-span(s)).Before(e.At)
		switch s.Kind {
		case Paused, Stopping, Failing:
		case CPUWait:
			during = during && s.stoodStill()
		case LateTick:
			during = during && s.Took >= tellingPause
		case Started:
			during = s.At.After(from) && s.At.Before(e.At.Add(2*time.Second))
		default:
			continue
		}
		if during {
			return true
		}
	}
	return false
}

// direction is one direction of a link, from a member to a member, by their places in the incident.
type direction struct{ from, to int }

// blocked are the directions in which nothing arrived although both ends ran, with how long.
func (h *hearing) blocked() map[direction]time.Duration {
	blocked := make(map[direction]time.Duration)
	members := h.in.Members
	for to := range members {
		for i := range members[to].Events {
			e := &members[to].Events[i]
			if e.Kind != Silent || !h.counts(e) {
				continue
			}
			from := h.index(e.Peer)
			if from < 0 || members[from].Absent != Answered ||
				stoodStillDuring(&members[from], e) || stoodStillDuring(&members[to], e) {
				continue
			}
			d := direction{from, to}
			blocked[d] = max(blocked[d], e.Took)
		}
	}
	if len(blocked) > 0 {
		h.addCampaign(blocked)
	}
	return blocked
}

// addCampaign adds what the new leader says of the old one, where other directions are blocked, too:
// it asked for votes since it heard nothing from it. A Silent takes longer to be recorded.
func (h *hearing) addCampaign(blocked map[direction]time.Duration) {
	from, to := h.index(h.in.Before), h.index(h.in.Leader)
	if h.in.Kind != Election || from < 0 || to < 0 || from == to || h.in.Members[from].Absent != Answered {
		return
	}
	for i := range h.in.Members[to].Events {
		e := &h.in.Members[to].Events[i]
		if e.Kind != Campaign || e.Took < tellingSilence || !h.counts(e) ||
			stoodStillDuring(&h.in.Members[from], e) || stoodStillDuring(&h.in.Members[to], e) {
			continue
		}
		d := direction{from, to}
		blocked[d] = max(blocked[d], e.Took)
	}
}

// tellingSilence is the shortest time without a heartbeat that shows that nothing arrived: ten of
// the default interval.
const tellingSilence = time.Second

// partition finds directions in which nothing arrived, and the member that most of them have in
// common.
func partition(h *hearing) *finding {
	blocked := h.blocked()
	if len(blocked) == 0 {
		return nil
	}
	members := h.in.Members
	touched := make([]int, len(members))
	for d := range blocked {
		touched[d.from]++
		touched[d.to]++
	}
	worst, shared := h.mostTouched(touched)
	m, f := &members[worst], &finding{}
	if !shared && pairsOf(blocked) > 1 {
		f.member = m.ID
	}
	in, out := 0, 0
	for from := range members {
		for to := range members {
			took, ok := blocked[direction{from, to}]
			if !ok {
				continue
			}
			f.links = append(f.links, members[from].Name+"→"+members[to].Name)
			f.evidence = append(f.evidence,
				fmt.Sprintf("%s heard nothing from %s for %s while both ran", members[to].Name, members[from].Name, short(took)))
			if from == worst {
				out++
			}
			if to == worst {
				in++
			}
		}
	}
	switch {
	case f.member == 0 && len(blocked) == 1:
		f.evidence = append(f.evidence, "one way: the other direction of this link is open")
	case in > 0 && out == 0:
		f.evidence = append(f.evidence, fmt.Sprintf("one way: nothing arrived at %s, what it sent did", m.Name))
	case out > 0 && in == 0:
		f.evidence = append(f.evidence, fmt.Sprintf("one way: nothing of %s arrived, what was sent to it did", m.Name))
	}
	return f
}

// pairsOf counts the links with a blocked direction.
func pairsOf(blocked map[direction]time.Duration) int {
	links := make(map[pair]bool)
	for d := range blocked {
		links[pair{min(d.from, d.to), max(d.from, d.to)}] = true
	}
	return len(links)
}

// mostTouched is the member that most of the blocked directions begin or end at; the old leader
// before others, and at a near miss any other member before the leader. shared: it is no more to
// blame than another, as with a single link neither end of which leads or led.
func (h *hearing) mostTouched(touched []int) (worst int, shared bool) {
	members := h.in.Members
	for i, n := range touched {
		if n > touched[worst] || n == touched[worst] && members[i].ID == h.in.Before ||
			n == touched[worst] && h.in.Kind == NearMissOnly && members[worst].ID == h.in.Leader {
			worst = i
		}
	}
	equals := 0
	for i, n := range touched {
		if n == touched[worst] && members[i].ID != h.in.Leader {
			equals++
		}
	}
	return worst, equals > 1 && members[worst].ID != h.in.Before
}

// pair are the two ends of a link, by their places in the incident; a < b.
type pair struct{ a, b int }

func slowLinks(h *hearing) *finding {
	f, slow := h.unevenLinks()
	if !slow {
		return nil
	}
	return f
}

func lossyLinks(h *hearing) *finding {
	f, slow := h.unevenLinks()
	if slow {
		return nil
	}
	return f
}

// unevenLinks finds the links whose round trips are long, or sometimes late, although both ends
// were on time; nil: there are none. slow: at least one of them is long.
func (h *hearing) unevenLinks() (f *finding, slow bool) {
	worst := h.worstRoundTrips()
	if len(worst) == 0 {
		return nil, false
	}
	h.addLossy(worst)
	members := h.in.Members
	touched := make([]int, len(members))
	f = &finding{}
	for i := range members {
		for j := i + 1; j < len(members); j++ {
			e := worst[pair{i, j}]
			if e == nil {
				continue
			}
			touched[i]++
			touched[j]++
			f.links = append(f.links, members[i].Name+"–"+members[j].Name)
			text := fmt.Sprintf("a round trip between %s and %s took %s", members[i].Name, members[j].Name, short(e.Took))
			if e.Took >= slowRoundTrip {
				slow = true
			} else {
				text += fmt.Sprintf(" mostly, but %d of the last %d came late", e.Value, lateWindow)
			}
			f.evidence = append(f.evidence, text)
		}
	}
	// If one member is an end of all of several, it is the place to look. Of one link either end may
	// be, or what lies between.
	for i, n := range touched {
		if n == len(worst) && len(worst) > 1 {
			f.member = members[i].ID
			break
		}
	}
	return f, slow
}

// worstRoundTrips are the worst that the ends of each link reported, unless an end was late itself.
func (h *hearing) worstRoundTrips() map[pair]*Event {
	worst := make(map[pair]*Event)
	members := h.in.Members
	for i := range members {
		for j := range members[i].Events {
			e := &members[i].Events[j]
			if e.Kind != SlowLink || !h.counts(e) {
				continue
			}
			peer := h.index(e.Peer)
			if peer < 0 || h.late(&members[i], e.Took, e.Value) || h.late(&members[peer], e.Took, e.Value) {
				continue
			}
			p := pair{min(i, peer), max(i, peer)}
			if old := worst[p]; old == nil || e.Took > old.Took || e.Took == old.Took && e.Value > old.Value {
				worst[p] = e
			}
		}
	}
	return worst
}

// addLossy adds links that are a little lossy: where one link is lossy, they belong to it.
func (h *hearing) addLossy(worst map[pair]*Event) {
	members := h.in.Members
	for i := range members {
		for _, k := range members[i].Links {
			peer := slices.IndexFunc(members, func(m Testimony) bool { return command.IDText(m.ID) == k.Peer })
			if peer < 0 || k.Late < lossyCount-1 || h.late(&members[i], 0, int64(k.Late)) || h.late(&members[peer], 0, int64(k.Late)) {
				continue
			}
			if p := (pair{min(i, peer), max(i, peer)}); worst[p] == nil {
				worst[p] = &Event{Took: time.Duration(k.RTT * float64(time.Second)), Value: int64(k.Late)}
			}
		}
	}
}

// late reports whether a member was itself so late that this explains round trips of this length
// and number of late ones. Late ticks explain round trips that are not much longer, and as many as
// there were late ticks.
func (h *hearing) late(m *Testimony, took time.Duration, lateCount int64) bool {
	if m.Absent != Answered || h.worst(m, Paused) != nil {
		return true
	}
	ticks := int64(0)
	for i := range m.Events {
		if e := &m.Events[i]; e.Kind == LateTick && h.counts(e) {
			ticks += e.Count
		}
	}
	if took < slowRoundTrip && 2*ticks < lateCount {
		return false
	}
	late := h.worst(m, LateTick)
	return late != nil && late.Took >= max(disturbed, took/2) && h.worst(m, CPUWait, Pressure) != nil
}
