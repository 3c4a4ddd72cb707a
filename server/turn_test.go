package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"strings"
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

	"github.com/belaydb/belay/admission"
	"github.com/belaydb/belay/state"
)

const longKeys, longBytes = 6000, 100

// newReadMember is a member with much to read under long/, 600 KB and more, little under short/,
// and one turn.
func newReadMember(t *testing.T, edit ...func(*Config, *state.Config)) *member {
	m := newMember(t, edit...)
	m.turns.slots = admission.NewTurns(1, math.MaxInt, math.MaxInt)
	for from := 0; from < longKeys; from += 100 {
		txn := &pb.TxnRequest{}
		for i := range 100 {
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{
				Key: fmt.Appendf(nil, "long/%05d", from+i), Value: bytes.Repeat([]byte{byte(i)}, longBytes),
			}}})
		}
		_, err := m.kv.Txn(t.Context(), txn)
		must(t, err)
	}
	for i := range 50 {
		m.put(fmt.Sprintf("short/%d", i), "x")
	}
	// What is deleted is walked over, too.
	_, err := m.kv.Txn(t.Context(), &pb.TxnRequest{Success: ops(opPut("short/"))})
	must(t, err)
	return m
}

func streamAll(ctx context.Context, m *member, r *pb.RangeRequest) error {
	stream, err := m.kv.RangeStream(ctx, r)
	for err == nil {
		_, err = stream.Recv()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// TestLongReadsTakeTurns: with all turns taken whatever reads much waits, whichever way it reads,
// until it gets one or its client goes; whatever reads little does not.
func TestLongReadsTakeTurns(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	m := newReadMember(t, func(_ *Config, s *state.Config) { s.WarningApply, s.Logger = time.Nanosecond, zap.New(core) })
	long := func(edit func(*pb.RangeRequest)) *pb.RangeRequest {
		r := &pb.RangeRequest{Key: []byte("long/"), RangeEnd: []byte("long0")}
		if edit != nil {
			edit(r)
		}
		return r
	}
	short := func(edit func(*pb.RangeRequest)) *pb.RangeRequest {
		r := long(edit)
		r.Key, r.RangeEnd = []byte("short/"), []byte("short0")
		return r
	}
	get := func(r *pb.RangeRequest) func(context.Context) error {
		return func(ctx context.Context) error {
			resp, err := m.kv.Range(ctx, r)
			if err == nil && resp.Count == 0 {
				err = errors.New("nothing")
			}
			return err
		}
	}
	txn := func(r *pb.TxnRequest) func(context.Context) error {
		return func(ctx context.Context) error { _, err := m.kv.Txn(ctx, r); return err }
	}
	stream := func(r *pb.RangeRequest) func(context.Context) error {
		return func(ctx context.Context) error { return streamAll(ctx, m, r) }
	}
	serializable := func(r *pb.RangeRequest) { r.Serializable = true }
	descending := func(r *pb.RangeRequest) { r.SortOrder, r.Limit = pb.RangeRequest_DESCEND, 1 }
	filtered := func(r *pb.RangeRequest) { r.MinModRevision = math.MaxInt64 - 1 }
	type call struct {
		name string
		do   func(context.Context) error
	}
	compareLong := []*pb.Compare{{Key: []byte("long/"), RangeEnd: []byte("long0"), Target: pb.Compare_VERSION, Result: pb.Compare_GREATER, TargetUnion: &pb.Compare_Version{}}}
	longCalls := []call{
		{"linearizable", get(long(nil))},
		{"serializable", get(long(serializable))},
		{"sorted", get(long(descending))},
		{"filtered", get(long(filtered))},
		{"keys only", get(long(func(r *pb.RangeRequest) { r.KeysOnly = true }))},
		{"transaction", txn(&pb.TxnRequest{Success: ops(opRange(long(nil)))})},
		{"transaction of compares", txn(&pb.TxnRequest{Compare: compareLong, Success: ops(opRange(short(nil)))})},
		{"nested", txn(&pb.TxnRequest{Success: ops(&pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: ops(opRange(long(nil)))}}})})},
		{"stream", stream(long(nil))},
		{"HashKV", func(ctx context.Context) error { _, err := m.maintenance.HashKV(ctx, &pb.HashKVRequest{}); return err }},
		{"Hash", func(ctx context.Context) error { _, err := m.maintenance.Hash(ctx, &pb.HashRequest{}); return err }},
	}
	shortCalls := []call{
		{"key", get(&pb.RangeRequest{Key: []byte("long/00001")})},
		{"few keys", get(short(nil))},
		{"few keys, serializable", get(short(serializable))},
		{"few keys, sorted", get(short(descending))},
		{"few of many", get(long(func(r *pb.RangeRequest) { r.Limit = 100 }))},
		{"transaction", txn(&pb.TxnRequest{Success: ops(opRange(short(nil)))})},
		{"stream", stream(short(nil))},
		{"put", txn(&pb.TxnRequest{Success: ops(opPut("other"))})},
	}
	// As long as they are not counted, a range with a limit walks over all keys for its count.
	until(t, "the keys are counted", func() bool { n, _ := m.cfg.KV.Estimate([]byte("long/"), []byte("long0")); return n > longKeys*3/4 })
	for _, c := range longCalls {
		t.Run("long "+c.name, func(t *testing.T) {
			release, err := m.turns.slots.Take(t.Context(), "somebody")
			must(t, err)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			gone := make(chan error, 1)
			go func() { gone <- c.do(ctx) }()
			until(t, "it waits", func() bool { return m.turns.slots.Waiting() == 1 })
			if text := m.get("/metrics").Body.String(); !strings.Contains(text, "belay_readers_waiting 1\n") {
				t.Error("the metric does not tell")
			}
			for _, c := range shortCalls {
				if err := c.do(t.Context()); err != nil {
					t.Errorf("short %s: %v", c.name, err)
				}
			}
			cancel()
			checkStatus(t, <-gone, codes.Canceled, "context canceled")
			until(t, "it has gone", func() bool { return m.turns.slots.Waiting() == 0 })

			done := make(chan error, 1)
			go func() { done <- c.do(t.Context()) }()
			until(t, "it waits", func() bool { return m.turns.slots.Waiting() == 1 })
			logs.TakeAll()
			release()
			must(t, <-done)
			again, err := m.turns.slots.Take(t.Context(), "somebody") // it has given its turn back
			must(t, err)
			again()
		})
	}
	line := func() bool {
		for _, e := range logs.FilterMessage("apply request took too long").All() {
			if _, ok := e.ContextMap()["waited for a turn"]; ok {
				return true
			}
		}
		return false
	}
	release, err := m.turns.slots.Take(t.Context(), "somebody")
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- get(long(nil))(t.Context()) }()
	until(t, "it waits", func() bool { return m.turns.slots.Waiting() == 1 })
	release()
	must(t, <-done)
	if !line() {
		t.Errorf("no line tells of the wait: %v", logs.All())
	}
}

// TestLongCountsTakeTurns: a count whose keys must be walked over is a long read.
func TestLongCountsTakeTurns(t *testing.T) {
	m := newReadMember(t)
	tn := m.turns.newTurn(t.Context())
	defer tn.end()
	for range freeKeys/1024 - 1 {
		must(t, tn.Pace(1024, 0))
	}
	if tn.release != nil {
		t.Fatal("a turn for little")
	}
	must(t, tn.Pace(1024, 0))
	if tn.release == nil {
		t.Fatal("no turn for much")
	}
	tn.end()
	bytes := m.turns.newTurn(t.Context())
	defer bytes.end()
	must(t, bytes.Pace(1, freeBytes))
	if bytes.release == nil {
		t.Fatal("no turn for many bytes")
	}
}

// TestReadersShareTheirTurn: who has had a turn for long gives way to who waits, and takes another.
func TestReadersShareTheirTurn(t *testing.T) {
	m := newReadMember(t)
	giant := m.turns.newTurn(t.Context())
	defer giant.end()
	must(t, giant.take())
	other := m.turns.newTurn(t.Context())
	got := make(chan error, 1)
	go func() { got <- other.take() }()
	until(t, "it waits", m.turns.slots.Contended)
	must(t, giant.Pace(1, 1)) // not yet long
	if !m.turns.slots.Contended() {
		t.Fatal("it gave way at once")
	}
	giant.since = time.Now().Add(-2 * turnTime)
	paced := make(chan error, 1)
	go func() { paced <- giant.Pace(1, 1) }()
	must(t, <-got)
	other.end()
	must(t, <-paced)
	if giant.release == nil {
		t.Fatal("it goes on without a turn")
	}
}

// TestSlowClientsHoldNoTurn: answers that nobody reads are encoded and wait to be sent without a
// turn.
func TestSlowClientsHoldNoTurn(t *testing.T) {
	m := newReadMember(t)
	conn := serveMember(t, m.Server, fixedWindows()) // a connection of its own, with 64 KiB in flight
	request := &pb.RangeRequest{Key: []byte("long/"), RangeEnd: []byte("long0")}
	for range 3 {
		unread, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, pb.KV_Range_FullMethodName)
		must(t, err)
		must(t, unread.SendMsg(request))
		must(t, unread.CloseSend())
	}
	for range 3 {
		stream, err := pb.NewKVClient(conn).RangeStream(t.Context(), request)
		must(t, err)
		_ = stream
	}
	for range 10 {
		resp, err := m.kv.Range(t.Context(), request)
		must(t, err)
		if len(resp.Kvs) != longKeys {
			t.Fatalf("%d keys", len(resp.Kvs))
		}
	}
	release, err := m.turns.slots.Take(t.Context(), "somebody")
	must(t, err)
	release()
}

// TestLongAnswersAreWhole: what is encoded in a turn is what the client gets, compressed too.
func TestLongAnswersAreWhole(t *testing.T) {
	m := newReadMember(t)
	r := &pb.RangeRequest{Key: []byte("long/"), RangeEnd: []byte("long0")}
	want, err := state.RangeResponse(t.Context(), m.cfg.KV, r)
	must(t, err)
	for name, opts := range map[string][]grpc.CallOption{"plain": nil, "gzip": {grpc.UseCompressor(gzip.Name)}} {
		t.Run(name, func(t *testing.T) {
			got, err := m.kv.Range(t.Context(), r, opts...)
			must(t, err)
			m.checkHeader(got.Header, want.Header.Revision)
			txn, err := m.kv.Txn(t.Context(), &pb.TxnRequest{Success: ops(opRange(r))}, opts...)
			must(t, err)
			for _, got := range []*pb.RangeResponse{got, txn.Responses[0].GetResponseRange()} {
				got.Header = want.Header
				if !proto.Equal(got, want) {
					t.Errorf("another answer")
				}
			}
			stream, err := m.kv.RangeStream(t.Context(), r, opts...)
			must(t, err)
			var kvs []*mvccpb.KeyValue
			for {
				chunk, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				must(t, err)
				kvs = append(kvs, chunk.RangeResponse.Kvs...)
			}
			if !proto.Equal(&pb.RangeResponse{Kvs: kvs}, &pb.RangeResponse{Kvs: want.Kvs}) {
				t.Errorf("another stream")
			}
		})
	}
}

// TestRangeResponsePieces: a response in pieces is byte for byte proto's, wherever the pieces end.
func TestRangeResponsePieces(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	blob := func(most int) []byte { return []byte(strings.Repeat("x", rng.IntN(most))) }
	for range 100 {
		r := &pb.RangeResponse{Header: &pb.ResponseHeader{ClusterId: 1, Revision: 1 << 40}, More: rng.IntN(2) == 0, Count: rng.Int64N(1 << 40)}
		most := 1 << rng.IntN(18)
		for range rng.IntN(600) {
			r.Kvs = append(r.Kvs, &mvccpb.KeyValue{
				Key: blob(most/8 + 1), Value: blob(most), Lease: rng.Int64N(3), Version: 1,
				CreateRevision: rng.Int64N(1 << 30), ModRevision: rng.Int64N(1 << 30),
			})
		}
		want, err := proto.Marshal(r)
		must(t, err)
		got := rangeResponsePieces(r, rangeResponseSize(r))
		if !bytes.Equal(got.Materialize(), want) {
			t.Fatalf("%d keys of up to %d bytes differ", len(r.Kvs), most)
		}
		got.Free()
	}
}
