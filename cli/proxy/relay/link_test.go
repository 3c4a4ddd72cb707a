package relay

import (
	"context"
	"net"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"

	"github.com/belaydb/belay/cli/proxy/merge"
	"github.com/belaydb/belay/cli/proxy/upstream"
)

// leaderless is a member that knows no leader, and takes a moment to say so to a stream.
type leaderless struct {
	pb.UnimplementedLeaseServer
	pb.UnimplementedMaintenanceServer
}

func (leaderless) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	return &pb.StatusResponse{}, nil
}

func (leaderless) LeaseKeepAlive(pb.Lease_LeaseKeepAliveServer) error {
	time.Sleep(50 * time.Millisecond)
	return rpctypes.ErrGRPCNoLeader
}

// TestLinkToLeaderless: a member that is not fit for calls is asked all the same when there is no
// other, and its error is what clients are told.
func TestLinkToLeaderless(t *testing.T) {
	t.Parallel()
	port, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterLeaseServer(server, leaderless{})
	pb.RegisterMaintenanceServer(server, leaderless{})
	go server.Serve(port)
	t.Cleanup(server.Stop)
	cluster, err := upstream.New(upstream.Config{}, []string{port.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		_, serving, err := cluster.Pick(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if serving.Err() != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a member without a leader stays fit")
		}
	}
	told := make(chan error, 1)
	l := link[*pb.LeaseKeepAliveRequest, *pb.LeaseKeepAliveResponse]{
		cluster: cluster, method: keepAliveMethod,
		fresh: func() *pb.LeaseKeepAliveResponse { return &pb.LeaseKeepAliveResponse{} },
		up:    func(*sender[*pb.LeaseKeepAliveRequest]) {},
		down:  func(*sender[*pb.LeaseKeepAliveRequest]) {},
		hopeless: func(err error) {
			select {
			case told <- err:
			default:
			}
		},
	}
	go l.run(t.Context())
	select {
	case err := <-told:
		if !noLeader(err) {
			t.Errorf("told %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("told nothing")
	}
}

// TestWatchesRequireLeader: who asked for it is told that there is no leader also before it has asked
// for a watch, and of nothing else that ends others' watches.
func TestWatchesRequireLeader(t *testing.T) {
	t.Parallel()
	h, all := &watchHub{}, make(map[*watchClient]bool)
	newClient := func() *watchClient { return &watchClient{outbox: newOutbox[merge.Message]()} }
	idle, gone := newClient(), newClient()
	for _, c := range []*watchClient{idle, gone} {
		h.handle(hubEvent{kind: joined, client: c}, all)
	}
	h.handle(hubEvent{kind: closed, client: gone}, all)
	watches := newClient()
	all[watches] = true
	h.handle(hubEvent{kind: hopeless, err: rpctypes.ErrGRPCNoLeader}, all)
	for c, want := range map[*watchClient]bool{idle: true, gone: false, watches: true} {
		if _, ended := c.take(); noLeader(ended) != want {
			t.Errorf("told %v, want it told: %v", ended, want)
		}
	}
	still := newClient()
	h.handle(hubEvent{kind: joined, client: still}, all)
	h.handle(hubEvent{kind: hopeless, err: rpctypes.ErrGRPCInvalidAuthToken}, all)
	if _, ended := still.take(); ended != nil {
		t.Errorf("who has asked for nothing is told %v", ended)
	}
}
