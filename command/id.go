package command

import (
	"crypto/rand"
	"encoding/binary"
	"sync/atomic"
)

// IDGenerator makes request ids that no other request of the cluster has while it is in flight,
// without asking anybody.
//
//	+------------------+-----------------------------------------+
//	| member id, low   | counter, 48 bits, from a random number  |
//	| 16 bits          |                                         |
//	+------------------+-----------------------------------------+
//
// Nor may an id repeat after a restart: an entry of the previous life may still be applied, and its
// result would be taken for that of the new request. etcd starts from the time of day, which a
// machine without a battery for its clock repeats at each boot; a random number does not depend on
// a clock.
type IDGenerator struct {
	prefix uint64
	suffix atomic.Uint64
}

const idSuffixBits = 48

// NewIDGenerator returns the generator of one life of a member.
func NewIDGenerator(memberID uint64) *IDGenerator {
	var start [8]byte
	_, _ = rand.Read(start[:]) // never fails: the process would end
	return newIDGenerator(memberID, binary.BigEndian.Uint64(start[:]))
}

func newIDGenerator(memberID, start uint64) *IDGenerator {
	g := &IDGenerator{prefix: memberID << idSuffixBits}
	g.suffix.Store(start)
	return g
}

// Next returns the next id. Any goroutine may call it.
func (g *IDGenerator) Next() uint64 {
	return g.prefix | g.suffix.Add(1)&(1<<idSuffixBits-1)
}

// MemberOf is the part of an id that tells who made it: the last 16 bits of a member's id.
func MemberOf(id uint64) uint16 { return uint16(id >> idSuffixBits) }
