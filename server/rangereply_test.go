package server

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/rpc"
	"github.com/belaydb/belay/state"
)

// TestRangesAsEncodedBefore asks both servers for random ranges of random keys. Each answer is byte
// for byte what proto makes of the message that was made of all keys before, and each error is the
// same.
func TestRangesAsEncodedBefore(t *testing.T) {
	m := newMember(t)
	servers := []*grpc.ClientConn{
		serveOn(t, rpc.New(m.RPCOptions()), m.RegisterGRPC), serveOn(t, grpc.NewServer(m.GRPCOptions()...), m.RegisterGRPC),
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	granted, err := m.lease.LeaseGrant(t.Context(), &pb.LeaseGrantRequest{TTL: 1000, ID: math.MaxInt64 - 5})
	must(t, err)
	name := func() []byte { return fmt.Appendf(nil, "k/%04d", rng.IntN(1500)) }
	sizes := []int{0, 1, 100, 130, 300, 5000, 33000, 70000}
	for range 60 {
		txn, in := &pb.TxnRequest{}, map[string]bool{}
		for range 50 {
			key := name()
			if in[string(key)] {
				continue
			}
			in[string(key)] = true
			if rng.IntN(10) == 0 {
				txn.Success = append(txn.Success, opDelete(string(key), ""))
				continue
			}
			size := sizes[rng.IntN(5)]
			if rng.IntN(40) == 0 {
				size = sizes[rng.IntN(len(sizes))]
			}
			put := &pb.PutRequest{Key: key, Value: bytes.Repeat([]byte{byte(size)}, size)}
			if rng.IntN(4) == 0 {
				put.Lease = granted.ID
			}
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}})
		}
		_, err := m.kv.Txn(t.Context(), txn)
		must(t, err)
	}
	m.put("k/long"+string(bytes.Repeat([]byte("x"), 40<<10)), "value")
	_, err = m.kv.Compact(t.Context(), &pb.CompactionRequest{Revision: 5})
	must(t, err)

	encoded, large := 0, 0
	for i := range 400 {
		r := &pb.RangeRequest{Key: name(), RangeEnd: name(), Serializable: rng.IntN(2) == 0, KeysOnly: rng.IntN(4) == 0}
		switch rng.IntN(6) {
		case 0:
			r.Key, r.RangeEnd = []byte("k/"), []byte("k0")
		case 1:
			r.Key, r.RangeEnd = []byte{0}, []byte{0}
		case 2:
			r.RangeEnd = []byte{0}
		case 3:
			r.RangeEnd = nil
		}
		if rng.IntN(2) == 0 {
			r.Limit = rng.Int64N(300) - 2
		}
		if rng.IntN(2) == 0 {
			r.Revision = rng.Int64N(70)
		}
		switch rng.IntN(12) {
		case 0:
			r.SortOrder = pb.RangeRequest_ASCEND
		case 1:
			r.SortOrder, r.SortTarget = pb.RangeRequest_SortOrder(rng.IntN(4)), pb.RangeRequest_SortTarget(rng.IntN(6))
		case 2:
			r.MaxModRevision = rng.Int64N(60)
		case 3:
			r.CountOnly = true
		}
		var want []byte
		wantErr := checkRange(r)
		if wantErr == nil {
			resp, err := state.RangeResponse(t.Context(), m.cfg.KV, r)
			if wantErr = toGRPC(err); err == nil {
				m.Server.headers.fill(resp.Header)
				want, err = proto.Marshal(resp)
				must(t, err)
			}
		}
		if wantErr == nil && state.InOrder(r) {
			encoded++
			if len(want) > 4*pieceBytes {
				large++
			}
		}
		var opts []grpc.CallOption
		if rng.IntN(5) == 0 {
			opts = append(opts, grpc.UseCompressor(gzip.Name))
		}
		for s, conn := range servers {
			var got []byte
			err := conn.Invoke(t.Context(), pb.KV_Range_FullMethodName, r, &got, append(opts, grpc.ForceCodecV2(rawCodec{}))...)
			if fmt.Sprint(err) != fmt.Sprint(wantErr) {
				t.Fatalf("request %d, server %d, %v: got %v, want %v", i, s, r, err, wantErr)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("request %d, server %d, %v: %d bytes differ from %d", i, s, r, len(got), len(want))
			}
		}
	}
	if encoded < 100 || large < 10 {
		t.Errorf("%d ranges in order, %d of them large", encoded, large)
	}
}

// TestEncodedKeys: keys that are encoded one by one are the answer that proto makes of all of them,
// and are told of as such, wherever the pieces end.
func TestEncodedKeys(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	codec := newCountingCodec(NewMetrics(nil, MetricsOptions{}))
	for range 200 {
		r := &pb.RangeResponse{Header: &pb.ResponseHeader{ClusterId: 1, Revision: 1 << 40}, More: rng.IntN(2) == 0, Count: rng.Int64N(1 << 40)}
		rest := proto.Clone(r).(*pb.RangeResponse)
		e := new(encodedKeys)
		most := 1 << rng.IntN(18)
		one := &mvccpb.KeyValue{} // each key in the same memory, as the store shows them
		for range rng.IntN(600) {
			one.Key = bytes.Repeat([]byte{'k'}, rng.IntN(most/8+1))
			one.Value = bytes.Repeat([]byte{'v'}, rng.IntN(most))
			one.Lease, one.Version = rng.Int64N(3)*math.MaxInt64/2, 1
			one.CreateRevision, one.ModRevision = rng.Int64N(1<<30), rng.Int64N(1<<30)
			r.Kvs = append(r.Kvs, proto.Clone(one).(*mvccpb.KeyValue))
			e.add(one)
			clear(one.Key)
			clear(one.Value)
		}
		want, err := proto.Marshal(r)
		must(t, err)
		req := &pb.RangeRequest{Key: []byte("k")}
		reply := &rangeReply{rest, e}
		if got, want := requestStatsOf(req, reply), requestStatsOf(req, r); got != want {
			t.Fatalf("the log would say %+v, want %+v", got, want)
		}
		if got, want := fmt.Sprint(appendOps(nil, req, reply)), fmt.Sprint(appendOps(nil, req, r)); got != want {
			t.Fatalf("its use is %s, want %s", got, want)
		}
		bytesOf, keysOf := roughly(req, reply)
		if wantBytes, wantKeys := roughly(req, r); bytesOf != wantBytes || keysOf != wantKeys {
			t.Fatalf("it is roughly %d bytes of %d keys, want %d of %d", bytesOf, keysOf, wantBytes, wantKeys)
		}
		data, err := codec.Marshal(reply)
		must(t, err)
		if !bytes.Equal(data.Materialize(), want) {
			t.Fatalf("%d keys of up to %d bytes differ", len(r.Kvs), most)
		}
		if len(want) <= pieceBytes/2 && len(data) != 1 {
			t.Fatalf("%d bytes lie in %d pieces", len(want), len(data))
		}
		data.Free()
	}
	if got, want := requestStatsOf(&pb.RangeRequest{}, (*rangeReply)(nil)), requestStatsOf(&pb.RangeRequest{}, (*pb.RangeResponse)(nil)); got != want {
		t.Errorf("of a failed range the log would say %+v, want %+v", got, want)
	}
}

// TestSlowRangesAreToldAsBefore: the warning of a slow read is the same for either form of its answer.
func TestSlowRangesAreToldAsBefore(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	m := newReadMember(t, func(_ *Config, s *state.Config) { s.WarningApply, s.Logger = time.Nanosecond, zap.New(core) })
	for _, r := range []*pb.RangeRequest{
		{Key: []byte("long/"), RangeEnd: []byte("long0")},
		{Key: []byte("short/"), RangeEnd: []byte("short0"), Limit: 3},
		{Key: []byte("none/"), RangeEnd: []byte("none0")},
		{Key: []byte("long/"), RangeEnd: []byte("long0"), Revision: 10_000},
	} {
		text := func(call func() error) string {
			logs.TakeAll()
			err := call()
			line := logs.FilterMessage("apply request took too long").TakeAll()
			if len(line) != 1 {
				t.Fatalf("%d lines", len(line))
			}
			fields := line[0].ContextMap()
			return fmt.Sprint(fields["prefix"], fields["request"], fields["response"], fields["error"], err)
		}
		got := text(func() error { _, err := m.kv.Range(t.Context(), r); return err })
		want := text(func() error { _, err := m.Server.kv.Range(t.Context(), r); return err })
		if got != want {
			t.Errorf("%v: %s, want %s", r, got, want)
		}
	}
}

// endsAfter is a context that has ended when it has been asked a number of times.
type endsAfter struct {
	context.Context
	asked, most atomic.Int64
	err         error
}

func (e *endsAfter) Err() error {
	if e.asked.Add(1) > e.most.Load() {
		return e.err
	}
	return nil
}

// TestRangesGiveBackTheirRoom: whatever becomes of a long range after its first keys, what it held of
// turns and of the room for answers is free again.
func TestRangesGiveBackTheirRoom(t *testing.T) {
	m := newReadMember(t, func(c *Config, _ *state.Config) {
		c.AnswersBytes = 8 << 20
		c.Limits.AnswerBytes = longKeys * longBytes // and no room for the keys
	})
	until(t, "the keys are counted", func() bool { n, _ := m.cfg.KV.Estimate([]byte("long/"), []byte("long0")); return n > longKeys*3/4 })
	long := func() *pb.RangeRequest { return &pb.RangeRequest{Key: []byte("long/"), RangeEnd: []byte("long0")} }
	room := m.turns.answers
	check := func(t *testing.T, what string) {
		t.Helper()
		if n := room.Held(); n != 0 {
			t.Errorf("%s: %d bytes are held", what, n)
		}
		turn, err := m.turns.slots.Take(t.Context(), "somebody")
		must(t, err)
		turn()
	}
	t.Run("too large", func(t *testing.T) {
		_, err := m.kv.Range(t.Context(), long())
		checkStatus(t, err, codes.ResourceExhausted, mvccTooLarge)
		check(t, "too large")
	})
	// As readingStream calls it, with a context that ends while it reads.
	for name, end := range map[string]error{"canceled": context.Canceled, "late": context.DeadlineExceeded} {
		t.Run(name, func(t *testing.T) {
			entered := false
			for most := range int64(6) {
				ctx := &endsAfter{Context: t.Context(), err: end}
				ctx.most.Store(most)
				tn := &turn{Context: ctx, turns: m.turns, collects: true}
				r := long()
				r.Limit = 5000
				reply, err := m.Server.kv.rangeInTurn(tn, r)
				if err == nil {
					if reply.keys() != 5000 {
						t.Errorf("%d keys", reply.keys())
					}
					reply.encoded.drop()
				} else if status := toGRPC(end); err.Error() != status.Error() {
					t.Errorf("got %v, want %v", err, status)
				}
				entered = entered || err != nil && tn.hold != nil
				if err != nil && (tn.encoded.length() != 0 || len(tn.encoded.out) != 0) {
					t.Error("its pieces are not given back")
				}
				tn.end()
				tn.drop()
				check(t, name)
			}
			if !entered {
				t.Error("none has ended that held room")
			}
		})
	}
	// A client that reads nothing holds the room until its connection ends, and no turn.
	t.Run("slow reader", func(t *testing.T) {
		conn := serveMember(t, m.Server, fixedWindows())
		r := long()
		r.Limit = 5000
		for range 3 {
			unread, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, pb.KV_Range_FullMethodName)
			must(t, err)
			must(t, unread.SendMsg(r))
			must(t, unread.CloseSend())
		}
		until(t, "the answers are held", func() bool { return room.Held() > 2*5000*longBytes && room.Waiting() == 0 })
		until(t, "no turn is taken", func() bool { return !m.turns.slots.Contended() })
		must(t, conn.Close())
		until(t, "all is given back", func() bool {
			runtime.GC() // what grpc-go forgets
			return room.Held() == 0
		})
		check(t, "slow reader")
	})
	t.Run("what is held covers what is encoded", func(t *testing.T) {
		tn := &turn{Context: t.Context(), turns: m.turns, collects: true}
		tn.encoded = new(encodedKeys)
		r := long()
		r.Limit = 5000
		_, err := state.RangeEach(tn, m.cfg.KV, r, 0, tn.encoded.add)
		must(t, err)
		if tn.hold == nil || tn.hold.Bytes() < int64(tn.encoded.length()) {
			t.Errorf("%d bytes are encoded, and less is held", tn.encoded.length())
		}
		tn.encoded.drop()
		tn.end()
		tn.drop()
		check(t, "at the end")
	})
}

const mvccTooLarge = "etcdserver: the answer would be larger than --max-answer-bytes; ask for less at a time, or use RangeStream"

// BenchmarkRange reads ranges as they are served, and as they were: a message of all keys, encoded.
func BenchmarkRange(b *testing.B) {
	m := newMember(b)
	const keys, valueBytes = 10_000, 256
	for from := 0; from < keys; from += 100 {
		txn := &pb.TxnRequest{}
		for i := range 100 {
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{
				Key: fmt.Appendf(nil, "long/%05d", from+i), Value: bytes.Repeat([]byte{byte(i)}, valueBytes),
			}}})
		}
		_, err := m.kv.Txn(b.Context(), txn)
		must(b, err)
	}
	codec := m.calls.codec
	for _, limit := range []int64{1, 100, keys} {
		r := &pb.RangeRequest{Key: []byte("long/"), RangeEnd: []byte("long0"), Serializable: true, Limit: limit}
		b.Run(fmt.Sprintf("encoded/keys=%d", limit), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				tn := &turn{Context: b.Context(), turns: m.turns, collects: true}
				reply, err := m.Server.kv.rangeInTurn(tn, r)
				must(b, err)
				data, err := codec.Marshal(reply)
				must(b, err)
				data.Free()
				tn.end()
				tn.drop()
			}
		})
		b.Run(fmt.Sprintf("message/keys=%d", limit), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				resp, err := m.Server.kv.Range(b.Context(), r)
				must(b, err)
				data, err := codec.Marshal(resp)
				must(b, err)
				data.Free()
			}
		})
	}
}
