package rolling

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// aCluster answers as one member does: who the members are, and how it is itself.
type aCluster struct {
	pb.UnimplementedClusterServer
	pb.UnimplementedMaintenanceServer
	members []*pb.Member
	refuses error // of every request
}

func (c *aCluster) MemberList(context.Context, *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	return &pb.MemberListResponse{Header: &pb.ResponseHeader{ClusterId: 9}, Members: c.members}, c.refuses
}

func (c *aCluster) Alarm(context.Context, *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	return &pb.AlarmResponse{}, c.refuses
}

func (c *aCluster) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	return &pb.StatusResponse{Header: &pb.ResponseHeader{MemberId: 1}, Leader: 1, Version: "3.7.3"}, c.refuses
}

func (c *aCluster) start(t *testing.T) (endpoint string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	pb.RegisterClusterServer(s, c)
	pb.RegisterMaintenanceServer(s, c)
	go func() { _ = s.Serve(l) }() // until Stop
	t.Cleanup(s.Stop)
	return "http://" + l.Addr().String()
}

// TestRunsWithoutALeader: of a member that was started as what it is to become, and that the others
// do not take, a move says what the member says itself, and where to look.
func TestRunsWithoutALeader(t *testing.T) {
	t.Parallel()
	alone := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/health" { // gRPC is not served before it has a leader
			http.NotFound(w, r)
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(`{"health":"false","reason":"RAFT NO LEADER"}`)) // as server.TestHealth has it
	}))
	defer alone.Close()
	c := &aCluster{}
	endpoint := c.start(t)
	c.members = []*pb.Member{{ID: 1, Name: "m1", ClientURLs: []string{endpoint}}, {ID: 2, Name: "m2", ClientURLs: []string{alone.URL}}}
	m := &Move{Client: &clientv3.Config{Endpoints: []string{endpoint}}, To: Belay, Timeout: time.Minute}
	if err := m.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer m.look.close()
	var goal uint64
	back := func() error {
		return m.back(t.Context(), &plan{to: Belay}, &Member{Member: c.members[1]}, &goal)
	}
	if err := back(); err == nil || !strings.Contains(err.Error(), "it runs and says RAFT NO LEADER: ") || !strings.Contains(err.Error(), "rejected connection on peer endpoint") {
		t.Errorf("it says: %v", err)
	}
	alone.Close()
	if err := back(); err == nil || !strings.Contains(err.Error(), "it does not answer: ") {
		t.Errorf("of one that is gone: %v", err)
	}
}

// TestReplaceSaysWhatNoWaitMends: an endpoint that speaks TLS, and a user without the right, are said
// with what to do, and at once.
func TestReplaceSaysWhatNoWaitMends(t *testing.T) {
	t.Parallel()
	secured := httptest.NewTLSServer(http.NotFoundHandler())
	defer secured.Close()
	secured.Config.ErrorLog = log.New(io.Discard, "", 0)
	for _, tc := range []struct{ endpoint, says, hint string }{
		{strings.Replace(secured.URL, "https", "http", 1), "", "speaks TLS"},
		{(&aCluster{refuses: status.Error(codes.PermissionDenied, "etcdserver: permission denied")}).start(t), "permission denied", rootHint},
	} {
		r := &Replace{Client: &clientv3.Config{Endpoints: []string{tc.endpoint}, Logger: zap.NewNop()}, Who: "m1", Timeout: time.Second}
		_, err := r.Run(t.Context())
		why, ok := errors.AsType[refusal](err)
		if !ok || !strings.Contains(why.Error(), tc.says) || !strings.Contains(why.Hint(), tc.hint) {
			t.Errorf("%s: %v, hint %q", tc.endpoint, err, why.hint)
		}
	}
	// Nobody there: it may start yet, but not for longer than a request may take.
	r := &Replace{Client: &clientv3.Config{Endpoints: []string{"127.0.0.1:1"}, Logger: zap.NewNop()}, Who: "m1", Timeout: 100 * time.Millisecond}
	if _, err := r.Run(t.Context()); !silent(err) {
		t.Errorf("nobody there: %v", err)
	}
}
