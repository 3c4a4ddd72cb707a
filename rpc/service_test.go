package rpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/gzip"
	encodingproto "google.golang.org/grpc/encoding/proto"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// echo is grpc's test service: it answers with what is asked for.
type echo struct {
	testpb.UnimplementedTestServiceServer
	block chan struct{} // EmptyCall waits for it, if it is not nil
}

func (e *echo) EmptyCall(ctx context.Context, in *testpb.Empty) (*testpb.Empty, error) {
	if e.block != nil {
		select {
		case <-e.block:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return in, nil
}

func (e *echo) UnaryCall(ctx context.Context, in *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	for _, v := range md["x-header"] {
		if err := grpc.SetHeader(ctx, metadata.Pairs("x-header", v, "x-bytes-bin", "\x00\xff")); err != nil {
			return nil, err
		}
	}
	for _, v := range md["x-trailer-bin"] {
		if err := grpc.SetTrailer(ctx, metadata.Pairs("x-trailer-bin", v)); err != nil {
			return nil, err
		}
	}
	if len(md["x-long-header"]) > 0 {
		if err := grpc.SendHeader(ctx, metadata.Pairs("x-long-header", strings.Repeat("h", 40000))); err != nil {
			return nil, err
		}
	}
	if st := in.GetResponseStatus(); st.GetCode() != 0 {
		s := status.New(codes.Code(st.GetCode()), st.GetMessage())
		if strings.HasPrefix(st.GetMessage(), "details") {
			s, _ = s.WithDetails(&errdetails.ErrorInfo{Reason: "r"})
		}
		return nil, s.Err()
	}
	if len(md["x-plain-error"]) > 0 {
		return nil, errors.New("a plain error")
	}
	user := ""
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		user = "somebody"
	}
	return &testpb.SimpleResponse{Username: user, Payload: &testpb.Payload{Body: filled(int(in.GetResponseSize()), byte(len(in.GetPayload().GetBody())))}}, nil
}

// filled is content that shows where a byte belongs.
func filled(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed + byte(i>>8) + byte(i)*7
	}
	return b
}

func (e *echo) StreamingOutputCall(in *testpb.StreamingOutputCallRequest, s grpc.ServerStreamingServer[testpb.StreamingOutputCallResponse]) error {
	for i, p := range in.GetResponseParameters() {
		if err := s.Send(&testpb.StreamingOutputCallResponse{Payload: &testpb.Payload{Body: filled(int(p.GetSize()), byte(i))}}); err != nil {
			return err
		}
	}
	return nil
}

func (e *echo) StreamingInputCall(s grpc.ClientStreamingServer[testpb.StreamingInputCallRequest, testpb.StreamingInputCallResponse]) error {
	sum := 0
	for {
		in, err := s.Recv()
		if err == io.EOF {
			return s.SendAndClose(&testpb.StreamingInputCallResponse{AggregatedPayloadSize: int32(sum)})
		}
		if err != nil {
			return err
		}
		sum += len(in.GetPayload().GetBody())
	}
}

func (e *echo) FullDuplexCall(s grpc.BidiStreamingServer[testpb.StreamingOutputCallRequest, testpb.StreamingOutputCallResponse]) error {
	for {
		in, err := s.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		for i, p := range in.GetResponseParameters() {
			if err := s.Send(&testpb.StreamingOutputCallResponse{Payload: &testpb.Payload{Body: filled(int(p.GetSize()), byte(i))}}); err != nil {
				return err
			}
		}
	}
}

// registrar is what both servers are.
type registrar interface {
	grpc.ServiceRegistrar
	Serve(net.Listener) error
	Stop()
	GracefulStop()
}

func testOptions() Options {
	return Options{Codec: encoding.GetCodecV2(encodingproto.Name), MaxRecvBytes: 1 << 20, MaxHeaderBytes: 64 << 10, KeepaliveMinTime: time.Minute}
}

// theirs is grpc-go's server with the options of ours.
func theirs(o Options) registrar {
	opts := []grpc.ServerOption{
		grpc.ForceServerCodecV2(o.Codec), grpc.MaxRecvMsgSize(o.MaxRecvBytes), grpc.MaxHeaderListSize(uint32(o.MaxHeaderBytes)),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: o.KeepaliveMinTime, PermitWithoutStream: o.PermitWithoutStream}), grpc.KeepaliveParams(o.Keepalive),
	}
	if o.MaxStreams != 0 {
		opts = append(opts, grpc.MaxConcurrentStreams(o.MaxStreams))
	}
	return grpc.NewServer(opts...)
}

func ours(o Options) registrar { return New(o) }

// hotServer is ours whose UnaryCall is a Hot, FullDuplexCall has a HotMessage, and what is streamed
// appends itself.
type hotServer struct{ *Server }

func hot(o Options) registrar {
	o.Codec = directCodec{o.Codec}
	return hotServer{New(o)}
}

// directCodec is a DirectCodec.
type directCodec struct{ encoding.CodecV2 }

func (directCodec) Direct(m any) (Message, bool) {
	out, ok := m.(*testpb.StreamingOutputCallResponse)
	return protoMessage{out}, ok
}

// begin makes them so. REQUIRES: the service is registered.
func (h hotServer) begin() {
	h.Hot("/grpc.testing.TestService/UnaryCall", hotEcho)
	h.HotMessages("/grpc.testing.TestService/FullDuplexCall", hotDuplex)
}

// hotEcho is echo.UnaryCall at once, or later, or by the handler after all.
func hotEcho(c *Call, message []byte) bool {
	in := new(testpb.SimpleRequest)
	md, _ := metadata.FromIncomingContext(c.Context())
	for name := range md {
		if strings.HasPrefix(name, "x-") {
			return false
		}
	}
	if proto.Unmarshal(message, in) != nil {
		return false
	}
	answer := func() {
		resp, err := (&echo{}).UnaryCall(c.Context(), in)
		if err != nil {
			c.Fail(err)
			return
		}
		c.Reply(protoMessage{resp})
	}
	switch in.GetResponseSize() % 3 {
	case 0:
		answer()
	case 1:
		go answer()
	default:
		message = bytes.Clone(message)
		go c.Delegate(message)
	}
	return true
}

// hotDuplex is echo.FullDuplexCall for messages that are answered with one.
func hotDuplex(_ context.Context, message []byte) (Message, bool) {
	in := new(testpb.StreamingOutputCallRequest)
	if proto.Unmarshal(message, in) != nil || len(in.GetResponseParameters()) != 1 {
		return nil, false
	}
	return protoMessage{&testpb.StreamingOutputCallResponse{Payload: &testpb.Payload{Body: filled(int(in.GetResponseParameters()[0].GetSize()), 0)}}}, true
}

type protoMessage struct{ proto.Message }

func (m protoMessage) Size() int { return proto.Size(m.Message) }

func (m protoMessage) AppendTo(b []byte) []byte {
	b, err := proto.MarshalOptions{}.MarshalAppend(b, m.Message)
	if err != nil {
		panic(err)
	}
	return b
}

// serve runs a server of the test service until the test ends and returns its address.
func serve(t testing.TB, s registrar, impl testpb.TestServiceServer) string {
	t.Helper()
	testpb.RegisterTestServiceServer(s, impl)
	if h, ok := s.(hotServer); ok {
		h.begin()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String()
}

func dial(t testing.TB, addr string, opts ...grpc.DialOption) testpb.TestServiceClient {
	t.Helper()
	cc, err := grpc.NewClient(addr, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return testpb.NewTestServiceClient(cc)
}

// stopping stops a server in the background; the channel is closed when it has stopped.
func stopping(s *Server, graceful bool) <-chan struct{} {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		if graceful {
			s.GracefulStop()
		} else {
			s.Stop()
		}
	}()
	return stopped
}

// eventually waits for a condition, with a deadline that only a failure meets.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}
