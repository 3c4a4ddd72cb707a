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

	// slot is 0 or 1: where readers that begin now are counted, so that it can be told when all those
	// have ended that began before a moment.
	slot atomic.Uint32
	in   [2]atomic.Int64
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

// begin is enter, and counts the reader in a slot until end.
func (r *readers) begin() (slot uint32, err error) {
	if err := r.enter(); err != nil {
		return 0, err
	}
	slot = r.slot.Load()
	r.in[slot].Add(1)
	return slot, nil
}

// join is begin for a reader of the same state as one that has not ended.
func (r *readers) join(slot uint32) error {
	if err := r.enter(); err != nil {
		return err
	}
	r.in[slot].Add(1)
	return nil
}

func (r *readers) end(slot uint32) {
	r.in[slot].Add(-1)
	r.leave()
}

// turn has readers that begin from now on counted in the other slot, if that is empty: who reads a
// state from before is then in the returned one. A reader that has looked at the slot and is not
// counted yet reads nothing from before.
func (r *readers) turn() (slot uint32, ok bool) {
	slot = r.slot.Load()
	if r.in[1-slot].Load() != 0 {
		return 0, false
	}
	r.slot.Store(1 - slot)
	return slot, true
}

// none reports whether a slot is empty.
func (r *readers) none(slot uint32) bool { return r.in[slot].Load() == 0 }

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
