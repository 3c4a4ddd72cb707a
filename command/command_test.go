package command

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

func putRequest(n int) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{
		Header: &pb.RequestHeader{ID: 0x1234_5678_9abc_def0},
		Put:    &pb.PutRequest{Key: []byte("/registry/pods/default/web-0"), Value: bytes.Repeat([]byte("v"), n)},
	}
}

// requests returns a request of every kind the message knows (each field of it set alone), and the
// shapes of a put.
func requests(t testing.TB) map[string]*pb.InternalRaftRequest {
	all := map[string]*pb.InternalRaftRequest{
		"empty":       {},
		"id":          {ID: 7},
		"header only": {Header: &pb.RequestHeader{ID: 1}},
		"put":         putRequest(256),
		"bare put":    {Put: &pb.PutRequest{}},
		"no header":   {ID: 1 << 63, Put: &pb.PutRequest{Key: []byte("k")}},
		"empty header": {
			Header: &pb.RequestHeader{}, Put: &pb.PutRequest{Key: []byte("k")},
		},
		"all of put": {
			ID:     9,
			Header: &pb.RequestHeader{ID: 1<<64 - 1, Username: "ünï", AuthRevision: 300},
			Put:    &pb.PutRequest{Key: []byte{0}, Value: []byte{}, Lease: -1, PrevKv: true, IgnoreValue: true, IgnoreLease: true},
		},
		"put and range": {Put: &pb.PutRequest{Key: []byte("k")}, Range: &pb.RangeRequest{Key: []byte("k")}},
		"large":         putRequest(1 << 20),
	}
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 999, protowire.VarintType), 5)
	for _, where := range []string{"request", "put", "header"} {
		r := putRequest(3)
		switch where {
		case "request":
			r.ProtoReflect().SetUnknown(unknown)
		case "put":
			r.Put.ProtoReflect().SetUnknown(unknown)
		case "header":
			r.Header.ProtoReflect().SetUnknown(unknown)
		}
		all["unknown field in "+where] = r
	}
	fields := (&pb.InternalRaftRequest{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.Kind() != protoreflect.MessageKind {
			continue
		}
		r := putRequest(1)
		r.ProtoReflect().Set(f, r.ProtoReflect().NewField(f))
		all["put with "+string(f.Name())] = r
		r = &pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: uint64(i) + 1}}
		r.ProtoReflect().Set(f, r.ProtoReflect().NewField(f))
		all["only "+string(f.Name())] = r
	}
	if len(all) < 70 {
		t.Fatalf("only %d requests: has the message lost its fields?", len(all))
	}
	return all
}

func TestEncodeEqualsProto(t *testing.T) {
	for name, r := range requests(t) {
		t.Run(name, func(t *testing.T) {
			got, err := Encode(r)
			if err != nil {
				t.Fatal(err)
			}
			want, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("Encode %x\nproto  %x", got, want)
			}
			back, err := Decode(got)
			if err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(back, r) {
				t.Fatalf("Decode gives %v, want %v", back, r)
			}
			id := r.ID
			if id == 0 {
				id = r.GetHeader().GetID()
			}
			if RequestID(got) != id {
				t.Fatalf("RequestID %x, want %x", RequestID(got), id)
			}
		})
	}
}

func TestEncodeRefusesBadUTF8(t *testing.T) {
	r := putRequest(1)
	r.Header.Username = "\xff"
	if b, err := Encode(r); err == nil {
		t.Fatalf("encoded a name that is not UTF-8: %x", b)
	}
}

// The fast way must be taken for what the server sends, or the benchmark is all there is to tell.
func TestPlainPutTakesTheFastWay(t *testing.T) {
	for name, r := range requests(t) {
		data, err := Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		if plain := isPlainPut(r); plain != (decodePlainPut(data) != nil) {
			t.Errorf("%s: encoded by hand %v, decoded by hand %v", name, plain, !plain)
		}
	}
	if !isPlainPut(putRequest(1)) {
		t.Error("a put with a header is not a plain put")
	}
}

func TestIncompletePayloads(t *testing.T) {
	whole, err := Encode(putRequest(300))
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		_, err := Decode(whole[:n])
		if want := proto.Unmarshal(whole[:n], new(pb.InternalRaftRequest)); (err == nil) != (want == nil) {
			t.Fatalf("first %d bytes: Decode says %v, proto %v", n, err, want)
		}
		RequestID(whole[:n])
	}
}

// decodeSlowly is what Decode must give.
func decodeSlowly(data []byte) (*pb.InternalRaftRequest, error) {
	req := new(pb.InternalRaftRequest)
	err := proto.Unmarshal(data, req)
	if err != nil || len(req.ProtoReflect().GetUnknown()) > 0 {
		if old, ok, err := FromV2(data); ok {
			return old, err
		}
	}
	return req, err
}

// What Check lets pass is decoded when it is applied, where an error ends the member.
func TestCheckIsDecode(t *testing.T) {
	check := func(what string, data []byte) {
		t.Helper()
		_, want := decodeSlowly(data)
		if err := Check(data); (err == nil) != (want == nil) {
			t.Fatalf("%s: Check says %v, proto %v: %x", what, err, want, data)
		}
		// Nothing that it accepts at first sight is wrong; that is what is fast.
		if requestShape().accepts(data, 0) && want != nil {
			t.Fatalf("%s: accepted, proto %v: %x", what, want, data)
		}
	}
	deep := &pb.TxnRequest{}
	for range 3 * maxCheckedDepth {
		deep = &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: deep}}}}
	}
	all := requests(t)
	all["deep"] = &pb.InternalRaftRequest{Txn: deep}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for name, req := range all {
		data, err := Encode(req)
		if err != nil {
			t.Fatal(err)
		}
		check(name, data)
		if name != "deep" && !requestShape().accepts(data, 0) {
			t.Errorf("%s: the fast way does not know it", name)
		}
		if len(data) == 0 || len(data) > 10_000 {
			continue
		}
		for range 2000 {
			bad := bytes.Clone(data)
			for range 1 + r.IntN(3) {
				bad[r.IntN(len(bad))] = byte(r.IntN(256))
			}
			check(name, bad[:r.IntN(len(bad)+1)])
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	txn := &pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: 1 << 60}, Txn: &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: []byte("/registry/pods/default/web-0"), Target: pb.Compare_MOD, TargetUnion: &pb.Compare_ModRevision{ModRevision: 1 << 40}}},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: putRequest(1000).Put}}},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("/registry/pods/default/web-0")}}}},
	}}
	for name, req := range map[string]*pb.InternalRaftRequest{"put": putRequest(256), "txn": txn} {
		data, err := Encode(req)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := Check(data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	for _, r := range requests(f) {
		if data, err := Encode(r); err == nil && len(data) < 1000 {
			f.Add(data)
		}
	}
	f.Add([]byte{0x22, 0x00, 0x22, 0x00})       // a put twice
	f.Add([]byte{0x22, 0x04, 0x0a, 0, 0x0a, 0}) // a key twice
	f.Add([]byte{0x22, 0x02, 0x20, 0x02})       // a bool of 2
	f.Add([]byte{0xa2, 0x06, 0x03, 0x12, 0x01, 0xff, 0x22, 0x00})
	f.Add(requestOfV2("PUT", "/0/version", "3.5.0"))
	f.Add(requestOfV2("PUT", "/0/members/abc/attributes", `{"name":"m1"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		want, wantErr := decodeSlowly(data)
		got, err := Decode(bytes.Clone(data))
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("Decode says %v, proto %v", err, wantErr)
		}
		if checked := Check(data); (checked == nil) != (wantErr == nil) {
			t.Fatalf("Check says %v, proto %v", checked, wantErr)
		}
		id := RequestID(data)
		if err != nil {
			return
		}
		if (got == nil) != (want == nil) || !proto.Equal(got, want) {
			t.Fatalf("Decode gives %v\nproto      %v", got, want)
		}
		if _, ok, _ := FromV2(data); ok {
			return
		}
		wantID := want.ID
		if wantID == 0 {
			wantID = want.GetHeader().GetID()
		}
		if id != wantID {
			t.Fatalf("RequestID %x, want %x", id, wantID)
		}
		again, err := Encode(got)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := proto.MarshalOptions{Deterministic: true}.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if isPlainPut(got) && !bytes.Equal(again, plain) {
			t.Fatalf("Encode %x\nproto  %x", again, plain)
		}
	})
}

// The JSON forms below were written by etcd 3.7's membership package.
func TestChangeForms(t *testing.T) {
	for _, c := range []struct {
		change Change
		json   string
	}{
		{Change{ID: 1, Type: raftpb.ConfChangeAddNode, MemberID: 2, Member: Member{ID: 2, PeerURLs: []string{"http://a:1", "http://b:2"}}},
			`{"id":2,"peerURLs":["http://a:1","http://b:2"],"isPromote":false}`},
		{Change{ID: 2, Type: raftpb.ConfChangeAddLearnerNode, MemberID: 1 << 63, Member: Member{ID: 1 << 63, PeerURLs: []string{"http://a:1"}, IsLearner: true}},
			`{"id":9223372036854775808,"peerURLs":["http://a:1"],"isLearner":true,"isPromote":false}`},
		{Change{ID: 3, Type: raftpb.ConfChangeAddNode, MemberID: 5, Member: Member{ID: 5}, IsPromote: true},
			`{"id":5,"peerURLs":null,"isPromote":true}`},
		{Change{ID: 4, Type: raftpb.ConfChangeAddNode, MemberID: 5, Member: Member{ID: 5, PeerURLs: []string{"u"}, Name: "n", ClientURLs: []string{"c"}}},
			`{"id":5,"peerURLs":["u"],"name":"n","clientURLs":["c"],"isPromote":false}`},
		{Change{ID: 5, Type: raftpb.ConfChangeUpdateNode, MemberID: 5, Member: Member{ID: 5, PeerURLs: []string{"u"}}},
			`{"id":5,"peerURLs":["u"]}`},
		{Change{ID: 6, Type: raftpb.ConfChangeRemoveNode, MemberID: 5, Member: Member{ID: 5}}, ``},
	} {
		cc := c.change.Encode()
		if string(cc.Context) != c.json {
			t.Errorf("context of %+v:\n got %s\nwant %s", c.change, cc.Context, c.json)
		}
		// Over the wire, as a raft entry carries it.
		data, err := proto.Marshal(cc)
		if err != nil {
			t.Fatal(err)
		}
		wire := new(raftpb.ConfChange)
		if err := proto.Unmarshal(data, wire); err != nil {
			t.Fatal(err)
		}
		back, err := DecodeChange(wire)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(*back, c.change) {
			t.Errorf("got back %+v, want %+v", *back, c.change)
		}
	}
}

// The entries of a first start carry the member alone, without isPromote.
func TestChangeOfBootstrap(t *testing.T) {
	m := Member{ID: 3, PeerURLs: []string{"http://x:1"}, Name: "x"}
	context, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	c, err := DecodeChange(&raftpb.ConfChange{NodeId: new(uint64(3)), Context: context})
	if err != nil {
		t.Fatal(err)
	}
	if c.Type != raftpb.ConfChangeAddNode || c.IsPromote || !reflect.DeepEqual(c.Member, m) {
		t.Fatalf("got %+v", c)
	}
}

func FuzzDecodeChange(f *testing.F) {
	f.Add(int32(0), uint64(1), []byte(`{"id":1,"peerURLs":["u"],"isPromote":false}`))
	f.Add(int32(1), uint64(1), []byte(nil))
	f.Add(int32(9), uint64(1), []byte(`{}`))
	f.Fuzz(func(t *testing.T, typ int32, id uint64, context []byte) {
		c, err := DecodeChange(&raftpb.ConfChange{Type: new(raftpb.ConfChangeType(typ)), NodeId: &id, Context: context})
		if err != nil {
			return
		}
		back, err := DecodeChange(c.Encode())
		if err != nil {
			t.Fatalf("does not read back what it wrote: %v", err)
		}
		if c.Type == raftpb.ConfChangeUpdateNode {
			back.IsPromote = c.IsPromote // the context of an update is a plain member
		}
		if !reflect.DeepEqual(c, back) {
			t.Fatalf("got back %+v, want %+v", back, c)
		}
	})
}

func TestIDs(t *testing.T) {
	// From a live etcd 3.7: --initial-cluster default=http://localhost:2380, token etcd-cluster.
	if id := MemberID([]string{"http://localhost:2380"}, "etcd-cluster", nil); id != 0x8e9e05c52164694d {
		t.Errorf("member id %x", id)
	}
	if id := ClusterID([]uint64{0x8e9e05c52164694d}); id != 0xcdf818194e3a8c32 {
		t.Errorf("cluster id %x", id)
	}
	urls := []string{"http://b:1", "http://a:1"}
	now := time.Unix(1700000000, 999)
	if MemberID(urls, "t", &now) != MemberID([]string{"http://a:1", "http://b:1"}, "t1700000000", nil) {
		t.Error("order or time matter otherwise than in etcd")
	}
	if urls[0] != "http://b:1" {
		t.Error("MemberID sorted its caller's slice")
	}
	if ClusterID([]uint64{1, 2}) != ClusterID([]uint64{2, 1}) {
		t.Error("the order of members matters")
	}
}

func TestIDGenerator(t *testing.T) {
	g := newIDGenerator(0xabcd1234, 0xffff_ffff_ffff_fffe)
	for _, want := range []uint64{0x1234_ffff_ffff_ffff, 0x1234_0000_0000_0000, 0x1234_0000_0000_0001} {
		if id := g.Next(); id != want {
			t.Errorf("id %x, want %x", id, want)
		}
	}
	if a, b := NewIDGenerator(1).Next(), NewIDGenerator(1).Next(); a == b {
		t.Errorf("two lives of a member begin with the same id %x", a)
	}
	var wg sync.WaitGroup
	ids := make([][]uint64, 4)
	for i := range ids {
		wg.Go(func() {
			for range 1000 {
				ids[i] = append(ids[i], g.Next())
			}
		})
	}
	wg.Wait()
	seen := map[uint64]bool{}
	for _, part := range ids {
		for _, id := range part {
			if seen[id] || id>>48 != 0x1234 {
				t.Fatalf("id %x is taken or of another member", id)
			}
			seen[id] = true
		}
	}
}

func TestMemberJSON(t *testing.T) {
	b, err := json.Marshal(&Member{ID: 1, PeerURLs: []string{"u"}, IsLearner: true, Name: "n", ClientURLs: []string{"c"}})
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"id":1,"peerURLs":["u"],"isLearner":true,"name":"n","clientURLs":["c"]}`; string(b) != want {
		t.Errorf("got %s, want %s", b, want)
	}
	m := &Member{ID: 1, PeerURLs: []string{"u"}}
	c := m.Clone()
	c.PeerURLs[0] = "x"
	if m.PeerURLs[0] != "u" || (*Member)(nil).Clone() != nil {
		t.Error("Clone shares memory or breaks on nil")
	}
}

func BenchmarkPayload(b *testing.B) {
	for _, size := range []int{256, 64 << 10} {
		r := putRequest(size)
		data, err := Encode(r)
		if err != nil {
			b.Fatal(err)
		}
		for _, c := range []struct {
			name string
			f    func()
		}{
			{"Encode", func() { Encode(r) }},
			{"proto.Marshal", func() { proto.Marshal(r) }},
			{"Decode", func() { Decode(data) }},
			{"proto.Unmarshal", func() { proto.Unmarshal(data, new(pb.InternalRaftRequest)) }},
			{"RequestID", func() { RequestID(data) }},
		} {
			b.Run(fmt.Sprintf("%s/%d", c.name, size), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					c.f()
				}
			})
		}
	}
}
