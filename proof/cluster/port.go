package cluster

import (
	"fmt"
	"net"
	"os"
	"sync"
)

// The range lies below Linux's ephemeral ports (32768 and up): an outgoing
// connection of some client can not take the port of a member that is down.
const (
	portLow  = 20000
	portHigh = 32000
)

// ports hands out loopback ports that nobody listens on.
type ports struct {
	mu   sync.Mutex
	next int
}

// The only allocator of a process: two clusters in one process must not collide.
var allPorts = &ports{next: portLow + (os.Getpid()*61)%(portHigh-portLow)}

// FreePort returns a loopback TCP port on which nobody listens now and which
// this process has not handed out before (until the range wraps).
func FreePort() (int, error) { return FreePorts(1) }

// FreePorts is FreePort for n ports in a row; it returns the first.
func FreePorts(n int) (int, error) {
	p := allPorts
	p.mu.Lock()
	defer p.mu.Unlock()
	found := 0 // the last so many are free
	for range portHigh - portLow + n {
		if p.next >= portHigh {
			p.next, found = portLow, 0
		}
		port := p.next
		p.next++
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			found = 0
			continue
		}
		l.Close()
		if found++; found == n {
			return port - n + 1, nil
		}
	}
	return 0, fmt.Errorf("cluster: no %d free loopback ports in a row between %d and %d", n, portLow, portHigh)
}
