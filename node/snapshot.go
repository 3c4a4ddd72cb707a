package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/coreos/go-semver/semver"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/evidence"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/snapshotfile"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/store"
	"github.com/belaydb/belay/transport"
	"github.com/belaydb/belay/walfile"
	"github.com/belaydb/belay/watch"
)

// peerHandler handles the messages of peers for the member. Its methods may be called from any
// goroutine.
type peerHandler struct {
	logger  *zap.Logger
	store   *store.Store
	kv      *mvcc.Store
	state   *state.Machine
	hub     *watch.Hub
	witness *witness
	sending *sync.WaitGroup // snapshots that are being read, to be sent
	dataDir string          // has room for the files that are made for etcd's members
	files   chan struct{}   // a slot for each of these
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
	receive := h.store.ReceiveSnapshot
	if kind == transport.KindEtcd {
		receive = func(ctx context.Context, body io.Reader) (*store.Incoming, error) {
			return h.receiveFromEtcd(ctx, m.GetSnapshot().GetMetadata(), body)
		}
	}
	in, err := receive(ctx, progressReader{body, p})
	p.end(err)
	if err != nil {
		return fmt.Errorf("snapshot of member %x: %w", m.GetFrom(), err)
	}
	m.Snapshot.Data = nil // etcd's tree of the API of version 2: what counts of it is in the database
	meta := m.GetSnapshot().GetMetadata()
	if in.Index != meta.GetIndex() || in.Term != meta.GetTerm() {
		in.Discard()
		return fmt.Errorf("snapshot of member %x: its message says index %d term %d, its state says %d and %d",
			m.GetFrom(), meta.GetIndex(), meta.GetTerm(), in.Index, in.Term)
	}
	h.logger.Info("received a snapshot",
		zap.String("remote-peer-id", command.IDText(m.GetFrom())),
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

// receiveFromEtcd makes the database that an etcd sends a snapshot like that of another Belay.
func (h *peerHandler) receiveFromEtcd(ctx context.Context, meta *raftpb.SnapshotMetadata, body io.Reader) (*store.Incoming, error) {
	dir, done, err := h.store.Scratch()
	if err != nil {
		return nil, err
	}
	defer done()
	from, err := datadir.Receive(ctx, dir, body, meta, h.store.FreeBytes)
	if err != nil {
		return nil, err
	}
	reader, writer := io.Pipe()
	var reading sync.WaitGroup
	reading.Go(func() {
		view := from.View()
		defer view.Close()
		writer.CloseWithError(from.WriteSnapshot(ctx, view, writer))
	})
	in, err := h.store.ReceiveSnapshot(ctx, reader)
	_ = reader.Close() // on an error nobody reads the rest; its own is always nil
	reading.Wait()
	if err := from.Close(); err != nil {
		h.logger.Warn("failed to close the store that was made of etcd's database", zap.Error(err))
	}
	return in, err
}

// OpenSnapshot streams the present store to a member that is too far behind for the log.
func (h *peerHandler) OpenSnapshot(ctx context.Context, m *raftpb.Message, to transport.Software) (io.ReadCloser, error) {
	if to.Kind == transport.KindEtcd {
		return h.openForEtcd(ctx, m, to)
	}
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
		err := h.store.WriteSnapshot(context.Background(), view, &restingWriter{progressWriter{writer, p}, newRest()})
		p.end(err)
		writer.CloseWithError(err)
	})
	return reader, nil
}

const (
	// filesForEtcd is how many databases are made and sent at a time: each takes as much of the
	// disk as the data.
	filesForEtcd = 2
	// oldestEtcd is the minor version of the oldest etcd 3 that gets one.
	oldestEtcd = 5
)

// openForEtcd makes etcd's database of the present state, beside the data, for a member that runs
// etcd.
func (h *peerHandler) openForEtcd(ctx context.Context, m *raftpb.Message, to transport.Software) (io.ReadCloser, error) {
	if to.Version.Major != 3 || to.Version.Minor < oldestEtcd {
		return nil, fmt.Errorf("the member runs etcd %s; snapshots are made for etcd 3.%d and later", to.Version, oldestEtcd)
	}
	select {
	case h.files <- struct{}{}:
	default:
		return nil, fmt.Errorf("%d files for members of etcd are being made or sent", filesForEtcd)
	}
	p := h.witness.progress(evidence.SnapshotSent, m.GetTo())
	type made struct {
		file     *snapshotfile.File
		snapshot *raftpb.Snapshot
		err      error
	}
	result := make(chan made)
	// The file is whole before the first byte is sent: etcd gives up after 5 s without one.
	h.sending.Go(func() {
		var r made
		r.file, r.snapshot, r.err = h.fileForEtcd(ctx, to)
		if r.err != nil {
			p.end(r.err)
			<-h.files
		}
		select {
		case result <- r:
		case <-ctx.Done(): // nobody waits any more
			if r.err == nil {
				p.end(errors.Join(ctx.Err(), r.file.Close()))
				<-h.files
			}
		}
	})
	select {
	case r := <-result:
		if r.err != nil {
			return nil, r.err
		}
		m.Snapshot = r.snapshot
		return &fileBody{Reader: r.file.Reader(), file: r.file, p: p, rest: newRest(), done: func() { <-h.files }}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// fileForEtcd makes the file, and the snapshot that its message is to have.
func (h *peerHandler) fileForEtcd(ctx context.Context, to transport.Software) (*snapshotfile.File, *raftpb.Snapshot, error) {
	view := h.kv.View()
	defer view.Close()
	stored, err := state.ReadStored(view.Reader())
	if err != nil {
		return nil, nil, err
	}
	content, err := snapshotfile.ContentOf(view, stored)
	if err != nil {
		return nil, nil, err
	}
	// The schema is that of the cluster's version, as etcd keeps it, which a downgrade lowers first.
	content.For = to.Version.Minor
	if v, err := semver.NewVersion(content.ClusterVersion); err == nil {
		content.For = min(content.For, v.Minor)
	}
	// Etcd before 3.7 takes the members from the message, and what is for clients from the file.
	data, err := walfile.Membership{Members: content.Members, Removed: content.Removed, Version: content.ClusterVersion}.Encode()
	if err != nil {
		return nil, nil, err
	}
	revisions, rest := content.Revisions, newRest()
	content.Revisions = func(ctx context.Context, each func(main, sub int64, tombstone bool, value []byte) error) error {
		bytes := 0
		return revisions(ctx, func(main, sub int64, tombstone bool, value []byte) error {
			if bytes += len(value); bytes >= restStep {
				bytes = 0
				rest.take()
			}
			return each(main, sub, tombstone, value)
		})
	}
	file, err := snapshotfile.Create(ctx, h.dataDir, content)
	if err != nil {
		return nil, nil, err
	}
	return file, &raftpb.Snapshot{Data: data, Metadata: &raftpb.SnapshotMetadata{
		Index: new(content.Index), Term: new(content.Term), ConfState: content.ConfState,
	}}, nil
}

// fileBody reads a file that was made for etcd, and frees its space at the end.
type fileBody struct {
	io.Reader
	file *snapshotfile.File
	p    *progress
	rest *rest
	done func()
	last error // of Read
}

func (b *fileBody) Read(buf []byte) (int, error) {
	n, err := b.Reader.Read(buf)
	b.p.took(n)
	b.last = err
	b.rest.take()
	return n, err
}

func (b *fileBody) Close() error {
	err := b.last
	if errors.Is(err, io.EOF) {
		err = nil
	} else if err == nil {
		err = errors.New("it was not read to its end")
	}
	b.p.end(err)
	b.done()
	return b.file.Close()
}

// rest leaves the CPU to others for half of the time: it pauses for as long as has passed since the
// last pause. A snapshot is not urgent, while clients wait for the appends that are sent beside it.
type rest struct{ rested time.Time }

func newRest() *rest { return &rest{time.Now()} }

func (r *rest) take() {
	time.Sleep(min(time.Since(r.rested), restsAtMost))
	r.rested = time.Now()
}

const (
	// restsAtMost bounds the pause: what took longer waited for the network, a disk or the receiver.
	restsAtMost = 20 * time.Millisecond
	// restStep is how many bytes of values are read for a file between two pauses.
	restStep = 128 << 10
)

// restingWriter pauses after each write for as long as the write and its preparation took.
type restingWriter struct {
	io.Writer
	rest *rest
}

func (w *restingWriter) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	w.rest.take()
	return n, err
}
