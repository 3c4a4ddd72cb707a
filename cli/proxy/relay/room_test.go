package relay

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/rpc"
)

// TestUnreadForwarded: what a proxy holds of answers that a client has asked for and does not read is
// bounded, and the client gets all of them when it reads.
func TestUnreadForwarded(t *testing.T) {
	t.Parallel()
	const size, calls, most = 600_000, 60, 16 << 20 // half of three quarters of what there is, and some
	value := bytes.Repeat([]byte("v"), size)
	for _, namespace := range []string{"", "ns/"} { // without handlers, and with
		t.Run(fmt.Sprintf("namespace %q", namespace), func(t *testing.T) {
			t.Parallel()
			member := newFake(t, 5, nil)
			member.value.Store(&value)
			r := serveAs(t, rpc.EngineBelay, Config{Namespace: namespace, UnreadBytes: 32 << 20}, member)
			begin := func() grpc.ClientStream {
				s, err := r.conn.NewStream(t.Context(), &grpc.StreamDesc{}, rangeMethod)
				if err == nil {
					err = s.SendMsg(&pb.RangeRequest{Key: []byte("k")})
				}
				if err == nil {
					err = s.CloseSend()
				}
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			end := func(s grpc.ClientStream) {
				resp := new(pb.RangeResponse)
				if err := s.RecvMsg(resp); err != nil {
					t.Error(err)
				}
				if n := proto.Size(resp); n < size {
					t.Errorf("an answer of %d bytes", n)
				}
			}
			var streams []grpc.ClientStream
			for range calls {
				streams = append(streams, begin())
			}
			for last, same := int64(-1), 0; same < 40; time.Sleep(5 * time.Millisecond) {
				held := r.Relay.server.UnreadBytes()
				if same++; held != last {
					last, same = held, 0
				}
				if held > most {
					t.Fatalf("%d bytes are held", held)
				}
			}
			var ends sync.WaitGroup
			for _, s := range streams {
				ends.Go(func() { end(s) })
			}
			ends.Wait()
			eventually(t, "nothing is held", func() bool { return r.Relay.server.UnreadBytes() == 0 && r.Relay.forwarded.Load() == 0 })
		})
	}
}

// TestLargeAnswers: an answer for which there was not enough room is asked for again, and the next at
// once with as much, however many calls are forwarded; an error that says the same of a request is
// passed on.
func TestLargeAnswers(t *testing.T) {
	t.Parallel()
	large := make([]byte, 3<<20)
	member := newFake(t, 5, nil)
	member.value.Store(&large)
	r := serveAs(t, rpc.EngineBelay, Config{}, member)
	kv := pb.NewKVClient(r.conn)
	for _, end := range []string{"", "l"} {
		for i, most := range []int64{2, 1, 1} {
			before := member.asked.Load()
			resp, err := kv.Range(t.Context(), &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte(end)}, grpc.MaxCallRecvMsgSize(1<<30))
			if err != nil || len(resp.Kvs) != 1 || len(resp.Kvs[0].Value) != len(large) {
				t.Fatalf("%v: %v", err, resp.GetCount())
			}
			if n := member.asked.Load() - before; n > most {
				t.Errorf("read %d to %q asked %d times", i, end, n)
			}
		}
	}
	eventually(t, "no call is forwarded any more", func() bool { return r.Relay.forwarded.Load() == 0 })
	long := &pb.RangeRequest{Key: make([]byte, 5<<20)} // of a member's bound, 4 MiB
	_, err := kv.Range(t.Context(), long, grpc.MaxCallSendMsgSize(1<<30))
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a request that is too long: %v", err)
	}
}
