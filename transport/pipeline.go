package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/peers"
)

const (
	pipelineWorkers  = 4
	pipelineMessages = 64
	pipelineBytes    = 16 << 20
	// postTimeout bounds one POST of a message, so that a peer that accepts and never answers does
	// not hold a worker for ever.
	postTimeout = 10 * time.Second
)

// A pipeline POSTs single messages: to a peer whose streams are not established yet, and to a
// remote. Its goroutines exist only while there is work.
type pipeline struct {
	p *peer

	mu      sync.Mutex
	queue   []*raftpb.Message
	bytes   int64
	workers int
	stopped bool
}

func newPipeline(p *peer) *pipeline { return &pipeline{p: p} }

func (l *pipeline) put(m *raftpb.Message) bool {
	size := queuedBytes(m)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped || len(l.queue) >= pipelineMessages || (l.bytes > 0 && l.bytes+size > pipelineBytes) {
		return false
	}
	l.queue = append(l.queue, m)
	l.bytes += size
	if l.workers < pipelineWorkers {
		l.workers++
		l.p.t.wg.Go(l.work)
	}
	return true
}

func (l *pipeline) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = true
	l.queue, l.bytes = nil, 0
}

// spawn runs fn in a goroutine that Transport.Stop waits for; false if the peer was stopped.
func (l *pipeline) spawn(fn func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return false
	}
	l.p.t.wg.Go(fn)
	return true
}

func (l *pipeline) work() {
	for {
		l.mu.Lock()
		if len(l.queue) == 0 {
			l.workers--
			l.mu.Unlock()
			return
		}
		m := l.queue[0]
		l.queue[0] = nil
		l.queue = l.queue[1:]
		l.mu.Unlock()

		data := marshalMessage(m)
		err := l.post(data)

		l.mu.Lock()
		l.bytes = max(0, l.bytes-queuedBytes(m))
		l.mu.Unlock()
		p := l.p
		if err != nil {
			if p.ctx.Err() != nil {
				continue
			}
			p.status.deactivate("write", "pipeline", err)
			p.m.sentFailures.Inc()
			p.t.reports.unreachable(p.id)
			continue
		}
		p.status.activate()
		p.m.sentBytes.Add(float64(len(data)))
	}
}

func (l *pipeline) post(data []byte) error {
	ctx, cancel := context.WithTimeout(l.p.ctx, postTimeout)
	defer cancel()
	return l.p.post(ctx, l.p.t.requestRT, peers.PathRaft, "application/protobuf", bytes.NewReader(data), nil)
}

// post sends a POST of the peer protocol and turns the answer into an error.
func (p *peer) post(ctx context.Context, rt *peers.RoundTripper, path, contentType string, body io.Reader, header http.Header) error {
	unsent := func(err error) error {
		if c, ok := body.(io.Closer); ok { // otherwise net/http closes it
			_ = c.Close()
		}
		return err
	}
	u := p.urls.pick()
	if u == nil {
		return unsent(errNoURL)
	}
	target := *u
	target.Path = path
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target.String(), body)
	if err != nil {
		p.urls.unreachable(u)
		return unsent(err)
	}
	p.t.setRequestHeaders(req.Header, p.id)
	req.Header.Set(peers.HeaderTo, p.name)
	req.Header.Set("Content-Type", contentType)
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		p.urls.unreachable(u)
		return err
	}
	p.sawHeaders(resp.Header)
	err = p.checkPost(resp, &target)
	if err != nil {
		p.urls.unreachable(u)
		if errors.Is(err, errMemberRemoved) {
			p.t.removed(err)
		}
	}
	return err
}

// errBusy is the answer to a snapshot while another one is being received.
var errBusy = errors.New("the peer is busy receiving another snapshot")

func (p *peer) checkPost(resp *http.Response, target *url.URL) error {
	text := shortBody(resp)
	switch resp.StatusCode {
	case http.StatusNoContent:
		return nil
	case http.StatusForbidden:
		if !strings.Contains(text, string(fromRemoved)) { // etcd gives this answer to a message for another member, too
			return fmt.Errorf("%s refused the message: %s", target.Host, text)
		}
		return errMemberRemoved
	case http.StatusServiceUnavailable:
		return errBusy
	case http.StatusPreconditionFailed:
		switch text {
		case errIncompatibleVersion.Error():
			p.logger.Error("request sent was ignored by peer", zap.String("remote-peer-id", p.name))
			return errIncompatibleVersion
		case errClusterIDMismatch.Error():
			p.logger.Error("request sent was ignored due to cluster ID mismatch", zap.String("remote-peer-id", p.name),
				zap.String("remote-peer-cluster-id", resp.Header.Get(peers.HeaderCluster)), zap.String("local-member-cluster-id", p.t.cluster))
			return errClusterIDMismatch
		}
		if strings.Contains(text, string(forAnother)) {
			return fmt.Errorf("another member of the cluster answers at %s: %s", target.Host, text)
		}
		return fmt.Errorf("unhandled error %q when precondition failed", text)
	default:
		return fmt.Errorf("unexpected http status %s while posting to %q", http.StatusText(resp.StatusCode), target.String())
	}
}
