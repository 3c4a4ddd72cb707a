package node

import (
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/belaydb/belay/listen"
	"github.com/belaydb/belay/server"
)

// connections bound those of each kind of port.
type connections struct {
	client, peer, metrics *listen.Bound
	storeFiles            int // that are left for the store
}

// refusedLogInterval lies between two lines about connections that were closed for
// want of room.
const refusedLogInterval = 10 * time.Second

// bound shares the file descriptors out. It comes before any port is opened.
func (n *Node) bound() error {
	limit := server.DescriptorLimit()
	shares, err := listen.Share(limit)
	if errors.Is(err, listen.ErrFewDescriptors) {
		n.logger.Error("file descriptor limit of etcd process is too low; please set higher",
			zap.Uint64("limit", limit), zap.Int("recommended-limit", listen.ReservedDescriptors))
		return err
	}
	n.connections.storeFiles = shares.StoreFiles
	for _, p := range []struct {
		name  string
		max   int
		bound **listen.Bound
	}{
		{"client", shares.Clients, &n.connections.client},
		{"peer", shares.Peers, &n.connections.peer},
		{"metrics", shares.Metrics, &n.connections.metrics},
	} {
		fresh, silent := n.metrics.refused.WithLabelValues(p.name, "new"), n.metrics.refused.WithLabelValues(p.name, "silent")
		log := &refusals{}
		b := listen.NewBound(p.max, func(wasSilent bool) {
			if wasSilent {
				silent.Inc()
			} else {
				fresh.Inc()
			}
			if closed, due := log.due(time.Now()); due {
				n.logger.Warn("too many connections; closed those that said nothing, or new ones", zap.String("port", p.name),
					zap.Int("closed", closed), zap.Int("open-at-most", p.max), zap.Uint64("file-descriptor-limit", limit),
					zap.String("advice", "find out who opens them; raise the limit of file descriptors (LimitNOFILE, ulimit -n) if they are wanted"))
			}
		})
		*p.bound = b
		n.metrics.bounds.add(p.name, b)
	}
	return nil
}

// newReceiving bounds what clients have sent of requests that are not complete, for all client ports.
func (n *Node) newReceiving() *listen.Receiving {
	call, connection := n.metrics.receivingRefused.WithLabelValues("call"), n.metrics.receivingRefused.WithLabelValues("connection")
	var calls, closings refusals
	limit := n.cfg.Limits.MaxReceive()
	r := listen.NewReceiving(limit, func(closed bool, held int64, remote string) {
		told, what := &calls, "refused a call: its connection holds a quarter of what may have come of incomplete requests"
		if closed {
			connection.Inc()
			told, what = &closings, "closed a connection: it holds half of what may have come of incomplete requests, or most where all hold too much"
		} else {
			call.Inc()
		}
		if _, due := told.due(time.Now()); due {
			n.logger.Warn(what, zap.String("remote-addr", remote), zap.Int64("held-bytes", held), zap.Int64("max-receive-bytes", limit))
		}
	})
	n.metrics.receiving.Store(r)
	return r
}

// refusals says when a line about what was refused is due.
type refusals struct {
	mu    sync.Mutex
	count int       // since the last line
	last  time.Time // of the last line
}

// due counts a refusal; where a line is due it gives how many there were since the last one.
func (r *refusals) due(now time.Time) (count int, due bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.count++; !r.last.IsZero() && now.Sub(r.last) < refusedLogInterval {
		return 0, false
	}
	count, r.count, r.last = r.count, 0, now
	return count, true
}
