package command

import (
	"sync/atomic"
	"time"
)

// IDGenerator makes request ids that no other request of the cluster has while it is in flight, without asking anybody.
//
//	+------------------+-----------------------------+-----------+
//	| member id, low   | milliseconds since 1970,    | counter   |
//	| 16 bits          | low 40 bits, at the start   | 8 bits    |
//	+------------------+-----------------------------+-----------+
//
// The counter carries into the time on purpose: ids stay unique over a restart as long as fewer than 256 are taken per
// millisecond on the average, and for 34 years.
type IDGenerator struct {
	prefix uint64
	suffix atomic.Uint64
}

const idSuffixBits = 48

// NewIDGenerator gives the generator of a member that starts now.
func NewIDGenerator(memberID uint64, now time.Time) *IDGenerator {
	g := &IDGenerator{prefix: memberID << idSuffixBits}
	g.suffix.Store(uint64(now.UnixMilli()) & (1<<40 - 1) << 8)
	return g
}

// Next gives the next id. Any goroutine may call it.
func (g *IDGenerator) Next() uint64 {
	return g.prefix | g.suffix.Add(1)&(1<<idSuffixBits-1)
}
