package sim

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

var kindFlag = flag.String("sim.kind", "", "the kinds of the worlds, with commas between, \"plain\" for none; empty: drawn from each seed")

// kind is what is special about a world. A world may be of several kinds, or of
// none: three busy members, everything but what the kinds below add.
type kind string

const (
	clock   kind = "clock"   // the date jumps, at each member by itself
	flags   kind = "flags"   // members are started with flags that differ, and with others after each crash
	loaded  kind = "loaded"  // more is written than disks take
	big     kind = "big"     // values of up to 1 MB
	hung    kind = "hung"    // file operations of every kind hang, of the store alone or of the log alone too
	damaged kind = "damaged" // the disk of a member that is down loses a file or flips a bit
	idle    kind = "idle"    // clients are silent for up to a minute
	power   kind = "power"   // all members lose power at once
	small   kind = "small"   // one to three voters
	users   kind = "users"   // clients are users, whose rights change
	wedged  kind = "wedged"  // the applier hangs, as in a write stall of the store
)

const plain = "plain"

// mix is in how many worlds of a hundred each kind is drawn. Kinds are drawn one
// by one, so about every third world is plain and some are of three kinds.
var mix = map[kind]int{big: 8, clock: 8, damaged: 12, flags: 10, hung: 15, idle: 12, loaded: 8, power: 15, small: 25, users: 10, wedged: 10}

// allKinds are those that -sim.kind takes.
var allKinds = []kind{big, clock, damaged, flags, hung, idle, loaded, power, small, users, wedged}

type kinds map[kind]bool

// kindsOf draws the kinds of a world, or takes those of the flag.
func kindsOf(o options) (kinds, error) {
	ks := kinds{}
	if o.kinds != "" {
		for _, name := range strings.Split(o.kinds, ",") {
			if name == plain {
				continue
			}
			if !slices.Contains(allKinds, kind(name)) {
				return nil, fmt.Errorf("sim: no kind %q; there are %v and %s", name, allKinds, plain)
			}
			ks[kind(name)] = true
		}
		return ks, nil
	}
	r := rand.New(rand.NewPCG(o.seed, 4))
	for _, k := range allKinds {
		if r.IntN(100) < mix[k] {
			ks[k] = true
		}
	}
	return ks, nil
}

// damages reports whether the seed draws a world in which files are damaged.
func damages(o options) bool {
	ks, err := kindsOf(o)
	return err == nil && ks[damaged]
}

func (ks kinds) names() []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(ks)) {
		out = append(out, string(k))
	}
	if len(out) == 0 {
		return []string{plain}
	}
	return out
}

func (ks kinds) String() string { return strings.Join(ks.names(), ",") }

// ran is how much virtual time worlds of each kind took; a world of two kinds counts for both.
type ran map[string]time.Duration

func (r ran) add(ks kinds, d time.Duration) {
	for _, name := range ks.names() {
		r[name] += d
	}
}

func (r ran) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(r)) {
		parts = append(parts, fmt.Sprintf("%s %.2f", name, r[name].Hours()))
	}
	return strings.Join(parts, ", ")
}

// finding names what a violation is of. A mutation counts as noticed only by
// the findings that it should cause.
type finding string

const (
	brokenLog    finding = "broken-log"       // raft met entries that cannot be
	deadline     finding = "deadline"         // a call did not end by its deadline
	diverged     finding = "diverged"         // two members hold different things
	doubledWrite finding = "doubled-write"    // a request took effect twice
	earlyExpiry  finding = "early-expiry"     // a lease ended before its time
	memory       finding = "memory"           // a member holds more than its bounds
	lostLeader   finding = "election"         // a leader was lost although nothing asked for that
	gap          finding = "gap"              // a member applied revisions out of order
	ghostWrite   finding = "ghost-write"      // a write that was reported as not written exists
	hangs        finding = "hangs"            // a run that does not come to an end in real time; no mutation may count on it
	lateExpiry   finding = "late-expiry"      // a lease that nobody renews does not end
	loopDelay    finding = "loop-delay"       // the raft loop stood still
	lostWrite    finding = "lost-write"       // an acknowledged write is missing, or elsewhere
	noStart      finding = "no-start"         // a member whose disk is whole does not start
	notLinear    finding = "not-linearizable" // porcupine's
	panicked     finding = "panic"            // the process of the simulation panicked
	staleRead    finding = "stale-read"       // an operation saw less than one that had ended before
	stopped      finding = "stopped"          // a member stopped by itself
	stuck        finding = "stuck"            // the cluster does not serve, or something does not end
	twoLeaders   finding = "two-leaders"      // in one term
	unreadable   finding = "unreadable"       // a member cannot read what it holds
	votedTwice   finding = "voted-twice"      // a vote, or the asking for it, that an earlier life contradicts
	wrongRead    finding = "wrong-read"       // a read shows another value than its revision has
	wrongRights  finding = "wrong-rights"     // a member judges a user by other rights than those of the entries before
	wrongWatch   finding = "wrong-watch"      // a watcher got too much, too little, or something else
)

// violation is one rule found broken.
type violation struct {
	at   time.Duration
	what finding
	text string
}

func (v violation) String() string {
	return fmt.Sprintf("%.3fs: [%s] %s", v.at.Seconds(), v.what, v.text)
}

// findingsIn are the findings in a run's output: those of the seed that failed, or that the process
// did not end as it should.
func findingsIn(out string) []finding {
	seen := map[finding]bool{}
	failed := false
	for _, line := range strings.Split(out, "\n") {
		failed = failed || strings.Contains(line, findingsFollow)
		if strings.HasPrefix(line, "panic: ") {
			seen[panicked] = true
		}
		at, rest, ok := strings.Cut(strings.TrimSpace(line), "s: [")
		if name, _, closed := strings.Cut(rest, "] "); failed && ok && closed && strings.Trim(at, "0123456789.") == "" {
			seen[finding(name)] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// findingsFollow is in the line above the findings of a seed.
const findingsFollow = "sim found, with seed "
