package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
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
	// file holds the next port, for all processes of a user: packages are tested side by side, and
	// between the time that one finds a port free and the time that its member listens, another
	// process must not be given it.
	file string

	mu sync.Mutex // a file lock is between processes
}

var allPorts = &ports{file: filepath.Join(os.TempDir(), fmt.Sprintf("belay-loopback-ports-%d", os.Getuid()))}

// FreePort returns a loopback TCP port on which nobody listens now and which
// was not handed out before to any process of this user (until the range wraps).
func FreePort() (int, error) { return FreePorts(1) }

// FreePorts is FreePort for n ports in a row; it returns the first.
func FreePorts(n int) (int, error) { return allPorts.free(n) }

func (p *ports) free(n int) (_ int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, err := os.OpenFile(p.file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }() // which unlocks it
	if err := lock(f); err != nil {
		return 0, fmt.Errorf("cluster: lock %s: %w", p.file, err)
	}
	var stored [2]byte
	next := portLow
	if read, _ := f.ReadAt(stored[:], 0); read == len(stored) { // a new file is empty
		next = int(binary.BigEndian.Uint16(stored[:]))
	}
	found := 0 // the last so many are free
	for range portHigh - portLow + n {
		if next < portLow || next >= portHigh {
			next, found = portLow, 0
		}
		port := next
		next++
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			found = 0
			continue
		}
		l.Close()
		if found++; found == n {
			binary.BigEndian.PutUint16(stored[:], uint16(next))
			_, err := f.WriteAt(stored[:], 0)
			return port - n + 1, err
		}
	}
	return 0, fmt.Errorf("cluster: no %d free loopback ports in a row between %d and %d", n, portLow, portHigh)
}
