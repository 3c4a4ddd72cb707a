package transport

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/peers"
)

// A peer is the connection to one other member. It has
//
//	bulk     the msgapp stream: appends and proposals, which may be large
//	control  the message stream: heartbeats, votes, acknowledgements, read indexes: small and urgent
//	pipeline POST /raft for what has no stream (yet)
//
// and for each stream a writer (the peer dialled us) and a reader (we dialled the peer), each with
// a goroutine of its own. etcd sends proposals on the message stream; a receiver accepts any
// message on either, so we keep the megabytes of a forwarded proposal away from the heartbeats.
//
// A remote is a peer with a pipeline only.
type peer struct {
	t      *Transport
	id     uint64
	name   string // id in hexadecimal
	remote bool
	logger *zap.Logger
	m      *peerMetrics
	urls   *urlPicker
	status *peerStatus

	ctx    context.Context
	cancel context.CancelFunc

	bulk, control *streamWriter // nil for a remote
	pipeline      *pipeline
	proposals     *outbox // received from the peer, waiting for Process

	sendingSnapshot atomic.Bool
	kind            atomic.Value              // Kind
	you             atomic.Pointer[string]    // peers.HeaderYou of its last request; nil: none said
	rtt             atomic.Int64              // smoothed, ns
	dropped         atomic.Int64              // messages since the last log line about drops
	dropLogged      atomic.Pointer[time.Time] // when that line was written
}

// newPeer makes a peer and starts nothing.
func newPeer(t *Transport, id uint64, urls []*url.URL, remote bool) *peer {
	p := &peer{
		t:      t,
		id:     id,
		name:   command.IDText(id),
		remote: remote,
		logger: t.logger,
		m:      t.cfg.Metrics.peer(t.cfg.MemberID, id),
		urls:   &urlPicker{urls: urls},
	}
	p.kind.Store(KindUnknown)
	p.ctx, p.cancel = context.WithCancel(t.ctx)
	p.status = &peerStatus{logger: t.logger, name: p.name, m: p.m}
	p.pipeline = newPipeline(p)
	if !remote {
		p.bulk = newStreamWriter(p, streamBulk, t.cfg.BulkQueueBytes)
		p.control = newStreamWriter(p, streamControl, t.cfg.ControlQueueBytes)
		p.proposals = newOutbox(t.cfg.QueueMessages, t.cfg.BulkQueueBytes)
	}
	return p
}

func (p *peer) start() {
	if p.remote {
		return
	}
	p.logger.Info("starting remote peer", zap.String("remote-peer-id", p.name))
	p.t.wg.Go(p.bulk.run)
	p.t.wg.Go(p.control.run)
	p.t.wg.Go(func() { p.readStream(streamBulk) })
	p.t.wg.Go(func() { p.readStream(streamControl) })
	p.t.wg.Go(p.processProposals)
	p.t.wg.Go(p.probe)
	p.logger.Info("started HTTP pipelining with remote peer", zap.String("local-member-id", p.t.id), zap.String("remote-peer-id", p.name))
	p.logger.Info("started remote peer", zap.String("remote-peer-id", p.name))
}

// stop ends the peer's goroutines and does not wait for them.
func (p *peer) stop() {
	if !p.remote {
		p.logger.Info("stopping remote peer", zap.String("remote-peer-id", p.name))
	}
	p.cancel()
	p.pipeline.stop()
	p.status.stop()
	if !p.remote {
		p.logger.Info("stopped HTTP pipelining with remote peer", zap.String("local-member-id", p.t.id), zap.String("remote-peer-id", p.name))
		p.logger.Info("stopped remote peer", zap.String("remote-peer-id", p.name))
	}
}

// send queues m on the right stream, or for a POST. It never blocks.
func (p *peer) send(m *raftpb.Message) {
	if m.GetType() == raftpb.MsgSnap {
		p.sendSnapshot(m)
		return
	}
	if !p.remote {
		w := p.control
		switch m.GetType() {
		case raftpb.MsgApp, raftpb.MsgProp:
			w = p.bulk
		}
		if !w.attached.Load() && queuedBytes(m) <= smallBytes {
			w = p.control // better than a POST, and not so large that a heartbeat would wait for it
		}
		if w.attached.Load() {
			if !w.box.put(m) {
				p.drop(m, w.kind.String())
			}
			return
		}
	}
	if !p.pipeline.put(m) {
		p.drop(m, "pipeline")
	}
}

// smallBytes is the size up to which an append may be sent on the control stream.
const smallBytes = 16 << 10

// dropLogInterval is how often drops to one peer are logged.
const dropLogInterval = time.Second

func (p *peer) drop(m *raftpb.Message, way string) {
	p.m.sentFailures.Inc()
	p.t.reports.unreachable(p.id)
	n := p.dropped.Add(1)
	last, now := p.dropLogged.Load(), time.Now()
	if (last != nil && now.Sub(*last) < dropLogInterval) || !p.dropLogged.CompareAndSwap(last, &now) {
		return
	}
	p.dropped.Add(-n)
	p.logger.Warn("dropped internal Raft message since sending buffer is full",
		zap.String("message-type", m.GetType().String()),
		zap.String("local-member-id", p.t.id),
		zap.String("from", command.IDText(m.GetFrom())),
		zap.String("remote-peer-id", p.name),
		zap.String("remote-peer-name", way),
		zap.Bool("remote-peer-active", p.status.isActive()),
		zap.Int64("dropped-messages", n))
}

// received hands a message from the peer to the member.
func (p *peer) received(m *raftpb.Message) {
	if p.t.checkSender(m, p.id) != nil {
		p.m.receivedFailures.Inc()
		return
	}
	if m.GetType() == raftpb.MsgSnap {
		// Its data would be missing: snapshots have their own path.
		p.m.receivedFailures.Inc()
		p.logger.Warn("unexpected Raft message type", zap.String("local-member-id", p.t.id),
			zap.String("remote-snapshot-sender-id", p.name), zap.Stringer("message-type", m.GetType()))
		return
	}
	if m.GetType() == raftpb.MsgProp {
		// A proposal may wait for a leader; nothing else should wait for it.
		if !p.proposals.put(m) {
			p.m.receivedFailures.Inc()
			msg := "dropped Raft message since receiving buffer is full (overloaded network)"
			if p.status.isActive() {
				msg = "dropped internal Raft message since receiving buffer is full (overloaded network)"
			}
			p.logger.Warn(msg, zap.String("message-type", m.GetType().String()), zap.String("local-member-id", p.t.id),
				zap.String("from", command.IDText(m.GetFrom())), zap.String("remote-peer-id", command.IDText(m.GetTo())),
				zap.Bool("remote-peer-active", p.status.isActive()))
		}
		return
	}
	p.process(m)
}

func (p *peer) processProposals() {
	var batch []*raftpb.Message
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-p.proposals.ready:
		}
		batch = p.proposals.take(batch)
		for i, m := range batch {
			p.process(m)
			batch[i] = nil
		}
		p.proposals.settle()
		if cap(batch) > 1024 {
			batch = nil
		}
	}
}

func (p *peer) process(m *raftpb.Message) {
	if p.t.accept(m) != "" {
		return
	}
	if err := p.t.cfg.Handler.Process(p.ctx, m); err != nil && p.ctx.Err() == nil {
		p.t.logFailed(p.id, err)
	}
}

// sawHeaders records what software the peer runs, and what it says about this member.
func (p *peer) sawHeaders(h http.Header) {
	p.kind.Store(kindOf(h))
	if you := h.Get(peers.HeaderYou); you != "" {
		p.you.Store(&you)
	}
}

func (p *peer) kindNow() Kind { return p.kind.Load().(Kind) }

// A peerStatus says whether any connection to the peer works, and since when.
type peerStatus struct {
	logger *zap.Logger
	name   string
	m      *peerMetrics

	mu      sync.Mutex
	stopped bool
	since   time.Time // zero: inactive
}

func (s *peerStatus) activate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped || !s.since.IsZero() {
		return
	}
	s.logger.Info("peer became active", zap.String("peer-id", s.name))
	s.since = time.Now()
	s.m.active.Set(1)
}

// deactivate is called when action ("dial", "read", "write", ...) failed on way.
func (s *peerStatus) deactivate(action, way string, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return
	}
	err := fmt.Errorf("failed to %s %s on %s (%w)", action, s.name, way, cause)
	if s.since.IsZero() {
		s.logger.Debug("peer deactivated again", zap.String("peer-id", s.name), zap.Error(err))
		return
	}
	s.logger.Warn("peer became inactive (message send to peer failed)", zap.String("peer-id", s.name), zap.Error(err))
	s.since = time.Time{}
	s.m.active.Set(0)
	s.m.disconnected.Inc()
}

// stop makes the status inactive for good, silently: the peer was removed, not lost.
func (s *peerStatus) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	s.since = time.Time{}
	s.m.active.Set(0)
}

func (s *peerStatus) isActive() bool { return !s.activeSince().IsZero() }

func (s *peerStatus) activeSince() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.since
}
