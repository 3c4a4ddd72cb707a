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
		log := &refusals{logger: n.logger, port: p.name, max: p.max, limit: limit}
		b := listen.NewBound(p.max, func(wasSilent bool) {
			if wasSilent {
				silent.Inc()
			} else {
				fresh.Inc()
			}
			log.add(time.Now())
		})
		*p.bound = b
		n.metrics.bounds.add(p.name, b)
	}
	return nil
}

// newReceiving bounds what clients have sent of requests that are not complete, for all client ports.
func (n *Node) newReceiving() *listen.Receiving {
	call, connection := n.metrics.receivingRefused.WithLabelValues("call"), n.metrics.receivingRefused.WithLabelValues("connection")
	var mu sync.Mutex
	var last [2]time.Time // of the last line about calls, and about connections
	limit := n.cfg.Limits.MaxReceive()
	r := listen.NewReceiving(limit, func(closed bool, held int64, remote string) {
		kind, what := 0, "refused a call: its connection holds a quarter of what may have come of incomplete requests"
		if closed {
			connection.Inc()
			kind, what = 1, "closed a connection: it holds half of what may have come of incomplete requests, or most where all hold too much"
		} else {
			call.Inc()
		}
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); now.Sub(last[kind]) >= refusedLogInterval {
			last[kind] = now
			n.logger.Warn(what, zap.String("remote-addr", remote), zap.Int64("held-bytes", held), zap.Int64("max-receive-bytes", limit))
		}
	})
	n.metrics.receiving.Store(r)
	return r
}

// refusals says that connections are being closed, and how many.
type refusals struct {
	logger *zap.Logger
	port   string
	max    int
	limit  uint64

	mu    sync.Mutex
	count int       // since the last line
	last  time.Time // of the last line
}

func (r *refusals) add(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.count++; !r.last.IsZero() && now.Sub(r.last) < refusedLogInterval {
		return
	}
	r.logger.Warn("too many connections; closed those that said nothing, or new ones", zap.String("port", r.port),
		zap.Int("closed", r.count), zap.Int("open-at-most", r.max), zap.Uint64("file-descriptor-limit", r.limit),
		zap.String("advice", "find out who opens them; raise the limit of file descriptors (LimitNOFILE, ulimit -n) if they are wanted"))
	r.count, r.last = 0, now
}
