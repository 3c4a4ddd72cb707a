package logs

import (
	"time"
)

// What the votes that others asked a member for tell of it. A candidate writes a line when it asks,
// and whoever is asked writes one when it hears of it, at once: no disk is between these. So one that
// answered while its own log hung was running, and one that answered late stood still or was cut
// off.

const (
	// atOnce is how long a request and its line take at most, with clocks that are a little apart.
	atOnce = 300 * time.Millisecond
	// tooLate is from when on it was held up, and not merely busy.
	tooLate = 700 * time.Millisecond
)

// A hearing is one request for a vote, and what the other made of it.
type hearing struct {
	from     *Event // who asked
	at       *Event // who heard of it; nil: no line says so
	took     time.Duration
	answered bool
}

// hearings are the first requests that each other member sent to m.
func (c *court) hearings(m string) (all []hearing) {
	for _, ask := range c.of("", kindAsked) {
		if ask.Peer != m || ask.Member == "" || ask.Member == m {
			continue
		}
		h := hearing{from: ask}
		for _, e := range c.of(m, kindHeard, kindIgnored) {
			if e.Peer == ask.Member && !e.At.Before(ask.At.Add(-atOnce)) {
				h.at, h.took, h.answered = e, max(0, e.At.Sub(ask.At)), true
				break
			}
		}
		all = append(all, h)
	}
	return all
}

// heardWithin is a request that m heard of at once within a time; nil: none.
func (c *court) heardWithin(m string, from, to time.Time) *Event {
	for _, h := range c.hearings(m) {
		if h.answered && h.took < atOnce && h.at.At.After(from) && h.at.At.Before(to) {
			return h.at
		}
	}
	return nil
}

// heardLate is the first request that m heard of much too late; nil: none.
func (c *court) heardLate(m string) *hearing {
	for _, h := range c.hearings(m) {
		if h.answered && h.took >= tooLate {
			return &h
		}
	}
	return nil
}
