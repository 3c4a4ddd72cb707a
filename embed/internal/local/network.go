package local

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"syscall"

	"google.golang.org/grpc/test/bufconn"
)

// Ports of every host of a Network.
const (
	PeerPort   = 2380
	ClientPort = 2379
)

// bufferBytes is what a connection holds that was written and not read, in each direction.
const bufferBytes = 64 << 10

// A Network connects hosts of this process. Nothing of it is a socket, so that it runs in a bubble
// of testing/synctest; whoever can call Dial reaches everybody on it. It may be used from any
// goroutine.
type Network struct {
	mu        sync.Mutex
	hosts     int
	listeners map[string]*bufconn.Listener // by host:port
	links     map[*link]struct{}
}

// NewNetwork makes one without hosts.
func NewNetwork() *Network {
	return &Network{listeners: map[string]*bufconn.Listener{}, links: map[*link]struct{}{}}
}

// Host returns the address of a new host. Addresses are of 127/8, so that a member does not warn of
// an open port, and of a part of it where nobody listens.
func (n *Network) Host() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts++
	return fmt.Sprintf("127.88.%d.%d", n.hosts>>8, n.hosts&0xff)
}

// Address is where a host has a port.
func Address(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// Listen opens a port of a host.
func (n *Network) Listen(address string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[address] != nil {
		return nil, fmt.Errorf("listen %s: %w", address, syscall.EADDRINUSE)
	}
	l := bufconn.Listen(bufferBytes)
	n.listeners[address] = l
	return &port{Listener: l, network: n, address: address}, nil
}

// Dial connects a host with a port of another. from is "" for a client, which is on no host.
func (n *Network) Dial(ctx context.Context, from, address string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[address]
	n.mu.Unlock()
	if l == nil {
		return nil, refused(address)
	}
	conn, err := l.DialContext(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: textAddr(address), Err: ctx.Err()}
		}
		return nil, refused(address)
	}
	to, _, _ := net.SplitHostPort(address)
	k := &link{Conn: conn, network: n, from: from, to: to, local: textAddr(Address(from, 0)), remote: textAddr(address)}
	n.mu.Lock()
	current := n.listeners[address] == l
	if current {
		n.links[k] = struct{}{}
	}
	n.mu.Unlock()
	if !current { // unplugged meanwhile
		_ = conn.Close()
		return nil, refused(address)
	}
	return k, nil
}

// Unplug closes every port and connection of a host, as the end of its process does.
func (n *Network) Unplug(host string) {
	var gone []net.Conn
	n.mu.Lock()
	for address, l := range n.listeners {
		if h, _, _ := net.SplitHostPort(address); h == host {
			delete(n.listeners, address)
			_ = l.Close() // it always closes
		}
	}
	for k := range n.links {
		if k.from == host || k.to == host {
			gone = append(gone, k)
		}
	}
	n.mu.Unlock()
	for _, c := range gone {
		_ = c.Close()
	}
}

func refused(address string) error {
	return &net.OpError{Op: "dial", Net: "tcp", Addr: textAddr(address), Err: syscall.ECONNREFUSED}
}

// A port gives its address back when it is closed.
type port struct {
	*bufconn.Listener
	network *Network
	address string
}

func (p *port) Addr() net.Addr { return textAddr(p.address) }

func (p *port) Accept() (net.Conn, error) {
	c, err := p.Listener.Accept()
	if err != nil {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: textAddr(p.address), Err: net.ErrClosed}
	}
	return &accepted{c, textAddr(p.address)}, nil
}

func (p *port) Close() error {
	p.network.mu.Lock()
	if p.network.listeners[p.address] == p.Listener {
		delete(p.network.listeners, p.address)
	}
	p.network.mu.Unlock()
	return p.Listener.Close()
}

// accepted is the end of who was dialled.
type accepted struct {
	net.Conn
	local textAddr
}

func (a *accepted) LocalAddr() net.Addr  { return a.local }
func (a *accepted) RemoteAddr() net.Addr { return textAddr("127.0.0.1:0") }

// link is the end of who dialled.
type link struct {
	net.Conn
	network       *Network
	from, to      string
	local, remote textAddr
}

func (k *link) LocalAddr() net.Addr  { return k.local }
func (k *link) RemoteAddr() net.Addr { return k.remote }

func (k *link) Close() error {
	k.network.mu.Lock()
	delete(k.network.links, k)
	k.network.mu.Unlock()
	return k.Conn.Close()
}

type textAddr string

func (textAddr) Network() string  { return "tcp" }
func (a textAddr) String() string { return string(a) }
