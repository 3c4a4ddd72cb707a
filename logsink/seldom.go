package logsink

import (
	"sync"
	"time"
)

// seldomInterval is the time between two lines of one Seldom.
const seldomInterval = 10 * time.Second

// A Seldom decides when a line is due about what somebody else may bring about as often as they like,
// such as connections that are refused. Any goroutine may use it.
type Seldom struct {
	mu    sync.Mutex
	count int       // since the last line
	last  time.Time // of the last line
}

// Due counts an occasion; if a line is due it returns how many there were since the last one.
func (s *Seldom) Due() (count int, due bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.count++; !s.last.IsZero() && now.Sub(s.last) < seldomInterval {
		return 0, false
	}
	count, s.count, s.last = s.count, 0, now
	return count, true
}
