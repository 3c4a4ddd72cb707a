package mvcc

import "context"

// Pacer is a context that controls the pace of a long walk over the store: Range, Revisions, Hash
// and HashState call it, in their own goroutine, after every few thousand keys or 64 KiB.
type Pacer interface {
	context.Context
	// Pace gets what was read since the last call: keys (older versions and deleted keys count too)
	// and bytes of values. It may wait: the caller holds an iterator and no lock. An error ends the
	// walk, which returns it.
	Pace(keys, bytes int64) error
}

const (
	paceKeys  = 1024
	paceBytes = 64 << 10
)

// paced counts the progress of a walk. The zero value calls no Pacer.
type paced struct {
	ctx         context.Context
	keys, bytes int64 // since the last call
	err         error // why it ends
}

// step is called for each key, whether or not it counts. False: the walk ends, with err.
func (w *paced) step() bool {
	w.keys++
	return w.keys < paceKeys && w.bytes < paceBytes || w.ask()
}

//go:noinline
func (w *paced) ask() bool {
	keys, bytes := w.keys, w.bytes
	w.keys, w.bytes = 0, 0
	if w.ctx == nil {
		return true
	}
	if w.err = w.ctx.Err(); w.err != nil {
		return false
	}
	if p, ok := w.ctx.(Pacer); ok {
		w.err = p.Pace(keys, bytes)
	}
	return w.err == nil
}
