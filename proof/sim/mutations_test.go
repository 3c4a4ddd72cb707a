package sim

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// mutation is a rule broken on purpose.
type mutation string

const (
	intact      mutation = ""
	skipSync    mutation = "skip-sync"    // the log's syncs do nothing
	ackEarly    mutation = "ack-early"    // the log's syncs return at once and take place later
	skipAdopt   mutation = "skip-adopt"   // the restart rule is not asked
	keepTail    mutation = "keep-tail"    // the restart rule looks at the index alone, not at the term
	noBarrier   mutation = "no-barrier"   // linearizable reads do without their barrier
	earlyRevoke mutation = "early-expiry" // lease tables run a clock that is twice as fast
	loseEvent   mutation = "lose-event"   // one event in 200 does not reach the watch hub
	earlyCount  mutation = "early-count"  // an early answer counts what is not durable
	loopWaits   mutation = "loop-waits"   // the raft loop waits for the log's disk
	hoard       mutation = "hoard"        // the log keeps everything in memory
	dateClock   mutation = "date-clock"   // lease tables go by the date
	allRoot     mutation = "all-root"     // one member takes every user for root
	lateAnswer  mutation = "late-answer"  // a call waits for its result as long as it takes
	dropSoon    mutation = "drop-soon"    // segments kept for values are dropped while the log goes on with them
	linkLater   mutation = "link-later"   // the second name of a segment is not durable when values get places
	cutDamage   mutation = "cut-damage"   // a log that is damaged ends where the damage is, as if a crash had torn it
)

// mutants are the mutations that TestMutations shows to be noticed: in worlds of
// which kinds, and by which findings. Any of them will do: which one comes first
// depends on what the broken rule meets. A finding that says only that something
// was slow or did not end is not among them unless that is what the rule forbids.
var mutants = []struct {
	mutation mutation
	kinds    string
	should   []finding
}{
	{skipSync, plain, []finding{noStart, lostWrite, diverged, votedTwice, twoLeaders, staleRead, brokenLog}},
	{ackEarly, plain, []finding{noStart, lostWrite, diverged, votedTwice, twoLeaders, staleRead, brokenLog}},
	{skipAdopt, plain, []finding{brokenLog, diverged, noStart}},
	{keepTail, plain, []finding{diverged, brokenLog, lostWrite}},
	{noBarrier, plain, []finding{staleRead}},
	{earlyRevoke, plain, []finding{earlyExpiry}},
	{loseEvent, plain, []finding{wrongWatch}},
	{earlyCount, plain, []finding{lostWrite, diverged, brokenLog}},
	{hoard, string(loaded), []finding{memory}},
	{dateClock, string(clock), []finding{earlyExpiry, lateExpiry}},
	{allRoot, string(users), []finding{wrongRights}},
	{loopWaits, string(hung), []finding{loopDelay}},
	{lateAnswer, string(wedged), []finding{deadline}},
	{dropSoon, plain, []finding{noStart, unreadable}},
	{linkLater, plain, []finding{noStart, unreadable}},
	{cutDamage, string(damaged), []finding{lostWrite, diverged, votedTwice, twoLeaders, staleRead, brokenLog}},
}

// mutationRuns is within how many seeds a broken rule must be noticed: the one
// that hides best (early-count) needs ten on average.
const mutationRuns = 300

// TestMutations shows that the simulation notices rules that are broken on purpose, by the findings
// that each should cause. What they break may panic, so each runs in a process of its own.
func TestMutations(t *testing.T) {
	if testing.Short() {
		t.Skip("slow")
	}
	if *seedFlag != 0 || *mutationFlag != "" || *hoursFlag != 0 || *kindFlag != "" {
		t.Skip("one seed, one kind, or long: TestSim alone")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	every, today := os.Getenv("BELAY_MUTATIONS") == "all", time.Now().YearDay()
	for i, m := range mutants {
		if !every && i%4 != today%4 {
			continue // make mutations runs all of them
		}
		t.Run(string(m.mutation), func(t *testing.T) {
			begin, runs := time.Now(), 0
			for runs < mutationRuns {
				out, ended := runMutation(t, self, m.mutation, m.kinds, mutationRuns-runs)
				runs += max(1, strings.Count(out, "=== RUN   TestSim/"))
				found := findingsIn(out)
				for _, what := range found {
					if slices.Contains(m.should, what) {
						t.Logf("noticed with seed %d of %d after %s: %v", runs, mutationRuns, time.Since(begin).Round(time.Second), found)
						return
					}
				}
				if len(found) > 0 {
					t.Logf("seed %d found %v, which does not count", runs, found)
				}
				if time.Since(begin) > 8*time.Minute {
					t.Fatalf("%d seeds did not notice it in eight minutes (the last process ended: %v):\n%s", runs, ended, out)
				}
			}
			t.Fatalf("%d seeds did not notice it", runs)
		})
	}
}

// runMutation runs seeds in a process of its own, until one finds something.
// Members whose logs differ in what is committed can send each other the same
// entry for ever, before anybody reads it; such a seed is left.
func runMutation(t *testing.T, self string, m mutation, ks string, runs int) (out string, ended bool) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, "-test.run=^TestSim$", "-test.v", "-sim.mutation="+string(m), "-sim.kind="+ks, fmt.Sprintf("-sim.runs=%d", runs))
	text, err := cmd.CombinedOutput()
	ended = ctx.Err() == nil
	if ended && err == nil {
		return string(text), true
	}
	return string(text), ended
}

// TestFindings: what a run prints is read as it was meant.
func TestFindings(t *testing.T) {
	v := violation{1500 * time.Millisecond, lostWrite, "acknowledged, but found at revisions []: client 3"}
	for _, c := range []struct {
		out  string
		want []finding
	}{
		{"    sim_test.go:9: " + findingsFollow + "7 (plain):\n        " + v.String() + "\n        2.000s: [stuck] x\n", []finding{lostWrite, stuck}},
		{findingsFollow + "7:\n" + v.String() + "\nand then", []finding{lostWrite}},
		{"panic: tocommit\n", []finding{panicked}},
		{"    1.0 VIOLATION " + v.String() + "\n--- FAIL: TestSim\n", nil},
		{"ok\n", nil},
	} {
		if got := findingsIn(c.out); !slices.Equal(got, c.want) {
			t.Errorf("%q: %v, want %v", c.out, got, c.want)
		}
	}
}
