package upstream

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

const (
	// readAttempts is how often a read is asked that members answer with Unavailable.
	readAttempts = 4
	// pause is the time before a request is repeated when every member has been asked.
	pause = 50 * time.Millisecond
)

// attempt is what the transport says about a request.
type attempt struct{ sent atomic.Bool }

type attemptKey struct{}

// sentHandler notes when a request may have left: grpc opens a stream on a connection, and tells
// it, before anything of the request is written. An attempt that grpc itself begins anew is one of
// which the member has said that it was not looked at.
type sentHandler struct{}

func (sentHandler) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (sentHandler) HandleRPC(ctx context.Context, s stats.RPCStats) {
	a, ok := ctx.Value(attemptKey{}).(*attempt)
	if !ok {
		return
	}
	switch s.(type) {
	case *stats.Begin:
		a.sent.Store(false)
	case *stats.OutHeader:
		a.sent.Store(true)
	}
}

func (sentHandler) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (sentHandler) HandleConn(context.Context, stats.ConnStats)                       {}

// A Request is one unary request.
type Request struct {
	Method string
	Frame  *Frame
	// Read: it may be asked twice.
	Read bool
	// Ordered, of a read: a response that is older than what the client had seen when it asked is not
	// taken.
	Ordered bool
	// MaxBytes bounds the response [Config.MaxRecvBytes]; see TooLarge.
	MaxBytes int64
	// Fresh, if not nil, makes the request to ask instead when a response was too old.
	Fresh func() *Frame
}

// A Response is the answer to a request, with what came beside it. Header and Trailer are set for
// an error, too.
type Response struct {
	Frame           Frame
	Header, Trailer metadata.MD
}

// Call asks a member, and others if the request certainly did not run or is a read. Its errors are
// those of the members, with their texts.
func (s *Set) Call(ctx context.Context, c *Client, r Request) (*Response, error) {
	started, floor := time.Now(), c.Seen()
	var tried []*Member
	for count := 1; ; count++ {
		m, serving, err := s.Pick(ctx, c, tried...)
		if err != nil {
			return &Response{}, err
		}
		resp, sent, err := s.ask(ctx, m, serving, &r)
		if err == nil {
			c.Advance(resp.Frame.Revision())
		}
		// What came for other calls of the client meanwhile says nothing: those under way together
		// are answered in any order. So only a serializable read can be too old; and a write must not
		// be asked twice, whatever its answer.
		if err == nil && r.Read && r.Ordered && resp.Frame.Revision() != 0 && resp.Frame.Revision() < floor {
			if count >= readAttempts {
				return resp, status.Error(codes.Unavailable, "belay proxy: the members that can be reached are behind what this connection has read")
			}
			if r.Fresh != nil {
				r.Frame, r.Fresh = r.Fresh(), nil
			}
			tried = append(tried, m)
			continue
		}
		if err == nil || !repeatable(ctx, &r, sent, err) || (sent && count >= readAttempts) || time.Since(started) > s.cfg.Patience {
			return resp, err
		}
		if tried = append(tried, m); len(tried) >= len(s.Members()) {
			tried = tried[:0]
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return resp, status.FromContextError(ctx.Err()).Err()
			}
		}
	}
}

// Advance notes that the client has seen a revision; 0 is that of a response that tells none.
func (c *Client) Advance(revision int64) {
	for {
		seen := c.seen.Load()
		if revision <= seen || c.seen.CompareAndSwap(seen, revision) {
			return
		}
	}
}

// Seen is the newest revision that a response had.
func (c *Client) Seen() int64 { return c.seen.Load() }

// ask asks one member; sent says whether the request may have run.
func (s *Set) ask(ctx context.Context, m *Member, serving context.Context, r *Request) (resp *Response, sent bool, err error) {
	resp = &Response{}
	caller := ctx
	// One that waits for a member in vain is asked elsewhere. A member that was not fit in the first
	// place is taken for its answer to a serializable read, or its error: see choose.
	if r.Read && serving.Err() == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(serving, cancel)()
	}
	a := &attempt{}
	opts := append(make([]grpc.CallOption, 0, 3), grpc.Header(&resp.Header), grpc.Trailer(&resp.Trailer))
	if r.MaxBytes > 0 && r.MaxBytes < int64(s.cfg.MaxRecvBytes) {
		opts = append(opts, grpc.MaxCallRecvMsgSize(int(r.MaxBytes)))
	}
	err = m.conn.Invoke(context.WithValue(ctx, attemptKey{}, a), r.Method, r.Frame, &resp.Frame, opts...)
	if status.Code(err) == codes.Canceled && caller.Err() == nil && ctx.Err() != nil {
		err = errLost
	}
	return resp, a.sent.Load(), Lost(err)
}

// TooLarge reports whether an error is that of a response which is larger than a Request's MaxBytes
// were, and how large it is. Nothing of it was kept.
func TooLarge(err error, maxBytes int64) (size int64, ok bool) {
	if maxBytes == 0 || status.Code(err) != codes.ResourceExhausted {
		return 0, false
	}
	var most int64
	_, err = fmt.Sscanf(status.Convert(err).Message(), tooLarge, &size, &most)
	// Those who refuse a request that is too long say the same of it, with their own bound.
	if err != nil || most != maxBytes {
		return 0, false
	}
	return size, true
}

// tooLarge is what the transport says of a message that is longer than it may be.
const tooLarge = "grpc: received message larger than max (%d vs. %d)"

// AskAt asks one member for a read, once. serving is the member's, as of OpenAt; the answer has
// maxBytes at most.
func (s *Set) AskAt(ctx context.Context, m *Member, serving context.Context, method string, f *Frame, maxBytes int) (*Frame, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(serving, cancel)()
	answer := &Frame{}
	return answer, m.conn.Invoke(ctx, method, f, answer, grpc.MaxCallRecvMsgSize(maxBytes))
}

// repeatable reports whether a request that failed may be asked again.
func repeatable(ctx context.Context, r *Request, sent bool, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	switch status.Code(err) {
	case codes.Unavailable:
		return r.Read || !sent
	case codes.Canceled: // by the member: the client is still there
		return r.Read
	}
	return false
}

// errLost is the end of a call that this side has given up, to the client that waits for it.
var errLost = status.Error(codes.Unavailable, "belay proxy: the member that was asked cannot be reached any more, or is not one of the cluster")

// Lost is an error of a stream as clients are told it. The transport's word for one that ends with the
// member's place in the Set is Canceled, which would say that the client has given up.
func Lost(err error) error {
	if s, ok := status.FromError(err); ok && s.Code() == codes.Canceled && s.Message() == connectionClosing {
		return errLost
	}
	return err
}

// connectionClosing is what the transport says of calls on a connection that this side has closed.
const connectionClosing = "grpc: the client connection is closing"

// Open opens a stream at a member. Until it returns without an error nothing has left that could
// have run. The stream's context is ctx.
func (s *Set) Open(ctx context.Context, c *Client, desc *grpc.StreamDesc, method string) (grpc.ClientStream, *Member, error) {
	started := time.Now()
	var tried []*Member
	for {
		m, _, err := s.Pick(ctx, c, tried...)
		if err != nil {
			return nil, nil, err
		}
		stream, err := m.conn.NewStream(ctx, desc, method)
		if err = Lost(err); err == nil || status.Code(err) != codes.Unavailable || ctx.Err() != nil || time.Since(started) > s.cfg.Patience {
			return stream, m, err
		}
		if !slices.Contains(tried, m) {
			tried = append(tried, m)
		}
		if len(tried) >= len(s.Members()) {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return nil, nil, status.FromContextError(ctx.Err()).Err()
			}
		}
	}
}

// OpenAt is Open at the one member that it returns, once, with the context that ends when the
// member is not fit any more.
func (s *Set) OpenAt(ctx context.Context, desc *grpc.StreamDesc, method string, except ...*Member) (grpc.ClientStream, *Member, context.Context, error) {
	m, serving, err := s.Pick(ctx, nil, except...)
	if err != nil {
		return nil, nil, nil, err
	}
	stream, err := m.conn.NewStream(ctx, desc, method)
	return stream, m, serving, err
}
