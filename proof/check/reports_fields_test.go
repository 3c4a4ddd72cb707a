package check

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/belaydb/belay/server/electionpb"
	"github.com/belaydb/belay/server/lockpb"
)

// A base is a sound request, of which one field after another is set to odd values.
type base struct {
	method string
	path   string // of the gateway
	req    proto.Message
}

// bases are one or more for every unary method that can be asked so without ending the story.
func bases() []base {
	key, lease := []byte("a/1"), int64(7001)
	leader := &electionpb.LeaderKey{Name: []byte("el"), Key: []byte("el/1b59"), Rev: 5, Lease: lease}
	return []base{
		{"KV/Range", "/v3/kv/range", &pb.RangeRequest{Key: []byte("a/"), RangeEnd: []byte("a0")}},
		{"KV/Range", "/v3/kv/range", &pb.RangeRequest{Key: key}},
		{"KV/Range", "/v3/kv/range", &pb.RangeRequest{Key: []byte("a/"), RangeEnd: []byte("a0"), SortOrder: pb.RangeRequest_DESCEND, SortTarget: pb.RangeRequest_MOD, Limit: 2}},
		{"KV/Put", "/v3/kv/put", &pb.PutRequest{Key: key, Value: []byte("v"), PrevKv: true}},
		{"KV/Put", "/v3/kv/put", &pb.PutRequest{Key: key, IgnoreValue: true, Lease: lease}},
		{"KV/Put", "/v3/kv/put", &pb.PutRequest{Key: key, IgnoreLease: true}},
		{"KV/DeleteRange", "/v3/kv/deleterange", &pb.DeleteRangeRequest{Key: []byte("d/1"), PrevKv: true}},
		{"KV/DeleteRange", "/v3/kv/deleterange", &pb.DeleteRangeRequest{Key: []byte("d/"), RangeEnd: []byte("d0")}},
		{"KV/Txn", "/v3/kv/txn", &pb.TxnRequest{
			Compare: []*pb.Compare{{Key: key, Target: pb.Compare_MOD, Result: pb.Compare_GREATER, TargetUnion: &pb.Compare_ModRevision{ModRevision: 1}}},
			Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("t/1"), Value: []byte("x"), PrevKv: true}}}},
			Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("a/"), RangeEnd: []byte("a0")}}}},
		}},
		{"KV/Txn", "/v3/kv/txn", &pb.TxnRequest{
			Compare: []*pb.Compare{{Key: []byte("a/"), RangeEnd: []byte("a0"), Target: pb.Compare_VERSION, Result: pb.Compare_GREATER, TargetUnion: &pb.Compare_Version{}}},
			Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("a/"), RangeEnd: []byte("a0"), Limit: 2}}}},
			Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("t/"), RangeEnd: []byte("t0"), PrevKv: true}}}},
		}},
		{"KV/Txn", "/v3/kv/txn", &pb.TxnRequest{
			Compare: []*pb.Compare{{Key: key, Target: pb.Compare_LEASE, TargetUnion: &pb.Compare_Lease{Lease: lease}}},
			Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{
				Compare: []*pb.Compare{{Key: key, Target: pb.Compare_VALUE, Result: pb.Compare_NOT_EQUAL, TargetUnion: &pb.Compare_Value{Value: []byte("q")}}},
				Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("t/2"), Value: []byte("y"), Lease: lease}}}},
			}}}},
			Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("t/3"), Value: []byte("y")}}}},
		}},
		{"KV/Compact", "/v3/kv/compaction", &pb.CompactionRequest{Revision: 3, Physical: true}},
		{"Lease/LeaseGrant", "/v3/lease/grant", &pb.LeaseGrantRequest{ID: 7002, TTL: 900}},
		{"Lease/LeaseTimeToLive", "/v3/lease/timetolive", &pb.LeaseTimeToLiveRequest{ID: lease, Keys: true}},
		{"Lease/LeaseRevoke", "/v3/lease/revoke", &pb.LeaseRevokeRequest{ID: 7002}},
		{"Maintenance/HashKV", "/v3/maintenance/hashkv", &pb.HashKVRequest{Revision: 12}},
		{"Maintenance/Status", "/v3/maintenance/status", &pb.StatusRequest{}},
		{"Maintenance/MoveLeader", "/v3/maintenance/transfer-leadership", &pb.MoveLeaderRequest{TargetID: 77}},
		{"Cluster/MemberList", "/v3/cluster/member/list", &pb.MemberListRequest{Linearizable: true}},
		{"Cluster/MemberRemove", "/v3/cluster/member/remove", &pb.MemberRemoveRequest{ID: 77}},
		{"Cluster/MemberUpdate", "/v3/cluster/member/update", &pb.MemberUpdateRequest{ID: 77, PeerURLs: []string{"http://127.0.0.1:1"}}},
		{"Cluster/MemberPromote", "/v3/cluster/member/promote", &pb.MemberPromoteRequest{ID: 77}},
		{"Auth/RoleAdd", "/v3/auth/role/add", &pb.AuthRoleAddRequest{Name: "role"}},
		{"Auth/UserAdd", "/v3/auth/user/add", &pb.AuthUserAddRequest{Name: "user", Password: "pw", Options: &authpb.UserAddOptions{}}},
		{"Auth/UserGrantRole", "/v3/auth/user/grant", &pb.AuthUserGrantRoleRequest{User: "user", Role: "role"}},
		{"Auth/RoleGrantPermission", "/v3/auth/role/grant", &pb.AuthRoleGrantPermissionRequest{Name: "role", Perm: &authpb.Permission{Key: []byte("k"), RangeEnd: []byte("l"), PermType: authpb.Permission_READWRITE}}},
		{"Auth/RoleGet", "/v3/auth/role/get", &pb.AuthRoleGetRequest{Role: "role"}},
		{"Auth/UserGet", "/v3/auth/user/get", &pb.AuthUserGetRequest{Name: "user"}},
		{"Auth/UserList", "/v3/auth/user/list", &pb.AuthUserListRequest{}},
		{"Auth/RoleList", "/v3/auth/role/list", &pb.AuthRoleListRequest{}},
		{"Auth/UserChangePassword", "/v3/auth/user/changepw", &pb.AuthUserChangePasswordRequest{Name: "user", Password: "pw2"}},
		{"Auth/RoleRevokePermission", "/v3/auth/role/revoke", &pb.AuthRoleRevokePermissionRequest{Role: "role", Key: []byte("k"), RangeEnd: []byte("l")}},
		{"Auth/UserRevokeRole", "/v3/auth/user/revoke", &pb.AuthUserRevokeRoleRequest{Name: "user", Role: "role"}},
		{"Auth/RoleDelete", "/v3/auth/role/delete", &pb.AuthRoleDeleteRequest{Role: "role"}},
		{"Auth/UserDelete", "/v3/auth/user/delete", &pb.AuthUserDeleteRequest{Name: "user"}},
		{"Auth/AuthStatus", "/v3/auth/status", &pb.AuthStatusRequest{}},
		{"Auth/Authenticate", "/v3/auth/authenticate", &pb.AuthenticateRequest{Name: "user", Password: "pw"}},
		{"Auth/AuthEnable", "/v3/auth/enable", &pb.AuthEnableRequest{}},
		{"Auth/AuthDisable", "/v3/auth/disable", &pb.AuthDisableRequest{}},
		{"Lock/Lock", "/v3/lock/lock", &lockpb.LockRequest{Name: []byte("lock"), Lease: lease}},
		{"Lock/Unlock", "/v3/lock/unlock", &lockpb.UnlockRequest{Key: []byte("lock/1b59")}},
		{"Election/Campaign", "/v3/election/campaign", &electionpb.CampaignRequest{Name: []byte("el"), Lease: lease, Value: []byte("me")}},
		{"Election/Leader", "/v3/election/leader", &electionpb.LeaderRequest{Name: []byte("el")}},
		{"Election/Proclaim", "/v3/election/proclaim", &electionpb.ProclaimRequest{Leader: leader, Value: []byte("still")}},
		{"Election/Resign", "/v3/election/resign", &electionpb.ResignRequest{Leader: leader}},
		{"Maintenance/Downgrade", "/v3/maintenance/downgrade", &pb.DowngradeRequest{Action: pb.DowngradeRequest_VALIDATE, Version: "3.6.0"}},
		{"Maintenance/Alarm", "/v3/maintenance/alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_GET}},
	}
}

var oddInts = []int64{0, 1, -1, 2, math.MaxInt64, math.MaxInt64 - 1, math.MinInt64, math.MinInt64 + 1, 1 << 32, 9_000_000_000, 9_000_000_001, 1_000_000_000}

func oddBytes() [][]byte {
	return [][]byte{nil, {0}, {0, 0}, {0xff}, {0xff, 0xff}, []byte("a"), []byte("a/"), []byte("a/1"), []byte("b"), []byte("\xc3\x28"), []byte("a/1\x00"), repeated("k", 2000)}
}

func oddStrings() []string {
	return []string{"", " ", "root", "a\x00b", "é", "\n", "role", "user", "http://127.0.0.1:1", "3.6", "3.5.0", strings.Repeat("n", 2000), strings.Repeat("p", 72), strings.Repeat("p", 73)}
}

// oddly calls do with copies of a message in which one field is odd, on each level.
func oddly(m proto.Message, do func(field string, m proto.Message)) {
	var walk func(path []func(protoreflect.Message) protoreflect.Message, name string, d protoreflect.MessageDescriptor, sample protoreflect.Message)
	set := func(path []func(protoreflect.Message) protoreflect.Message, name string, change func(protoreflect.Message)) {
		c := proto.Clone(m)
		at := c.ProtoReflect()
		for _, step := range path {
			at = step(at)
		}
		change(at)
		do(name, c)
	}
	walk = func(path []func(protoreflect.Message) protoreflect.Message, name string, d protoreflect.MessageDescriptor, sample protoreflect.Message) {
		for i := range d.Fields().Len() {
			fd := d.Fields().Get(i)
			full := name + string(fd.Name())
			if fd.IsMap() {
				continue
			}
			if fd.IsList() {
				list := sample.Get(fd).List()
				set(path, full+"=none", func(m protoreflect.Message) { m.Clear(fd) })
				if list.Len() > 0 && fd.Message() != nil {
					set(path, full+"=doubled", func(m protoreflect.Message) {
						l := m.Mutable(fd).List()
						l.Append(protoreflect.ValueOfMessage(proto.Clone(l.Get(0).Message().Interface()).ProtoReflect()))
					})
					set(path, full+"=empty one", func(m protoreflect.Message) { l := m.Mutable(fd).List(); l.Append(l.NewElement()) })
					walk(append(path[:len(path):len(path)], func(m protoreflect.Message) protoreflect.Message { return m.Mutable(fd).List().Get(0).Message() }),
						full+"[0].", fd.Message(), list.Get(0).Message())
				}
				if fd.Kind() == protoreflect.StringKind {
					for _, v := range oddStrings() {
						set(path, fmt.Sprintf("%s=[%.20q]", full, v), func(m protoreflect.Message) {
							m.Clear(fd)
							m.Mutable(fd).List().Append(protoreflect.ValueOfString(v))
						})
					}
				}
				continue
			}
			if fd.Message() != nil {
				set(path, full+"=none", func(m protoreflect.Message) { m.Clear(fd) })
				if sample.Has(fd) {
					walk(append(path[:len(path):len(path)], func(m protoreflect.Message) protoreflect.Message { return m.Mutable(fd).Message() }), full+".", fd.Message(), sample.Get(fd).Message())
				} else if fd.ContainingOneof() == nil {
					set(path, full+"={}", func(m protoreflect.Message) { m.Mutable(fd) })
				}
				continue
			}
			if fd.ContainingOneof() != nil && !sample.Has(fd) {
				set(path, full+"=in place", func(m protoreflect.Message) { m.Set(fd, fd.Default()) })
				continue
			}
			var values []protoreflect.Value
			switch fd.Kind() {
			case protoreflect.BoolKind:
				values = []protoreflect.Value{protoreflect.ValueOfBool(!sample.Get(fd).Bool())}
			case protoreflect.EnumKind:
				for n := range fd.Enum().Values().Len() {
					values = append(values, protoreflect.ValueOfEnum(protoreflect.EnumNumber(n)))
				}
				values = append(values, protoreflect.ValueOfEnum(99), protoreflect.ValueOfEnum(-1), protoreflect.ValueOfEnum(math.MaxInt32))
			case protoreflect.Int64Kind:
				for _, v := range oddInts {
					values = append(values, protoreflect.ValueOfInt64(v))
				}
			case protoreflect.Uint64Kind:
				for _, v := range []uint64{0, 1, math.MaxUint64, math.MaxInt64, 1 << 63} {
					values = append(values, protoreflect.ValueOfUint64(v))
				}
			case protoreflect.BytesKind:
				for _, v := range oddBytes() {
					values = append(values, protoreflect.ValueOfBytes(v))
				}
			case protoreflect.StringKind:
				for _, v := range oddStrings() {
					values = append(values, protoreflect.ValueOfString(v))
				}
			}
			for _, v := range values {
				set(path, fmt.Sprintf("%s=%.30q", full, fmt.Sprint(v)), func(m protoreflect.Message) { m.Set(fd, v) })
			}
		}
	}
	do("as it is", proto.Clone(m))
	walk(nil, "", m.ProtoReflect().Descriptor(), m.ProtoReflect())
}

// unsafe requests would change what the rest of the story stands on, or wait.
func unsafe(method string, m proto.Message) bool {
	switch m := m.(type) {
	case *pb.DowngradeRequest:
		return m.Action == pb.DowngradeRequest_ENABLE
	case *pb.AlarmRequest:
		return m.Action < 0 || m.Action > 2 // etcd panics
	case *lockpb.LockRequest:
		return m.Lease == 0 // a lease of 60 s for each, which then expires
	case *electionpb.CampaignRequest:
		return m.Lease == 0
	}
	return false
}

// ground is what the odd requests find.
func ground(r *teller) {
	r.call(0, "Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: 7001, TTL: 8000})
	for i := range 6 {
		put := &pb.PutRequest{Key: fmt.Appendf(nil, "a/%d", i), Value: fmt.Appendf(nil, "v%d", 9-i)}
		if i%2 == 1 {
			put.Lease = 7001
		}
		r.call(0, "KV/Put", put)
	}
	r.call(0, "KV/Put", &pb.PutRequest{Key: []byte("a/2"), Value: []byte("again")})
	r.call(0, "KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte("a/4")})
	r.call(0, "KV/Put", &pb.PutRequest{Key: []byte{0}, Value: []byte("zero")})
	r.call(0, "KV/Put", &pb.PutRequest{Key: []byte{0xff, 0xff}, Value: []byte("last")})
	for i := range 3 {
		r.call(0, "KV/Put", &pb.PutRequest{Key: fmt.Appendf(nil, "d/%d", i), Value: []byte("d")})
	}
}

func fieldStories() []story {
	return []story{
		{name: "one odd field, gRPC", tell: func(r *teller) {
			ground(r)
			for _, b := range bases() {
				oddly(b.req, func(field string, m proto.Message) {
					if unsafe(b.method, m) {
						return
					}
					short, cancel := context.WithTimeout(r.ctx, 3*time.Second)
					defer cancel()
					resp, err := r.ask(short, 0, b.method, m)
					if g, ok := resp.(*pb.LeaseGrantResponse); ok && err == nil && m.(*pb.LeaseGrantRequest).ID == 0 {
						r.know(uint64(g.ID), fmt.Sprintf("lease%d", len(r.words)))
					}
					r.say("%s %s => %s", b.method, field, r.shown(resp, err))
					if status.Code(err) == codes.DeadlineExceeded {
						time.Sleep(500 * time.Millisecond) // whoever waited in a queue is removed from it
					}
				})
				r.call(0, "Maintenance/Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE})
				r.call(0, "Maintenance/Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_CORRUPT})
			}
			r.call(0, "KV/Range", &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
		}},
		{name: "one odd field, JSON", tell: func(r *teller) {
			ground(r)
			for _, b := range bases() {
				oddly(b.req, func(field string, m proto.Message) {
					if unsafe(b.method, m) || strings.Contains(b.method, "LeaseGrant") && strings.Contains(field, "ID=\"0\"") {
						return
					}
					if b.method == "Lease/LeaseTimeToLive" {
						return // clocks
					}
					for _, o := range []protojson.MarshalOptions{{UseProtoNames: true}, {UseEnumNumbers: true, EmitUnpopulated: true}} {
						body, err := o.Marshal(m)
						if err != nil {
							continue
						}
						r.http(0, httpCase{path: b.path, body: string(body), header: "Grpc-Timeout: 2S"})
					}
				})
				r.call(0, "Maintenance/Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE})
				r.call(0, "Maintenance/Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_CORRUPT})
			}
			r.call(0, "KV/Range", &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
		}},
		{name: "many odd fields of a range", tell: func(r *teller) {
			ground(r)
			r.call(0, "KV/Compact", &pb.CompactionRequest{Revision: 6, Physical: true})
			rng := rand.New(rand.NewPCG(24, 1))
			some := func(vs ...int64) int64 {
				if rng.IntN(3) > 0 {
					return 0
				}
				return vs[rng.IntN(len(vs))]
			}
			revs := []int64{0, 1, -1, 2, 3, 5, 6, 7, 9, 13, 14, 15, math.MaxInt64, math.MinInt64, math.MaxInt64 - 1}
			for range 8000 {
				keys := oddBytes()
				q := &pb.RangeRequest{
					Key: keys[rng.IntN(len(keys))], RangeEnd: keys[rng.IntN(len(keys))], Limit: some(1, 2, 3, -1, math.MaxInt64, math.MaxInt64-1, math.MinInt64, 1<<31, 1<<32),
					Revision: some(revs...), SortOrder: pb.RangeRequest_SortOrder(some(0, 1, 2, 3, -1)), SortTarget: pb.RangeRequest_SortTarget(some(0, 1, 2, 3, 4, 5, -1)),
					Serializable: rng.IntN(3) == 0, KeysOnly: rng.IntN(6) == 0, CountOnly: rng.IntN(8) == 0,
					MinModRevision: some(revs...), MaxModRevision: some(revs...), MinCreateRevision: some(revs...), MaxCreateRevision: some(revs...),
				}
				switch rng.IntN(4) {
				case 0:
					r.call(0, "KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: q}}}})
				case 1:
					r.call(0, "KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{
						{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("a/5"), Value: []byte("5")}}},
						{Request: &pb.RequestOp_RequestRange{RequestRange: q}},
						{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("a/3")}}},
						{Request: &pb.RequestOp_RequestRange{RequestRange: q}}}})
				case 2:
					r.stream(0, q)
				default:
					r.call(0, "KV/Range", q)
				}
			}
		}},
		{name: "the largest requests", tell: func(r *teller) {
			edge := func(what string, low, high int, make func(n int) (string, proto.Message)) {
				// The largest that passes, and what the next one is told.
				for low+1 < high {
					mid := (low + high) / 2
					method, req := make(mid)
					if _, err := r.ask(r.ctx, 0, method, req); err == nil {
						low = mid
					} else {
						high = mid
					}
				}
				for _, n := range []int{low, high} {
					method, req := make(n)
					resp, err := r.ask(r.ctx, 0, method, req)
					r.say("%s of %d bytes => %s", what, n, r.shown(resp, err))
				}
				method, req := make(high + 700_000)
				resp, err := r.ask(r.ctx, 0, method, req)
				r.say("%s of %d bytes => %s", what, high+700_000, r.shown(resp, err))
			}
			const about = 1536 << 10
			edge("a put", about-2000, about+2000, func(n int) (string, proto.Message) {
				return "KV/Put", &pb.PutRequest{Key: []byte("k"), Value: make([]byte, n)}
			})
			edge("a transaction", about-2000, about+2000, func(n int) (string, proto.Message) {
				return "KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k"), Value: make([]byte, n)}}}}}
			})
			edge("a failure's put", about-2000, about+2000, func(n int) (string, proto.Message) {
				return "KV/Txn", &pb.TxnRequest{Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k"), Value: make([]byte, n)}}}}}
			})
			edge("a compare", about-2000, about+2000, func(n int) (string, proto.Message) {
				return "KV/Txn", &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("k"), Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: make([]byte, n)}}},
					Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("none")}}}}}
			})
			edge("a compare that reads", 2<<20-2000, 2<<20+2000, func(n int) (string, proto.Message) {
				return "KV/Txn", &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("k"), Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: make([]byte, n)}}}}
			})
			edge("a range", 2<<20-2000, 2<<20+2000, func(n int) (string, proto.Message) {
				return "KV/Range", &pb.RangeRequest{Key: make([]byte, n)}
			})
			edge("a password", about-2000, about+2000, func(n int) (string, proto.Message) {
				return "Auth/Authenticate", &pb.AuthenticateRequest{Name: "x", Password: strings.Repeat("p", n)}
			})
			edge("a value of an election", about-2000, about+2000, func(n int) (string, proto.Message) {
				return "Election/Proclaim", &electionpb.ProclaimRequest{Leader: &electionpb.LeaderKey{Name: []byte("e"), Key: []byte("e"), Rev: 1}, Value: make([]byte, n)}
			})
			for _, n := range []int{128, 129} {
				var puts, compares, nested pb.TxnRequest
				for i := range n {
					puts.Success = append(puts.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: fmt.Appendf(nil, "p/%d", i)}}})
					compares.Compare = append(compares.Compare, &pb.Compare{Key: []byte("k"), TargetUnion: &pb.Compare_Version{Version: 1}})
				}
				nested.Success = []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: &puts}}}
				for _, t := range []*pb.TxnRequest{&puts, &compares, &nested, {Failure: puts.Success}, {Success: puts.Success, Failure: puts.Success}} {
					resp, err := r.ask(r.ctx, 0, "KV/Txn", t)
					r.say("%d ops => %s", n, r.shown(resp, err))
				}
			}
		}},
		{name: "broken messages", tell: func(r *teller) {
			ground(r)
			text := func(field protowire.Number, s string) []byte {
				return protowire.AppendString(protowire.AppendTag(nil, field, protowire.BytesType), s)
			}
			for _, b := range bases() {
				sound, err := proto.Marshal(b.req)
				if err != nil {
					r.t.Fatal(err)
				}
				for _, broken := range [][]byte{
					{}, {0xff}, {0x08}, {0x0a, 0x05, 'a'}, {0x0b}, {0x0c}, {0x00, 0x00}, {0x0d, 1, 2}, text(1, "\xff\xfe"), text(2, "\xff\xfe"), text(999, "unknown"),
					protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), math.MaxUint64), // a field of another type
					protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), math.MaxUint64),
					append(append([]byte(nil), sound...), 0x0a), append(append([]byte(nil), sound...), sound...), sound[:len(sound)/2],
					protowire.AppendTag(append([]byte(nil), sound...), 900, protowire.StartGroupType),
				} {
					read := proto.Clone(b.req)
					if proto.Unmarshal(broken, read) == nil && unsafe(b.method, read) {
						continue
					}
					switch b.method {
					case "Lease/LeaseGrant", "Auth/AuthEnable", "Auth/AuthDisable", "Lock/Lock", "Election/Campaign":
						if proto.Unmarshal(broken, proto.Clone(b.req)) == nil {
							continue // an id, or a lease, of its own
						}
					case "Lease/LeaseTimeToLive", "Maintenance/HashKV":
						continue // a clock; and what is said after a Compact(0)
					}
					r.call(0, b.method, rawMessage(broken))
				}
				r.call(0, "Maintenance/Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE})
				r.call(0, "Maintenance/Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_CORRUPT})
			}
		}},
	}
}

func protojsonMarshal(m proto.Message) (string, error) {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	return string(b), err
}
