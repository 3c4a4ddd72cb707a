package transport

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/peers"
)

// Who may send what. Without client certificates anybody who reaches the peer port can claim to be
// a member: ids are no secret. So nothing here makes such a port safe. It turns away the wrong
// cluster, a stale configuration and strangers before anything of theirs is read, and it bounds
// what those who are let in can make this member hold:
//
//   - A request names its sender in its headers. That must be a member, by this member's own list
//     or by that of a member it knows (meet).
//   - Bodies being received are bounded for each member and in all (reception).
//   - A message comes from the member that sent it (checkSender). The Handler checks the rest.

// Why a request was refused: the values of the metric's label.
const (
	refusedCluster  = "cluster"  // another cluster
	refusedVersion  = "version"  // one that we do not speak to
	refusedSender   = "sender"   // the sender is no member, or is not named
	refusedRemoved  = "removed"  // it was one
	refusedReceiver = "receiver" // for another member
	refusedMessage  = "message"  // from another member than its sender, or of a type that none sends
	refusedBusy     = "busy"     // too much is being received
	refusedStream   = "stream"   // a stream that was taken over a moment ago
)

func (t *Transport) count(why string) { t.cfg.Metrics.refused.WithLabelValues(why).Inc() }

// occasionally decides when a line about refusals is due: strangers must not fill the log.
type occasionally struct {
	mu   sync.Mutex
	last time.Time
	n    int // unsaid since
}

// refusalLogInterval is how often refusals of one kind are logged.
const refusalLogInterval = time.Second

func (o *occasionally) due(now time.Time) (times int, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.n++
	if now.Sub(o.last) < refusalLogInterval {
		return 0, false
	}
	times, o.n, o.last = o.n, 0, now
	return times, true
}

var (
	errNoSender      = errors.New("the request does not say which member sends it")
	errSenderUnknown = errors.New("error sender not found") // etcd's text
)

// senderOf is the member that a request names as its sender. The error is nil if it is a member, as
// far as is known.
func (t *Transport) senderOf(h http.Header) (id uint64, err error) {
	id, err = strconv.ParseUint(h.Get(peers.HeaderFrom), 16, 64)
	if err != nil || id == 0 || id == t.cfg.MemberID {
		return 0, errNoSender
	}
	if t.peer(id) == nil && !t.meet(id, h) {
		return id, errSenderUnknown
	}
	return id, nil
}

// admitSender is the second step of every POST of the protocol, after admit: it finds the sender.
// If it returns false, it has answered the request.
func (t *Transport) admitSender(w http.ResponseWriter, r *http.Request) (id uint64, ok bool) {
	w.Header().Set("Connection", "close") // net/http would read a body of up to 256 KiB to its end
	if to := r.Header.Get(peers.HeaderTo); to != "" && to != t.id {
		t.logRefused(r, refusedReceiver, fmt.Errorf("it is for member %.32q", to))
		refuse(w, forAnother)
		return 0, false
	}
	if id, err := strconv.ParseUint(r.Header.Get(peers.HeaderFrom), 16, 64); err == nil && t.cfg.Handler.IsRemoved(id) {
		t.logRefused(r, refusedRemoved, errors.New(string(fromRemoved)))
		refuse(w, fromRemoved)
		return 0, false
	}
	id, err := t.senderOf(r.Header)
	if err != nil {
		t.logRefused(r, refusedSender, err)
		http.Error(w, err.Error(), http.StatusNotFound)
		return 0, false
	}
	w.Header().Del("Connection")
	return id, true
}

// logRefused counts a refused request and logs it, but not every one.
func (t *Transport) logRefused(r *http.Request, why string, err error) {
	t.count(why)
	if n, due := t.refusals.due(time.Now()); due {
		t.logger.Warn("refused a request on the peer port", zap.String("local-member-id", t.id), zap.String("why", why), zap.Error(err),
			zap.String("remote-addr", r.RemoteAddr), zap.String("path", r.URL.Path),
			zap.String("remote-peer-server-name", fmt.Sprintf("%.32s", r.Header.Get(peers.HeaderFrom))), zap.Int("refused-requests", n))
	}
}

// Members restricts next to members, by the headers of a request. A request without an id is let in
// if anonymous: etcd's members do not send it on every path.
func (t *Transport) Members(next http.Handler, anonymous bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		why, err := refusedSender, error(nil)
		if cluster := r.Header.Get(peers.HeaderCluster); cluster != "" && cluster != t.cluster {
			why, err = refusedCluster, errClusterIDMismatch
		} else if !anonymous || r.Header.Get(peers.HeaderFrom) != "" {
			_, err = t.senderOf(r.Header)
		}
		if err != nil {
			if why == refusedCluster {
				t.logOtherCluster(r)
			} else {
				t.logRefused(r, why, err)
			}
			t.setResponseHeaders(w.Header())
			w.Header().Set("Connection", "close")
			code := http.StatusNotFound
			switch {
			case why == refusedCluster:
				code = http.StatusPreconditionFailed
			case anonymous:
				code = http.StatusForbidden // on etcd's paths 404 means that a lease or a member does not exist
			}
			http.Error(w, err.Error(), code)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// meet decides about a sender that is no peer: a member that joined after the last entry of this
// one, which was away, or a stranger. If no other member is known, the sender is believed, as etcd
// believes all, and becomes a remote. Otherwise the known members are asked, and the sender may try
// again: raft does.
func (t *Transport) meet(id uint64, h http.Header) bool {
	if t.cfg.Handler.IsRemoved(id) {
		return false
	}
	var urls []string
	if s := h.Get(peers.HeaderPeerURLs); s != "" {
		urls = strings.Split(s, ",")
	}
	known := slices.DeleteFunc(slices.Collect(maps.Values(*t.peers.Load())), func(p *peer) bool { return p.urls.pick() == nil })
	if len(known) == 0 {
		return t.believe(id, urls)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped || t.asking || time.Since(t.asked) < askInterval {
		return false
	}
	t.asking = true
	t.wg.Go(func() {
		answered, found := t.ask(id, known)
		switch {
		case found != nil:
			t.AddRemote(id, found)
		case !answered:
			t.believe(id, urls)
		}
		t.mu.Lock()
		t.asking, t.asked = false, time.Now()
		t.mu.Unlock()
	})
	return false
}

func (t *Transport) believe(id uint64, urls []string) bool {
	if len(urls) == 0 {
		return false // it could not be answered
	}
	t.AddRemote(id, urls)
	return t.peer(id) != nil
}

const (
	// askInterval is the pause between requests about unknown senders.
	askInterval = 100 * time.Millisecond
	askTimeout  = time.Second
	// maxMembersBytes bounds a list of members.
	maxMembersBytes = 1 << 20
)

// ask asks known members for their lists, all at once, and returns the URLs of member id in the
// first that has it; answered: at least one member answered.
func (t *Transport) ask(id uint64, known []*peer) (answered bool, urls []string) {
	ctx, cancel := context.WithTimeout(t.ctx, askTimeout)
	defer cancel()
	var mu sync.Mutex
	var asking sync.WaitGroup
	for _, p := range known {
		asking.Go(func() {
			u := p.urls.pick()
			if u == nil {
				return
			}
			a, err := peers.At(ctx, t.Client(), u.String(), peers.Question{Path: peers.PathMembers, MaxAnswer: maxMembersBytes})
			var members []struct {
				ID       uint64   `json:"id"`
				PeerURLs []string `json:"peerURLs"`
			}
			if err != nil || a.OK() != nil || json.Unmarshal(a.Body, &members) != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			answered = true
			for _, m := range members {
				if m.ID == id && len(m.PeerURLs) > 0 && urls == nil {
					urls = m.PeerURLs
					cancel() // that will do
				}
			}
		})
	}
	asking.Wait()
	return answered, urls
}

// A reception bounds what is being received by POST /raft.
type reception struct {
	maxBytes, maxPeerBytes int64

	mu    sync.Mutex
	bytes int64
	posts int
	by    map[uint64]*receptionOf // only peers from which something is being received
}

type receptionOf struct {
	bytes int64
	posts int
}

const (
	// A peer sends on 4 connections; those of its previous life may still exist.
	maxPeerPosts = 16
	maxPosts     = 256
	// postStall and postWithin bound how long a body may make no progress, and how long it may
	// take.
	postStall  = 10 * time.Second
	postWithin = time.Minute
	// postChunk is the first piece of a body for which room is reserved.
	postChunk = 64 << 10
)

// begin takes a slot for a POST of a peer.
func (c *reception) begin(id uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	of := c.by[id]
	if c.posts >= maxPosts || (of != nil && of.posts >= maxPeerPosts) {
		return false
	}
	if of == nil {
		of = &receptionOf{}
		c.by[id] = of
	}
	c.posts++
	of.posts++
	return true
}

// grow reserves n more bytes for a POST that has begun.
func (c *reception) grow(id uint64, n int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	of := c.by[id]
	if c.bytes+n > c.maxBytes || of.bytes+n > c.maxPeerBytes {
		return false
	}
	c.bytes += n
	of.bytes += n
	return true
}

func (c *reception) shrink(id uint64, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bytes -= n
	c.by[id].bytes -= n
}

// end releases the slot of a POST and the bytes that it still had.
func (c *reception) end(id uint64, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	of := c.by[id]
	c.bytes -= bytes
	of.bytes -= bytes
	c.posts--
	if of.posts--; of.posts == 0 {
		delete(c.by, id)
	}
}

// errReceiving says that there is no room now.
var errReceiving = errors.New("too much is being received")

// A receivedBody is a POST's body in memory, with the bytes that it reserves until release.
type receivedBody struct {
	c     *reception
	id    uint64
	data  []byte
	bytes int64
}

// receive reads the body of a POST of peer id. It reserves room as the bytes arrive, not as they
// are announced.
func (c *reception) receive(id uint64, w http.ResponseWriter, r *http.Request) (*receivedBody, error) {
	if !c.begin(id) {
		return nil, errReceiving
	}
	b := &receivedBody{c: c, id: id}
	rc, until := http.NewResponseController(w), time.Now().Add(postWithin)
	defer func() { _ = rc.SetReadDeadline(time.Time{}) }() // not supported: then none was set
	limit := r.ContentLength
	if limit < 0 || limit > maxMessageBytes {
		limit = maxMessageBytes
	}
	for r.ContentLength != 0 {
		if len(b.data) == cap(b.data) {
			// One byte more than announced: the end is seen without growing.
			want := min(max(postChunk, 2*int64(cap(b.data))), limit+1)
			if want <= int64(len(b.data)) {
				b.release()
				return nil, errTooLarge
			}
			if !c.grow(id, want) {
				b.release()
				return nil, errReceiving
			}
			grown := make([]byte, len(b.data), want)
			copy(grown, b.data)
			b.data = grown
			c.shrink(id, b.bytes)
			b.bytes = want
		}
		deadline := time.Now().Add(postStall)
		if deadline.After(until) {
			deadline = until
		}
		if err := rc.SetReadDeadline(deadline); err != nil && !errors.Is(err, http.ErrNotSupported) {
			b.release()
			return nil, err
		}
		n, err := r.Body.Read(b.data[len(b.data):cap(b.data)])
		b.data = b.data[:len(b.data)+n]
		if err == io.EOF {
			break
		}
		if err != nil {
			b.release()
			return nil, err
		}
	}
	return b, nil
}

func (b *receivedBody) release() { b.c.end(b.id, b.bytes) }

// checkSender returns what is wrong with a message that member sender sent: its type, or who it is
// from. A follower passes on unchanged what was meant for the leader; so proposals, read index
// requests and transfer requests may come from any member.
func checkSender(m *raftpb.Message, sender, local uint64, known func(id uint64) bool) error {
	if _, ok := raftpb.MessageType_name[int32(m.GetType())]; !ok {
		return fmt.Errorf("a message of type %d, which is unknown", int32(m.GetType()))
	}
	switch m.GetType() {
	case raftpb.MsgHup, raftpb.MsgBeat, raftpb.MsgUnreachable, raftpb.MsgSnapStatus, raftpb.MsgCheckQuorum, raftpb.MsgForgetLeader,
		raftpb.MsgStorageAppend, raftpb.MsgStorageAppendResp, raftpb.MsgStorageApply, raftpb.MsgStorageApplyResp:
		return fmt.Errorf("a %s, which no member sends", m.GetType())
	case raftpb.MsgProp, raftpb.MsgReadIndex, raftpb.MsgTransferLeader:
		if from := m.GetFrom(); from == sender || from == local || known(from) {
			return nil
		}
	default:
		if m.GetFrom() == sender {
			return nil
		}
	}
	return fmt.Errorf("a %s from %s, sent by %s", m.GetType(), command.IDText(m.GetFrom()), command.IDText(sender))
}

// checkSender counts and logs what the function of the same name finds.
func (t *Transport) checkSender(m *raftpb.Message, sender uint64) error {
	err := checkSender(m, sender, t.cfg.MemberID, func(id uint64) bool { return t.peer(id) != nil })
	if err == nil {
		return nil
	}
	t.count(refusedMessage)
	if n, due := t.badMessages.due(time.Now()); due {
		t.logger.Warn("refused a Raft message that its sender may not send", zap.String("local-member-id", t.id),
			zap.String("remote-peer-id", command.IDText(sender)), zap.Error(err), zap.Int("refused-messages", n))
	}
	return err
}

// Streams that are taken over. A member that dials again replaces its stream, and must: this end
// may not have noticed that the previous one is gone. Anybody who claims to be that member can do
// the same. Nothing tells them apart (the addresses of members behind NAT or proxies vary, and
// certificates are often shared and renewed), so it is reported, and limited: otherwise two that
// fight over a stream would leave it to neither.

// streamHold is how long a new stream is not given to another address.
const streamHold = time.Second

// standing is the owner of a stream.
type standing struct {
	host        string // of the remote address
	address     string
	certificate [sha256.Size]byte // zero: none
	since       time.Time
	lost        <-chan struct{}
}

func standingOf(r *http.Request, now time.Time) *standing {
	s := &standing{host: r.RemoteAddr, address: r.RemoteAddr, since: now}
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		s.host = host
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		s.certificate = sha256.Sum256(r.TLS.PeerCertificates[0].Raw)
	}
	return s
}

func (s *standing) stands() bool {
	if s == nil {
		return false
	}
	select {
	case <-s.lost:
		return false
	default:
		return true
	}
}

// holds reports whether the stream must not be given to another owner now.
func (s *standing) holds(by *standing) bool {
	return s.stands() && s.host != by.host && by.since.Sub(s.since) < streamHold
}

// sayTakenOver logs that an established stream goes to another connection.
func (w *streamWriter) sayTakenOver(from, to *standing) {
	if !from.stands() {
		return
	}
	w.p.m.takenOver.Inc()
	fields := w.fields(zap.String("remote-addr-before", from.address), zap.String("remote-addr", to.address), zap.Duration("stood", to.since.Sub(from.since)))
	if from.host == to.host && bytes.Equal(from.certificate[:], to.certificate[:]) {
		w.p.logger.Info("a stream that stood is replaced: its peer has dialled again", fields...)
		return
	}
	w.p.logger.Warn("a stream that stood is taken over from another address, or with another certificate: if that is not the same member, somebody claims to be it",
		append(fields, zap.Bool("same-certificate", from.certificate == to.certificate))...)
}
