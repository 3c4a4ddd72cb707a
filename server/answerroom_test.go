package server

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/rpc"
	"github.com/belaydb/belay/server/electionpb"
	"github.com/belaydb/belay/server/lockpb"
	"github.com/belaydb/belay/state"
)

// TestUnreadAnswers: what a member holds of answers that a client has asked for and does not read is
// bounded, however they are made, and the client gets all of them when it reads.
func TestUnreadAnswers(t *testing.T) {
	t.Parallel()
	const size, calls, most = 1 << 20, 60, 16 << 20 // half of three quarters of what there is, and some
	big := bytes.Repeat([]byte("v"), size)
	get := &pb.RangeRequest{Key: []byte("big")}
	op := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: get}}
	for _, c := range []struct {
		method  string
		request proto.Message
		least   int // bytes of an answer
		writes  bool
	}{
		{"Range", get, size, false},
		{"Range", &pb.RangeRequest{Key: []byte("big"), Serializable: true}, size, false},
		{"Range", &pb.RangeRequest{Key: []byte("big"), RangeEnd: []byte("bih"), Limit: 1}, size, false},
		{"Txn", &pb.TxnRequest{Success: []*pb.RequestOp{op}}, size, false},
		{"Txn", &pb.TxnRequest{Success: []*pb.RequestOp{op, putOp([]byte("small"), nil, 0)}}, size, true},
		{"DeleteRange", &pb.DeleteRangeRequest{Key: []byte("none"), PrevKv: true}, 0, true},
	} {
		t.Run(fmt.Sprintf("%s %.60v", c.method, c.request), func(t *testing.T) {
			t.Parallel()
			m := newMember(t, func(c *Config, _ *state.Config) { c.AnswersBytes = 32 << 20 })
			own := rpc.New(m.RPCOptions())
			conn := serveOn(t, own, m.RegisterGRPC, grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(2*size)), grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10))
			if _, err := pb.NewKVClient(conn).Put(t.Context(), &pb.PutRequest{Key: []byte("big"), Value: big}); err != nil {
				t.Fatal(err)
			}
			begin := func() grpc.ClientStream {
				s, err := conn.NewStream(t.Context(), &grpc.StreamDesc{}, "/etcdserverpb.KV/"+c.method)
				if err == nil {
					err = s.SendMsg(c.request)
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
				resp := new(pb.RangeResponse) // or another one: its size is looked at
				if err := s.RecvMsg(resp); err != nil {
					t.Error(err)
				}
				if n := proto.Size(resp); n < c.least {
					t.Errorf("an answer of %d bytes", n)
				}
			}
			end(begin()) // so it is known how large they are
			var streams []grpc.ClientStream
			for range calls {
				streams = append(streams, begin())
			}
			// No more come when it has been the same for a while; if that is too early, nothing is
			// missed but a chance to see that they are too many.
			for last, same := int64(-1), 0; same < 20; time.Sleep(5 * time.Millisecond) {
				held := own.UnreadBytes()
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
			waitUntil(t, "nothing is held", func() bool { return own.UnreadBytes() == 0 })
		})
	}
}

// TestWaitersHoldNoRoom: calls that wait for other clients hold nothing of the room for answers, or
// those that they wait for could not read any more.
func TestWaitersHoldNoRoom(t *testing.T) {
	t.Parallel()
	m := newMember(t)
	own := rpc.New(m.RPCOptions())
	conn := serveOn(t, own, m.RegisterGRPC)
	kv, locks, elections := pb.NewKVClient(conn), lockpb.NewLockClient(conn), electionpb.NewElectionClient(conn)
	const waiters = 5
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range 1 + waiters {
		all.Go(func() { _, _ = locks.Lock(ctx, &lockpb.LockRequest{Name: []byte("l")}) })
		all.Go(func() { _, _ = elections.Campaign(ctx, &electionpb.CampaignRequest{Name: []byte("e")}) })
	}
	waitUntil(t, "all have a place", func() bool {
		resp, err := kv.Range(t.Context(), &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, CountOnly: true})
		return err == nil && resp.Count == 2*(1+waiters)
	})
	waitUntil(t, "they hold nothing", func() bool { return own.UnreadBytes() == 0 })
	cancel()
	all.Wait()
}
