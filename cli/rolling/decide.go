package rolling

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/belaydb/belay/command"
)

// A member is replaced in steps, each of which leaves a cluster that may stay as it is:
//
//	the old member is gone               the old member runs (the new one has other peer URLs)
//	1 it is removed                      1 the new one is added, as a learner
//	2 the new one is added, as a learner 2 somebody starts it
//	3 somebody starts it                 3 it catches up, and is promoted
//	4 it catches up, and is promoted     4 its data is compared with that of the others
//	5 its data is compared               5 leadership is handed over, if the old one leads
//	                                     6 the old one is removed
//
// A dead voter goes first, since it counts for the quorum and cannot help it: without it as many
// failures are borne as with it, the new one never counts before it has all data, and servers refuse
// to add a member while another one of three is away (--strict-reconfig-check). One that runs goes
// last: until the new one has been compared with the others, nobody has lost a copy.
//
// Between two steps only the list of members tells how far it is: the new one is the member with
// the new peer URLs.

// step is what is to be done next.
type step int

const (
	stepAsk      step = iota // look again: it is not sure that the old member is gone
	stepRemove               // the old one
	stepAdd                  // the new one, as a learner
	stepStart                // wait until somebody has started the new one
	stepPromote              // the new one, as soon as it has caught up
	stepCompare              // the new one's data with that of the others
	stepHandOver             // leadership
	stepDone
)

// silentLooks is how many looks in a row must find the old member silent before it counts as gone.
const silentLooks = 3

// shortestID is how many hexadecimal digits an id has at least, so that it is not taken for a name
// where none of the members has it. Fewer have one id in four thousand million.
const shortestID = 8

// task is what is to become of which member. It is made of the command line and the first look.
type task struct {
	old      uint64 // 0: it has been removed
	name     string // of the new one
	urls     []string
	learner  bool  // the new one stays a learner
	silent   int   // looks in a row that found the old one silent
	compared int64 // the revision at which the new one's data was that of the others; 0: not yet
}

// next is the new member; nil: it has not been added yet.
func (t *task) next(c *Cluster) *Member {
	for _, m := range c.Members {
		if m.ID != t.old && sameURLs(m.PeerURLs, t.urls) {
			return m
		}
	}
	return nil
}

func sameURLs(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// refusal is an error that says what not to do, and hint what to do instead.
type refusal struct {
	error
	hint string
}

// Hint is what to do instead; "" if the error says all.
func (r refusal) Hint() string { return r.hint }

func refuse(hint, format string, args ...any) error {
	return refusal{fmt.Errorf(format, args...), hint}
}

// resolve makes the task. who is an id or a name.
//
// An id is always that of the member to replace; if there is none such, an earlier run has removed
// it. A name may be the new one's by now: of a learner that runs.
func resolve(c *Cluster, who, name string, urls []string, learner bool) (*task, error) {
	t := &task{name: name, urls: urls, learner: learner}
	id, _ := strconv.ParseUint(who, 16, 64) // 0: it is a name
	var named []*Member
	for _, m := range c.Members {
		if m.ID == id {
			named = []*Member{m}
			break
		}
		if m.Name == who && who != "" {
			named = append(named, m)
		}
	}
	if len(named) > 1 {
		return nil, refuse("Hint: give its ID instead", "%d members have the name %q", len(named), who)
	}
	if len(named) == 1 {
		m := named[0]
		byName := m.ID != id
		switch {
		case byName && m.IsLearner && m.Status == nil:
			return nil, refuse("Hint: start it to go on with an earlier run, or give its ID to replace it", "%s is a learner that does not answer (%v)", who, m.Err)
		case byName && m.IsLearner:
			t.name, t.urls = m.Name, m.PeerURLs // an earlier run has come so far
			return t, nil
		}
		t.old, t.learner = m.ID, learner || m.IsLearner
		if t.name == "" {
			t.name = m.Name
		}
		if len(t.urls) == 0 {
			t.urls, _ = command.PlainURLs(m.PeerURLs)
		}
		return t, nil
	}
	if len(urls) == 0 {
		var waiting []*Member // those that an earlier run has added
		for _, m := range c.Members {
			if m.IsLearner && m.Name == "" {
				waiting = append(waiting, m)
			}
		}
		if len(waiting) != 1 {
			return nil, refuse("Hint: `member list` prints all; to go on with an earlier run that removed it, say --name and --peer-urls of the new one", "no member has the ID or name %q", who)
		}
		t.urls = waiting[0].PeerURLs
		if t.name == "" && (id == 0 || len(who) < shortestID) {
			t.name = who
		}
	}
	if t.name == "" {
		return nil, refuse("", "no member has the ID or name %q: if an earlier run has removed it, say the new one's --name, too", who)
	}
	return t, nil
}

// decide tells the next step, or why there is none. It asks nobody.
func (t *task) decide(c *Cluster) (step, error) {
	old, next := c.Member(t.old), t.next(c)
	if h := c.healing(); h != nil {
		_, replaces := command.PlainURLs(h.PeerURLs)
		return 0, refuse("Hint: wait until it has; the members' logs say what it waits for", "member %x heals: it puts itself in the place of %x", h.ID, replaces)
	}
	if old != nil && next == nil && old.Status != nil && sameURLs(t.urls, old.PeerURLs) {
		return 0, refuse("Hint: stop it first; or give the new one peer URLs of its own, by --peer-urls and --name", "%s (%x) runs and answers at %s", old.Called(), old.ID, old.Endpoint)
	}
	if old != nil && old.Status == nil {
		if t.silent < silentLooks {
			return stepAsk, nil
		}
		return stepRemove, t.mayRemoveDead(c, old)
	}
	switch {
	case next == nil && old != nil && (t.name == "" || t.name == old.Name):
		return 0, refuse("Hint: --name NAME", "%s runs: the new one needs a name of its own", old.Called())
	case next == nil:
		return stepAdd, t.mayAdd(c, old)
	case next.Name == "":
		return stepStart, nil
	case next.IsLearner && !t.learner:
		return stepPromote, t.mayAdd(c, old)
	case next.IsLearner && old != nil:
		return stepRemove, nil // one learner by another
	case next.IsLearner:
		return stepDone, nil
	case t.compared == 0:
		return stepCompare, nil
	case old == nil:
		return stepDone, nil
	case c.Leader == old.ID:
		return stepHandOver, nil
	}
	return stepRemove, nil
}

// rest are the voters but the old member, and those of them that answer and have sound data.
func (t *task) rest(c *Cluster) (voters, sound []*Member) {
	for _, m := range c.Voters() {
		if m.ID == t.old {
			continue
		}
		if voters = append(voters, m); c.sound(m) {
			sound = append(sound, m)
		}
	}
	return voters, sound
}

const quorumHint = "Hint: start the others first; if they are gone for good, see \"A quorum is lost\" in docs/operations.md"

// mayRemoveDead refuses what would leave no copy, or no quorum.
func (t *task) mayRemoveDead(c *Cluster, old *Member) error {
	if old.IsLearner {
		return nil
	}
	voters, sound := t.rest(c)
	if len(sound) == 0 {
		return refuse("Hint: `belay util snapshot restore` makes a new cluster of a backup", "%s has the last healthy copy: no other voter answers and has sound data", old.Called())
	}
	// What all of them commit without it, now and afterwards.
	if need := command.Quorum(len(voters) + 1); len(sound) < need {
		return refuse(quorumHint, "of the %d voters only %d answer and have sound data, %d are needed%s", len(voters)+1, len(sound), need, silentOf(c, voters))
	}
	return nil
}

// mayAdd refuses a voter on which the quorum would depend before all members could do without it.
func (t *task) mayAdd(c *Cluster, old *Member) error {
	if old == nil || old.IsLearner || t.learner {
		return nil
	}
	voters, sound := t.rest(c)
	if len(voters) == 0 {
		return nil // from one to two and back to one: there is no other way
	}
	if len(sound) == 0 {
		return refuse("", "%s has the last healthy copy: no other voter answers and has sound data", old.Called())
	}
	// With the new one there is a voter more; if it fails at once, the others must be a quorum.
	if need := command.Quorum(len(voters) + 2); len(sound)+1 < need {
		return refuse(quorumHint, "of the %d voters only %d answer and have sound data, %d are needed while there is one more%s", len(voters)+1, len(sound)+1, need, silentOf(c, voters))
	}
	return nil
}

func silentOf(c *Cluster, voters []*Member) string {
	var text strings.Builder
	for _, m := range voters {
		switch {
		case m.Status == nil:
			fmt.Fprintf(&text, "; %s does not answer", m.Called())
		case c.corrupt(m.ID):
			fmt.Fprintf(&text, "; %s has the alarm CORRUPT", m.Called())
		}
	}
	return text.String()
}
