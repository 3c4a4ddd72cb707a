package gateway

import (
	"net"
	"strconv"
	"sync"
)

// A remote is one endpoint.
type remote struct {
	record   *net.SRV
	address  string
	inactive bool
}

func newRemote(record *net.SRV) *remote {
	return &remote{record: record, address: net.JoinHostPort(record.Target, strconv.Itoa(int(record.Port)))}
}

// remotes are the endpoints, and whose turn it is.
type remotes struct {
	random func(n int) int // below n

	mu   sync.Mutex
	all  []*remote
	turn int
}

// pick is the endpoint for the next connection; nil if all are in except, which are those that this
// connection has tried. Endpoints that are left out count when no other does.
func (r *remotes) pick(except map[*remote]bool) *remote {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, inactive := range []bool{false, true} {
		var best []*remote
		for _, c := range r.all {
			switch {
			case c.inactive != inactive || except[c]:
			case len(best) == 0 || c.record.Priority < best[0].record.Priority:
				best = []*remote{c}
			case c.record.Priority == best[0].record.Priority:
				best = append(best, c)
			}
		}
		if len(best) > 0 {
			return r.byWeight(best)
		}
	}
	return nil
}

// byWeight picks one of those with equal priority.
func (r *remotes) byWeight(of []*remote) *remote {
	var weighted, plain []*remote
	sum := 0
	for _, c := range of {
		if c.record.Weight > 0 {
			weighted, sum = append(weighted, c), sum+int(c.record.Weight)
		} else {
			plain = append(plain, c)
		}
	}
	// Beside weights, those without one get little (RFC 2782).
	if len(weighted) == 0 || len(plain) > 0 && r.random(100) == 0 {
		r.turn++
		return plain[r.turn%len(plain)]
	}
	at := r.random(sum)
	for _, c := range weighted {
		if at -= int(c.record.Weight); at < 0 {
			return c
		}
	}
	return weighted[len(weighted)-1] // not reached: at is below the sum
}

// set notes whether an endpoint is left out, and reports whether that is new.
func (r *remotes) set(c *remote, inactive bool) (changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed = c.inactive != inactive
	c.inactive = inactive
	return changed
}

// inactive are the endpoints that are left out.
func (r *remotes) inactive() (list []*remote) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.all {
		if c.inactive {
			list = append(list, c)
		}
	}
	return list
}

func (r *remotes) addresses() (list []string) {
	for _, c := range r.all {
		list = append(list, c.address)
	}
	return list
}
