package backup

import (
	"context"
	"sync"
	"time"
)

// A Pace bounds how many bytes a second go to a depot and come from it, together. A nil one does
// not. Any goroutine.
type Pace struct {
	perSecond int64

	mu   sync.Mutex
	free time.Time // from when on the next bytes may go
}

// NewPace is one of so many bytes a second; 0: nil.
func NewPace(perSecond int64) *Pace {
	if perSecond <= 0 {
		return nil
	}
	return &Pace{perSecond: perSecond}
}

// wait returns when n bytes may go.
func (p *Pace) wait(ctx context.Context, n int64) error {
	if p == nil {
		return ctx.Err()
	}
	p.mu.Lock()
	now := time.Now()
	if p.free.Before(now) {
		p.free = now
	}
	wait := p.free.Sub(now)
	p.free = p.free.Add(time.Duration(float64(n) / float64(p.perSecond) * float64(time.Second)))
	p.mu.Unlock()
	if wait <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
