package server

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/rpc"
)

const keepAliveMethod = "/etcdserverpb.Lease/LeaseKeepAlive"

// hotLease renews leases on the connection's reader, while their streams' handlers wait for messages:
// where this member leads, has made sure of it a moment ago, and the lease needs no entry of the log.
// Everything else is left to leaseService.keepAlive, before it has been counted.
type hotLease struct {
	lease  *leaseService
	calls  *calls
	method *methodMetrics
}

// serve is a rpc.HotMessage.
func (h *hotLease) serve(ctx context.Context, message []byte) (rpc.Message, bool) {
	l, c := h.lease, h.calls
	id, ok := readKeepAlive(message)
	if !ok || c.spans != nil || l.callers.enabled() {
		return nil, false
	}
	answer := &keepAliveAnswer{id: id}
	l.headers.fill(&answer.header) // before the renewal: see keepAlive
	if answer.ttl, ok = l.renewNow(lease.ID(id)); !ok || l.callers.enabled() {
		return nil, false
	}
	answer.size = 2 + headerSize(&answer.header) + fieldSize(uint64(id)) + fieldSize(uint64(answer.ttl))
	c.codec.metrics.receivedBytes.Add(float64(len(message)))
	h.method.received.Inc()
	c.usage.call(ctx, nil, nil, nil) // as usageOf.message
	c.codec.metrics.sentBytes.Add(float64(answer.size))
	h.method.sent.Inc()
	return answer, true
}

// readKeepAlive reads a LeaseKeepAliveRequest. It does exactly what proto would, or returns false.
func readKeepAlive(b []byte) (id int64, ok bool) {
	if len(b) < 2 || b[0] != 1<<3|wireVarint {
		return 0, false
	}
	v, n := protowire.ConsumeVarint(b[1:])
	return int64(v), n == len(b)-1
}

// keepAliveAnswer is an answer as package rpc writes it.
type keepAliveAnswer struct {
	header  pb.ResponseHeader
	id, ttl int64
	size    int
}

func (a *keepAliveAnswer) Size() int { return a.size }

func (a *keepAliveAnswer) AppendTo(b []byte) []byte {
	n := len(b)
	b = appendHeader(b, &a.header)
	b = appendField(b, 2, uint64(a.id))
	b = appendField(b, 3, uint64(a.ttl))
	filled(b[n:], a.size)
	return b
}
