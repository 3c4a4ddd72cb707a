package fuzzrpc

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/belaydb/belay/server/electionpb"
	"github.com/belaydb/belay/server/lockpb"
)

// A method is one that a member serves.
type method struct {
	name string // as gRPC calls it: /service/method
	desc protoreflect.MethodDescriptor
	path string // of the gateway; "" if there is none
}

// methods lists all of them, in the order of their names.
func methods() (all []method) {
	for _, file := range []protoreflect.FileDescriptor{
		pb.File_rpc_proto, electionpb.File_belay_server_electionpb_election_proto, lockpb.File_belay_server_lockpb_lock_proto,
	} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				d := service.Methods().Get(j)
				m := method{name: fmt.Sprintf("/%s/%s", service.FullName(), d.Name()), desc: d}
				if rule, ok := proto.GetExtension(d.Options(), annotations.E_Http).(*annotations.HttpRule); ok {
					m.path = rule.GetPost()
				}
				all = append(all, m)
			}
		}
	}
	slices.SortFunc(all, func(a, b method) int { return strings.Compare(a.name, b.name) })
	return all
}

// newMessage makes an empty message of a descriptor, of the generated type.
func newMessage(d protoreflect.MessageDescriptor) proto.Message {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err) // the descriptor came with generated code
	}
	return t.New().Interface()
}

// canary is the key that only the test itself writes.
const canary = "canary"

// The users of the rounds with users: the keeper is a root of the test's own.
const (
	keeper = "keeper"
	alice  = "alice"
)

// known are numbers that the members gave out, for messages to name them.
type known struct {
	mu       sync.Mutex
	revision int64
	leases   []int64
	members  []uint64 // those that the cluster began with
	learners []uint64 // those that the fuzzing added
}

func (k *known) learn(resp proto.Message) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch r := resp.(type) {
	case *pb.LeaseGrantResponse:
		k.leases = append(k.leases, r.ID)
		k.leases = k.leases[max(0, len(k.leases)-20):]
	case *pb.MemberAddResponse:
		if r.Member != nil {
			k.learners = append(k.learners, r.Member.ID)
		}
	}
	if h, ok := resp.(interface{ GetHeader() *pb.ResponseHeader }); ok {
		k.revision = max(k.revision, h.GetHeader().GetRevision())
	}
}

// A generator makes messages. It is one worker's.
type generator struct {
	*rand.Rand
	known *known
}

func pick[T any](g *generator, from ...T) T { return from[g.IntN(len(from))] }

func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

func (g *generator) integer() int64 {
	g.known.mu.Lock()
	defer g.known.mu.Unlock()
	k := g.known
	switch g.IntN(10) {
	case 0:
		return pick(g, int64(math.MinInt64), math.MinInt64+1, math.MaxInt64, math.MaxInt64-1, math.MaxInt32, math.MaxInt32+1, math.MinInt32)
	case 1:
		return pick(g, k.revision, k.revision-1, k.revision+1, k.revision-100, k.revision/2, -k.revision)
	case 2:
		if len(k.leases) > 0 {
			return pick(g, k.leases...)
		}
		return 7
	case 3:
		if len(k.members) > 0 {
			return int64(pick(g, append(slices.Clone(k.members), k.learners...)...))
		}
		return 9
	case 4:
		return int64(g.Uint64())
	case 5:
		return int64(g.IntN(1000))
	}
	return pick(g, int64(0), 0, 1, 1, 2, 3, 5, -1)
}

// invalidMark is a placeholder for bytes that are not UTF-8, which no encoder would write; damage
// inserts them.
const (
	invalidMark  = "\x7fUTF\x7f"
	invalidBytes = "\xff\xfe\xed\xa0\x80"
)

func (g *generator) name() string {
	switch g.IntN(12) {
	case 0:
		return ""
	case 1:
		return strings.Repeat(pick(g, "\x01", "n", "\u00e9", "\x00", "\\"), pick(g, 10, 1000, 70_000))
	case 2:
		return pick(g, "\x00", "\x1b[31m", "\r\n", "a\nb", "{\"level\":1}", "../..", "%d%n", "\u202e", invalidMark)
	case 3:
		return pick(g, "http://127.0.0.1:1", "http://127.0.0.1:2", "unix://nowhere", "http://", "http://127.0.0.1:1/path", "127.0.0.1:1", "https://127.0.0.1:3")
	case 4:
		return pick(g, "3.6.0", "3.7.0", "3.5.0", "4.0.0", "3.6", "v3", "-1.0.0", "99999999999999999999.0.0")
	case 5:
		return pick(g, "root", keeper)
	}
	return pick(g, alice, "bob", "carol", "reader", "writer")
}

func (g *generator) key() []byte {
	switch g.IntN(16) {
	case 0:
		return nil
	case 1:
		return []byte{0}
	case 2:
		return pick(g, []byte{0xff}, []byte{0xff, 0xff, 0xff}, []byte("\x00\x00"), []byte("\xff\xfe"), []byte("k/\xff"), []byte("k0"))
	case 3:
		return []byte(canary)
	case 4:
		if g.chance(10) {
			return bytes.Repeat([]byte(pick(g, "k", "\x00", "\x01")), pick(g, 1000, 65_536, 65_537, 600_000))
		}
	case 5:
		return pick(g, []byte("k/"), []byte("k"), []byte("l"), []byte("a/"))
	case 6:
		b := make([]byte, g.IntN(12))
		for i := range b {
			b[i] = byte(g.IntN(256))
		}
		return b
	}
	return fmt.Appendf(nil, "k/%d", g.IntN(30))
}

func (g *generator) value() []byte {
	switch g.IntN(200) {
	case 0:
		return make([]byte, pick(g, 1<<20, 1_500_000, 1_600_000, 2_200_000))
	case 1, 2, 3:
		return make([]byte, 64<<10)
	}
	return fmt.Appendf(nil, "%0*d", g.IntN(200), g.IntN(1000))
}

// message fills a message by its descriptor. depth is how many levels it may still have.
func (g *generator) message(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if fd.Message() != nil && depth == 0 {
			continue
		}
		// A field that is not there is a case of its own. A oneof's fields push each
		// other out, so each is rare.
		absent := 25
		if o := fd.ContainingOneof(); o != nil {
			absent = 100 - 100/o.Fields().Len()
		}
		if g.chance(absent) {
			continue
		}
		switch {
		case fd.IsMap():
		case fd.IsList():
			list := m.Mutable(fd).List()
			n := g.IntN(4)
			if g.chance(2) {
				n = pick(g, 50, 127, 128, 129, 200)
				if fd.Message() != nil {
					depth = min(depth, 2)
				}
			}
			for range n {
				if fd.Message() == nil {
					list.Append(g.scalar(fd))
					continue
				}
				v := list.NewElement()
				g.message(v.Message(), depth-1)
				list.Append(v)
			}
		case fd.Message() != nil:
			g.message(m.Mutable(fd).Message(), depth-1)
		default:
			m.Set(fd, g.scalar(fd))
		}
	}
	if g.chance(2) {
		m.SetUnknown(g.unknown())
	}
}

// unknown makes fields that no message has.
func (g *generator) unknown() []byte {
	num := protowire.Number(pick(g, 100, 5000, 1<<29-1))
	switch g.IntN(5) {
	case 0:
		return protowire.AppendFixed64(protowire.AppendTag(nil, num, protowire.Fixed64Type), g.Uint64())
	case 1:
		return protowire.AppendFixed32(protowire.AppendTag(nil, num, protowire.Fixed32Type), g.Uint32())
	case 2:
		b := protowire.AppendTag(nil, num, protowire.StartGroupType)
		b = protowire.AppendVarint(protowire.AppendTag(b, 1, protowire.VarintType), g.Uint64())
		return protowire.AppendTag(b, num, protowire.EndGroupType)
	case 3:
		return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), make([]byte, g.IntN(5000)))
	}
	return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), g.Uint64())
}

func (g *generator) scalar(fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(g.chance(50))
	case protoreflect.EnumKind:
		if g.chance(5) {
			return protoreflect.ValueOfEnum(pick(g, protoreflect.EnumNumber(99), -1, math.MaxInt32, math.MinInt32))
		}
		values := fd.Enum().Values()
		return protoreflect.ValueOfEnum(values.Get(g.IntN(values.Len())).Number())
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(int32(g.integer()))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(uint32(g.integer()))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(g.integer())
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(uint64(g.integer()))
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(float32(g.integer()))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(g.integer()))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(g.name())
	case protoreflect.BytesKind:
		switch name := string(fd.Name()); {
		case strings.Contains(name, "value"):
			return protoreflect.ValueOfBytes(g.value())
		case name == "name" && g.chance(50): // of an election or a lock
			return protoreflect.ValueOfBytes([]byte(g.name()))
		}
		return protoreflect.ValueOfBytes(g.key())
	}
	panic(fmt.Sprintf("fuzzrpc: a field of kind %v: say here which values it has", fd.Kind()))
}

// deep is a transaction within a transaction within a transaction, and so on:
// what recursion has no bottom for.
func deep(levels int) []byte {
	var b []byte
	for range levels {
		op := protowire.AppendBytes(protowire.AppendTag(nil, 4, protowire.BytesType), b) // RequestOp.request_txn
		b = protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), op)  // TxnRequest.success
		if len(b) > 1<<20 {
			break
		}
	}
	return b
}

// tries is how often a message is made anew that must not be obeyed. Of some
// methods there is none that may be.
const tries = 10

// wire makes an encoded message for a method; privileged: the caller may do
// everything, so that what must not be obeyed is not sent. nil if there is nothing to send.
func (g *generator) wire(m method, privileged bool) []byte {
	for range tries {
		var b []byte
		if m.desc.Name() == "Txn" && g.chance(1) {
			b = deep(pick(g, 60, 127, 128, 1000, 9000))
		} else {
			msg := newMessage(m.desc.Input())
			g.message(msg.ProtoReflect(), pick(g, 1, 2, 3, 5))
			var err error
			if b, err = (proto.MarshalOptions{}).MarshalAppend([]byte{}, msg); err != nil {
				panic(err) // texts are made of UTF-8
			}
			if g.chance(15) {
				b = g.damage(b)
			}
		}
		b = bytes.ReplaceAll(b, []byte(invalidMark), []byte(invalidBytes))
		msg := newMessage(m.desc.Input())
		if proto.Unmarshal(b, msg) != nil || !privileged || !obeyed(g.known, msg) {
			return b
		}
	}
	return nil
}

// damage breaks bytes that were right.
func (g *generator) damage(b []byte) []byte {
	b = slices.Clone(b)
	switch g.IntN(5) {
	case 0: // cut off
		return b[:g.IntN(len(b)+1)]
	case 1: // bits turned over
		for range min(len(b), 1+g.IntN(4)) {
			b[g.IntN(len(b))] ^= 1 << g.IntN(8)
		}
	case 2: // a part twice
		if n := len(b); n > 0 {
			at := g.IntN(n)
			b = slices.Concat(b[:n], b[at:])
		}
	case 3: // a length that is not there
		b = protowire.AppendVarint(protowire.AppendTag(b, protowire.Number(1+g.IntN(8)), protowire.BytesType), g.Uint64()>>g.IntN(64))
	case 4: // bytes without a meaning
		b = make([]byte, 1+g.IntN(100))
		for i := 0; i+8 <= len(b); i += 8 {
			binary.LittleEndian.PutUint64(b[i:], g.Uint64())
		}
	}
	return b
}

// json makes a body for the gateway; nil as of wire.
func (g *generator) json(m method, privileged bool) []byte {
	for range tries {
		msg := newMessage(m.desc.Input())
		g.message(msg.ProtoReflect(), pick(g, 1, 2, 3, 5))
		b, err := protojson.MarshalOptions{UseProtoNames: g.chance(50), UseEnumNumbers: g.chance(30)}.Marshal(msg)
		if err != nil {
			panic(err)
		}
		if g.chance(15) {
			switch g.IntN(5) {
			case 0:
				b = b[:g.IntN(len(b)+1)]
			case 1:
				b[g.IntN(len(b))] ^= 1 << g.IntN(8)
			case 2:
				b = []byte(strings.Repeat(pick(g, "[", `{"success":[{"request_txn":`, `{"a":`), pick(g, 100, 10_001, 100_000)))
			case 3:
				b = []byte(pick(g, "", "null", "[]", "1e999999", `{"key":1}`, `{"key":"!"}`, `{"revision":1e400}`, `{"limit":"-0x1"}`, `"`, "{}{}{}", `{"key":{"key":{}}}`))
			case 4:
				b = bytes.ReplaceAll(b, []byte(`"`), []byte(pick(g, `'`, `\"`, "\x00")))
			}
		}
		b = bytes.ReplaceAll(b, []byte(invalidMark), []byte(invalidBytes))
		// Some broken texts are valid for the member's decoder: judge by what our decoder makes of
		// it.
		msg = newMessage(m.desc.Input())
		_ = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, msg)
		if !privileged || !obeyed(g.known, msg) {
			return b
		}
	}
	return nil
}

// obeyed reports whether a message would be right to obey and would end the run or spoil what it
// looks at: a member that goes, the root that we are, a write to the canary.
func obeyed(k *known, msg proto.Message) bool {
	k.mu.Lock()
	members := k.members
	k.mu.Unlock()
	ours := func(name string) bool { return name == "root" || name == keeper }
	switch r := msg.(type) {
	case *pb.MemberRemoveRequest:
		return slices.Contains(members, r.ID)
	case *pb.MemberUpdateRequest:
		return slices.Contains(members, r.ID)
	case *pb.MemberAddRequest:
		return !r.IsLearner // a voter that never comes takes one of the three's voices
	case *pb.MemberPromoteRequest:
		return false // no learner of ours has ever caught up
	case *pb.AuthEnableRequest, *pb.AuthDisableRequest:
		return true // each round has its own
	case *pb.AuthUserAddRequest:
		return ours(r.Name)
	case *pb.AuthUserDeleteRequest:
		return ours(r.Name)
	case *pb.AuthUserChangePasswordRequest:
		return ours(r.Name)
	case *pb.AuthUserGrantRoleRequest:
		return ours(r.Role) // a user with all rights would send what must not be obeyed
	case *pb.AuthUserRevokeRoleRequest:
		return ours(r.Name)
	case *pb.AuthRoleDeleteRequest:
		return ours(r.Role)
	case *pb.AuthRoleGrantPermissionRequest:
		return r.Perm != nil && covers(r.Perm.Key, r.Perm.RangeEnd)
	case *pb.PutRequest, *pb.DeleteRangeRequest, *pb.TxnRequest:
		return writesCanary(r)
	case *lockpb.UnlockRequest:
		return string(r.Key) == canary
	case *electionpb.ProclaimRequest:
		return string(r.GetLeader().GetKey()) == canary
	case *electionpb.ResignRequest:
		return string(r.GetLeader().GetKey()) == canary
	}
	return false
}

func writesCanary(msg proto.Message) bool {
	switch r := msg.(type) {
	case *pb.PutRequest:
		return string(r.Key) == canary
	case *pb.DeleteRangeRequest:
		return covers(r.Key, r.RangeEnd)
	case *pb.TxnRequest:
		for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
			for _, op := range ops {
				switch o := op.GetRequest().(type) {
				case *pb.RequestOp_RequestPut:
					if writesCanary(o.RequestPut) {
						return true
					}
				case *pb.RequestOp_RequestDeleteRange:
					if writesCanary(o.RequestDeleteRange) {
						return true
					}
				case *pb.RequestOp_RequestTxn:
					if writesCanary(o.RequestTxn) {
						return true
					}
				}
			}
		}
	}
	return false
}

// covers reports whether a range, in etcd's form, has the canary in it.
func covers(key, end []byte) bool {
	switch {
	case len(end) == 0:
		return string(key) == canary
	case len(end) == 1 && end[0] == 0:
		return string(key) <= canary
	}
	return string(key) <= canary && canary < string(end)
}
