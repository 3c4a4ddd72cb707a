package relay

import (
	"context"
	"sync"
)

// An outbox is between a hub, which queues what a stream of a client is sent, and the stream's own
// goroutine, which sends it.
type outbox[M any] struct {
	// ready: something is queued, or the stream is to end.
	ready chan struct{}

	mu    sync.Mutex
	queue []M
	ended error
	room  chan struct{} // closed when there is; nil: nobody waits
}

func newOutbox[M any]() outbox[M] { return outbox[M]{ready: make(chan struct{}, 1)} }

// fail has the stream end with err, once what is queued has been sent.
func (o *outbox[M]) fail(err error) {
	o.mu.Lock()
	if o.ended == nil {
		o.ended = err
	}
	o.mu.Unlock()
	o.signal()
}

func (o *outbox[M]) signal() {
	select {
	case o.ready <- struct{}{}:
	default:
	}
}

// take is what is queued.
func (o *outbox[M]) take() ([]M, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	queue := o.queue
	o.queue = nil
	return queue, o.ended
}

// freed lets go who waits for room. REQUIRES: mu.
func (o *outbox[M]) freed() {
	if o.room != nil {
		close(o.room)
		o.room = nil
	}
}

// await waits until has, which is called with mu, says that there is room; false: ctx has ended.
func (o *outbox[M]) await(ctx context.Context, has func() bool) bool {
	for {
		o.mu.Lock()
		if has() {
			o.mu.Unlock()
			return true
		}
		if o.room == nil {
			o.room = make(chan struct{})
		}
		room := o.room
		o.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return false
		}
	}
}
