package mvcc

import "context"

// Pacer is a context that has a say in how fast a long walk over the store goes: Range, Revisions, Hash and HashState ask
// it, in their own goroutine, whenever they have gone over some thousand keys or 64 KiB since they last did.
type Pacer interface {
	context.Context
	// Pace is told what was gone over since it was last called: keys (versions and deleted ones are keys too) and bytes of
	// values. It may wait: whoever walks holds an iterator meanwhile and no lock. An error ends the walk, which returns it.
	Pace(keys, bytes int64) error
}

const (
	paceKeys  = 1024
	paceBytes = 64 << 10
)

// paced is how far somebody has gone. The zero value asks nobody.
type paced struct {
	ctx         context.Context
	keys, bytes int64 // since the last question
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
