package node

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/evidence"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/store"
	"github.com/belaydb/belay/transport"
	"github.com/belaydb/belay/watch"
)

// peerHandler handles the messages of peers for the member. Its methods may be called from any
// goroutine.
type peerHandler struct {
	logger  *zap.Logger
	store   *store.Store
	state   *state.Machine
	hub     *watch.Hub
	witness *witness
	sending *sync.WaitGroup // snapshots that are being read, to be sent
	// founder is nil where this start did not make the first log, and replica is there once the
	// node is assembled: both are set before the peer port serves.
	founder *datadir.Founder
	replica *replica.Replica
	removed func(id uint64) bool
}

func (h *peerHandler) Process(ctx context.Context, m *raftpb.Message) error {
	if h.founder != nil {
		if err := h.founder.Hear(ctx, m.GetFrom()); err != nil {
			return err
		}
	}
	return h.replica.Process(m)
}
func (h *peerHandler) ReportUnreachable(id uint64) {
	h.witness.ring.Record(evidence.Event{Kind: evidence.Dropped, Peer: id})
	h.replica.ReportUnreachable(id)
}
func (h *peerHandler) ReportSnapshot(id uint64, ok bool) { h.replica.ReportSnapshot(id, ok) }
func (h *peerHandler) IsRemoved(id uint64) bool          { return h.removed(id) }

// ReceiveSnapshot writes the state that comes with a MsgSnap beside the store and then passes the
// message to raft, which may install it.
func (h *peerHandler) ReceiveSnapshot(ctx context.Context, m *raftpb.Message, body io.Reader, kind string) error {
	if kind != transport.KindBelay {
		return fmt.Errorf("member %x sent a snapshot of kind %q, which this version of Belay cannot read", m.GetFrom(), kind)
	}
	if h.founder != nil {
		if err := h.founder.Hear(ctx, m.GetFrom()); err != nil {
			return err
		}
	}
	if err := h.replica.CheckMessage(m); err != nil {
		return err
	}
	start := time.Now()
	p := h.witness.progress(evidence.SnapshotReceived, m.GetFrom())
	in, err := h.store.ReceiveSnapshot(ctx, progressReader{body, p})
	p.end(err)
	if err != nil {
		return fmt.Errorf("snapshot of member %x: %w", m.GetFrom(), err)
	}
	meta := m.GetSnapshot().GetMetadata()
	if in.Index != meta.GetIndex() || in.Term != meta.GetTerm() {
		in.Discard()
		return fmt.Errorf("snapshot of member %x: its message says index %d term %d, its state says %d and %d",
			m.GetFrom(), meta.GetIndex(), meta.GetTerm(), in.Index, in.Term)
	}
	h.logger.Info("received a snapshot",
		zap.String("remote-peer-id", fmt.Sprintf("%x", m.GetFrom())),
		zap.Uint64("snapshot-index", in.Index), zap.Duration("took", time.Since(start)))
	h.replica.ProcessSnapshot(m, func() error {
		if err := h.state.Install(in); err != nil {
			return err
		}
		h.hub.Reload()
		return nil
	}, in.Discard)
	return nil
}

// OpenSnapshot streams the present store to a member that is too far behind for the log.
func (h *peerHandler) OpenSnapshot(m *raftpb.Message) (io.ReadCloser, error) {
	view := h.store.View()
	index, term := view.Applied()
	confState, err := state.ConfStateOf(view)
	if err != nil {
		view.Close()
		return nil, err
	}
	// A new one: raft and the log may hold the old.
	m.Snapshot = &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(index), Term: new(term), ConfState: confState}}
	reader, writer := io.Pipe()
	h.sending.Go(func() {
		defer view.Close()
		p := h.witness.progress(evidence.SnapshotSent, m.GetTo())
		err := h.store.WriteSnapshot(context.Background(), view, &restingWriter{progressWriter{writer, p}, time.Now()})
		p.end(err)
		writer.CloseWithError(err)
	})
	return reader, nil
}

// restingWriter leaves the CPU to others for half of the time: after each write it pauses for as
// long as the write and its preparation took. A snapshot is not urgent, while clients wait for the
// appends that are sent beside it.
type restingWriter struct {
	io.Writer
	rested time.Time // when it last had
}

// restsAtMost bounds the pause: a write that took longer waited for the network or the receiver.
const restsAtMost = 20 * time.Millisecond

func (w *restingWriter) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	time.Sleep(min(time.Since(w.rested), restsAtMost))
	w.rested = time.Now()
	return n, err
}
