package admission

import (
	"container/list"
	"context"
	"errors"
	"sync"
)

// ErrTooManyWaiting refuses a call of a client that already has as many calls waiting as it may.
var ErrTooManyWaiting = errors.New("etcdserver: too many calls of this client wait for their turn")

// Turns lets only a few calls at a time do work that is expensive for the CPU. Clients take turns,
// each with its calls in order: a client with a hundred calls waits for its own hundred, and the
// others do not.
type Turns struct {
	most int // calls of one client that may wait
	all  int // clients that may wait

	mu      sync.Mutex
	free    int
	clients map[string]*list.Element // of queue
	queue   *list.List               // of *waiting; the first has the next turn. None is empty
}

// waiting holds the calls of one client.
type waiting struct {
	client string
	calls  *list.List // of chan struct{}, closed when it is their turn
}

// NewTurns makes n turns. At most `most` calls of one client may wait, and calls of at most
// `clients` clients.
func NewTurns(n, most, clients int) *Turns {
	return &Turns{most: most, all: clients, free: n, clients: make(map[string]*list.Element), queue: list.New()}
}

// Take waits for a turn; the caller must call release when it is done. The error is
// ErrTooManyWaiting, at once, or the context's.
func (t *Turns) Take(ctx context.Context, client string) (release func(), err error) {
	t.mu.Lock()
	if t.free > 0 { // then nobody waits
		t.free--
		t.mu.Unlock()
		return t.release, nil
	}
	at, ok := t.clients[client]
	if !ok {
		if t.queue.Len() >= t.all {
			t.mu.Unlock()
			return nil, ErrTooManyWaiting
		}
		at = t.queue.PushBack(&waiting{client: client, calls: list.New()})
		t.clients[client] = at
	}
	w := at.Value.(*waiting)
	if w.calls.Len() >= t.most {
		t.mu.Unlock()
		return nil, ErrTooManyWaiting
	}
	mine := make(chan struct{})
	call := w.calls.PushBack(mine)
	t.mu.Unlock()

	select {
	case <-mine:
		return t.release, nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-mine: // it came just now; somebody else may have it
		t.next()
	default:
		w.calls.Remove(call)
		if w.calls.Len() == 0 {
			t.forget(w)
		}
	}
	return nil, ctx.Err()
}

// Waiting is the number of calls that wait.
func (t *Turns) Waiting() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for at := t.queue.Front(); at != nil; at = at.Next() {
		n += at.Value.(*waiting).calls.Len()
	}
	return n
}

// Contended reports whether any call waits.
func (t *Turns) Contended() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.queue.Len() > 0
}

func (t *Turns) release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next()
}

// next passes a turn on. REQUIRES: t.mu is held, and the caller has a turn.
func (t *Turns) next() {
	first := t.queue.Front()
	if first == nil {
		t.free++
		return
	}
	w := first.Value.(*waiting)
	close(w.calls.Remove(w.calls.Front()).(chan struct{}))
	if w.calls.Len() == 0 {
		t.forget(w)
	} else {
		t.queue.MoveToBack(first)
	}
}

func (t *Turns) forget(w *waiting) {
	t.queue.Remove(t.clients[w.client])
	delete(t.clients, w.client)
}
