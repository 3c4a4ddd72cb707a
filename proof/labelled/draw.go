package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// quiet is the name of no fault.
const quiet = "none"

// A plan is an incident before it is known who leads.
type plan struct {
	number int
	seed   uint64
	row    string
	load   float64 // writes a second
	faults []planned
	idle   time.Duration // how long nothing is done, if there is no fault
}

// planned is one fault of a plan.
type planned struct {
	name     string
	leader   bool // its member: the leader, or else
	follower int  // the follower with this number, 0 or 1
	severity float64
	hold     time.Duration // how long it lasts
	after    time.Duration // when it begins
}

// A tool is what a fault is made with: two faults of a pair have different ones, where one tool
// knows one fault at a time.
type tool string

const (
	disks   tool = "disks"
	links   tool = "links"
	process tool = "process"
	machine tool = "machine"
)

// harm is a kind of fault.
type harm struct {
	name   string
	weight int // how often it is drawn
	tool   tool
	pairs  bool // may be of a pair
}

// harms are all kinds.
var harms = []harm{
	{"slow", 14, disks, true},
	{"hang", 8, disks, true},
	{"pause", 16, process, true},
	{"kill", 8, process, true},
	{"stop", 4, process, false},
	{"transfer", 4, process, false},
	{"cut", 10, links, true},
	{"cut-in", 4, links, false},
	{"cut-out", 4, links, false},
	{"cut-link", 4, links, false},
	{"flap", 3, links, false},
	{"delay", 6, links, true},
	{"loss", 5, links, false},
	{"disk-error", 3, disks, false},
	{"disk-full", 3, disks, false},
	{"all-slow", 3, disks, false},
	{"starve", 3, machine, false},
	{quiet, 8, "", false},
}

func toolOf(name string) tool {
	for _, h := range harms {
		if h.name == name {
			return h.tool
		}
	}
	return ""
}

// draw makes the plan with a number from a seed.
func draw(seed uint64, number int) plan {
	rng := rand.New(rand.NewPCG(seed, uint64(number)))
	p := plan{number: number, seed: seed, load: []float64{2, 40, 150}[rng.IntN(3)]}
	total := 0
	for _, h := range harms {
		total += h.weight
	}
	pick := func(ok func(i int) bool) string {
		for {
			n := rng.IntN(total)
			for i, h := range harms {
				if n -= h.weight; n < 0 {
					if ok(i) {
						return h.name
					}
					break
				}
			}
		}
	}
	first := drawFault(rng, pick(func(int) bool { return true }))
	if first.name == quiet {
		p.idle = 20 * time.Second
		return p
	}
	p.faults = []planned{first}
	if slices.ContainsFunc(harms, func(h harm) bool { return h.name == first.name && h.pairs }) && rng.Float64() < 0.25 {
		second := drawFault(rng, pick(func(i int) bool { return harms[i].pairs && harms[i].tool != toolOf(first.name) }))
		second.after = time.Duration(rng.Float64() * float64(2*time.Second))
		p.faults = append(p.faults, second)
	}
	return p
}

func drawFault(rng *rand.Rand, name string) planned {
	f := planned{name: name, leader: rng.IntN(2) == 0, follower: rng.IntN(2)}
	between := func(low, high float64) float64 { return low * math.Pow(high/low, rng.Float64()) }
	severity := between(0.2, 10)
	f.setSeverity(severity)
	switch name {
	case "loss":
		f.setSeverity(between(0.01, 0.1))
	case "delay":
		f.setSeverity(between(0.02, 1))
	}
	return f
}

// setSeverity sets it, and how long the fault lasts.
func (f *planned) setSeverity(s float64) {
	f.severity = s
	seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	switch f.name {
	case "slow", "all-slow":
		f.hold = seconds(max(4, 1.5*s))
	case "flap":
		f.severity = min(max(s, 0.5), 3)
		f.hold = seconds(4 * f.severity)
	case "delay":
		f.hold = 8 * time.Second
	case "loss":
		f.hold = 15 * time.Second
	case "transfer":
		f.hold = time.Second
	case "disk-error", "disk-full":
		f.hold = 3 * time.Second
	case "starve":
		f.hold = seconds(max(5, s))
	default:
		f.hold = seconds(s)
	}
}

// firstOfSizes is the number of the first plan of the table of sizes; those that are drawn have
// smaller ones.
const firstOfSizes = 100_000

// sizes are the plans of the table that tells from which size on a fault is told: each row so many
// times.
func sizes(seed uint64, times int) (plans []plan) {
	for range times {
		for _, leads := range []bool{true, false} {
			who := "a follower"
			if leads {
				who = "the leader"
			}
			for _, s := range []float64{0.01, 0.03, 0.1, 0.3, 1} {
				f := planned{name: "slow", leader: leads, severity: s, hold: 8 * time.Second}
				plans = append(plans, plan{row: fmt.Sprintf("each fsync of %s takes %v more", who, time.Duration(s*float64(time.Second))), faults: []planned{f}})
			}
			for _, s := range []float64{0.01, 0.02, 0.05, 0.1} {
				f := planned{name: "loss", leader: leads, severity: s, hold: 20 * time.Second}
				plans = append(plans, plan{row: fmt.Sprintf("%.0f %% of what %s sends or gets is lost once", 100*s, who), faults: []planned{f}})
			}
		}
	}
	for i := range plans {
		plans[i].number, plans[i].seed, plans[i].load = firstOfSizes+i, seed, 40
	}
	return plans
}
