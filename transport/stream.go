package transport

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/peers"
)

// A streamKind is one of the two streams on which we write to a peer.
type streamKind int

const (
	streamBulk    streamKind = iota // /raft/stream/msgapp
	streamControl                   // /raft/stream/message
)

func (k streamKind) String() string {
	if k == streamBulk {
		return "stream MsgApp v2"
	}
	return "stream Message"
}

func (k streamKind) path() string {
	if k == streamBulk {
		return peers.PathRaftAppends
	}
	return peers.PathRaftMessages
}

const (
	// redialInterval is the pause between attempts to open a stream.
	redialInterval = 100 * time.Millisecond
	// flushBytes is the size at which a batch is sent although more messages wait.
	flushBytes = 256 << 10
	// writeAtOnce is the most that one write deadline covers.
	writeAtOnce = 256 << 10
)

// An outgoing is the connection of a stream, after its response header was written.
type outgoing struct {
	timeout time.Duration
	lost    chan struct{} // closed when the peer has hung up
	closed  chan struct{}
	once    sync.Once
	// standing is its owner; set before attach.
	standing *standing

	conn net.Conn // nil when the server could not give us its connection
	// vecConn is conn, or the TCP connection inside it, only for writes.
	vecConn net.Conn
	vec     net.Buffers

	w  http.ResponseWriter // otherwise
	rc *http.ResponseController
}

// hijacked takes over conn. The peer should send nothing more: the first byte or error means that
// it has hung up.
func hijacked(conn net.Conn, timeout time.Duration) *outgoing {
	o := &outgoing{timeout: timeout, conn: conn, vecConn: conn, lost: make(chan struct{}), closed: make(chan struct{})}
	if c, ok := conn.(interface{ Inner() net.Conn }); ok {
		o.vecConn = c.Inner() // the kernel takes many buffers at once only on a bare connection
	}
	go func() {
		var b [1]byte
		_, _ = conn.Read(b[:])
		close(o.lost)
	}()
	return o
}

func (o *outgoing) close() {
	o.once.Do(func() {
		close(o.closed)
		if o.conn != nil {
			_ = o.conn.Close() // the connection is given up either way
		}
	})
}

// write sends the batch and flushes it. Each writeAtOnce bytes may take the timeout.
func (o *outgoing) write(b *batch) error {
	if o.conn == nil {
		var err error
		b.pieces(func(p []byte) {
			for len(p) > 0 && err == nil {
				n := min(len(p), writeAtOnce)
				if err = o.rc.SetWriteDeadline(time.Now().Add(o.timeout)); err == nil || errors.Is(err, http.ErrNotSupported) {
					_, err = o.w.Write(p[:n])
				}
				p = p[n:]
			}
		})
		if err != nil {
			return err
		}
		return o.rc.Flush()
	}
	var err error
	size := 0
	vec := o.vec[:0]
	send := func() {
		if size == 0 {
			return
		}
		if err = o.conn.SetWriteDeadline(time.Now().Add(o.timeout)); err == nil {
			rest := vec // WriteTo consumes it
			_, err = rest.WriteTo(o.vecConn)
		}
		clear(vec)
		vec, size = vec[:0], 0
	}
	b.pieces(func(p []byte) {
		for len(p) > 0 && err == nil {
			n := min(len(p), writeAtOnce-size)
			vec = append(vec, p[:n])
			size += n
			p = p[n:]
			if size == writeAtOnce {
				send()
			}
		}
	})
	if err == nil {
		send()
	}
	o.vec = vec[:0]
	return err
}

// A streamWriter writes one stream to one peer, when the peer has dialled us for it.
type streamWriter struct {
	p    *peer
	kind streamKind
	box  *outbox
	// attached reports whether there is a connection. Only run changes it.
	attached atomic.Bool
	conns    chan *outgoing           // connections to switch to
	standing atomic.Pointer[standing] // who has the stream, or had it last; only run changes it
}

func newStreamWriter(p *peer, kind streamKind, maxBytes int64) *streamWriter {
	return &streamWriter{p: p, kind: kind, box: newOutbox(p.t.cfg.QueueMessages, maxBytes), conns: make(chan *outgoing)}
}

// attach hands a connection to the writer, which then owns it; false if the peer was stopped.
func (w *streamWriter) attach(o *outgoing) bool {
	select {
	case w.conns <- o:
		return true
	case <-w.p.ctx.Done():
		return false
	}
}

func (w *streamWriter) fields(more ...zap.Field) []zap.Field {
	return append([]zap.Field{
		zap.String("stream-writer-type", w.kind.String()),
		zap.String("local-member-id", w.p.t.id),
		zap.String("remote-peer-id", w.p.name),
	}, more...)
}

func (w *streamWriter) run() {
	p := w.p
	p.logger.Info("started stream writer with remote peer", zap.String("local-member-id", p.t.id), zap.String("remote-peer-id", p.name))
	tick := time.NewTicker(p.t.cfg.ReadTimeout / 3)
	defer tick.Stop()
	var (
		conn  *outgoing
		enc   frameEncoder
		out   batch
		spare []*raftpb.Message
		idle  bool // nothing was written since the last tick
	)
	// lose ends conn. What waits in the box is dropped: raft will send something newer.
	lose := func(action string, err error) {
		p.status.deactivate(action, w.kind.String(), err)
		p.logger.Warn("lost TCP streaming connection with remote peer", w.fields(zap.Error(err))...)
		conn.close()
		conn = nil
		w.attached.Store(false)
		p.m.sentFailures.Inc()
		w.box.drop()
		p.t.reports.unreachable(p.id)
	}
	for {
		var ready, lost <-chan struct{}
		var beat <-chan time.Time
		if conn != nil {
			ready, lost, beat = w.box.ready, conn.lost, tick.C
		}
		select {
		case <-ready:
			idle = false
			msgs := w.box.take(spare)
			var err error
			for i, m := range msgs {
				enc.encode(&out, m)
				if n := out.bytes(); n >= flushBytes || i == len(msgs)-1 {
					if err = conn.write(&out); err != nil {
						break
					}
					p.m.sentBytes.Add(float64(n))
					out.reset()
				}
			}
			out.reset()
			clear(msgs) // before settle: what it frees must not be held here until the next batch
			w.box.settle()
			spare = msgs
			if cap(spare) > 1024 {
				spare = nil
			}
			if err != nil {
				lose("write", err)
			}
		case <-beat:
			if !idle {
				idle = true
				continue
			}
			enc.linkHeartbeat(&out)
			n := out.bytes()
			err := conn.write(&out)
			out.reset()
			if err != nil {
				lose("heartbeat", err)
				continue
			}
			p.m.sentBytes.Add(float64(n))
		case <-lost:
			lose("write", errHungUp)
		case o := <-w.conns:
			if conn != nil {
				w.sayTakenOver(conn.standing, o.standing)
				conn.close()
				w.attached.Store(false)
				p.logger.Warn("closed TCP streaming connection with remote peer", w.fields()...)
			}
			if w.box.drop() > 0 { // meant for the connection before
				p.t.reports.unreachable(p.id)
			}
			conn, idle = o, true
			w.standing.Store(o.standing)
			enc = messageEncoder{}
			if w.kind == streamBulk {
				enc = &msgappEncoder{}
			}
			p.logger.Info("set message encoder", zap.String("from", p.t.id), zap.String("to", p.name), zap.String("stream-type", w.kind.String()))
			p.status.activate()
			w.attached.Store(true)
			p.logger.Info("established TCP streaming connection with remote peer", w.fields()...)
		case <-p.ctx.Done():
			if conn != nil {
				w.attached.Store(false)
				conn.close()
				p.logger.Warn("closed TCP streaming connection with remote peer",
					zap.String("stream-writer-type", w.kind.String()), zap.String("remote-peer-id", p.name))
			}
			w.box.drop()
			p.logger.Info("stopped TCP streaming connection with remote peer",
				zap.String("stream-writer-type", w.kind.String()), zap.String("remote-peer-id", p.name))
			return
		}
	}
}

var (
	errHungUp              = errors.New("the peer closed the connection")
	errMemberRemoved       = errors.New("the member has been permanently removed from the cluster")
	errIncompatibleVersion = errors.New("incompatible version")
	errClusterIDMismatch   = errors.New("cluster ID mismatch")
	errNoURL               = errors.New("the peer has no valid URL")
)

// readStream dials the peer for one stream, reads it until it breaks, and starts again.
func (p *peer) readStream(kind streamKind) {
	fields := func(more ...zap.Field) []zap.Field {
		return append([]zap.Field{
			zap.String("stream-reader-type", kind.String()),
			zap.String("local-member-id", p.t.id),
			zap.String("remote-peer-id", p.name),
		}, more...)
	}
	p.logger.Info("started stream reader with remote peer", fields()...)
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-p.ctx.Done():
			p.logger.Info("stopped stream reader with remote peer", fields()...)
			return
		case <-pause.C:
		}
		started := time.Now()
		body, err := p.dialStream(kind)
		switch {
		case err != nil:
			p.status.deactivate("dial", kind.String(), err)
		default:
			p.status.activate()
			p.logger.Info("established TCP streaming connection with remote peer", fields()...)
			err = p.decode(kind, body)
			_ = body.Close() // given up either way
			if p.ctx.Err() != nil {
				break
			}
			p.logger.Warn("lost TCP streaming connection with remote peer", fields(zap.Error(err))...)
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				p.status.deactivate("read", kind.String(), err)
			}
		}
		pause.Reset(redialInterval - min(redialInterval, time.Since(started)))
	}
}

// dialStream opens a stream from the peer to us.
func (p *peer) dialStream(kind streamKind) (io.ReadCloser, error) {
	u := p.urls.pick()
	if u == nil {
		return nil, errNoURL
	}
	target := *u
	target.Path = kind.path() + p.t.id
	req, err := http.NewRequestWithContext(p.ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		p.urls.unreachable(u)
		return nil, fmt.Errorf("failed to make http request to %v (%w)", u, err)
	}
	p.t.setRequestHeaders(req.Header, p.id)
	req.Header.Set(peers.HeaderTo, p.name)
	p.logger.Debug("dial stream reader", zap.String("from", p.t.id), zap.String("to", p.name), zap.String("address", target.String()))
	resp, err := p.t.streamRT.RoundTrip(req)
	if err != nil {
		p.urls.unreachable(u)
		return nil, err
	}
	p.sawHeaders(resp.Header)
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	p.urls.unreachable(u)
	text := shortBody(resp)
	switch resp.StatusCode {
	case http.StatusGone:
		p.t.removed(errMemberRemoved)
		return nil, errMemberRemoved
	case http.StatusNotFound:
		return nil, fmt.Errorf("peer %s failed to find local node %s", p.name, p.t.id)
	case http.StatusPreconditionFailed:
		switch text {
		case errIncompatibleVersion.Error():
			p.logger.Warn("request sent was ignored by remote peer due to server version incompatibility",
				zap.String("local-member-id", p.t.id), zap.String("remote-peer-id", p.name), zap.Error(errIncompatibleVersion))
			return nil, errIncompatibleVersion
		case errClusterIDMismatch.Error():
			p.logger.Warn("request sent was ignored by remote peer due to cluster ID mismatch",
				zap.String("remote-peer-id", p.name), zap.String("remote-peer-cluster-id", resp.Header.Get(peers.HeaderCluster)),
				zap.String("local-member-id", p.t.id), zap.String("local-member-cluster-id", p.t.cluster), zap.Error(errClusterIDMismatch))
			return nil, errClusterIDMismatch
		}
		return nil, fmt.Errorf("unhandled error %q when precondition failed", text)
	default:
		return nil, fmt.Errorf("unhandled http status %d", resp.StatusCode)
	}
}

// shortBody reads an error's text and closes the body.
func shortBody(resp *http.Response) string {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // a text cut short is still a text
	_ = resp.Body.Close()
	return strings.TrimSuffix(string(b), "\n")
}

// decode reads a stream until it fails.
func (p *peer) decode(kind streamKind, body io.Reader) error {
	r := bufio.NewReaderSize(body, 64<<10)
	var dec frameDecoder
	if kind == streamBulk {
		dec = &msgappDecoder{r: r, local: p.t.cfg.MemberID, remote: p.id}
	} else {
		dec = &messageDecoder{r: r, limit: maxMessageBytes}
	}
	for {
		m, n, err := dec.decode()
		if err != nil {
			return err
		}
		p.m.receivedBytes.Add(float64(n))
		if m != nil {
			p.received(m)
		}
	}
}
