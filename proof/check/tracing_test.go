package check

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/belaydb/belay/proof/cluster"
)

// spans is a collector of OpenTelemetry spans.
type spans struct {
	collector.UnimplementedTraceServiceServer
	mu   sync.Mutex
	all  []string // as text, without ids and times
	more chan struct{}
}

func (s *spans) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, resource := range r.ResourceSpans {
		of := attributes(resource.Resource.Attributes)
		for _, scope := range resource.ScopeSpans {
			for _, span := range scope.Spans {
				s.all = append(s.all, fmt.Sprintf("%s | %s | %x | parent %v | %v | %s", of, span.Name, span.TraceId, len(span.ParentSpanId) > 0, span.Kind, attributes(span.Attributes)))
			}
		}
	}
	select {
	case s.more <- struct{}{}:
	default:
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func attributes(list []*common.KeyValue) string {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b *common.KeyValue) int { return cmp.Compare(a.Key, b.Key) })
	var text []string
	for _, kv := range list {
		if strings.Contains(kv.Key, ".address") || strings.Contains(kv.Key, ".port") || strings.HasPrefix(kv.Key, "telemetry.") {
			continue
		}
		v := kv.Value.String()
		text = append(text, kv.Key+"="+strings.ReplaceAll(v, "  ", " "))
	}
	return strings.Join(text, " ")
}

// The same calls make the same spans, of the same service, in the caller's trace.
func TestTracingLikeEtcd(t *testing.T) {
	t.Parallel()
	var collectors []*spans
	belay, etcd := startBoth(t, func(c *cluster.Config) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := &spans{more: make(chan struct{}, 1)}
		server := grpc.NewServer()
		collector.RegisterTraceServiceServer(server, s)
		go func() { _ = server.Serve(l) }()
		t.Cleanup(server.Stop)
		collectors = append(collectors, s)
		c.Args = []string{"--enable-distributed-tracing", "--distributed-tracing-address=" + l.Addr().String(),
			"--distributed-tracing-service-name=shop", "--distributed-tracing-instance-id=one"}
		c.Env = []string{"OTEL_BSP_SCHEDULE_DELAY=100"}
	})
	const trace = "0af7651916cd43dd8448eb211c80319c"
	var got [2][]string
	for i, m := range []*cluster.Member{belay, etcd} {
		conn, err := m.Dial()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		kv, lease := pb.NewKVClient(conn), pb.NewLeaseClient(conn)
		// A call without a span is not sampled, one with a span is.
		if _, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("unseen")}); err != nil {
			t.Fatal(err)
		}
		ctx = metadata.AppendToOutgoingContext(ctx, "traceparent", "00-"+trace+"-b7ad6b7169203331-01")
		key := []byte("k")
		for _, call := range []func() error{
			func() error { _, err := kv.Put(ctx, &pb.PutRequest{Key: key, Value: key}); return err },
			func() error { _, err := kv.Range(ctx, &pb.RangeRequest{Key: key, Limit: 3}); return err },
			func() error {
				_, err := kv.Txn(ctx, &pb.TxnRequest{
					Compare: []*pb.Compare{{Key: key, Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{Version: 1}}},
					Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key}}}},
				})
				return err
			},
			func() error { _, err := kv.Txn(ctx, &pb.TxnRequest{}); return err },
			func() error { _, err := kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key}); return err },
			func() error { _, err := kv.Compact(ctx, &pb.CompactionRequest{Revision: 2}); return err },
			func() error { _, err := lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 9, TTL: 90}); return err },
			func() error {
				stream, err := lease.LeaseKeepAlive(ctx)
				if err != nil {
					return err
				}
				if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: 9}); err != nil {
					return err
				}
				if _, err := stream.Recv(); err != nil {
					return err
				}
				return stream.CloseSend()
			},
			func() error { _, err := lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 9}); return err },
		} {
			if err := call(); err != nil {
				t.Fatal(err)
			}
		}
		// The end of the keep-alive stream is reported last.
		s, deadline := collectors[i], time.After(30*time.Second)
		for done := false; !done; {
			s.mu.Lock()
			got[i] = slices.Sorted(slices.Values(s.all))
			s.mu.Unlock()
			done = len(got[i]) >= 18
			if !done {
				select {
				case <-s.more:
				case <-deadline:
					t.Fatalf("%s: %d spans:\n%s", m.LogPath, len(got[i]), strings.Join(got[i], "\n"))
				}
			}
		}
	}
	if !slices.Equal(got[0], got[1]) {
		t.Errorf("belay:\n%s\netcd:\n%s", strings.Join(got[0], "\n"), strings.Join(got[1], "\n"))
	}
	for _, s := range got[0] {
		if !strings.Contains(s, trace) {
			t.Errorf("not of the caller's trace: %s", s)
		}
	}
}
