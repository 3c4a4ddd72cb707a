package relay

import (
	"testing"
	"time"

	"github.com/belaydb/belay/cli/proxy/cache"
)

// TestLateReads: the end of the cache's patience, which may come before the reader that began the
// wait has run on, takes the read out of the cache. It looked without the lock, and the read could
// wait for ever.
func TestLateReads(t *testing.T) {
	t.Parallel()
	k := &caching{}
	h := &hotCall{Relay: &Relay{caching: k}}
	k.mu.Lock()
	dropped := make(chan bool, 1)
	go func() { dropped <- h.dropped() }()
	select {
	case <-dropped:
		t.Error("it has looked without the lock")
	case <-time.After(20 * time.Millisecond):
	}
	h.read = &cache.Read{}
	k.mu.Unlock()
	if !t.Failed() && !<-dropped {
		t.Error("the read waits on")
	}
}
