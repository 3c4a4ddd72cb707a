package node

import (
	"errors"
	"net"

	"go.uber.org/zap"

	"github.com/belaydb/belay/listen"
	"github.com/belaydb/belay/logsink"
	"github.com/belaydb/belay/server"
)

// connections bound those of each kind of port.
type connections struct {
	client, peer, metrics portKind
	storeFiles            int // that are left for the store
}

// portKind is the bound that the ports of one kind share.
type portKind struct {
	*listen.Bound
	preludes *listen.Preludes
}

// Listener bounds the connections of l.
func (k portKind) Listener(l net.Listener) net.Listener {
	return k.preludes.Listener(k.Bound.Listener(l))
}

const (
	// What connections of the client ports may have sent before there is a request is this part of
	// --max-receive-bytes, and of the peer and the metrics ports, a quarter of that, but no less
	// than minPreludeBytes.
	preludeShare    = 8
	minPreludeBytes = 16 << 20
)

// bound divides the file descriptors. It is called before any port is opened.
func (ps *ports) bound() error {
	limit := server.DescriptorLimit()
	shares, err := listen.Share(limit)
	if errors.Is(err, listen.ErrFewDescriptors) {
		ps.logger.Error("file descriptor limit of etcd process is too low; please set higher",
			zap.Uint64("limit", limit), zap.Int("recommended-limit", listen.ReservedDescriptors))
		return err
	}
	ps.connections.storeFiles = shares.StoreFiles
	preludeBytes := ps.cfg.Limits.MaxReceive() / preludeShare
	for _, p := range []struct {
		name     string
		max      int
		preludes int64
		kind     *portKind
	}{
		{"client", shares.Clients, preludeBytes, &ps.connections.client},
		{"peer", shares.Peers, preludeBytes / 4, &ps.connections.peer},
		{"metrics", shares.Metrics, preludeBytes / 4, &ps.connections.metrics},
	} {
		fresh, silent := ps.counts.refused.WithLabelValues(p.name, "new"), ps.counts.refused.WithLabelValues(p.name, "silent")
		log := &logsink.Seldom{}
		b := listen.NewBound(p.max, func(wasSilent bool) {
			if wasSilent {
				silent.Inc()
			} else {
				fresh.Inc()
			}
			if closed, due := log.Due(); due {
				ps.logger.Warn("too many connections; closed those that said nothing, or new ones", zap.String("port", p.name),
					zap.Int("closed", closed), zap.Int("open-at-most", p.max), zap.Uint64("file-descriptor-limit", limit),
					zap.String("advice", "find out who opens them; raise the limit of file descriptors (LimitNOFILE, ulimit -n) if they are wanted"))
			}
		})
		*p.kind = portKind{b, ps.newPreludes(p.name, max(p.preludes, minPreludeBytes))}
		ps.counts.bounds.add(p.name, *p.kind)
	}
	return nil
}

// newPreludes bounds what connections of one kind of port have sent before there is a request.
func (ps *ports) newPreludes(port string, limit int64) *listen.Preludes {
	closed := ps.counts.receivingRefused.WithLabelValues("headers")
	told := &logsink.Seldom{}
	return listen.NewPreludes(limit, func(held int64, remote string) {
		closed.Inc()
		if count, due := told.Due(); due {
			ps.logger.Warn("closed connections that held most of what may have come of TLS handshakes and headers that are not complete", zap.String("port", port),
				zap.Int("closed", count), zap.String("remote-addr", remote), zap.Int64("held-bytes", held), zap.Int64("bound-bytes", limit),
				zap.String("advice", "find out who opens connections and does not end the headers of a request; --max-receive-bytes sets the bound"))
		}
	})
}

// newReceiving bounds incomplete requests, for all client ports together.
func (ps *ports) newReceiving() *listen.Receiving {
	call, connection := ps.counts.receivingRefused.WithLabelValues("call"), ps.counts.receivingRefused.WithLabelValues("connection")
	var calls, closings logsink.Seldom
	limit := ps.cfg.Limits.MaxReceive()
	r := listen.NewReceiving(limit, func(closed bool, held int64, remote string) {
		told, what := &calls, "refused a call: its connection holds a quarter of what may have come of incomplete requests"
		if closed {
			connection.Inc()
			told, what = &closings, "closed a connection: it holds half of what may have come of incomplete requests, or most where all hold too much"
		} else {
			call.Inc()
		}
		if _, due := told.Due(); due {
			ps.logger.Warn(what, zap.String("remote-addr", remote), zap.Int64("held-bytes", held), zap.Int64("max-receive-bytes", limit))
		}
	})
	ps.counts.receiving.Store(r)
	return r
}

// longRefused counts calls that were refused since too many of their connection wait.
func (ps *ports) longRefused() func(client net.Addr) {
	refused := ps.counts.receivingRefused.WithLabelValues("call")
	told := new(logsink.Seldom)
	return func(client net.Addr) {
		refused.Inc()
		if count, due := told.Due(); due {
			ps.logger.Warn("refused calls: too many long requests wait on their connection", zap.Int("refused", count), zap.Stringer("remote-addr", client),
				zap.Int64("max-receive-bytes", ps.cfg.Limits.MaxReceive()))
		}
	}
}

// unread counts calls that were ended since their clients do not take the answers.
func (ps *ports) unread() func(client net.Addr, bytes int64) {
	told := new(logsink.Seldom)
	return func(client net.Addr, bytes int64) {
		ps.counts.unreadEnded.Inc()
		if count, due := told.Due(); due {
			ps.logger.Warn("ended calls whose clients did not take the answers while others waited for room", zap.Int("ended", count),
				zap.Stringer("remote-addr", client), zap.Int64("answer-bytes", bytes), zap.String("advice", "find out what asks for so much and does not read it"))
		}
	}
}
