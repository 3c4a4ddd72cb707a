package server

import (
	"bytes"
	"context"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/belaydb/belay/logsink"
	"github.com/belaydb/belay/server/electionpb"
	"github.com/belaydb/belay/server/lockpb"
	"github.com/belaydb/belay/state"
)

// syncBuffer is a log's output that a test reads.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.buf.String()
	b.buf.Reset()
	return s
}

// fill gives every text of a message, as deep as it goes, the same content.
func fill(m protoreflect.Message, text string, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		value := func() protoreflect.Value {
			switch fd.Kind() {
			case protoreflect.StringKind:
				return protoreflect.ValueOfString(text)
			case protoreflect.BytesKind:
				return protoreflect.ValueOfBytes([]byte(text))
			}
			return protoreflect.Value{}
		}
		switch {
		case fd.IsMap():
		case fd.Message() != nil && depth == 0:
		case fd.Message() != nil && fd.IsList():
			v := m.Mutable(fd).List().NewElement()
			fill(v.Message(), text, depth-1)
			m.Mutable(fd).List().Append(v)
		case fd.Message() != nil:
			fill(m.Mutable(fd).Message(), text, depth-1)
		case fd.IsList():
			if v := value(); v.IsValid() {
				m.Mutable(fd).List().Append(v)
			}
		default:
			if v := value(); v.IsValid() {
				m.Set(fd, v)
			}
		}
	}
}

// TestNoLineOfAClientsMaking calls every method of every service with long texts wherever it takes
// one, as a stranger, as a user without rights and as root, with all that can be logged being
// logged, and looks at each line.
func TestNoLineOfAClientsMaking(t *testing.T) {
	const size = 128 << 10
	var out syncBuffer
	lg, err := logsink.New(logsink.Config{Level: "debug", Writer: &out, Sink: logsink.Options{BufferBytes: 1 << 30}})
	must(t, err)
	m := newSafeMember(t, nil, func(c *Config, s *state.Config) {
		c.Logger, s.Logger = lg.Logger, lg.Logger
		c.WarnUnaryRequest, s.WarningApply = time.Nanosecond, time.Nanosecond
		c.MaxRequestBytes, c.Limits.KeyBytes = 1<<30, -1
	})
	roots, alices := m.as("root"), m.as("alice")
	lines := 0
	check := func(what string) {
		_ = lg.Sync()
		for line := range strings.Lines(out.take()) {
			if lines++; len(line) > logsink.MaxLineBytes {
				t.Errorf("%s: a line of %d bytes: %.200s", what, len(line), line)
			}
		}
	}
	check("setting up")
	call := func(ctx context.Context, service protoreflect.ServiceDescriptor, method protoreflect.MethodDescriptor, text string) {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond) // Campaign, say, waits for ever
		defer cancel()
		name := "/" + string(service.FullName()) + "/" + string(method.Name())
		req, resp := dynamicpb.NewMessage(method.Input()), dynamicpb.NewMessage(method.Output())
		fill(req, text, 4)
		if !method.IsStreamingClient() && !method.IsStreamingServer() {
			_ = m.conn.Invoke(ctx, name, req, resp, grpc.MaxCallSendMsgSize(1<<30)) // an answer of any kind will do
			return
		}
		stream, err := m.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, name, grpc.MaxCallSendMsgSize(1<<30))
		if err == nil && stream.SendMsg(req) == nil && stream.CloseSend() == nil {
			_ = stream.RecvMsg(resp)
		}
	}
	files := []protoreflect.FileDescriptor{pb.File_rpc_proto, electionpb.File_belay_server_electionpb_election_proto, lockpb.File_belay_server_lockpb_lock_proto}
	methods := 0
	for _, file := range files {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				method := service.Methods().Get(j)
				methods++
				for who, ctx := range map[string]context.Context{"nobody": t.Context(), "alice": alices, "root": roots} {
					if who == "root" && method.Name() == "AuthDisable" {
						continue // the others are to be strangers
					}
					call(ctx, service, method, strings.Repeat("\x01", size))
					check(string(method.FullName()) + " of " + who)
				}
			}
		}
	}
	call(metadata.AppendToOutgoingContext(t.Context(), "token", strings.Repeat("t", 64<<10)),
		pb.File_rpc_proto.Services().ByName("KV"), pb.File_rpc_proto.Services().ByName("KV").Methods().ByName("Range"), "a")
	check("a long token")
	if methods < 40 || lines < methods {
		t.Errorf("%d methods, %d lines", methods, lines)
	}
}

// TestRequestTextIsCheap: what is made of a request for a line is small, and so is what making it
// takes: the applier of every member makes it.
func TestRequestTextIsCheap(t *testing.T) {
	huge := strings.Repeat("\x01", 4<<20)
	var many []*pb.RequestOp
	for range 50_000 {
		many = append(many, opPut("k"))
	}
	deep := &pb.TxnRequest{}
	for range 5000 {
		deep = &pb.TxnRequest{Success: ops(&pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: deep}})}
	}
	header := &pb.RequestHeader{Username: huge}
	for name, r := range map[string]proto.Message{
		"user":      &pb.InternalRaftRequest{Header: header, AuthUserGet: &pb.AuthUserGetRequest{Name: huge}},
		"delete":    &pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: []byte(huge), RangeEnd: []byte(huge)}},
		"put":       &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte(huge), Value: []byte(huge)}},
		"login":     &pb.InternalRaftRequest{Authenticate: &pb.InternalAuthenticateRequest{Name: huge, SimpleToken: huge}},
		"txn":       &pb.InternalRaftRequest{Txn: &pb.TxnRequest{Success: many}},
		"deep":      &pb.InternalRaftRequest{Txn: deep},
		"range":     &pb.RangeRequest{Key: []byte(huge)},
		"plain txn": &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte(huge), TargetUnion: &pb.Compare_Value{Value: []byte(huge)}}}, Failure: many},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			text := state.RequestText(r)
			runtime.ReadMemStats(&after)
			if len(text) > logsink.MaxFieldBytes || text == "" {
				t.Errorf("%d bytes: %.300s", len(text), text)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 512<<10 {
				t.Errorf("took %d bytes of memory", n)
			}
		})
	}
}

// TestLongKeysAndNames: what is written has a bound, and the error tells it; what is read and
// deleted has none.
func TestLongKeysAndNames(t *testing.T) {
	m := newMember(t)
	ctx := t.Context()
	long := strings.Repeat("k", DefaultKeyBytes+1)
	nested := &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Failure: ops(opPut(long))}}}
	for name, call := range map[string]func() error{
		"key":   func() error { _, err := m.kv.Put(ctx, &pb.PutRequest{Key: []byte(long)}); return err },
		"txn":   func() error { _, err := m.kv.Txn(ctx, &pb.TxnRequest{Success: ops(opPut(long))}); return err },
		"inner": func() error { _, err := m.kv.Txn(ctx, &pb.TxnRequest{Success: ops(nested)}); return err },
		"user": func() error {
			_, err := m.auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: long, Password: "p"})
			return err
		},
		"role": func() error { _, err := m.auth.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: long}); return err },
	} {
		what := "key"
		if name == "user" || name == "role" {
			what = "name"
		}
		checkStatus(t, call(), 3, "etcdserver: "+what+" is too long: 65537 bytes, --max-key-bytes is 65536")
	}
	m.put(long[1:], "v")
	_, err := m.kv.Range(ctx, &pb.RangeRequest{Key: []byte(long)})
	must(t, err)
	_, err = m.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte(long)})
	must(t, err)
}
