package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/cli/bench/load"
	"github.com/belaydb/belay/cli/connect"
)

// answerWithin is how long an endpoint may take to answer before anything is measured.
const answerWithin = 5 * time.Second

// A target is a set of endpoints and the connections to them.
type target struct {
	endpoints []string
	conns     []*clientv3.Client
	tls       *tls.Config // nil: none

	meter *meter // of the run that goes on
}

// connect opens the connections: number i to endpoint i, and again from the first. At least one
// endpoint must answer; of others that do not, stderr is told.
func (b *bench) connect(ctx context.Context, endpoints []string) (*target, error) {
	if b.targetLeader {
		leader, err := b.leader(ctx, endpoints)
		if err != nil {
			return nil, err
		}
		endpoints = leader
	}
	t := &target{endpoints: endpoints}
	for i := range min(b.conns, b.clients) {
		to := endpoints[int(i)%len(endpoints) : int(i)%len(endpoints)+1]
		if b.targetLeader {
			to = endpoints // all of one member
		}
		c, secured, err := b.dialSecured(ctx, to)
		if err != nil {
			t.close()
			return nil, err
		}
		t.conns, t.tls = append(t.conns, c), secured
	}
	if err := t.look(ctx, b); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func (b *bench) dial(ctx context.Context, endpoints []string) (*clientv3.Client, error) {
	c, _, err := b.dialSecured(ctx, endpoints)
	return c, err
}

// dialSecured also returns the TLS configuration, nil if there is none.
func (b *bench) dialSecured(ctx context.Context, endpoints []string) (*clientv3.Client, *tls.Config, error) {
	f := connect.Flags{Cert: b.cert, Key: b.key, CACert: b.cacert, InsecureSkipVerify: b.skipVerify, InsecureTransport: true, InsecureDiscovery: true,
		User: b.user, Password: b.password, DialTimeout: b.dialTimeout, MaxSendBytes: math.MaxInt32}
	if f.DialTimeout == 0 {
		f.DialTimeout = answerWithin
	}
	auth, err := f.Credentials(b.in, b.err)
	if err != nil {
		return nil, nil, usagef("--user: %v", err)
	}
	b.password = f.Password
	cfg, err := clientv3.NewClientConfig(f.Spec(endpoints, auth), zap.NewNop())
	if err != nil {
		return nil, nil, usagef("--cert, --key, --cacert: %v", err)
	}
	// A run's context ends its requests one by one; the connection outlives it, to tell what the
	// run has cost.
	cfg.Logger, cfg.Context, cfg.AutoSyncInterval = zap.NewNop(), context.WithoutCancel(ctx), b.syncInterval
	cfg.DialOptions = []grpc.DialOption{
		grpc.WithReadBufferSize(64 << 10), grpc.WithWriteBufferSize(64 << 10),
		grpc.WithInitialWindowSize(4 << 20), grpc.WithInitialConnWindowSize(16 << 20),
	}
	c, err := clientv3.New(*cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("--endpoints=%s: %s", strings.Join(endpoints, ","), describe(err))
	}
	return c, cfg.TLS, nil
}

// leader are the client URLs of the leader.
func (b *bench) leader(ctx context.Context, endpoints []string) ([]string, error) {
	c, err := b.dial(ctx, endpoints)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	members, err := c.MemberList(ctx)
	if err != nil {
		return nil, fmt.Errorf("--target-leader: the members cannot be listed: %s", describe(err))
	}
	var failed error
	for _, ep := range endpoints {
		answer, err := c.Status(ctx, ep)
		if err != nil {
			failed = err
			continue
		}
		for _, m := range members.Members {
			if m.ID == answer.Leader && len(m.ClientURLs) > 0 {
				return m.ClientURLs, nil
			}
		}
		failed = errors.New("there is none, or it serves no clients")
	}
	return nil, fmt.Errorf("--target-leader: no leader found: %s", describe(failed))
}

// look asks each endpoint for its status, over the connections that will be measured.
func (t *target) look(ctx context.Context, b *bench) error {
	var failed []string
	asked := min(len(t.conns), len(t.endpoints))
	for i := range asked {
		ctx, cancel := context.WithTimeout(ctx, answerWithin)
		_, err := pb.NewMaintenanceClient(t.conn(i)).Status(ctx, &pb.StatusRequest{})
		cancel()
		if rpctypes.Error(err) == rpctypes.ErrUserEmpty {
			return fmt.Errorf("--user: %s wants a user; give name:password (%s)", t.endpoints[i], describe(err))
		}
		switch status.Code(err) {
		case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
			failed = append(failed, fmt.Sprintf("%s: %s", t.endpoints[i], describe(err)))
		}
	}
	if len(failed) == asked {
		return fmt.Errorf("--endpoints: none answers (%s); name a server that runs, and --cacert, --cert and --key if it wants them", strings.Join(failed, "; "))
	}
	for _, f := range failed {
		fmt.Fprintf(b.err, "warning: an endpoint does not answer: %s\n", f)
	}
	return nil
}

// client is the connection of client i.
func (t *target) client(i int) *clientv3.Client { return t.conns[i%len(t.conns)] }

// conn is the same for encoded requests.
func (t *target) conn(i int) *grpc.ClientConn { return t.client(i).ActiveConnection() }

// invoke sends an encoded request; the answer is dropped.
func invoke(ctx context.Context, conn *grpc.ClientConn, method string, r *load.Request) error {
	err := conn.Invoke(ctx, method, r, nil, load.Raw())
	if err != nil {
		r.Renew()
	}
	return err
}

func (t *target) close() {
	for _, c := range t.conns {
		_ = c.Close() // nothing is done with it any more
	}
}

// describe is an error's text as clientv3 gives it: etcd's own without gRPC's code before it.
func describe(err error) string { return rpctypes.Error(err).Error() }
