package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/state"
)

// For what only the leader can answer (renewals, remaining TTLs, promotions of learners) members
// ask it over HTTP on the peer port, in etcd's form, so that either side may be an etcd member.
// peerhttp.go serves these paths. Two Belays have a connection for renewals: renewals.go.

// forwardPause is the pause between two attempts, while there is no leader or it does not answer.
const forwardPause = 50 * time.Millisecond

// forwarder asks the leader.
type forwarder struct {
	memberID uint64
	raft     leadership
	member   func(id uint64) *command.Member // nil: it is none
	client   *http.Client                    // nil: other members cannot be reached
	timeout  time.Duration                   // of a call, all its tries together
	life     *lifetime
	renewals *renewals
	metrics  *Metrics
}

// leadership is who leads; replica.Replica knows.
type leadership interface {
	// Status is consistent: leader, term and role are of one moment.
	Status() replica.Status
	LeaderChanged() <-chan struct{} // closed at the next change of leader, to or from none included
}

// leading is the leader as a member that asks it knows it.
type leading struct {
	id      uint64
	changed <-chan struct{} // closed once another one may lead
}

// errNoPeerURLs says that the leader cannot be asked.
var errNoPeerURLs = errors.New("server: the leader has no peer URLs")

// atLeader runs here if this member leads, and otherwise there. Success is an answer, and so are
// errors that another attempt would not change: finalAnswer says which. It retries until the request
// timeout, since leaders change.
func (f *forwarder) atLeader(ctx context.Context, here func(context.Context) error, there func(context.Context, leading) error) error {
	bounded, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	for {
		changed := f.raft.LeaderChanged()
		leader := f.raft.Status().Leader
		switch {
		case leader == f.memberID:
			err := here(bounded)
			if !errors.Is(err, lease.ErrNotPrimary) && !errors.Is(err, replica.ErrNotLeader) {
				return forwardError(bounded, err)
			}
		case leader != 0:
			err := there(bounded, leading{leader, changed})
			if err == nil || finalAnswer(err) {
				return err
			}
			if errors.Is(err, errNoPeerURLs) {
				return replica.ErrNoLeader
			}
		}
		pause := time.NewTimer(forwardPause)
		select {
		case <-changed:
		case <-pause.C:
		case <-f.life.stopped.Done():
			return replica.ErrStopped
		case <-bounded.Done():
			pause.Stop()
			if leader == 0 {
				return replica.ErrNoLeader
			}
			return forwardError(bounded, bounded.Err())
		}
		pause.Stop()
	}
}

// forwardError turns our own timeout into the error that clients know; as in etcd, the end of the
// caller's context gives the same.
func forwardError(bounded context.Context, err error) error {
	if err == nil || bounded.Err() == nil || !errors.Is(err, bounded.Err()) {
		return err
	}
	if errors.Is(bounded.Err(), context.DeadlineExceeded) {
		return replica.ErrTimeout
	}
	return replica.ErrCanceled
}

func finalAnswer(err error) bool {
	return errors.Is(err, lease.ErrNotFound) || errors.Is(err, replica.ErrLearnerNotReady) ||
		errors.Is(err, state.ErrMemberNotFound) || errors.Is(err, state.ErrNotLearner)
}

// errNoSuchMember says that the leader is not known as a member yet.
var errNoSuchMember = errors.New("server: the leader is not among the members that are known")

// eachURL runs ask with each peer URL of the leader until one answers.
func (f *forwarder) eachURL(ctx context.Context, to leading, ask func(ctx context.Context, peerURL string) error) error {
	m := f.member(to.id)
	if m == nil {
		return errNoSuchMember
	}
	err := errNoPeerURLs
	for _, u := range m.PeerURLs {
		if err = ask(ctx, u); err == nil || finalAnswer(err) {
			break
		}
	}
	return err
}

// maxForwardedBytes bounds what is read of a leader's answer.
const maxForwardedBytes = 100 << 20

// post sends a request to a peer URL. The error is nil for any answer.
func (f *forwarder) post(ctx context.Context, peerURL, path, contentType string, body []byte, header http.Header) (status int, answer []byte, err error) {
	if f.client == nil {
		return 0, nil, errors.New("server: no way to other members")
	}
	if header == nil {
		header = http.Header{}
	}
	if contentType != "" {
		header.Set("Content-Type", contentType)
	}
	a, err := peers.At(ctx, f.client, peerURL,
		peers.Question{Method: http.MethodPost, Path: path, Header: header, Body: body, MaxAnswer: maxForwardedBytes})
	return a.Status, a.Body, err
}

// renew has the leader renew a lease: over the connection for that, or by a request.
func (f *forwarder) renew(ctx context.Context, to leading, id lease.ID) (ttl int64, err error) {
	if l := f.renewals.to(to.id); l != nil {
		f.metrics.forwarded[byConnection].Inc()
		return l.renew(ctx, to.changed, id)
	}
	f.metrics.forwarded[byRequest].Inc()
	err = f.eachURL(ctx, to, func(ctx context.Context, peerURL string) error {
		ttl, err = f.renewByRequest(ctx, peerURL, id)
		return err
	})
	return ttl, err
}

func (f *forwarder) renewByRequest(ctx context.Context, peerURL string, id lease.ID) (int64, error) {
	body, err := proto.Marshal(&pb.LeaseKeepAliveRequest{ID: int64(id)})
	if err != nil {
		return 0, err
	}
	answer, err := f.postLease(ctx, peerURL, peers.PathLeases, body)
	if err != nil {
		return 0, err
	}
	resp := &pb.LeaseKeepAliveResponse{}
	if err := proto.Unmarshal(answer, resp); err != nil {
		return 0, fmt.Errorf("server: answer of %s: %w", peerURL, err)
	}
	if resp.ID != int64(id) {
		return 0, errors.New("lease: renew id mismatch")
	}
	return resp.TTL, nil
}

func (f *forwarder) timeToLive(ctx context.Context, peerURL string, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	inner, err := proto.Marshal(&pb.LeaseTimeToLiveRequest{ID: r.ID, Keys: r.Keys})
	if err != nil {
		return nil, err
	}
	answer, err := f.postLease(ctx, peerURL, peers.PathLeasesInternal, wrapLease(inner))
	if err != nil {
		return nil, err
	}
	resp := &pb.LeaseTimeToLiveResponse{}
	if inner, err = unwrapLease(answer); err == nil {
		err = proto.Unmarshal(inner, resp)
	}
	if err != nil {
		return nil, fmt.Errorf("server: answer of %s: %w", peerURL, err)
	}
	if resp.ID != r.ID {
		return nil, errors.New("lease: TTL id mismatch")
	}
	return resp, nil
}

func (f *forwarder) postLease(ctx context.Context, peerURL, path string, body []byte) ([]byte, error) {
	code, answer, err := f.post(ctx, peerURL, path, "application/protobuf", body, nil)
	switch {
	case err != nil:
		return nil, err
	case code == http.StatusNotFound:
		return nil, lease.ErrNotFound
	case code == http.StatusRequestTimeout:
		return nil, errLeaseHTTPTimeout
	case code != http.StatusOK:
		return nil, fmt.Errorf("lease: unknown error(%s)", answer)
	}
	return answer, nil
}

// wrapLease and unwrapLease speak etcd's LeaseInternalRequest and -Response (server/lease/leasepb,
// not part of the API module): a message whose only field, 1, is the API's message.
//
//	+------+--------+---------------------------------+
//	| 0x0a | varint | LeaseTimeToLiveRequest/Response |
//	+------+--------+---------------------------------+
func wrapLease(inner []byte) []byte {
	b := protowire.AppendTag(nil, 1, protowire.BytesType)
	return protowire.AppendBytes(b, inner)
}

func unwrapLease(b []byte) (inner []byte, err error) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		b = b[n:]
		if num == 1 && typ == protowire.BytesType {
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return nil, protowire.ParseError(n)
			}
			inner, b = v, b[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return nil, protowire.ParseError(n)
		}
		b = b[n:]
	}
	return inner, nil
}

func (f *forwarder) promote(ctx context.Context, peerURL string, id uint64) ([]*command.Member, error) {
	header := http.Header{}
	for _, key := range []string{rpctypes.TokenFieldNameGRPC, rpctypes.TokenFieldNameSwagger} {
		if v := metadata.ValueFromIncomingContext(ctx, key); len(v) > 0 {
			header.Set("Authorization", v[0])
			break
		}
	}
	code, answer, err := f.post(ctx, peerURL, fmt.Sprintf("%s%d", peers.PathPromote, id), "", nil, header)
	text := string(answer)
	switch {
	case err != nil:
		return nil, err
	case code == http.StatusRequestTimeout:
		return nil, replica.ErrTimeout
	case code == http.StatusNotFound:
		return nil, state.ErrMemberNotFound
	case code == http.StatusPreconditionFailed && strings.Contains(text, replica.ErrLearnerNotReady.Error()):
		return nil, replica.ErrLearnerNotReady
	case code == http.StatusPreconditionFailed && strings.Contains(text, state.ErrNotLearner.Error()):
		return nil, state.ErrNotLearner
	case code != http.StatusOK:
		return nil, fmt.Errorf("member promote: unknown error(%s)", strings.TrimSpace(text))
	}
	var members []*command.Member
	if err := json.Unmarshal(answer, &members); err != nil {
		return nil, err
	}
	return members, nil
}
