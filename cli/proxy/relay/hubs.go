package relay

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/metadata"
)

// A caller is who watches and keeps alive: clients that show the same are one to the cluster.
type caller struct{ token, authorization, hasLeader string }

func callerOf(md metadata.MD) caller {
	one := func(key string) string { return strings.Join(md.Get(key), "\x00") }
	return caller{one(rpctypes.TokenFieldNameGRPC), one("authorization"), one(rpctypes.MetadataRequireLeaderKey)}
}

// A hubLife is whose a hub is and how long it is there.
type hubLife struct {
	who     caller
	ctx     context.Context // ends with it; has the caller's metadata
	cancel  context.CancelFunc
	clients int // streams; guarded by hubs.mu
}

func (l *hubLife) life() *hubLife { return l }

// hubs has a hub of one kind for each caller that has streams.
type hubs[H interface{ life() *hubLife }] struct {
	begin func(hubLife) H

	mu sync.Mutex
	of map[caller]H
}

func newHubs[H interface{ life() *hubLife }](begin func(hubLife) H) hubs[H] {
	return hubs[H]{begin: begin, of: make(map[caller]H)}
}

// join is the hub of a call's caller, which begins with the first stream.
func (s *hubs[H]) join(c *call) H {
	who := callerOf(c.md)
	s.mu.Lock()
	defer s.mu.Unlock()
	h, ok := s.of[who]
	if !ok {
		l := hubLife{who: who}
		l.ctx, l.cancel = context.WithCancel(metadata.NewOutgoingContext(context.Background(), c.md))
		h = s.begin(l)
		s.of[who] = h
	}
	h.life().clients++
	return h
}

// leave removes a stream; the hub ends with the last.
func (s *hubs[H]) leave(h H) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := h.life()
	if l.clients--; l.clients == 0 {
		delete(s.of, l.who)
		l.cancel()
	}
}

// all are those that are there now.
func (s *hubs[H]) all() []H {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.of))
}
