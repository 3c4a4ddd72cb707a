package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"go.etcd.io/etcd/api/v3/etcdserverpb/gw"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/server/electionpb"
	"github.com/belaydb/belay/server/lockpb"
)

// newGateway serves the services as JSON under /v3/, calling them over conn. Names are those of
// proto, zero values are left out, 64-bit numbers are strings, bytes are base64; unknown fields of
// a request are ignored.
func newGateway(conn *grpc.ClientConn, maxRequestBytes int) (http.Handler, error) {
	mux := runtime.NewServeMux(runtime.WithMarshalerOption(runtime.MIMEWildcard, &boundedMarshaler{
		Marshaler: &runtime.HTTPBodyMarshaler{Marshaler: &runtime.JSONPb{
			MarshalOptions:   protojson.MarshalOptions{UseProtoNames: true},
			UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: true},
		}},
		limit: jsonOverhead * int64(maxRequestBytes+recvOverheadBytes),
	}))
	ctx := context.Background() // its end would close conn, which is the caller's
	for _, register := range []func(context.Context, *runtime.ServeMux, *grpc.ClientConn) error{
		gw.RegisterKVHandler, gw.RegisterWatchHandler, gw.RegisterLeaseHandler, gw.RegisterClusterHandler,
		gw.RegisterMaintenanceHandler, gw.RegisterAuthHandler,
	} {
		if err := register(ctx, mux, conn); err != nil {
			return nil, err
		}
	}
	lock, election := lockpb.NewLockClient(conn), electionpb.NewElectionClient(conn)
	if err := errors.Join(
		handleCall(mux, "/v3/lock/lock", lockpb.Lock_Lock_FullMethodName, lock.Lock),
		handleCall(mux, "/v3/lock/unlock", lockpb.Lock_Unlock_FullMethodName, lock.Unlock),
		handleCall(mux, "/v3/election/campaign", electionpb.Election_Campaign_FullMethodName, election.Campaign),
		handleCall(mux, "/v3/election/proclaim", electionpb.Election_Proclaim_FullMethodName, election.Proclaim),
		handleCall(mux, "/v3/election/leader", electionpb.Election_Leader_FullMethodName, election.Leader),
		handleCall(mux, "/v3/election/resign", electionpb.Election_Resign_FullMethodName, election.Resign),
		handleObserve(mux, election),
	); err != nil {
		return nil, err
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v3/watch" || r.URL.Path == "/v3/lease/keepalive" {
			// A stream of requests is answered while it is being received. Over HTTP/1 the server
			// would stop reading it at the first answer. An error means HTTP/2, where this is not
			// necessary.
			_ = http.NewResponseController(w).EnableFullDuplex()
		}
		mux.ServeHTTP(w, r)
	}), nil
}

// message is a pointer to a generated message.
type message[T any] interface {
	*T
	proto.Message
}

// handleCall serves a unary call of a service that etcd's api module has no
// handlers for, as the generated ones do.
func handleCall[Req, Resp any, PReq message[Req], PResp message[Resp]](mux *runtime.ServeMux, path, method string,
	call func(context.Context, PReq, ...grpc.CallOption) (PResp, error),
) error {
	return mux.HandlePath(http.MethodPost, path, func(w http.ResponseWriter, r *http.Request, _ map[string]string) {
		in := PReq(new(Req))
		ctx, out, ok := gatewayRequest(mux, w, r, path, method, in)
		if !ok {
			return
		}
		var md runtime.ServerMetadata
		resp, err := call(ctx, in, grpc.Header(&md.HeaderMD), grpc.Trailer(&md.TrailerMD))
		ctx = runtime.NewServerMetadataContext(ctx, md)
		if err != nil {
			runtime.HTTPError(ctx, mux, out, w, r, err)
			return
		}
		runtime.ForwardResponseMessage(ctx, mux, out, w, r, resp, mux.GetForwardResponseOptions()...)
	})
}

func handleObserve(mux *runtime.ServeMux, client electionpb.ElectionClient) error {
	const path = "/v3/election/observe"
	return mux.HandlePath(http.MethodPost, path, func(w http.ResponseWriter, r *http.Request, _ map[string]string) {
		var in electionpb.LeaderRequest
		ctx, out, ok := gatewayRequest(mux, w, r, path, electionpb.Election_Observe_FullMethodName, &in)
		if !ok {
			return
		}
		var md runtime.ServerMetadata
		stream, err := client.Observe(ctx, &in)
		if err == nil {
			md.HeaderMD, err = stream.Header()
		}
		ctx = runtime.NewServerMetadataContext(ctx, md)
		if err != nil {
			runtime.HTTPError(ctx, mux, out, w, r, err)
			return
		}
		runtime.ForwardResponseStream(ctx, mux, out, w, r, func() (proto.Message, error) { return stream.Recv() }, mux.GetForwardResponseOptions()...)
	})
}

// gatewayRequest decodes a request's body into in and makes the context of the call; if it returns
// false, it has answered.
func gatewayRequest(mux *runtime.ServeMux, w http.ResponseWriter, r *http.Request, path, method string, in proto.Message) (context.Context, runtime.Marshaler, bool) {
	inbound, outbound := runtime.MarshalerForRequest(mux, r)
	ctx, err := runtime.AnnotateContext(r.Context(), mux, r, method, runtime.WithHTTPPathPattern(path))
	if err != nil {
		runtime.HTTPError(r.Context(), mux, outbound, w, r, err)
		return nil, nil, false
	}
	if err := inbound.NewDecoder(r.Body).Decode(in); err != nil && !errors.Is(err, io.EOF) {
		runtime.HTTPError(ctx, mux, outbound, w, r, status.Errorf(codes.InvalidArgument, "%v", err))
		return nil, nil, false
	}
	go readOn(r.Body)
	return ctx, outbound, true
}

// jsonOverhead is how much longer than its message a JSON request may be: six
// bytes for each of a string, and spaces.
const jsonOverhead = 8

// boundedMarshaler refuses requests whose JSON is longer than limit; etcd reads them into memory
// whatever their size. A stream of requests may be of any length: each request is bounded.
type boundedMarshaler struct {
	runtime.Marshaler
	limit int64
}

func (m *boundedMarshaler) NewDecoder(r io.Reader) runtime.Decoder {
	bounded := &boundedReader{Reader: r}
	inner := m.Marshaler.NewDecoder(bounded)
	return runtime.DecoderFunc(func(v any) error {
		bounded.left = m.limit
		err := inner.Decode(v)
		if bounded.left < 0 {
			err = fmt.Errorf("request body is larger than %d bytes", m.limit)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			go readOn(r) // nobody reads the stream of requests any further
		}
		return err
	})
}

// readOn reads the rest of a request's body: net/http notices that a client has gone only once the
// body has been read to its end, or cannot be. Otherwise a call that waits for something would not
// end, and its connection would not be closed.
func readOn(body io.Reader) { _, _ = io.Copy(io.Discard, body) }

// ContentType, Delimiter and StreamContentType are those of the inner marshaler, which an embedded
// interface hides.
func (m *boundedMarshaler) Delimiter() []byte { return []byte("\n") }

func (m *boundedMarshaler) StreamContentType(v any) string {
	if s, ok := m.Marshaler.(runtime.StreamContentType); ok {
		return s.StreamContentType(v)
	}
	return m.ContentType(v)
}

type boundedReader struct {
	io.Reader
	left int64 // negative: the limit was passed
}

func (r *boundedReader) Read(p []byte) (int, error) {
	if r.left < 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := r.Reader.Read(p)
	r.left -= int64(n)
	return n, err
}
