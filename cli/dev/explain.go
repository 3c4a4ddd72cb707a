package dev

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/belaydb/belay/internal/fault"
)

// electionTime is how long an election takes without flags, as a person would count: followers wait
// one to two election timeouts of 1 s.
const electionTime = "1 to 2 s"

// A lesson is what one learns from a fault.
type lesson struct {
	happens string // in the cluster
	verdict string // the cause that the log names, or why it names none
	metric  string // in which it is seen
	etcd    string // what etcd would have done
}

// explain says what was broken, for how long, what to watch for, and what etcd would do. leader is
// who led before it; empty: nobody that is known.
func (c *cluster) explain(b *breakage, leader string) string {
	l := c.lesson(b, leader)
	var text strings.Builder
	for _, paragraph := range []struct{ label, text string }{
		{"", b.broke()},
		{"expect", l.happens},
		{"verdict", l.verdict},
		{"metric", l.metric},
		{"look", fmt.Sprintf("in another terminal, with what \"status\" says to export: %s doctor follow (also: doctor, ctl endpoint status -w table)", Quoted(CommandName(c.opts.Program)))},
		{"etcd", l.etcd},
	} {
		if paragraph.text == "" {
			continue
		}
		const margin = 10
		head := ""
		if paragraph.label != "" {
			head = "  " + paragraph.label + strings.Repeat(" ", margin-2-utf8.RuneCountInString(paragraph.label))
		}
		for i, row := range wrap(paragraph.text, c.columns()-utf8.RuneCountInString(head)) {
			if i > 0 {
				head = strings.Repeat(" ", utf8.RuneCountInString(head))
			}
			text.WriteString(head + row + "\n")
		}
	}
	return strings.TrimSuffix(text.String(), "\n")
}

// columns is the width of what is said, where it is read.
func (c *cluster) columns() int {
	if c.reply != nil && c.replyColumns > 0 {
		return min(c.replyColumns, 100)
	}
	return min(columns(c.opts.Stdout), 100)
}

// broke says what was done and how it ends.
func (b *breakage) broke() string {
	undo := "heal " + b.member
	switch {
	case b.kind == kill && b.lasts > 0:
		return fmt.Sprintf("%s; it starts again after %s.", b.what(), b.lasts)
	case b.kind == kill:
		return fmt.Sprintf("%s; \"start %s\" starts it again.", b.what(), b.member)
	case b.lasts > 0:
		return fmt.Sprintf("%s, for %s; \"%s\" ends it sooner.", b.what(), b.lasts, undo)
	}
	return fmt.Sprintf("%s, until \"%s\".", b.what(), undo)
}

// quorumWithout reports whether the members that run, are not paused and are not cut off from each
// other are enough without one of them.
func (c *cluster) quorumWithout(name string) bool {
	n := 0
	for _, p := range c.processes {
		if p.ended || p.paused || p.name == name || c.breakages.cutOff(p.name) {
			continue
		}
		n++
	}
	return n > len(c.members)/2
}

// cutOff reports whether a member reaches no other.
func (all breakages) cutOff(name string) bool {
	return slices.ContainsFunc(all, func(b *breakage) bool { return b.kind == partition && b.all && b.member == name })
}

const noQuorum = "Too few are left for a quorum: nobody leads, and reads and writes wait until it is over. "

// lesson is what to say of a breakage that has just been made.
func (c *cluster) lesson(b *breakage, leader string) lesson {
	leads, known := b.member == leader, leader != ""
	goesOn := fmt.Sprintf("%s leads on, and reads and writes go on.", leader)
	if !known {
		goesOn = "If another member leads it leads on, and reads and writes go on."
	}
	election := fmt.Sprintf("%s led. After %s another one leads, in a higher term. Until then writes wait; then they go on.", b.member, electionTime)
	if !leads {
		election = ""
	}
	lost := !c.quorumWithout(b.member)
	const follow = "etcd_server_leader_changes_seen_total, etcd_server_has_leader"

	switch b.kind {
	case partition:
		l := lesson{metric: follow + "; etcd_network_peer_sent_failures_total", verdict: "partition, with the links, some seconds later"}
		l.etcd = "The same election, and no verdict: each log names lost streams to the others, none says which side was cut off."
		switch {
		case b.oneWay:
			l.happens = fmt.Sprintf("What %s hears goes on. If it leads, the others hear no heartbeat and elect one of them; if it follows, its acknowledgements are lost and the others are the quorum.", b.member)
		case !b.all:
			l.happens = "A leader on one side of the cut loses one follower, and the others are a quorum still. That follower asks for votes in vain: who hears the leader does not vote."
			l.etcd = "The same: it also asks for pre-votes first, from 3.5 on without a flag."
		case lost:
			l.happens = noQuorum + "The one that led steps down when it has heard nobody for an election timeout."
		case leads:
			l.happens = election + fmt.Sprintf(" %s steps down by itself; clients that only know it get no answer.", b.member)
		default:
			l.happens = goesOn + fmt.Sprintf(" %s asks for votes in vain, and disturbs nobody when it comes back: it asks before it raises the term.", b.member)
			l.etcd = "The same, from 3.5 on; before, without --pre-vote, its higher term cost the leader its leadership when it came back."
		}
		return l
	case delay:
		l := lesson{metric: "etcd_network_peer_round_trip_time_seconds", verdict: "slow-link, a near miss, when round trips have been slow for some seconds"}
		l.happens = fmt.Sprintf("Round trips take %s longer. If %s leads, each write waits for one; if it follows, the others are the quorum and nobody waits for it.", roundTrip(b), b.member)
		if b.way.Delay >= time.Second/2 {
			l.happens += " Heartbeats come late, but regularly, so the leader stays; the election timeout follows the round trips."
		}
		l.etcd = "The same latencies. Its election timeout stays as it is, so one that is below a few round trips brings elections without end."
		return l
	case loss:
		return lesson{
			happens: "TCP sends again what is lost, 200 ms later at the earliest, and all behind it waits: most round trips are as before and some take far longer. Much of it delays heartbeats until a follower asks for votes.",
			verdict: "lossy-link, a near miss, when enough of the last round trips came late",
			metric:  "etcd_network_peer_round_trip_time_seconds: two modes in `doctor histogram`",
			etcd:    "The same, and \"leader failed to send out heartbeat on time ... likely from slow disk\" at times, which it is not.",
		}
	case pause:
		l := lesson{metric: follow, verdict: "process-paused, when it runs again: until then nobody can tell a pause from a cut"}
		l.etcd = "The same election. When it goes on, the log of the one that stood still blames its disk: \"leader failed to send out heartbeat on time ... likely from slow disk\"."
		switch {
		case lost:
			l.happens = noQuorum
		case leads:
			l.happens = election + fmt.Sprintf(" Its connections stay open: clients of %s wait for an answer that does not come until it runs again.", b.member)
		default:
			l.happens = goesOn
			l.etcd = "The same. Of a follower that stood still no log has a line, if it was short."
		}
		return l
	case kill:
		l := lesson{metric: follow, verdict: "member-killed, 2.5 s after the election; as a near miss after 6 s if it followed"}
		l.etcd = "The same election, and no verdict: the others log that they lost its streams, which a partition looks like, too."
		switch {
		case lost:
			l.happens = noQuorum
		case leads:
			l.happens = election
		default:
			l.happens = goesOn
		}
		return l
	}
	return c.diskLesson(b, leader)
}

func (c *cluster) diskLesson(b *breakage, leader string) lesson {
	leads := b.member == leader
	l := lesson{metric: "etcd_disk_wal_fsync_duration_seconds, belay_disk_sync_oldest_seconds"}
	write := fmt.Sprintf(" It shows when something is written: %s ctl put hello world.", Quoted(CommandName(c.opts.Program)))
	onlyStore := b.part == "store"
	if onlyStore {
		l.metric = "belay_store_state, belay_store_oldest_seconds"
		// It is written to when some 24 MiB of log are not in it yet.
		write = fmt.Sprintf(" It shows when much is written: %s bench put --val-size 100000 --total 1000.", Quoted(CommandName(c.opts.Program)))
	}
	switch {
	case b.disk == fault.Disk{Full: true}:
		l.happens = fmt.Sprintf("With no space left, an alarm NOSPACE stops writes in the whole cluster before %s has to stop; reads go on. Once there is space again, heal, and `alarm disarm` if it stays.", b.member)
		l.verdict = "disk-full"
		l.metric = "etcd_server_has_leader"
		l.etcd = "It knows no such limit: the member ends with a panic when its log cannot grow, without a warning before."
	case b.disk.Stall && onlyStore:
		l.happens = fmt.Sprintf("%s applies and answers from memory until its memory table is full; a leader hands over when the store has made no progress for --disk-stall-handover (5 s).", b.member) + write
		l.verdict = "store-stalled"
		l.etcd = "Its backend commits every 100 ms, and nothing is applied meanwhile: the member answers no read and no write."
	case b.disk.Stall:
		l.happens = fmt.Sprintf("%s acknowledges nothing, but beats on. ", b.member)
		switch {
		case len(c.members) < 3:
			l.happens += "There are too few others for a quorum: writes wait until it is over."
		case leads:
			l.happens += "It leads: the others' disks are the quorum, writes go on, and after --disk-stall-handover (5 s) it hands over to one of them, without an election timeout."
		default:
			l.happens += "It follows: the others' disks are the quorum, and nobody waits."
		}
		l.happens += write
		l.verdict = "disk-stalled if it handed over because of it, else disk-slow, as a near miss, 6 s later"
		l.etcd = "A leader's heartbeats wait for its disk: after an election timeout the others elect one of them, and every client's request has waited."
	case onlyStore:
		l.happens = fmt.Sprintf("%s writes its store more slowly. It acknowledges by its log, applies and answers from memory, and nobody waits until its memory tables are full.", b.member) + write
		l.verdict = "none, unless the store makes no progress for --disk-stall-handover (5 s): store-stalled"
		l.etcd = "Its backend's commits take as much longer (etcd_disk_backend_commit_duration_seconds), and requests wait for them."
	default:
		l.happens = fmt.Sprintf("%s acknowledges %s later. ", b.member, b.disk.Delay)
		if len(c.members) < 3 {
			l.happens += "Each write waits for it."
		} else {
			l.happens += "The others' disks are a quorum, so no write waits for it, even if it leads."
		}
		l.happens += write
		l.verdict = "none below 1 s, since nobody waits; then disk-slow. `doctor` and the metric show all of it"
		if b.disk.Delay >= time.Second {
			l.verdict = "disk-slow, a near miss"
		}
		l.etcd = fmt.Sprintf("If it leads each write takes %s longer, and from an election timeout (1 s) on it loses the leadership again and again. Under 1 s its log has no line about the fsync.", b.disk.Delay)
	}
	return l
}

// roundTrip is how much longer one takes.
func roundTrip(b *breakage) time.Duration {
	if b.oneWay {
		return b.way.Delay
	}
	return 2 * b.way.Delay
}
