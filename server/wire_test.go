package server

import (
	"bytes"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/rpc"
)

// split cuts data into pieces of the sizes given, over and over.
func split(data []byte, sizes ...int) (s mem.BufferSlice) {
	for i := 0; len(data) > 0; i++ {
		n := min(len(data), max(0, sizes[i%len(sizes)]))
		if n == 0 && sizes[i%len(sizes)] != 0 {
			n = 1
		}
		s = append(s, mem.SliceBuffer(data[:n]))
		data = data[n:]
	}
	return s
}

// checkRead holds the codec against proto: same error or not, same message.
func checkRead(t *testing.T, data []byte, fresh func() proto.Message, sizes ...int) {
	t.Helper()
	codec := newCountingCodec(NewMetrics(nil, MetricsOptions{}))
	want := fresh()
	wantErr := proto.Unmarshal(data, want)
	owned := mem.BufferSlice{rpc.Owned{SliceBuffer: bytes.Clone(data)}}
	for _, in := range []mem.BufferSlice{split(data, sizes...), owned} {
		got := fresh()
		gotErr := codec.Unmarshal(in, got)
		if (wantErr != nil) != (gotErr != nil) {
			t.Fatalf("%x in pieces of %v (%d): error %v, proto says %v", data, sizes, len(in), gotErr, wantErr)
		}
		if wantErr == nil && !proto.Equal(want, got) {
			t.Fatalf("%x in pieces of %v (%d):\n got %v\nwant %v", data, sizes, len(in), got, want)
		}
	}
}

func freshPut() proto.Message   { return new(pb.PutRequest) }
func freshRange() proto.Message { return new(pb.RangeRequest) }

func TestReadRequests(t *testing.T) {
	long := bytes.Repeat([]byte("0123456789"), 3000)
	for _, m := range []proto.Message{
		&pb.PutRequest{},
		&pb.PutRequest{Key: []byte("k"), Value: []byte("v")},
		&pb.PutRequest{Key: []byte("k"), Value: long, Lease: -1, PrevKv: true, IgnoreValue: true, IgnoreLease: true},
		&pb.RangeRequest{Key: []byte("k")},
		&pb.RangeRequest{
			Key: long, RangeEnd: []byte{0}, Limit: 1, Revision: -2, SortOrder: pb.RangeRequest_DESCEND, SortTarget: -7,
			Serializable: true, KeysOnly: true, CountOnly: true,
			MinModRevision: math.MaxInt64, MaxModRevision: 1, MinCreateRevision: 2, MaxCreateRevision: math.MinInt64,
		},
	} {
		data, err := proto.Marshal(m)
		must(t, err)
		for _, sizes := range [][]int{{1}, {3, 0, 5}, {9}, {1000}, {1 << 20}} {
			checkRead(t, data, func() proto.Message { return m.ProtoReflect().New().Interface() }, sizes...)
		}
	}
}

// FuzzReadPut and FuzzReadRange hold the codec against proto.
func FuzzReadPut(f *testing.F) {
	seedRequests(f)
	f.Fuzz(func(t *testing.T, data []byte, a, b uint8) { checkRead(t, data, freshPut, max(1, int(a)), int(b)) })
}

func FuzzReadRange(f *testing.F) {
	seedRequests(f)
	f.Fuzz(func(t *testing.T, data []byte, a, b uint8) { checkRead(t, data, freshRange, max(1, int(a)), int(b)) })
}

func seedRequests(f *testing.F) {
	for _, m := range []proto.Message{
		&pb.PutRequest{Key: []byte("key"), Value: []byte("value"), Lease: 300, PrevKv: true},
		&pb.RangeRequest{Key: []byte("key"), RangeEnd: []byte("kez"), Limit: 7, SortOrder: 1, MaxCreateRevision: 1 << 40},
	} {
		data, err := proto.Marshal(m)
		must(f, err)
		f.Add(data, uint8(255), uint8(0))
		f.Add(append(data, data...), uint8(3), uint8(1))    // every field twice
		f.Add(append(data, 0x80, 1, 0), uint8(3), uint8(1)) // an unknown field
		f.Add(data[:len(data)-1], uint8(1), uint8(1))
	}
	f.Add([]byte{1<<3 | wireBytes, 0}, uint8(1), uint8(1)) // an empty field, written out
	f.Add([]byte{3<<3 | wireVarint, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, uint8(4), uint8(1))
}

func TestWriteResponses(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	number := func() int64 {
		switch rng.IntN(4) {
		case 0:
			return 0
		case 1:
			return -rng.Int64N(1 << 40)
		}
		return int64(rng.Uint64() >> rng.IntN(64))
	}
	blob := func() []byte { return make([]byte, rng.IntN(2)*rng.IntN(1<<rng.IntN(12))) }
	header := func() *pb.ResponseHeader {
		return &pb.ResponseHeader{ClusterId: uint64(number()), MemberId: uint64(number()), Revision: number(), RaftTerm: uint64(number())}
	}
	kv := func() *mvccpb.KeyValue {
		return &mvccpb.KeyValue{
			Key: blob(), CreateRevision: number(), ModRevision: number(), Version: number(), Value: blob(), Lease: number(),
		}
	}
	codec := newCountingCodec(NewMetrics(nil, MetricsOptions{}))
	check := func(m proto.Message) {
		t.Helper()
		want, err := proto.Marshal(m)
		must(t, err)
		got, err := codec.Marshal(m)
		must(t, err)
		if !bytes.Equal(got.Materialize(), want) {
			t.Fatalf("%v:\n got %x\nwant %x", m, got.Materialize(), want)
		}
		got.Free()
	}
	check((*pb.PutResponse)(nil))
	check(&pb.RangeResponse{})
	for range 2000 {
		put := &pb.PutResponse{Header: header()}
		if rng.IntN(2) == 0 {
			put.PrevKv = kv()
		}
		check(put)
		r := &pb.RangeResponse{Header: header(), More: rng.IntN(2) == 0, Count: number()}
		for range rng.IntN(4) {
			r.Kvs = append(r.Kvs, kv())
		}
		check(r)
	}
}

// randomKeyValue is what an event may hold; nil now and then.
func randomKeyValue(r *rand.Rand) *mvccpb.KeyValue {
	number := func() int64 { return int64(r.Uint64()) >> r.IntN(64) }
	text := func() []byte {
		if r.IntN(6) == 0 {
			return nil
		}
		b := make([]byte, 1<<r.IntN(9)+r.IntN(70))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	switch r.IntN(12) {
	case 0:
		return nil
	case 1:
		return &mvccpb.KeyValue{}
	}
	kv := &mvccpb.KeyValue{Key: text(), Value: text()}
	for _, field := range []*int64{&kv.CreateRevision, &kv.ModRevision, &kv.Version, &kv.Lease} {
		if r.IntN(3) > 0 {
			*field = number()
		}
	}
	return kv
}

// TestWatchAnswers: a response with events is written as proto writes it, byte for byte.
func TestWatchAnswers(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(5, 6))
	codec := newCountingCodec(NewMetrics(nil, MetricsOptions{}))
	var a watchAnswer
	var events, again []*mvccpb.Event
	copied := 0
	for i := range 10_000 {
		m := &pb.WatchResponse{
			Header:  &pb.ResponseHeader{ClusterId: r.Uint64() >> r.IntN(65), MemberId: r.Uint64() >> r.IntN(65), Revision: int64(r.Uint64() >> r.IntN(65)), RaftTerm: r.Uint64() >> r.IntN(65)},
			WatchId: int64(r.Uint64()) >> r.IntN(64), Created: r.IntN(9) == 0, Canceled: r.IntN(9) == 0, Fragment: r.IntN(3) == 0,
		}
		if r.IntN(4) == 0 {
			m.CompactRevision = int64(r.Uint64()) >> r.IntN(64)
		}
		again, events = events, nil
		for range 1 + r.IntN(4) {
			ev := &mvccpb.Event{Type: mvccpb.Event_EventType(r.IntN(2)), Kv: randomKeyValue(r)}
			if r.IntN(3) == 0 {
				ev.PrevKv = randomKeyValue(r)
			}
			events = append(events, ev)
			if n := proto.Size(ev); eventSize(ev) != n {
				t.Fatalf("%v: size %d, proto's %d", ev, eventSize(ev), n)
			}
		}
		switch r.IntN(8) { // watchers of one key get the same events one after the other
		case 0:
			events = append(again[:len(again):len(again)], events...)
		case 1:
			events = again[:r.IntN(len(again)+1)]
		case 2, 3, 4:
			events = again
		}
		if len(events) == 0 || i == 0 {
			events = []*mvccpb.Event{{Kv: randomKeyValue(r)}}
		}
		m.Events = slices.Clone(events) // the hub's are in a slice of each watcher
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		must(t, err)
		if r.IntN(20) == 0 {
			a.forget()
		}
		if !a.set(m) {
			t.Fatalf("left to proto: %v", m)
		}
		if a.lastCopied {
			copied++
		}
		if eventsSize(a.last) > repeatedBytes {
			t.Fatalf("%d bytes are remembered", eventsSize(a.last))
		}
		if got := a.AppendTo([]byte("before")); a.Size() != len(want) || string(got) != "before"+string(want) {
			t.Fatalf("%v:\n got %x\nwant %x", m, got, want)
		}
		data, err := codec.Marshal(&a)
		must(t, err)
		if got := data.Materialize(); !bytes.Equal(got, want) {
			t.Fatalf("the codec's: %x\nwant %x", got, want)
		}
		data.Free()
	}
	if copied < 1000 {
		t.Errorf("%d answers were copied: this tries little", copied)
	}
	for _, m := range []*pb.WatchResponse{
		{Header: &pb.ResponseHeader{}, Created: true},
		{Header: &pb.ResponseHeader{}, Canceled: true, CancelReason: "why", Events: []*mvccpb.Event{{}}},
		{Events: []*mvccpb.Event{{}}},
	} {
		if a.set(m) {
			t.Errorf("not left to proto: %v", m)
		}
	}
}
