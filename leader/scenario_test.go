package leader

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/coreos/go-semver/semver"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/raft/v3"
	"go.uber.org/zap/zapcore"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/mvcc"
)

// TestScenarios runs the deciders over made-up observations. Each file of testdata has the
// commands of one:
//
// corruption: this member is 1, its data is of revision 9 after a compaction of 3. Each line of
// a command is a peer: "ID HASH[@COMPACTREV] [current=REV]", or "ID" and why there is no hash:
// down, slow, compacted, elsewhere, none.
//
//	initial own=HASH
//	newest own=HASH [again=HASH] [rev=REV] [compact=REV]   again: at the second look
//	kept own=HASH                                          of the compaction of 9
//
// version: each line is a member: "ID VERSION|unknown [etcd]".
//
//	next [current=VERSION] [downgrade=VERSION]
//	downgraded to=VERSION
//
// compaction: a look each interval, each with a revision that is by more greater than the one
// before.
//
//	schedule [period=D] [keep=N] [rev=N]
//	run for=D [more=N] [follower] [fails]                  prints the compactions
//
// expiry:
//
//	status role=leader|follower|candidate term=N [holds=TERM]
//
// space: quota 800, 100 bytes must be free.
//
//	member [quota=N] [keeps]                               keeps: alarms do not end by themselves
//	look at=D total=N in-use=N [free=N|unknown] [alarm=itself|client] [leads] [left=ID] [rewriting]
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		sc := &scenario{}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string { return sc.run(t, d) })
	})
}

// scenario is what is kept between the commands of one file.
type scenario struct {
	schedule schedule
	now      time.Time
	rev      int64

	room  room
	space space // what a look begins from
}

func (sc *scenario) run(t *testing.T, d *datadriven.TestData) string {
	switch d.Cmd {
	case "initial":
		return verdictText(compareInitial(1, hashArg(t, d, "own"), peerLines(t, d)))
	case "newest":
		o := newest{local: 1, first: hashArg(t, d, "own"), rev: 9, compactRev: 3, peers: peerLines(t, d)}
		if o.second = o.first; d.HasArg("again") {
			o.second = hashArg(t, d, "again")
		}
		d.MaybeScanArgs(t, "rev", &o.rev)
		d.MaybeScanArgs(t, "compact", &o.compactRev)
		return verdictText(compareNewest(o))
	case "kept":
		own := hashArg(t, d, "own")
		return verdictText(compareCompaction(1, mvcc.CompactionHash{Revision: own.rev, CompactRevision: own.compactRev, Hash: own.hash}, peerLines(t, d)))

	case "next":
		var current *semver.Version
		if text := stringArg(d, "current"); text != "" {
			current = semver.New(text)
		}
		target := stringArg(d, "downgrade")
		var highest *semver.Version
		if text := stringArg(d, "highest"); text != "" {
			highest = semver.New(text)
		}
		found := memberLines(t, d)
		next, lines := nextVersion(current, command.Downgrade{Enabled: target != "", TargetVersion: target}, found, highest)
		out := "stays\n"
		if next != nil {
			out = "set " + next.String() + "\n"
		}
		if allBelay(found) {
			out += "all are Belay's\n"
		}
		return out + linesText(lines)
	case "downgraded":
		done, lines := downgradeDone(memberLines(t, d), stringArg(d, "to"))
		return fmt.Sprintf("done: %v\n%s", done, linesText(lines))

	case "schedule":
		var auto AutoCompaction
		auto.Period = durationArg(t, d, "period")
		d.MaybeScanArgs(t, "keep", &auto.Retained)
		sc.now, sc.rev = time.Unix(0, 0), 1
		d.MaybeScanArgs(t, "rev", &sc.rev)
		if sc.schedule = newSchedule(auto, sc.now, sc.rev); sc.schedule == nil {
			return "never\n"
		}
		return fmt.Sprintf("%s, a look every %v\n", sc.schedule.words().starting, sc.schedule.interval())
	case "run":
		var more int64
		d.MaybeScanArgs(t, "more", &more)
		var out strings.Builder
		for end := sc.now.Add(durationArg(t, d, "for")); sc.now.Before(end); {
			sc.now = sc.now.Add(sc.schedule.interval())
			sc.rev += more
			to, due := sc.schedule.look(sc.now, sc.rev, !d.HasArg("follower"))
			if !due {
				continue
			}
			fmt.Fprintf(&out, "%v: at %d, to %d\n", sc.now.Sub(time.Unix(0, 0)), sc.rev, to)
			if !d.HasArg("fails") {
				sc.schedule.done(sc.now, to)
			}
		}
		return out.String()

	case "status":
		var term uint64
		state := raft.StateFollower
		d.ScanArgs(t, "term", &term)
		switch role := stringArg(d, "role"); role {
		case "leader":
			state = raft.StateLeader
		case "candidate":
			state = raft.StateCandidate
		case "follower":
		default:
			t.Fatalf("role %q", role)
		}
		tenure := tenureOf(state, term)
		out := fmt.Sprintf("demoted up to term %d", tenure.term)
		if tenure.leads {
			out = fmt.Sprintf("leads in term %d", tenure.term)
		}
		if d.HasArg("holds") {
			var term uint64
			d.ScanArgs(t, "holds", &term)
			out += fmt.Sprintf("; holds term %d: %v", term, tenure.holds(term))
		}
		return out + "\n"

	case "member":
		sc.room = room{}
		sc.space = space{quota: 800, minFree: 100, disarm: !d.HasArg("keeps")}
		d.MaybeScanArgs(t, "quota", &sc.space.quota)
		return ""
	case "look":
		o := sc.space
		o.now = time.Unix(0, 0).Add(durationArg(t, d, "at"))
		d.ScanArgs(t, "total", &o.total)
		d.ScanArgs(t, "in-use", &o.inUse)
		switch free := stringArg(d, "free"); free {
		case "unknown":
		case "":
			o.free, o.freeKnown = 1<<40, true
		default:
			d.ScanArgs(t, "free", &o.free)
			o.freeKnown = true
		}
		o.active, o.itself = d.HasArg("alarm"), stringArg(d, "alarm") == "itself"
		o.leads, o.rewriting = d.HasArg("leads"), d.HasArg("rewriting")
		if d.HasArg("left") {
			var id uint64
			d.ScanArgs(t, "left", &id)
			o.left = append(o.left, id)
		}
		return ordersText(sc.room.look(o))
	}
	t.Fatalf("unknown command %s", d.Cmd)
	return ""
}

func ordersText(do orders) string {
	var out []string
	if do.raise {
		out = append(out, "raise")
	}
	if do.forget != 0 {
		out = append(out, fmt.Sprintf("disarm that of member %d", do.forget))
	}
	if do.rewrite {
		out = append(out, "rewrite the store")
	}
	if do.disarm {
		out = append(out, "disarm")
	}
	if len(out) == 0 {
		return "nothing\n"
	}
	return strings.Join(out, ", ") + "\n"
}

func verdictText(v verdict) string {
	out := v.outcome
	for _, id := range v.culprits {
		out += fmt.Sprintf(", alarm for %d", id)
	}
	if v.unfit {
		out += ", must not serve"
	}
	return out + "\n" + linesText(v.lines)
}

func linesText(lines []line) string {
	var out strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&out, "%s %s", l.level.CapitalString(), l.text)
		for _, f := range l.fields {
			enc := zapcore.NewMapObjectEncoder()
			f.AddTo(enc)
			for _, k := range slices.Sorted(maps.Keys(enc.Fields)) {
				fmt.Fprintf(&out, " %s=%v", k, enc.Fields[k])
			}
		}
		if l.once != "" {
			out.WriteString(" (once)")
		}
		out.WriteByte('\n')
	}
	return out.String()
}

func stringArg(d *datadriven.TestData, key string) string {
	for _, a := range d.CmdArgs {
		if a.Key == key && len(a.Vals) > 0 {
			return a.Vals[0]
		}
	}
	return ""
}

func durationArg(t *testing.T, d *datadriven.TestData, key string) time.Duration {
	text := stringArg(d, key)
	if text == "" {
		return 0
	}
	v, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func hashArg(t *testing.T, d *datadriven.TestData, key string) covered {
	h := covered{rev: 9, compactRev: 3}
	d.ScanArgs(t, key, &h.hash)
	return h
}

var (
	errDown = errors.New("connection refused")
	noHash  = map[string]error{
		"down": errDown, "slow": rpctypes.ErrFutureRev, "compacted": rpctypes.ErrCompacted,
		"elsewhere": rpctypes.ErrClusterIDMismatch, "none": ErrNoCompactionHash,
	}
)

func peerLines(t *testing.T, d *datadriven.TestData) (peers []peerHash) {
	for _, text := range strings.Split(d.Input, "\n") {
		words := strings.Fields(text)
		if len(words) == 0 {
			continue
		}
		p := peerHash{id: number(t, words[0]), endpoints: []string{"http://x"}, current: 9, covered: covered{rev: 9, compactRev: 3}}
		if p.err = noHash[words[1]]; p.err == nil {
			hash, compact, ok := strings.Cut(words[1], "@")
			p.hash = uint32(number(t, hash))
			if ok {
				p.compactRev = int64(number(t, compact))
			}
		}
		for _, w := range words[2:] {
			current, ok := strings.CutPrefix(w, "current=")
			if !ok {
				t.Fatalf("%q", text)
			}
			p.current = int64(number(t, current))
		}
		peers = append(peers, p)
	}
	return peers
}

func memberLines(t *testing.T, d *datadriven.TestData) map[uint64]*Versions {
	found := make(map[uint64]*Versions)
	for _, text := range strings.Split(d.Input, "\n") {
		words := strings.Fields(text)
		if len(words) == 0 {
			continue
		}
		id := number(t, words[0])
		if found[id] = nil; words[1] == "unknown" {
			continue
		}
		found[id] = &Versions{Server: words[1], Belay: "0.1.0"}
		if len(words) > 2 && words[2] == "etcd" {
			found[id].Belay = ""
		}
	}
	return found
}

func number(t *testing.T, text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
