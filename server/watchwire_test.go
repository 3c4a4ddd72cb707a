package server

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/rpc"
	"github.com/belaydb/belay/state"
)

// rawCodec hands over the bytes of what comes, and encodes as proto does.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, err := proto.Marshal(v.(proto.Message))
	return mem.BufferSlice{mem.SliceBuffer(b)}, err
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// TestWatchesOnTheWire watches a random world over grpc-go and over Belay's own server, with and
// without compression: each message is what proto makes of it, byte for byte, and every watcher gets
// the events that the history has for it.
func TestWatchesOnTheWire(t *testing.T) {
	t.Parallel()
	m := newMember(t, func(c *Config, _ *state.Config) { c.MaxRequestBytes = 1 << 20 })
	own := rpc.New(m.RPCOptions())
	conns := []*grpc.ClientConn{m.conn, serveOn(t, own, m.RegisterGRPC)}
	creates := []*pb.WatchCreateRequest{
		{WatchId: 1, Key: []byte("a"), RangeEnd: []byte("z"), StartRevision: 2},
		{WatchId: 2, Key: []byte("k3"), StartRevision: 2, PrevKv: true},
		{WatchId: 3, Key: []byte("k"), RangeEnd: []byte("l"), StartRevision: 2, Fragment: true, PrevKv: true},
		{WatchId: 4, Key: []byte("a"), RangeEnd: []byte{0}, StartRevision: 2, Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}},
		{WatchId: 5, Key: []byte("k"), RangeEnd: []byte("l"), StartRevision: 2, Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}},
		{WatchId: 6, Key: []byte("k2"), RangeEnd: []byte("k4"), StartRevision: 2, Fragment: true},
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	desc := &grpc.StreamDesc{StreamName: "Watch", ServerStreams: true, ClientStreams: true}
	var streams []grpc.ClientStream
	for _, conn := range conns {
		for _, packed := range []bool{false, true} {
			opts := []grpc.CallOption{grpc.ForceCodecV2(rawCodec{}), grpc.MaxCallRecvMsgSize(64 << 20)}
			if packed {
				opts = append(opts, grpc.UseCompressor(gzip.Name))
			}
			stream, err := conn.NewStream(ctx, desc, pb.Watch_Watch_FullMethodName, opts...)
			must(t, err)
			for _, c := range creates {
				must(t, stream.SendMsg(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: c}}))
			}
			streams = append(streams, stream)
		}
	}
	r := rand.New(rand.NewPCG(7, 8))
	put := func() *pb.PutRequest {
		return &pb.PutRequest{Key: fmt.Appendf(nil, "k%d", r.IntN(8)), Value: bytes.Repeat([]byte{byte(r.Uint32())}, r.IntN(1<<r.IntN(13)))}
	}
	for i := range 200 {
		switch r.IntN(8) {
		case 0:
			_, err := m.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("k"), RangeEnd: fmt.Appendf(nil, "k%d", r.IntN(9))})
			must(t, err)
		case 1:
			txn := &pb.TxnRequest{}
			for k := range 1 + r.IntN(6) {
				txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{
					Key: fmt.Appendf(nil, "k%d", k), Value: bytes.Repeat([]byte("v"), r.IntN(1200)),
				}}})
			}
			_, err := m.kv.Txn(ctx, txn)
			must(t, err)
		case 2:
			m.put(fmt.Sprint("other", i), "v")
		default:
			_, err := m.kv.Put(ctx, put())
			must(t, err)
		}
	}
	// Twice as much as a request may have, with the previous values: it comes in fragments.
	for _, v := range []string{"one", "two"} {
		large := &pb.TxnRequest{}
		for k := range 6 {
			large.Success = append(large.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{
				Key: fmt.Appendf(nil, "k%d", k), Value: bytes.Repeat([]byte(v), 50_000),
			}}})
		}
		_, err := m.kv.Txn(ctx, large)
		must(t, err)
	}
	last := m.put("k3", "the end").Header.Revision
	_, err := m.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("k3")})
	must(t, err)
	last++
	var want [][]*mvccpb.Event
	for i, stream := range streams {
		got := make([][]*mvccpb.Event, len(creates)+1)
		ended, fragments := 0, 0
		for ended < 4 { // all that get the last deletion; the fifth has its last put
			var raw []byte
			must(t, stream.RecvMsg(&raw))
			resp := &pb.WatchResponse{}
			must(t, proto.Unmarshal(raw, resp))
			again, err := proto.MarshalOptions{Deterministic: true}.Marshal(resp)
			must(t, err)
			if !bytes.Equal(raw, again) {
				t.Fatalf("stream %d:\n got %x\nproto %x", i, raw, again)
			}
			if resp.Header.MemberId != testMember || resp.Header.ClusterId != testCluster || resp.Header.RaftTerm == 0 || resp.Canceled {
				t.Fatalf("stream %d: %v", i, resp)
			}
			if resp.Fragment {
				fragments++
			}
			if n := len(resp.Events); n > 0 {
				got[resp.WatchId] = append(got[resp.WatchId], resp.Events...)
				if resp.Events[n-1].Kv.ModRevision == last && resp.WatchId != 6 {
					ended++
				}
			}
		}
		if fragments == 0 {
			t.Errorf("stream %d has no fragment", i)
		}
		if want == nil {
			want = got
		}
		for id, events := range got {
			if id >= 5 { // the last of which may still be on its way
				continue
			}
			if len(events) != len(want[id]) {
				t.Fatalf("stream %d, watcher %d: %d events, the first stream had %d", i, id, len(events), len(want[id]))
			}
			for k, ev := range events {
				if !proto.Equal(ev, want[id][k]) {
					t.Fatalf("stream %d, watcher %d: %v, the first stream had %v", i, id, ev, want[id][k])
				}
			}
		}
	}
}
