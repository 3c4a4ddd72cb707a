package transport

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/peers"
)

// Handler serves /raft and all below it. It must be served on the peer listener, beside whatever
// else is served there; the server should have no read or write timeout of its own.
func (t *Transport) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc(peers.PathRaft, t.servePipeline)
	mux.HandleFunc(peers.PathRaftStream, t.serveStream)
	mux.HandleFunc(peers.PathRaftSnapshot, t.serveSnapshot)
	mux.HandleFunc(peers.PathRaftProbing, t.serveProbing)
	return mux
}

func (t *Transport) serveProbing(w http.ResponseWriter, r *http.Request) {
	t.setResponseHeaders(w.Header())
	b, err := json.Marshal(probeAnswer{OK: true, Now: time.Now()})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(append(b, '\n')) // the prober sees a failed write itself
}

// admit is the first step of every request of the protocol except a probe: method, headers of the
// answer, version and cluster. If it returns false, it has answered the request.
func (t *Transport) admit(w http.ResponseWriter, r *http.Request, method string) bool {
	if r.Method != method {
		w.Header().Set("Allow", method)
		http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
		return false
	}
	t.setResponseHeaders(w.Header())
	if err := checkVersion(r.Header); err != nil {
		t.logIncompatible(r, refusedVersion, "failed version compatibility check", zap.Error(err))
		w.Header().Set("Connection", "close") // net/http would read a body of up to 256 KiB to its end
		http.Error(w, errIncompatibleVersion.Error(), http.StatusPreconditionFailed)
		return false
	}
	if r.Header.Get(peers.HeaderCluster) != t.cluster {
		t.logOtherCluster(r)
		w.Header().Set("Connection", "close")
		http.Error(w, errClusterIDMismatch.Error(), http.StatusPreconditionFailed)
		return false
	}
	if id, err := strconv.ParseUint(r.Header.Get(peers.HeaderFrom), 16, 64); err == nil {
		if p := t.peer(id); p != nil {
			p.sawHeaders(r.Header)
		}
	}
	return true
}

// logOtherCluster counts a request of another cluster's member and logs it, but not every one, in
// etcd's words: operators look for them when a member has the wrong token or directory.
func (t *Transport) logOtherCluster(r *http.Request) {
	t.logIncompatible(r, refusedCluster, "request cluster ID mismatch", zap.String("remote-peer-cluster-id", r.Header.Get(peers.HeaderCluster)))
}

// logIncompatible is logOtherCluster for every reason that the headers tell. The lines are etcd's, but
// for the address, by which an operator finds who it is; how many were not logged is told by the
// metric alone.
func (t *Transport) logIncompatible(r *http.Request, why, msg string, more ...zap.Field) {
	h := r.Header
	t.count(why)
	if _, due := t.refusals.due(time.Now()); !due {
		return
	}
	t.logger.Warn(msg, append([]zap.Field{
		zap.String("local-member-id", t.id),
		zap.String("local-member-cluster-id", t.cluster),
		zap.String("local-member-server-version", etcdVersion),
		zap.String("local-member-server-minimum-cluster-version", minClusterVersion),
		zap.String("remote-address", r.RemoteAddr),
		zap.String("remote-peer-server-name", h.Get(peers.HeaderFrom)),
		zap.String("remote-peer-server-version", h.Get(peers.HeaderVersion)),
		zap.String("remote-peer-server-minimum-cluster-version", h.Get(peers.HeaderMinCluster)),
	}, more...)...)
}

// logFailed logs that a message of a peer was not accepted, but not every time.
func (t *Transport) logFailed(sender uint64, err error) {
	if n, due := t.badMessages.due(time.Now()); due {
		t.logger.Warn("failed to process Raft message", zap.String("local-member-id", t.id), zap.String("remote-peer-id", command.IDText(sender)),
			zap.Error(err), zap.Int("failed-messages", n))
	}
}

// A rejection is why a message is not for this member. The first one is answered with 403, which
// ends its sender, so no other may be: etcd answers 403 to the second, too, but then members that
// have swapped addresses would believe that they were removed.
type rejection string

const (
	fromRemoved rejection = "cannot process message from removed member"
	forAnother  rejection = "cannot process message to mismatch member"
)

// code is the HTTP status of the answer.
func (r rejection) code() int {
	if r == fromRemoved {
		return http.StatusForbidden
	}
	return http.StatusPreconditionFailed
}

// accept returns why m is not for us, and logs it; "" if it is.
func (t *Transport) accept(m *raftpb.Message) rejection {
	if t.cfg.Handler.IsRemoved(m.GetFrom()) {
		t.logger.Warn("rejected Raft message from removed member",
			zap.String("local-member-id", t.id), zap.String("removed-member-id", command.IDText(m.GetFrom())))
		return fromRemoved
	}
	if m.GetTo() != t.cfg.MemberID {
		t.logger.Warn("rejected Raft message to mismatch member",
			zap.String("local-member-id", t.id), zap.String("mismatch-member-id", command.IDText(m.GetTo())))
		return forAnother
	}
	return ""
}

// refuse answers with etcd's JSON form of an error.
func refuse(w http.ResponseWriter, why rejection) {
	b, _ := json.Marshal(struct { // a struct of one string always marshals
		Message string `json:"message"`
	}{string(why)})
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(why.code())
	_, _ = w.Write(b) // nobody to tell
}

func (t *Transport) servePipeline(w http.ResponseWriter, r *http.Request) {
	if !t.admit(w, r, http.MethodPost) {
		return
	}
	sender, ok := t.admitSender(w, r)
	if !ok {
		return
	}
	failed := func(logged, answered string, err error) {
		if n, due := t.badMessages.due(time.Now()); due {
			t.logger.Warn(logged, zap.String("local-member-id", t.id), zap.String("remote-peer-id", command.IDText(sender)), zap.Error(err), zap.Int("failed-messages", n))
		}
		t.cfg.Metrics.receivedFailures.WithLabelValues(command.IDText(sender)).Inc()
		http.Error(w, answered, http.StatusBadRequest)
	}
	body, err := t.reception.receive(sender, w, r)
	if err != nil {
		w.Header().Set("Connection", "close")
		if errors.Is(err, errReceiving) {
			t.logRefused(r, refusedBusy, err)
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		failed("failed to read Raft message", "error reading raft message", err)
		return
	}
	defer body.release()
	m, err := unmarshalMessage(body.data)
	if err != nil {
		failed("failed to unmarshal Raft message", "error unmarshalling raft message", err)
		return
	}
	if m.GetType() == raftpb.MsgSnap {
		// Its data would be missing: snapshots have their own path.
		failed("unexpected Raft message type", "wrong raft message type", errors.New("MsgSnap without a body"))
		return
	}
	t.cfg.Metrics.receivedBytes.WithLabelValues(command.IDText(sender)).Add(float64(len(body.data)))
	if why := t.accept(m); why != "" {
		refuse(w, why)
		return
	}
	if err := t.checkSender(m, sender); err != nil {
		http.Error(w, "the sender may not send this raft message", http.StatusBadRequest)
		return
	}
	if err := t.cfg.Handler.Process(r.Context(), m); err != nil {
		t.logFailed(sender, err)
		w.Header().Set("Connection", "close")
		http.Error(w, "error processing raft message", http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (t *Transport) serveStream(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(peers.HeaderVersion, etcdVersion)
	if !t.admit(w, r, http.MethodGet) {
		return
	}
	var kind streamKind
	switch path.Dir(r.URL.Path) + "/" {
	case streamBulk.path():
		kind = streamBulk
	case streamControl.path():
		kind = streamControl
	default:
		t.logger.Debug("ignored unexpected streaming request path", zap.String("local-member-id", t.id),
			zap.String("remote-peer-id-stream-handler", t.id), zap.String("path", r.URL.Path))
		http.Error(w, "invalid path", http.StatusNotFound)
		return
	}
	name := path.Base(r.URL.Path)
	from, err := strconv.ParseUint(name, 16, 64)
	if err != nil {
		t.logger.Warn("failed to parse path into ID", zap.String("local-member-id", t.id),
			zap.String("remote-peer-id-stream-handler", t.id), zap.String("path", name), zap.Error(err))
		http.Error(w, "invalid from", http.StatusNotFound)
		return
	}
	ids := []zap.Field{zap.String("local-member-id", t.id), zap.String("remote-peer-id-stream-handler", t.id)}
	if t.cfg.Handler.IsRemoved(from) {
		t.logger.Warn("rejected stream from remote peer because it was removed", append(ids, zap.String("remote-peer-id-from", command.IDText(from)))...)
		http.Error(w, "removed member", http.StatusGone)
		return
	}
	p := t.peer(from)
	if p == nil || p.remote {
		if p == nil {
			t.meet(from, r.Header) // so that its messages can be answered
		}
		t.count(refusedSender)
		if _, due := t.refusals.due(time.Now()); due {
			t.logger.Warn("failed to find remote peer in cluster", append(ids, zap.String("remote-peer-id-from", command.IDText(from)),
				zap.String("cluster-id", t.cluster))...)
		}
		http.Error(w, errSenderUnknown.Error(), http.StatusNotFound)
		return
	}
	if to := r.Header.Get(peers.HeaderTo); to != t.id {
		t.logger.Warn("ignored streaming request; ID mismatch", append(ids, zap.String("remote-peer-id-header", to),
			zap.String("remote-peer-id-from", command.IDText(from)), zap.String("cluster-id", t.cluster))...)
		http.Error(w, "to field mismatch", http.StatusPreconditionFailed)
		return
	}
	if header := r.Header.Get(peers.HeaderFrom); header != p.name {
		t.logRefused(r, refusedSender, fmt.Errorf("a stream for member %s is asked for by member %.32q", p.name, header))
		http.Error(w, "from field mismatch", http.StatusPreconditionFailed)
		return
	}
	writer := p.control
	if kind == streamBulk {
		writer = p.bulk
	}
	to := standingOf(r, time.Now())
	if before := writer.standing.Load(); before.holds(to) {
		t.logRefused(r, refusedStream, fmt.Errorf("the stream was given to %s a moment ago", before.address))
		http.Error(w, "the stream was taken a moment ago", http.StatusServiceUnavailable)
		return
	}
	p.sawHeaders(r.Header)
	o, wait, err := t.takeOver(w)
	if err != nil {
		t.logger.Warn("failed to open a stream to remote peer", append(ids, zap.String("remote-peer-id-from", command.IDText(from)), zap.Error(err))...)
		return
	}
	o.standing = to
	to.lost = o.lost
	if !writer.attach(o) {
		o.close()
	}
	if wait {
		<-o.closed
	}
}

// takeOver answers 200 and returns the connection to stream on. Where the server hands over its
// connection, the body is sent as it is, ended by closing, without the chunks and the three buffers
// of net/http; where it does not (HTTP/2), the handler must wait for the end of the stream.
func (t *Transport) takeOver(w http.ResponseWriter) (o *outgoing, wait bool, err error) {
	rc := http.NewResponseController(w)
	conn, _, err := rc.Hijack()
	if errors.Is(err, http.ErrNotSupported) {
		w.WriteHeader(http.StatusOK)
		if err := rc.Flush(); err != nil {
			return nil, false, err
		}
		return &outgoing{timeout: t.cfg.WriteTimeout, w: w, rc: rc, closed: make(chan struct{})}, true, nil
	}
	if err != nil {
		http.Error(w, "cannot stream on this connection", http.StatusInternalServerError)
		return nil, false, err
	}
	var b bytes.Buffer
	b.WriteString("HTTP/1.1 200 OK\r\n")
	h := w.Header().Clone()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Connection", "close")
	h.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	if err := h.Write(&b); err != nil {
		_ = conn.Close() // the error says enough
		return nil, false, err
	}
	b.WriteString("\r\n")
	if err := conn.SetDeadline(time.Time{}); err != nil {
		_ = conn.Close()
		return nil, false, err
	}
	if err := conn.SetWriteDeadline(time.Now().Add(t.cfg.WriteTimeout)); err != nil {
		_ = conn.Close()
		return nil, false, err
	}
	if _, err := conn.Write(b.Bytes()); err != nil {
		_ = conn.Close()
		return nil, false, fmt.Errorf("write the response: %w", err)
	}
	return hijacked(conn, t.cfg.WriteTimeout), false, nil
}
