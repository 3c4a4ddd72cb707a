package store

import (
	"sync/atomic"
	"time"
)

// readers are who reads the engine, which panics, in the reader too, if it is closed before they
// have ended. Handlers of clients and of other members may read until long after a member has begun
// to stop.
type readers struct {
	// state is how many they are, and noReaders more once no others are let in.
	state atomic.Int64
	// ended has a token when the last of them may have gone after that.
	ended chan struct{}
}

// noReaders is far more than any number of readers.
const noReaders = 1 << 62

func newReaders() *readers { return &readers{ended: make(chan struct{}, 1)} }

// enter counts a reader, which calls leave when it has ended. After end it fails.
func (r *readers) enter() error {
	if r.state.Add(1) < noReaders {
		return nil
	}
	r.leave()
	return errClosed
}

func (r *readers) leave() {
	if r.state.Add(-1) == noReaders {
		select {
		case r.ended <- struct{}{}:
		default:
		}
	}
}

// refuse lets no more in. It is called once.
func (r *readers) refuse() { r.state.Add(noReaders) }

// await waits for those there are. It returns how many have not ended within a time, or waits for
// ever if that is 0. REQUIRES: refuse was called.
func (r *readers) await(within time.Duration) (left int64) {
	var over <-chan time.Time
	if within > 0 {
		timer := time.NewTimer(within)
		defer timer.Stop()
		over = timer.C
	}
	for {
		left = r.state.Load() - noReaders
		if left == 0 {
			return 0
		}
		select {
		case <-r.ended:
		case <-over:
			return left
		}
	}
}
