package server

import (
	"context"
	"time"
)

// waitTimes are what a call has waited for besides its proposal's way through the log, for the line
// of a slow request.
type waitTimes struct {
	turn time.Duration // to read much
	room time.Duration // of a write: for its answer, and among large ones
}

// notingContext is the context of a call that notes what it waits for.
type notingContext struct {
	context.Context
	waits waitTimes
}

type notingKey struct{}

// Value is context.Context's.
func (c *notingContext) Value(key any) any {
	if key == (notingKey{}) {
		return &c.waits
	}
	return c.Context.Value(key)
}

// noteWaits adds to what the call of ctx has waited for. REQUIRES: the call's goroutine.
func noteWaits(ctx context.Context, w waitTimes) {
	if w == (waitTimes{}) {
		return
	}
	if noted, ok := ctx.Value(notingKey{}).(*waitTimes); ok {
		noted.turn += w.turn
		noted.room += w.room
	}
}
