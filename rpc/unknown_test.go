package rpc

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// serveOthers answers what is not registered: with the method's name, or an error for each message
// that is asked for as such.
func serveOthers(_ any, s grpc.ServerStream) error {
	path, _ := grpc.MethodFromServerStream(s)
	for {
		in := new(testpb.SimpleRequest)
		if err := s.RecvMsg(in); err != nil {
			return status.Errorf(codes.DataLoss, "%s: %v", path, err)
		}
		if st := in.GetResponseStatus(); st.GetCode() != 0 {
			return status.Error(codes.Code(st.GetCode()), st.GetMessage())
		}
		if err := s.SendMsg(&testpb.SimpleResponse{Username: path}); err != nil {
			return err
		}
	}
}

// TestUnknown: what serves the calls that are not registered does so as with grpc-go.
func TestUnknown(t *testing.T) {
	t.Parallel()
	o := testOptions()
	o.Unknown = serveOthers
	scenario := func(addr string) (out string) {
		r := connect(t, addr)
		for _, path := range []string{"/x.Y/Z", "/grpc.testing.TestService/None", "/grpc.testing.TestService/UnaryCall", "nothing", "/nothing", "/", "//", "/a/b/c"} {
			id := r.begin(callFields("", ":path", path), false)
			r.data(id, framed(&testpb.SimpleRequest{}), false)
			r.data(id, framed(&testpb.SimpleRequest{}), true)
			out += fmt.Sprintf("%s: %s\n", path, r.answer(id).bare())
		}
		id := r.begin(callFields("", ":path", "/x.Y/Z"), false)
		r.data(id, framed(&testpb.SimpleRequest{ResponseStatus: &testpb.EchoStatus{Code: 5, Message: "none"}}), true)
		return out + r.answer(id).bare()
	}
	want := scenario(serve(t, grpc.NewServer(grpc.ForceServerCodecV2(o.Codec), grpc.UnknownServiceHandler(serveOthers)), &echo{}))
	if !strings.Contains(want, "/x.Y/Z") {
		t.Fatalf("grpc-go's server answers %s", want)
	}
	if got := scenario(serve(t, ours(o), &echo{})); got != want {
		t.Errorf("ours:\n%s\ngrpc-go:\n%s", got, want)
	}
	var seen atomic.Pointer[grpc.StreamServerInfo]
	o.Stream = func(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		seen.Store(info)
		return handler(srv, s)
	}
	r := connect(t, serve(t, ours(o), &echo{}))
	id := r.begin(callFields("", ":path", "/x.Y/Z"), true)
	r.answer(id)
	if info := seen.Load(); info == nil || *info != (grpc.StreamServerInfo{FullMethod: "/x.Y/Z", IsClientStream: true, IsServerStream: true}) {
		t.Errorf("the interceptor sees %+v", info)
	}
}

type connectedKey struct{}

// TestConnected: each connection is told of once, with its peer, and so is its end, after which nothing
// of its answers is held.
func TestConnected(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"client", "stop", "graceful"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			var began, ended atomic.Int64
			o := testOptions()
			o.Connected = func(ctx context.Context) (context.Context, func()) {
				began.Add(1)
				held := new(atomic.Int64)
				return context.WithValue(ctx, connectedKey{}, held), func() {
					ended.Add(1)
					if held.Load() > 0 {
						t.Error("an answer is held when the connection is said to have ended")
					}
				}
			}
			k, s := &keeper{}, New(o)
			addr := serve(t, s, &echo{})
			s.Hot("/grpc.testing.TestService/UnaryCall", k.serve)
			var clients []*raw
			for i := range 3 {
				r := connect(t, addr)
				r.auto = false // it gives no windows back
				id := r.begin(callFields("UnaryCall"), false)
				r.data(id, framed(&testpb.SimpleRequest{}), true)
				call := k.wait(t, i+1)[i]
				held, ok := call.Context().Value(connectedKey{}).(*atomic.Int64)
				if !ok || held.Add(1) != 1 {
					t.Fatalf("the call of connection %d does not have its context", i+1)
				}
				call.ReplyEncoded(mem.BufferSlice{&heldBuffer{mem.SliceBuffer(make([]byte, 1<<20)), held}})
				clients = append(clients, r)
			}
			switch way {
			case "client":
				for _, r := range clients {
					r.nc.Close()
				}
			case "stop":
				s.Stop()
			default:
				stopped := stopping(s, true)
				for _, r := range clients {
					r.nc.Close() // it would wait for the answers to be read
				}
				<-stopped
			}
			eventually(t, "all have ended", func() bool { return ended.Load() == 3 })
			if n := began.Load(); n != 3 {
				t.Errorf("%d began", n)
			}
		})
	}
}

// heldBuffer counts itself until it is freed.
type heldBuffer struct {
	mem.Buffer
	held *atomic.Int64
}

func (b *heldBuffer) Free() { b.held.Add(-1) }

// TestCallMetadata: metadata goes with the answers of a Hot as with those of a handler.
func TestCallMetadata(t *testing.T) {
	t.Parallel()
	s := New(testOptions())
	addr := serve(t, s, &echo{})
	s.Hot("/grpc.testing.TestService/UnaryCall", func(c *Call, message []byte) bool {
		in := new(testpb.SimpleRequest)
		if proto.Unmarshal(message, in) != nil || in.GetResponseSize() < 0 {
			return false
		}
		c.SetMetadata(metadata.Pairs("x-header", "h"), metadata.Pairs("x-trailer", "t"))
		answer := protoMessage{&testpb.SimpleResponse{Payload: &testpb.Payload{Body: make([]byte, in.GetResponseSize())}}}
		switch code := in.GetResponseStatus().GetCode(); {
		case code != 0:
			c.Fail(status.Error(codes.Code(code), "as told"))
		case in.GetFillUsername():
			c.ReplyEncoded(mem.BufferSlice{mem.SliceBuffer(answer.AppendTo(nil))})
		default:
			c.Reply(answer)
		}
		return true
	})
	r := connect(t, addr)
	for _, c := range []struct {
		in   *testpb.SimpleRequest
		want []string
	}{
		{&testpb.SimpleRequest{ResponseSize: 10}, []string{":status: 200\ncontent-type: application/grpc\nx-header: h", "grpc-message: \ngrpc-status: 0\nx-trailer: t"}},
		{&testpb.SimpleRequest{ResponseSize: 10, FillUsername: true}, []string{":status: 200\ncontent-type: application/grpc\nx-header: h", "grpc-message: \ngrpc-status: 0\nx-trailer: t"}},
		{&testpb.SimpleRequest{ResponseSize: 100_000}, []string{":status: 200\ncontent-type: application/grpc\nx-header: h", "grpc-message: \ngrpc-status: 0\nx-trailer: t"}},
		{&testpb.SimpleRequest{ResponseStatus: &testpb.EchoStatus{Code: 5}}, []string{":status: 200\ncontent-type: application/grpc\nx-header: h", "grpc-message: as told\ngrpc-status: 5\nx-trailer: t"}},
	} {
		id := r.begin(callFields("UnaryCall"), false)
		r.data(id, framed(c.in), true)
		a := r.answer(id)
		if !slices.Equal(a.blocks, c.want) {
			t.Errorf("%v: %q, want %q", c.in, a.blocks, c.want)
		}
		if size := int(c.in.GetResponseSize()); size > 0 && len(a.data) != prefixBytes+proto.Size(&testpb.SimpleResponse{Payload: &testpb.Payload{Body: make([]byte, size)}}) {
			t.Errorf("%v: %d bytes", c.in, len(a.data))
		}
	}
}
