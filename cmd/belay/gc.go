package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"

	"github.com/belaydb/belay/budget"
)

const (
	maxGCPercent = 100 // Go's own default
	minGCPercent = 15  // however large the live heap is
)

// boundGarbage keeps the garbage of this process within its share of the memory budget from now on,
// and Go's heap within the budget, unless the environment says otherwise (GOGC, GOMEMLIMIT).
func boundGarbage(b budget.Budget) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(b.GoHeap())
		if os.Getenv("GOGC") == "" {
			(&garbage{most: b.Parts.Garbage, percent: maxGCPercent, set: debug.SetGCPercent, live: liveBytes}).afterEachCollection()
		}
	}
}

// garbage sets the percentage after each collection, in the runtime's goroutine for cleanups.
type garbage struct {
	// most is how much garbage may accumulate beside the live heap before the next collection, in
	// bytes. Go's own rule is as much as is live: with large values in flight that is a gigabyte,
	// and each page of it that is touched for the first time costs the kernel more than the
	// collection would have cost.
	most    int64
	percent int
	set     func(percent int) (old int)
	live    func() uint64
}

// liveBytes is what the last collection found alive.
func liveBytes() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

func (g *garbage) afterEachCollection() {
	g.tune(g.live())
	// The object dies at once, so its cleanup runs after the next collection.
	runtime.AddCleanup(new([16]byte), func(g *garbage) { g.afterEachCollection() }, g)
}

func (g *garbage) tune(live uint64) {
	percent := int(min(uint64(g.most)*100/max(live, 1), maxGCPercent))
	percent = max(percent, minGCPercent)
	// Setting it stops the world for a moment.
	if d := percent - g.percent; d*d > 25 || (d != 0 && percent == maxGCPercent) {
		g.percent = percent
		g.set(percent)
	}
}
