package listen

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// TestUnpackingTakesTurns: so many messages as there are slots are unpacked at the same time, and
// one that is broken, or is given up, leaves its slot.
func TestUnpackingTakesTurns(t *testing.T) {
	BoundUnpacking()
	var packed bytes.Buffer
	w, err := encoding.GetCompressor(gzip.Name).Compress(&packed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(w, strings.NewReader(strings.Repeat("x", 1<<16))); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		u := unpacker{encoding.GetCompressor(gzip.Name).(unpacker).Compressor, make(chan struct{}, 2)}
		var unpacked atomic.Int32
		give := make(chan struct{})
		for range 5 {
			go func() {
				r, err := u.Decompress(bytes.NewReader(packed.Bytes()))
				if err != nil {
					t.Error(err)
					return
				}
				unpacked.Add(1)
				<-give
				_ = r.(io.Closer).Close() // given up before its end
			}()
		}
		for want := int32(2); want <= 5; want++ {
			synctest.Wait()
			if n := unpacked.Load(); n != want {
				t.Fatalf("%d are unpacked at once, not %d", n, want)
			}
			give <- struct{}{}
		}
		give <- struct{}{}
		for range 5 {
			if _, err := u.Decompress(strings.NewReader("no gzip")); err == nil {
				t.Fatal("what is no gzip is unpacked")
			}
		}
		synctest.Wait()
		if len(u.slots) > 0 {
			t.Errorf("%d slots were not left", len(u.slots))
		}
	})
}

// TestUnpackingOverGRPC: grpc goes through the slots, and leaves them after what is too large as
// well.
func TestUnpackingOverGRPC(t *testing.T) {
	BoundUnpacking()
	ln := bufconn.Listen(1 << 20)
	srv := grpc.NewServer(grpc.MaxRecvMsgSize(1 << 10))
	healthpb.RegisterHealthServer(srv, health.NewServer())
	go func() { _ = srv.Serve(ln) }()
	defer srv.Stop()
	conn, err := grpc.NewClient("passthrough:x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := healthpb.NewHealthClient(conn)
	for range 50 {
		_, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{Service: strings.Repeat("x", 1<<20)}, grpc.UseCompressor(gzip.Name))
		if status.Code(err) != codes.ResourceExhausted {
			t.Fatal(err)
		}
		if _, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{}, grpc.UseCompressor(gzip.Name)); err != nil {
			t.Fatal(err)
		}
	}
	if u := encoding.GetCompressor(gzip.Name).(unpacker); len(u.slots) > 0 {
		t.Errorf("%d slots were not left", len(u.slots))
	}
}
