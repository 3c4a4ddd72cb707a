package inject

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// A Link is the quality of one direction between two members.
type Link struct {
	Delay  time.Duration // one way
	Jitter time.Duration // added to it: a random part of this
	Loss   float64       // of the chunks: each waits for one retransmission or more
	Cut    bool          // bytes wait until it is whole again
}

// retransmit is the least time after which Linux sends a lost segment again.
const retransmit = 200 * time.Millisecond

// longestRetransmit is where Linux stops doubling that time.
const longestRetransmit = 2 * time.Minute

// Network is one relay in front of each member's peer port. A peer's connection names its member in
// its first request (X-Server-From), so each direction between two members has its own link.
//
// It imitates what TCP does about lost packets: data arrives late and in order; a cut delivers
// nothing and closes nothing. The way not taken: not every kernel has netem, and not every machine
// iptables in network namespaces.
type Network struct {
	mu    sync.Mutex
	whole chan struct{} // closed and replaced at each change of a link
	links map[[2]int]Link
	ids   map[string]int // member id as the wire writes it -> number of the member

	listeners []net.Listener
	conns     map[net.Conn]bool
	closed    bool
}

// unknown stands for a peer that has not named its member.
const unknown = -1

// NewNetwork puts relays in front of the members of a cluster that is not started, and makes the
// members find each other through them.
func NewNetwork(c *cluster.Cluster) (*Network, error) {
	n := &Network{whole: make(chan struct{}), links: make(map[[2]int]Link), ids: make(map[string]int), conns: make(map[net.Conn]bool)}
	var initial []string
	var urls []string
	for i, m := range c.Members {
		port, err := cluster.FreePort()
		if err != nil {
			n.Close()
			return nil, err
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			n.Close()
			return nil, err
		}
		n.listeners = append(n.listeners, l)
		target := strings.TrimPrefix(m.PeerURL, "http://")
		go n.serve(l, i, target)
		urls = append(urls, "http://"+l.Addr().String())
		initial = append(initial, m.Name+"="+urls[i])
	}
	for i, m := range c.Members {
		m.SetArgs(func(args []string) []string {
			for j := range args[:len(args)-1] {
				switch args[j] {
				case "--initial-advertise-peer-urls":
					args[j+1] = urls[i]
				case "--initial-cluster":
					args[j+1] = strings.Join(initial, ",")
				}
			}
			return args
		})
	}
	return n, nil
}

// Name tells the network the id of a member.
func (n *Network) Name(id uint64, member int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ids[fmt.Sprintf("%x", id)] = member
}

// Member is the number of the member with an id, if the network was told.
func (n *Network) Member(id uint64) (number int, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	number, ok = n.ids[fmt.Sprintf("%x", id)]
	return number, ok
}

// Set changes the links from each of from to each of to.
func (n *Network) Set(from, to []int, l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range from {
		for _, b := range to {
			if a != b {
				n.links[[2]int{a, b}] = l
			}
		}
	}
	close(n.whole)
	n.whole = make(chan struct{})
}

// get returns the link, and a channel that closes when any link changes.
func (n *Network) get(fromID string, from, to int, reverse bool) (Link, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if from == unknown {
		if m, ok := n.ids[fromID]; ok {
			from = m
		}
	}
	key := [2]int{from, to}
	if reverse {
		key = [2]int{to, from}
	}
	return n.links[key], n.whole
}

func (n *Network) serve(l net.Listener, to int, target string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go n.relay(c, to, target)
	}
}

func (n *Network) keep(c net.Conn) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		c.Close()
		return false
	}
	n.conns[c] = true
	return true
}

func (n *Network) relay(c net.Conn, to int, target string) {
	if !n.keep(c) {
		return
	}
	t, err := net.Dial("tcp", target)
	if err != nil || !n.keep(t) {
		n.drop(c)
		return
	}
	// The head of the first request names the sender.
	head := make([]byte, 0, 4096)
	for len(head) < cap(head) && !bytes.Contains(head, []byte("\r\n\r\n")) {
		k, err := c.Read(head[len(head):cap(head)])
		head = head[:len(head)+k]
		if err != nil {
			n.drop(c, t)
			return
		}
	}
	from := serverFrom(head)
	var wg sync.WaitGroup
	wg.Go(func() { n.pipe(c, t, head, from, to, false) })
	wg.Go(func() { n.pipe(t, c, nil, from, to, true) })
	wg.Wait()
	n.drop(c, t)
}

func (n *Network) drop(conns ...net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range conns {
		c.Close()
		delete(n.conns, c)
	}
}

func serverFrom(head []byte) string {
	for line := range strings.Lines(string(head)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.EqualFold(name, "X-Server-From") {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// A chunk is on its way; no data: the sender has closed.
type chunk struct {
	data []byte
	due  time.Time
}

// pipe carries bytes of one direction until either end closes.
func (n *Network) pipe(src, dst net.Conn, first []byte, fromID string, to int, reverse bool) {
	way := make(chan chunk, 256) // then the sender's own buffers fill, as they would
	gone := make(chan struct{})  // closed when the receiver is gone
	go func() {
		defer close(gone)
		for k := range way {
			for {
				l, change := n.get(fromID, unknown, to, reverse)
				wait := time.Until(k.due)
				if !l.Cut && wait <= 0 {
					break
				}
				if l.Cut {
					wait = time.Hour
				}
				select {
				case <-change:
				case <-time.After(wait):
				}
				if n.isClosed() {
					return
				}
			}
			if k.data == nil {
				dst.Close()
				return
			}
			if _, err := dst.Write(k.data); err != nil {
				src.Close()
				return
			}
		}
	}()
	defer func() { <-gone }()
	defer close(way)
	var last time.Time
	send := func(data []byte) bool {
		l, _ := n.get(fromID, unknown, to, reverse)
		due := time.Now().Add(l.Delay)
		if l.Jitter > 0 {
			due = due.Add(rand.N(l.Jitter))
		}
		for again := retransmit + l.Delay; l.Loss > 0 && rand.Float64() < l.Loss; again = min(2*again, longestRetransmit) {
			due = due.Add(again)
		}
		if due.Before(last) {
			due = last // in order
		}
		last = due
		select {
		case way <- chunk{data, due}:
			return true
		case <-gone:
			return false
		}
	}
	if first != nil && !send(first) {
		return
	}
	for {
		buf := make([]byte, 16<<10)
		k, err := src.Read(buf)
		if k > 0 && !send(buf[:k]) {
			return
		}
		if err != nil {
			send(nil)
			return
		}
	}
}

func (n *Network) isClosed() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.closed
}

// Close ends all connections and listens no more.
func (n *Network) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return
	}
	n.closed = true
	for _, l := range n.listeners {
		l.Close()
	}
	for c := range n.conns {
		c.Close()
	}
	close(n.whole)
	n.whole = make(chan struct{})
}

// Flap cuts and mends the links between two sides until ctx ends.
func (n *Network) Flap(ctx context.Context, a, b []int, every time.Duration) {
	for cut := true; ctx.Err() == nil; cut = !cut {
		n.Set(a, b, Link{Cut: cut})
		n.Set(b, a, Link{Cut: cut})
		Think(ctx, every)
	}
}
