package transport

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/internal/show"
	"github.com/belaydb/belay/peers"
)

// POST /raft/snapshot:
//
//	+----------------+-------------------+--------------------------------+
//	| length, 8 B BE | MsgSnap           | body, to the end of the request|
//	+----------------+-------------------+--------------------------------+
//
// etcd's body is a bbolt file. Ours is the store's own stream, and the header X-Belay-Snapshot says
// so; a peer that runs etcd gets etcd's. Both ends hold only their copy buffers. A snapshot has its
// own connection, so it shares only bandwidth and CPU with the appends; the source should leave them
// some.
const (
	// snapshotStall is how long a snapshot may make no progress, in either direction.
	snapshotStall = 30 * time.Second
	// snapshotAnswer is how long the receiver may take to install what it received.
	snapshotAnswer = 10 * time.Minute
)

// sendSnapshot starts sending the data of m, a MsgSnap. raft waits for the report.
func (p *peer) sendSnapshot(m *raftpb.Message) {
	t := p.t
	if p.remote || t.cfg.Source == nil {
		t.reports.snapshot(p.id, false)
		return
	}
	if !p.sendingSnapshot.CompareAndSwap(false, true) {
		return // one is under way, and its report serves for this one too
	}
	select {
	case t.snapshots <- struct{}{}:
	default:
		p.sendingSnapshot.Store(false)
		p.logger.Warn("refused to send database snapshot; too many are being sent", zap.String("remote-peer-id", p.name),
			zap.Int("snapshots-being-sent", cap(t.snapshots)))
		t.reports.snapshot(p.id, false)
		return
	}
	started := p.pipeline.spawn(func() {
		err := p.runSnapshot(m)
		<-t.snapshots
		p.sendingSnapshot.Store(false)
		if p.ctx.Err() != nil {
			return
		}
		if err != nil {
			p.m.sentFailures.Inc()
			if !errors.Is(err, errBusy) {
				t.reports.unreachable(p.id)
			}
		}
		t.reports.snapshot(p.id, err == nil)
	})
	if !started {
		<-t.snapshots
		p.sendingSnapshot.Store(false)
	}
}

func (p *peer) runSnapshot(m *raftpb.Message) error {
	t, metrics := p.t, p.t.cfg.Metrics
	start := time.Now()
	sending := metrics.snapshotSending.WithLabelValues(p.name)
	sending.Inc()
	defer sending.Dec()

	var body *snapshotBody
	fields := func(more ...zap.Field) []zap.Field {
		f := []zap.Field{zap.Uint64("snapshot-index", m.GetSnapshot().GetMetadata().GetIndex()), zap.String("remote-peer-id", p.name)}
		if body != nil {
			n := body.sent()
			f = append(f, zap.Int64("bytes", n), zap.String("size", show.LogBytes(n)), zap.Duration("took", time.Since(start)))
		}
		return append(f, more...)
	}
	fail := func(err error) error {
		metrics.snapshotSendFailures.WithLabelValues(p.name).Inc()
		p.logger.Warn("failed to send database snapshot", fields(zap.Error(err))...)
		return err
	}
	to, err := p.software(p.ctx)
	if err != nil {
		return fail(fmt.Errorf("cannot tell what software the peer runs: %w", err))
	}
	src, err := t.cfg.Source.OpenSnapshot(p.ctx, m, to)
	if err != nil {
		return fail(fmt.Errorf("open the snapshot: %w", err))
	}
	header := http.Header{}
	if to.Kind == KindBelay {
		header.Set(peers.HeaderSnapshot, "1")
	}
	p.logger.Info("sending database snapshot", fields(zap.String("format", to.Kind))...)

	envelope := marshalMessage(m)
	head := binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(envelope)), uint64(len(envelope)))
	ctx, cancel := context.WithCancelCause(p.ctx)
	defer cancel(nil)
	body = &snapshotBody{ctx: ctx, cancel: cancel, src: src,
		sentBytes: p.m.sentBytes, head: bytes.NewReader(append(head, envelope...))}
	err = p.post(ctx, t.snapshotRT, peers.PathRaftSnapshot, "application/octet-stream", body, header)
	body.finish()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && p.ctx.Err() == nil {
			err = cause
		}
		if !errors.Is(err, errBusy) {
			p.status.deactivate("post", "sendMsgSnap", err)
		}
		return fail(err)
	}
	p.status.activate()
	p.logger.Info("sent database snapshot", fields()...)
	metrics.snapshotSend.WithLabelValues(p.name).Inc()
	metrics.snapshotSendSeconds.WithLabelValues(p.name).Observe(time.Since(start).Seconds())
	return nil
}

// A snapshotBody is the body of a POST /raft/snapshot: the envelope, then the source.
type snapshotBody struct {
	ctx       context.Context
	cancel    context.CancelCauseFunc
	sentBytes interface{ Add(float64) }

	// mu guards the rest: net/http may still read or close after the answer has arrived.
	mu     sync.Mutex
	head   *bytes.Reader
	src    io.ReadCloser
	n      int64
	closed bool
	answer *time.Timer // runs when the whole body was read
}

var errNoAnswer = fmt.Errorf("the receiver did not answer within %v after it got the whole snapshot", snapshotAnswer)

func (b *snapshotBody) Read(buf []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, errors.New("transport: snapshot body is closed")
	}
	if b.head.Len() > 0 {
		return b.head.Read(buf)
	}
	n, err := b.src.Read(buf)
	b.n += int64(n)
	b.sentBytes.Add(float64(n))
	if err == io.EOF && b.answer == nil {
		b.answer = time.AfterFunc(snapshotAnswer, func() { b.cancel(errNoAnswer) })
	} else if err != nil && err != io.EOF {
		b.cancel(fmt.Errorf("read the snapshot: %w", err))
	}
	return n, err
}

// Close closes the source, once.
func (b *snapshotBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	return b.src.Close()
}

// finish is called when the answer has arrived.
func (b *snapshotBody) finish() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.answer != nil {
		b.answer.Stop()
	}
}

func (b *snapshotBody) sent() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.n
}

func (t *Transport) serveSnapshot(w http.ResponseWriter, r *http.Request) {
	start, metrics := time.Now(), t.cfg.Metrics
	const unknownSender = "UNKNOWN_SNAPSHOT_SENDER"
	if !t.admit(w, r, http.MethodPost) {
		metrics.snapshotReceiveFails.WithLabelValues(unknownSender).Inc()
		return
	}
	sender, ok := t.admitSender(w, r)
	if !ok {
		metrics.snapshotReceiveFails.WithLabelValues(unknownSender).Inc()
		return
	}
	from := command.IDText(sender)
	if !t.receiving.CompareAndSwap(false, true) {
		// Two at once would need twice the disk; the sender will try again.
		t.count(refusedBusy)
		w.Header().Set("Connection", "close")
		http.Error(w, errBusy.Error(), http.StatusServiceUnavailable)
		return
	}
	defer t.receiving.Store(false)
	rc := http.NewResponseController(w)
	body := &stallReader{r: r.Body, rc: rc}
	defer func() { _ = rc.SetReadDeadline(time.Time{}) }() // not supported: then none was set
	m, _, err := (&messageDecoder{r: body, limit: maxEnvelopeBytes}).decode()
	if err != nil || m == nil {
		if err == nil {
			err = errors.New("the message is empty")
		}
		t.logger.Warn("failed to decode Raft message", zap.String("local-member-id", t.id), zap.String("remote-snapshot-sender-id", from), zap.Error(err))
		metrics.receivedFailures.WithLabelValues(from).Inc()
		metrics.snapshotReceiveFails.WithLabelValues(from).Inc()
		w.Header().Set("Connection", "close")
		http.Error(w, fmt.Sprintf("failed to decode raft message (%v)", err), http.StatusBadRequest)
		return
	}
	ids := []zap.Field{zap.String("local-member-id", t.id), zap.String("remote-snapshot-sender-id", from)}
	if m.GetType() != raftpb.MsgSnap || m.GetSnapshot().GetMetadata() == nil {
		t.logger.Warn("unexpected Raft message type", append(ids, zap.Stringer("message-type", m.GetType()))...)
		metrics.snapshotReceiveFails.WithLabelValues(from).Inc()
		http.Error(w, "wrong raft message type", http.StatusBadRequest)
		return
	}
	if why := t.accept(m); why != "" {
		metrics.snapshotReceiveFails.WithLabelValues(from).Inc()
		refuse(w, why)
		return
	}
	if err := t.checkSender(m, sender); err != nil {
		metrics.snapshotReceiveFails.WithLabelValues(from).Inc()
		w.Header().Set("Connection", "close")
		http.Error(w, "the sender may not send this raft message", http.StatusBadRequest)
		return
	}
	receiving := metrics.snapshotReceiving.WithLabelValues(from)
	receiving.Inc()
	defer receiving.Dec()

	kind := KindEtcd
	if r.Header.Get(peers.HeaderSnapshot) != "" {
		kind = KindBelay
	}
	index := zap.Uint64("incoming-snapshot-index", m.GetSnapshot().GetMetadata().GetIndex())
	size := messageSize(m)
	t.logger.Info("receiving database snapshot", append(ids, index,
		zap.Int("incoming-snapshot-message-size-bytes", size), zap.String("incoming-snapshot-message-size", show.LogBytes(int64(size))),
		zap.String("format", kind))...)
	body.n = 0
	err = t.cfg.Handler.ReceiveSnapshot(r.Context(), m, body, kind)
	metrics.receivedBytes.WithLabelValues(from).Add(float64(int64(size) + body.n))
	if err != nil {
		t.logger.Warn("failed to save incoming database snapshot", append(ids, index, zap.Error(err))...)
		metrics.snapshotReceiveFails.WithLabelValues(from).Inc()
		w.Header().Set("Connection", "close")
		http.Error(w, fmt.Sprintf("failed to save KV snapshot (%v)", err), http.StatusInternalServerError)
		return
	}
	t.logger.Info("received and saved database snapshot", append(ids, index,
		zap.Int64("incoming-snapshot-size-bytes", body.n), zap.String("incoming-snapshot-size", show.LogBytes(body.n)),
		zap.Stringer("download-took", time.Since(start)))...)
	w.WriteHeader(http.StatusNoContent)
	metrics.snapshotReceive.WithLabelValues(from).Inc()
	metrics.snapshotReceiveSecs.WithLabelValues(from).Observe(time.Since(start).Seconds())
}

// snapshotStep is how many bytes of a snapshot must arrive within snapshotStall: only one is
// received at a time, and a sender of a byte now and then must not occupy it for ever.
const snapshotStep = 64 << 10

// A stallReader fails when less than snapshotStep arrives within snapshotStall, and counts the
// bytes. It must not be read after ReceiveSnapshot has returned.
type stallReader struct {
	r  io.Reader
	rc *http.ResponseController
	n  int64

	step int64         // bytes that must come
	left time.Duration // waiting time left for it; the time that the handler takes to store them does not count
}

func (s *stallReader) Read(b []byte) (int, error) {
	if s.step <= 0 {
		s.step, s.left = snapshotStep, snapshotStall
	}
	began := time.Now()
	if err := s.rc.SetReadDeadline(began.Add(s.left)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	n, err := s.r.Read(b)
	s.n += int64(n)
	s.step -= int64(n)
	s.left -= time.Since(began)
	return n, err
}
