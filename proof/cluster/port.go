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
func FreePort() (int, error) {
	p := allPorts
	p.mu.Lock()
	defer p.mu.Unlock()
	for range portHigh - portLow {
		port := p.next
		p.next++
		if p.next >= portHigh {
			p.next = portLow
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		l.Close()
		return port, nil
	}
	return 0, fmt.Errorf("cluster: no free loopback port between %d and %d", portLow, portHigh)
}
