package main

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

func TestGarbageIsBounded(t *testing.T) {
	g := &garbage{most: 192 << 20, percent: maxGCPercent, set: func(int) int { return 0 }}
	for _, c := range []struct {
		live uint64
		want int
	}{
		{1 << 20, 100}, {190 << 20, 100}, {400 << 20, 48}, {390 << 20, 48}, {1 << 30, 18}, {16 << 30, 18}, {300 << 20, 64}, {10, 100}, {0, 100},
	} {
		if g.tune(c.live); g.percent != c.want {
			t.Errorf("with %d MiB alive: %d %%, want %d", c.live>>20, g.percent, c.want)
		}
	}
}

func TestGarbageIsLookedAtAgain(t *testing.T) {
	var times atomic.Int64
	alive := uint64(1 << 20) // more and less in turn, so that each look changes something
	g := &garbage{
		most: 192 << 20, percent: maxGCPercent, set: func(int) int { times.Add(1); return 0 },
		live: func() uint64 { alive ^= 1 << 30; return alive },
	}
	g.afterEachCollection()
	for deadline := time.Now().Add(10 * time.Second); times.Load() < 3; {
		if time.Now().After(deadline) {
			t.Fatalf("set %d times", times.Load())
		}
		runtime.GC()
		runtime.Gosched()
	}
}
