package node

import "sync/atomic"

// A phase is how far a member's life has come. It only grows.
type phase int32

const (
	starting  phase = iota
	abandoned       // a start failed, and what exists is closed
	running         // the replica runs, so this member may lead
	stopping        // Stop has begun
)

// life is the phase of a member; any goroutine may look, and the one that starts and stops it moves
// it on.
type life struct{ now atomic.Int32 }

func (l *life) enter(p phase) { l.now.Store(int32(p)) }

// ran reports whether the replica was started, and may not be gone yet.
func (l *life) ran() bool { return phase(l.now.Load()) >= running }

// ends reports whether listeners are expected to end.
func (l *life) ends() bool {
	p := phase(l.now.Load())
	return p == abandoned || p == stopping
}
