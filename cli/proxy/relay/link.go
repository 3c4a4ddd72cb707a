package relay

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/cli/proxy/upstream"
)

const (
	// hopelessAfter is how long there may be no stream before clients are told: they may know another
	// proxy.
	hopelessAfter  = 15 * time.Second
	reconnectPause = 100 * time.Millisecond
	// unfitFor is how long a stream may stay at a member that was not fit for it when it began.
	unfitFor = time.Second
)

// A link keeps a stream of one method to some member. Its functions are called from its goroutine, and
// may wait for whoever owns what they change.
type link[Request, Response proto.Message] struct {
	cluster *upstream.Set
	method  string
	fresh   func() Response
	up      func(*sender[Request])
	got     func(*sender[Request], Response)
	down    func(*sender[Request])
	// hopeless: there is no stream, for no member knows a leader, or none can be reached for
	// hopelessAfter, or they refuse. It goes on trying.
	hopeless func(error)
}

func (l *link[Request, Response]) run(ctx context.Context) {
	var tried []*upstream.Member // since a response came
	failing := time.Now()
	for {
		heard, member, err := l.connect(ctx, tried)
		if ctx.Err() != nil {
			return
		}
		if heard {
			tried, failing = nil, time.Now()
		}
		if member != nil {
			tried = append(tried, member)
		}
		all := len(tried) >= len(l.cluster.Members())
		switch code := status.Code(err); {
		case noLeader(err):
			if all {
				l.hopeless(err)
			}
		case code == codes.Unavailable, code == codes.Canceled, code == codes.Internal, errors.Is(err, io.EOF):
			if time.Since(failing) > hopelessAfter {
				l.hopeless(status.Error(codes.Unavailable, status.Convert(err).Message()))
				failing = time.Now()
			}
		default: // such as a token that is none
			l.hopeless(err)
		}
		if all {
			tried = nil
		}
		if !heard {
			select {
			case <-time.After(reconnectPause):
			case <-ctx.Done():
				return
			}
		}
	}
}

// noLeader reports whether a member has ended a stream because it knows no leader.
func noLeader(err error) bool {
	s := status.Convert(err)
	return s.Code() == codes.Unavailable && s.Message() == status.Convert(rpctypes.ErrGRPCNoLeader).Message()
}

// connect opens a stream and reads it to its end; heard: something came.
func (l *link[Request, Response]) connect(ctx context.Context, except []*upstream.Member) (heard bool, member *upstream.Member, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, member, serving, err := l.cluster.OpenAt(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, l.method, except...)
	if err != nil {
		return false, member, err
	}
	if serving.Err() == nil {
		defer context.AfterFunc(serving, cancel)()
	} else {
		// No member is fit, and this one has the error that clients are to be told, such as that there
		// is no leader: it gets the time to say so. Then another may be fit.
		defer time.AfterFunc(unfitFor, cancel).Stop()
	}
	out := &sender[Request]{cancel: cancel, ready: make(chan struct{}, 1), member: member, serving: serving}
	go out.write(ctx, s)
	l.up(out)
	defer l.down(out)
	for {
		r := l.fresh()
		if err = s.RecvMsg(r); err != nil {
			return heard, member, err
		}
		heard = true
		l.got(out, r)
	}
}

// A sender is the sending side of a stream to a member. What waits to be sent are a few bytes for each
// watch that begins or ends, and each lease: who sends must never wait for the member, which may wait
// for it to read.
type sender[Request proto.Message] struct {
	cancel context.CancelFunc // ends the stream
	ready  chan struct{}      // something is queued
	// The member, and the context that ends when it is not fit for calls any more.
	member  *upstream.Member
	serving context.Context

	mu    sync.Mutex
	queue []Request
}

func (s *sender[Request]) send(r Request) {
	s.mu.Lock()
	s.queue = append(s.queue, r)
	s.mu.Unlock()
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

func (s *sender[Request]) write(ctx context.Context, to grpc.ClientStream) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.ready:
		}
		s.mu.Lock()
		queue := s.queue
		s.queue = nil
		s.mu.Unlock()
		for _, r := range queue {
			if to.SendMsg(r) != nil {
				return // the reader has the error
			}
		}
	}
}
