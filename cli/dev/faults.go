package dev

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/belaydb/belay/internal/fault"
)

// Kinds of faults, as they are typed.
const (
	partition = "partition"
	delay     = "delay"
	loss      = "loss"
	disk      = "disk"
	pause     = "pause"
	kill      = "kill"
)

// kinds are all of them, in the order of the help.
var kinds = [...]string{partition, delay, loss, disk, pause, kill}

// What may be asked for.
const (
	maxDelay = time.Minute    // of a link or a sync
	maxLoss  = 90             // percent
	maxFor   = 24 * time.Hour // of a fault that ends by itself
)

// A breakage is a fault that was made and is not undone.
type breakage struct {
	kind   string
	member string
	others []string // at the other ends of its links; of partition, delay and loss
	all    bool     // others are all that there are
	oneWay bool     // only what member says to them is concerned
	way    fault.Way
	disk   fault.Disk
	part   string // of the disk: log, store; empty: both

	lasts time.Duration // 0: until it is undone
	timer *time.Timer   // nil: none
}

// same reports whether b takes the place of an earlier a.
func (b *breakage) same(a *breakage) bool {
	return a.kind == b.kind && a.member == b.member && a.part == b.part && a.oneWay == b.oneWay && slices.Equal(a.others, b.others) &&
		a.disk.Stall == b.disk.Stall && a.disk.Full == b.disk.Full
}

// breakages are all of them, the oldest first.
type breakages []*breakage

// around is the state of one member's surroundings while the breakages last.
func (all breakages) around(members []member, name string) fault.State {
	s := fault.State{Links: map[string]fault.Link{}}
	address := func(name string) string {
		i := slices.IndexFunc(members, func(m member) bool { return m.name == name })
		return members[i].peerAddress()
	}
	link := func(other string, out bool, w fault.Way) {
		l := s.Links[address(other)]
		if out {
			l.Out = both(l.Out, w)
		} else {
			l.In = both(l.In, w)
		}
		s.Links[address(other)] = l
	}
	for _, b := range all {
		switch b.kind {
		case partition, delay, loss:
			for _, other := range b.others {
				near, far := b.member == name, other == name
				if near {
					link(other, true, b.way)
				}
				if far {
					link(b.member, false, b.way)
				}
				if !b.oneWay && near {
					link(other, false, b.way)
				}
				if !b.oneWay && far {
					link(b.member, true, b.way)
				}
			}
		case disk:
			if b.member != name {
				continue
			}
			if b.part != "store" {
				s.Log = worse(s.Log, b.disk)
			}
			if b.part != "log" {
				s.Store = worse(s.Store, b.disk)
			}
		}
	}
	return s
}

func both(a, b fault.Way) fault.Way {
	return fault.Way{Cut: a.Cut || b.Cut, Delay: a.Delay + b.Delay, Loss: max(a.Loss, b.Loss)}
}

func worse(a, b fault.Disk) fault.Disk {
	return fault.Disk{Delay: max(a.Delay, b.Delay), Stall: a.Stall || b.Stall, Full: a.Full || b.Full}
}

// tell has all members know what is broken now.
func (c *cluster) tell() {
	for _, p := range c.processes {
		if p.ended {
			continue
		}
		// The last state is all that counts: what has not been written yet is out of date.
		select {
		case <-p.tell:
		default:
		}
		p.tell <- c.breakages.around(c.members, p.name)
	}
}

// telling writes to a member what is broken until states is closed or the member is gone. A member
// that is paused reads nothing, and must not hold up the loop.
func telling(pipe io.WriteCloser, states <-chan fault.State) {
	defer pipe.Close()
	for s := range states {
		if fault.Tell(pipe, s) != nil {
			return
		}
	}
}

// parse makes a breakage of what was typed.
func (c *cluster) parse(words []string) (*breakage, error) {
	b := &breakage{kind: words[0]}
	rest, err := b.options(words[1:])
	if err != nil {
		return nil, err
	}
	if len(rest) == 0 {
		return nil, fmt.Errorf("%s which member? There are %s; \"leader\" and \"follower\" are names, too", b.kind, c.state())
	}
	if b.member, err = c.named(rest[0]); err != nil {
		return nil, err
	}
	rest = rest[1:]
	switch b.kind {
	case partition, delay, loss:
		if rest, err = c.ends(b, rest); err != nil {
			return nil, err
		}
	}
	amount := ""
	if len(rest) > 0 && b.kind != partition && b.kind != pause && b.kind != kill {
		amount, rest = rest[0], rest[1:]
	}
	switch b.kind {
	case partition:
		b.way.Cut = true
	case delay:
		if b.way.Delay, err = duration(amount, "how long is each message under way", "delay m1 200ms", maxDelay); err != nil {
			return nil, err
		}
	case loss:
		percent, err := strconv.ParseFloat(strings.TrimSuffix(amount, "%"), 64)
		if err != nil || !(percent > 0 && percent <= maxLoss) {
			return nil, fmt.Errorf("how much is lost? %q is not between 0 and %d %%, as in: loss m1 10%%", amount, maxLoss)
		}
		b.way.Loss = percent / 100
	case disk:
		if rest, err = b.ofDisk(amount, rest); err != nil {
			return nil, err
		}
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%q is not understood; as in: %s", strings.Join(rest, " "), examples[b.kind])
	}
	if b.oneWay && b.others == nil {
		return nil, fmt.Errorf("one-way is for links: %s, %s, %s", partition, delay, loss)
	}
	return b, nil
}

// ends takes the names of the members at the other ends of b's links off words; none: all.
func (c *cluster) ends(b *breakage, words []string) (rest []string, err error) {
	for len(words) > 0 && (c.isMember(words[0]) || words[0] == "leader" || b.kind == partition) {
		other, err := c.named(words[0])
		if err != nil {
			return nil, err
		}
		if other == b.member || slices.Contains(b.others, other) {
			return nil, fmt.Errorf("%s is named twice", other)
		}
		b.others, words = append(b.others, other), words[1:]
	}
	if len(c.members) == 1 {
		return nil, fmt.Errorf("%s is alone: it has no links to break", b.member)
	}
	if b.others == nil {
		for _, m := range c.members {
			if m.name != b.member {
				b.others = append(b.others, m.name)
			}
		}
	}
	slices.SortFunc(b.others, func(x, y string) int { return len(x)*10 - len(y)*10 + strings.Compare(x, y) })
	b.all = len(b.others) == len(c.members)-1
	return words, nil
}

// ofDisk takes what is wrong with a disk off words.
func (b *breakage) ofDisk(how string, words []string) (rest []string, err error) {
	switch how {
	case "slow":
		amount := ""
		if len(words) > 0 {
			amount, words = words[0], words[1:]
		}
		if b.disk.Delay, err = duration(amount, "how much longer does each sync take", "disk m1 slow 300ms", maxDelay); err != nil {
			return nil, err
		}
	case "stall":
		b.disk.Stall = true
		if len(words) > 0 { // "stall 5s"
			if d, err := time.ParseDuration(words[0]); err == nil && d > 0 && b.lasts == 0 {
				b.lasts, words = d, words[1:]
			}
		}
	case "full":
		b.disk.Full = true
	default:
		return nil, fmt.Errorf("what is wrong with its disk? %q is none of slow, stall, full, as in: disk m1 slow 300ms, disk m1 stall 10s, disk m1 full", how)
	}
	if len(words) > 0 && (words[0] == "log" || words[0] == "store") {
		b.part, words = words[0], words[1:]
	}
	return words, nil
}

// options takes "for 5s" and "one-way", with dashes or without, off the words.
func (b *breakage) options(words []string) (rest []string, err error) {
	for i := 0; i < len(words); i++ {
		name, value, given := strings.Cut(strings.TrimPrefix(words[i], "--"), "=")
		switch name {
		case "one-way":
			b.oneWay = true
		case "for":
			if !given && i+1 < len(words) {
				i++
				value = words[i]
			}
			if b.lasts, err = duration(value, "for how long", "for 5s", maxFor); err != nil {
				return nil, err
			}
		default:
			rest = append(rest, words[i])
		}
	}
	return rest, nil
}

// duration reads a time between 1 ms and longest.
func duration(text, question, example string, longest time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	switch {
	case text == "":
		return 0, fmt.Errorf("%s? As in: %s", question, example)
	case err != nil:
		return 0, fmt.Errorf("%s? %q is no time (a number with ms, s or m), as in: %s", question, text, example)
	case d < time.Millisecond || d > longest:
		return 0, fmt.Errorf("%s? %s is not between 1ms and %s", question, text, longest)
	}
	return d, nil
}

func (c *cluster) isMember(name string) bool {
	return slices.ContainsFunc(c.members, func(m member) bool { return m.name == name })
}

// named is the member of that name, of those that lead or follow now.
func (c *cluster) named(name string) (string, error) {
	switch {
	case c.isMember(name):
		return name, nil
	case name != "leader" && name != "follower":
		return "", fmt.Errorf("%q is no member: there are %s; \"leader\" and \"follower\" are names, too", name, c.state())
	}
	leader := c.leader()
	if leader == "" {
		return "", fmt.Errorf("nobody is known to lead at the moment: name a member (%s)", c.state())
	}
	if name == "leader" {
		return leader, nil
	}
	for _, p := range c.processes {
		if !p.ended && !p.paused && p.name != leader {
			return p.name, nil
		}
	}
	return "", fmt.Errorf("nobody follows: there are %s", c.state())
}

// askTime bounds the question who leads.
const askTime = 2 * time.Second

// leader is the name of the member that leads, by what most recent term anybody knows; "" if nobody
// says.
func (c *cluster) leader() string {
	client := c.opts.healthClient()
	ctx, cancel := context.WithTimeout(c.ctx, askTime)
	defer cancel()
	type told struct {
		Member string `json:"member_id"`
		Leader string `json:"leader_id"`
		Term   uint64 `json:"term"`
	}
	var mu sync.Mutex
	var asking sync.WaitGroup
	var newest told
	for _, p := range c.processes {
		if p.ended || p.paused {
			continue
		}
		asking.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.clientURL()+"/debug/belay/events?within=1ms", nil)
			if err != nil {
				return
			}
			resp, err := client.Do(req)
			if err != nil {
				return
			}
			defer resp.Body.Close()
			var t told
			if json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&t) != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			c.ids[t.Member] = p.name
			if t.Leader != "" && t.Term >= newest.Term {
				newest = t
			}
		})
	}
	asking.Wait()
	return c.ids[newest.Leader]
}

// process is the member's last process.
func (c *cluster) process(name string) *process {
	return c.processes[slices.IndexFunc(c.processes, func(p *process) bool { return p.name == name })]
}

// breakIt makes a fault and says what to watch for.
func (c *cluster) breakIt(b *breakage) error {
	p := c.process(b.member)
	if p.ended && (b.kind == pause || b.kind == kill) {
		return fmt.Errorf("%s does not run: start %s starts it", p.name, p.name)
	}
	if p.paused && b.kind == pause {
		return fmt.Errorf("%s is paused already: heal %s lets it go on", p.name, p.name)
	}
	leader := c.leader()
	switch b.kind {
	case pause:
		if err := freeze(p.cmd.Process); err != nil {
			return fmt.Errorf("cannot pause %s (pid %d): %w", p.name, p.cmd.Process.Pid, err)
		}
		p.paused = true
	case kill:
		p.asked, p.restart = true, false
		c.kill(p)
	}
	c.breakages.drop(b.same)
	c.breakages = append(c.breakages, b)
	if b.lasts > 0 {
		b.timer = time.AfterFunc(b.lasts, func() {
			select {
			case c.over <- b:
			case <-c.ctx.Done():
			}
		})
	}
	c.tell()
	c.event()
	c.say("%s", c.explain(b, leader))
	return nil
}

// drop takes out those that match, which do not end by themselves any more.
func (all *breakages) drop(match func(*breakage) bool) (dropped []*breakage) {
	*all = slices.DeleteFunc(*all, func(b *breakage) bool {
		if !match(b) {
			return false
		}
		if b.timer != nil {
			b.timer.Stop()
		}
		dropped = append(dropped, b)
		return true
	})
	return dropped
}

// of matches the faults of a member that are of a kind.
func of(member, kind string) func(*breakage) bool {
	return func(b *breakage) bool { return b.member == member && b.kind == kind }
}

// undo ends breakages, all of them of those that match.
func (c *cluster) undo(match func(*breakage) bool) (undone []*breakage) {
	undone = c.breakages.drop(match)
	c.tell()
	for _, b := range undone {
		p := c.process(b.member)
		switch {
		case b.kind == pause:
			c.resume(p)
		case b.kind == kill && p.ended && !c.stopping:
			c.startAgain(slices.Index(c.processes, p))
		case b.kind == kill && !p.ended && !c.stopping: // it is about to end
			p.restart = true
		}
	}
	return undone
}

// resume lets a paused member go on.
func (c *cluster) resume(p *process) {
	if !p.paused {
		return
	}
	p.paused = false
	if err := thaw(p.cmd.Process); err != nil && !p.ended {
		c.say("cannot let %s go on (pid %d): %v", p.name, p.cmd.Process.Pid, err)
	}
}

// heal is what was typed to undo faults: of one member, or all.
func (c *cluster) heal(words []string) error {
	match := func(*breakage) bool { return true }
	if len(words) > 1 {
		return fmt.Errorf("heal takes one member or none, not %q", strings.Join(words, " "))
	}
	if len(words) == 1 && words[0] != "all" {
		name, err := c.named(words[0])
		if err != nil {
			return err
		}
		match = func(b *breakage) bool { return b.member == name }
	}
	undone := c.undo(match)
	if len(undone) == 0 {
		c.say("there is nothing to undo; what is broken: %s", c.breakages)
		return nil
	}
	c.event()
	for _, b := range undone {
		c.say("over: %s", b.after())
	}
	return nil
}

// ends a breakage whose time is over.
func (c *cluster) expire(b *breakage) {
	if !slices.Contains(c.breakages, b) {
		return
	}
	c.undo(func(x *breakage) bool { return x == b })
	c.event()
	c.say("after %s: %s", b.lasts, b.after())
}

// String says what is broken.
func (all breakages) String() string {
	if len(all) == 0 {
		return "nothing"
	}
	var texts []string
	for _, b := range all {
		text := b.what()
		if b.lasts > 0 {
			text += fmt.Sprintf(" (for %s)", b.lasts)
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, "; ")
}

// what is a breakage in a few words.
func (b *breakage) what() string {
	others := list(b.others)
	switch b.kind {
	case partition:
		if b.oneWay {
			return fmt.Sprintf("nothing that %s says reaches %s", b.member, others)
		}
		return fmt.Sprintf("%s is cut off from %s", b.member, others)
	case delay:
		return fmt.Sprintf("%s from %s to %s takes %s", between(b.oneWay), b.member, others, b.way.Delay)
	case loss:
		return fmt.Sprintf("%.3g %% of what goes from %s to %s%s is lost and sent again", b.way.Loss*100, b.member, others, map[bool]string{false: " and back"}[b.oneWay])
	case pause:
		return b.member + " is paused (SIGSTOP)"
	case kill:
		return b.member + " was killed (SIGKILL)"
	}
	of := map[string]string{"": "disk", "log": "raft log's disk", "store": "store's disk"}[b.part]
	switch {
	case b.disk.Stall:
		return fmt.Sprintf("%s's %s stalls: no sync ends", b.member, of)
	case b.disk.Full:
		return fmt.Sprintf("%s's %s is full", b.member, of)
	}
	return fmt.Sprintf("each sync of %s's %s takes %s longer", b.member, of, b.disk.Delay)
}

// after is what holds when it is undone.
func (b *breakage) after() string {
	switch b.kind {
	case partition:
		return fmt.Sprintf("%s and %s reach each other again", b.member, list(b.others))
	case delay, loss:
		return fmt.Sprintf("the links of %s to %s are well again", b.member, list(b.others))
	case pause:
		return b.member + " runs on (SIGCONT)"
	case kill:
		return b.member + " is started again"
	}
	return fmt.Sprintf("%s's disk is well again", b.member)
}

func between(oneWay bool) string {
	if oneWay {
		return "each message"
	}
	return "each message both ways"
}

// list is "m1, m2 and m3".
func list(names []string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}

// examples are of each kind, for the help and for errors.
var examples = map[string]string{
	partition: "partition m1 for 10s, partition m1 m2 one-way",
	delay:     "delay m1 200ms, delay m1 m2 200ms for 10s",
	loss:      "loss m1 10%, loss m1 m2 5% for 30s",
	disk:      "disk m1 slow 300ms, disk m1 stall 10s, disk m1 full log",
	pause:     "pause m1 for 3s",
	kill:      "kill m1, kill leader for 5s",
}
