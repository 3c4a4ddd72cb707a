package admission

import (
	"container/list"
	"context"
	"runtime"
	"sync"
	"time"
)

// Room bounds the bytes that calls hold together, such as answers that are read and sent. A call
// says beforehand about how much it will hold, and waits until that is free. Clients are let in in
// turn, each with its calls in order, and one client leaves a quarter of the room to the others.
//
// A call alone is let in whatever it wants, and one that turns out to hold more than it said does
// not wait again: two that hold a part and wait for each other could not go on. So more than the room
// may be held for a while, by what calls were wrong about.
type Room struct {
	size    int64
	refused func() // called for each call that was refused; not nil

	mu      sync.Mutex
	held    int64                     // by all
	clients map[string]*inRoom        // those that hold something or wait
	queue   list.List                 // of *inRoom: clients with calls that wait; the first is next
	moved   time.Time                 // when something was last released
	waiting map[*waiter]*list.Element // of the client's calls
}

// inRoom is a client.
type inRoom struct {
	name  string
	held  int64
	calls list.List     // of *waiter, in order of arrival
	place *list.Element // in Room.queue; nil: no call waits
}

type waiter struct {
	bytes int64
	in    chan struct{} // closed when it is let in
}

// clientPart is the part of the room that one client may take beside others: 3 of 4.
const clientParts, ofParts = 3, 4

// NewRoom makes a room of so many bytes, more than 0. refused, if not nil, is called for each call
// that was refused.
func NewRoom(size int64, refused func()) *Room {
	if refused == nil {
		refused = func() {}
	}
	return &Room{size: size, refused: refused, clients: make(map[string]*inRoom), waiting: make(map[*waiter]*list.Element)}
}

// Hold is what one call holds. Its methods may be called from any goroutine.
type Hold struct {
	room   *Room
	client *inRoom

	// Guarded by room.mu.
	bytes int64
	gone  bool // released
}

// Enter waits until a client's call may hold so many bytes. It must be released. The error is the
// context's, or ErrTooManyRequests when for as long as patience nothing in the room was released:
// those who hold it make no progress.
func (r *Room) Enter(ctx context.Context, client string, bytes int64, patience time.Duration) (*Hold, error) {
	r.mu.Lock()
	c := r.client(client)
	if r.queue.Len() == 0 && r.fits(c, bytes) {
		h := r.let(c, bytes)
		r.mu.Unlock()
		return h, nil
	}
	w := &waiter{bytes: bytes, in: make(chan struct{})}
	r.waiting[w] = c.calls.PushBack(w)
	if c.place == nil {
		c.place = r.queue.PushBack(c)
	}
	r.fill() // this client may be let in where those before it may not
	began := time.Now()
	r.mu.Unlock()

	timer := time.NewTimer(patience)
	defer timer.Stop()
	var err error
	for err == nil {
		select {
		case <-w.in:
			return &Hold{room: r, client: c, bytes: bytes}, nil
		case <-ctx.Done():
			err = ctx.Err()
		case <-timer.C:
			if left := patience - r.since(began); left > 0 {
				timer.Reset(left)
				continue
			}
			err = ErrTooManyRequests
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-w.in: // it came just now; somebody else may have it
		r.take(c, -bytes)
	default:
		r.leave(c, w)
	}
	r.forget(c)
	r.fill()
	if err == ErrTooManyRequests {
		r.refused()
	}
	return nil, err
}

// since is how long nothing was released, of the time since a call began to wait.
func (r *Room) since(began time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.moved.After(began) {
		began = r.moved
	}
	return time.Since(began)
}

// Held is how many bytes are held.
func (r *Room) Held() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held
}

// Waiting is the number of calls that wait.
func (r *Room) Waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.waiting)
}

// Set corrects what a call holds, and does not wait. It does nothing after Release.
func (h *Hold) Set(bytes int64) {
	r := h.room
	r.mu.Lock()
	defer r.mu.Unlock()
	if h.gone {
		return
	}
	more := bytes - h.bytes
	h.bytes = bytes
	r.take(h.client, more)
	if more < 0 {
		r.fill()
	}
}

// Bytes is what the call holds.
func (h *Hold) Bytes() int64 {
	h.room.mu.Lock()
	defer h.room.mu.Unlock()
	return h.bytes
}

// Less gives back a part of what the call holds.
func (h *Hold) Less(bytes int64) {
	r := h.room
	r.mu.Lock()
	defer r.mu.Unlock()
	if !h.gone {
		h.give(min(bytes, h.bytes))
		r.fill()
	}
}

// Release ends the call; further calls of it do nothing.
func (h *Hold) Release() {
	r := h.room
	r.mu.Lock()
	defer r.mu.Unlock()
	if h.gone {
		return
	}
	h.gone = true
	h.give(h.bytes)
	r.forget(h.client)
	r.fill()
}

// ReleaseWith releases the call when nothing refers to token any more: for what is handed to others,
// who may forget to say that they are done. token must not be reachable from h.
func ReleaseWith[T any](h *Hold, token *T) {
	runtime.AddCleanup(token, func(h *Hold) { h.Release() }, h)
}

// The methods below need mu.

// give gives back a part of what the call holds.
func (h *Hold) give(bytes int64) {
	h.bytes -= bytes
	h.room.take(h.client, -bytes)
	h.room.moved = time.Now()
}

func (r *Room) client(name string) *inRoom {
	c := r.clients[name]
	if c == nil {
		c = &inRoom{name: name}
		r.clients[name] = c
	}
	return c
}

// forget drops a client that neither holds nor waits.
func (r *Room) forget(c *inRoom) {
	if c.held == 0 && c.calls.Len() == 0 && r.clients[c.name] == c {
		delete(r.clients, c.name)
	}
}

func (r *Room) fits(c *inRoom, bytes int64) bool {
	if r.held == 0 {
		return true
	}
	return r.held+bytes <= r.size && !r.full(c, bytes)
}

// full reports whether a client has its part of the room.
func (r *Room) full(c *inRoom, bytes int64) bool {
	return c.held > 0 && c.held+bytes > r.size/ofParts*clientParts
}

func (r *Room) let(c *inRoom, bytes int64) *Hold {
	r.take(c, bytes)
	return &Hold{room: r, client: c, bytes: bytes}
}

func (r *Room) take(c *inRoom, bytes int64) {
	// A client that was forgotten while a call of it still held nothing is known again.
	if bytes > 0 && r.clients[c.name] == nil {
		r.clients[c.name] = c
	}
	c.held += bytes
	r.held += bytes
	if c.held < 0 || r.held < 0 {
		panic("admission: more released than was held")
	}
}

func (r *Room) leave(c *inRoom, w *waiter) {
	c.calls.Remove(r.waiting[w])
	delete(r.waiting, w)
	if c.calls.Len() == 0 {
		r.queue.Remove(c.place)
		c.place = nil
	}
}

// fill lets in what fits, a call of each client in turn. A client that has its part of the room is
// passed over; a call that finds too little room is not, or smaller ones would keep it out for ever.
func (r *Room) fill() {
	for at := r.queue.Front(); at != nil; {
		c := at.Value.(*inRoom)
		w := c.calls.Front().Value.(*waiter)
		if !r.fits(c, w.bytes) {
			if r.full(c, w.bytes) {
				at = at.Next()
				continue
			}
			return
		}
		r.leave(c, w)
		if c.place != nil {
			r.queue.MoveToBack(c.place)
		}
		r.take(c, w.bytes)
		close(w.in)
		at = r.queue.Front()
	}
}
