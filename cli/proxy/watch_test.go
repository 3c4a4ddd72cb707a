package proxy

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// metric is a metric of a proxy.
func metric(t *testing.T, address, name string) float64 {
	t.Helper()
	_, text := get(t, address, "/proxy/metrics")
	found := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(text)
	if found == nil {
		t.Fatalf("no metric %s", name)
	}
	v, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func newClient(t *testing.T, address string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{address}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestWatchesMerged: watches of many clients on one range are one of the cluster, wherever they
// began, and each gets what it asked for.
func TestWatchesMerged(t *testing.T) {
	t.Parallel()
	member := startMember(t)
	_, address := startProxy(t, "--endpoints="+member)
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	writer := newClient(t, address)
	put := func(value int) {
		t.Helper()
		if _, err := writer.Put(ctx, "p/k", strconv.Itoa(value)); err != nil {
			t.Fatal(err)
		}
	}
	for value := range 5 {
		put(value)
	}
	const clients, each, last = 10, 10, 12
	type watching struct {
		events clientv3.WatchChan
		first  int
	}
	var all []watching
	for range clients {
		c := newClient(t, address)
		for i := range each {
			opts := []clientv3.OpOption{clientv3.WithPrefix()}
			w := watching{first: 5}
			switch i % 3 {
			case 1: // from the past
				w.first = 1
				opts = append(opts, clientv3.WithRev(3))
			case 2: // from what is to come
				opts = append(opts, clientv3.WithRev(7))
			}
			w.events = c.Watch(ctx, "p/", append(opts, clientv3.WithCreatedNotify())...)
			if r := <-w.events; !r.Created || r.Err() != nil {
				t.Fatalf("not created: %v", r)
			}
			all = append(all, w)
		}
	}
	for value := 5; value < last; value++ {
		put(value)
	}
	for _, w := range all {
		for want := w.first; want < last; {
			r, ok := <-w.events
			if !ok || r.Err() != nil {
				t.Fatalf("a watch ended: %v", r.Err())
			}
			for _, e := range r.Events {
				if string(e.Kv.Value) != strconv.Itoa(want) {
					t.Fatalf("a watch from %d has %s, not %d", w.first, e.Kv.Value, want)
				}
				want++
			}
		}
	}
	eventually(t, func() error {
		if n := metric(t, address, "belay_proxy_upstream_watches"); n != 1 {
			return fmt.Errorf("%v watches of the cluster", n)
		}
		return nil
	})
	if n := metric(t, address, "etcd_grpc_proxy_watchers_coalescing_total"); n != clients*each-1 {
		t.Errorf("%v watches share another's", n)
	}
	// Progress, when it is asked for.
	if err := writer.RequestProgress(ctx); err != nil {
		t.Fatal(err)
	}
	own := writer.Watch(ctx, "p/", clientv3.WithPrefix())
	eventually(t, func() error {
		if err := writer.RequestProgress(ctx); err != nil {
			return err
		}
		if r := <-own; !r.IsProgressNotify() || r.Header.Revision < last+1 {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
}

// watchK is a stream with one watch, of the key k, that was created.
func watchK(t *testing.T, ctx context.Context, address string) pb.Watch_WatchClient {
	t.Helper()
	stream, err := pb.NewWatchClient(dial(t, address)).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("k")}}}); err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Recv(); err != nil || !r.Created {
		t.Fatalf("%v, %v", r, err)
	}
	return stream
}

// TestSlowWatcher: a client that does not read costs no more than its queue, delays nobody, and gets
// everything when it reads again.
func TestSlowWatcher(t *testing.T) {
	t.Parallel()
	member := startMember(t)
	_, address := startProxy(t, "--endpoints="+member)
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	slow := watchK(t, ctx, address)
	fast := newClient(t, address)
	events := fast.Watch(ctx, "k")
	value := strings.Repeat("v", 100<<10)
	const count = 100 // ten times the queue and what flow control lets through
	for range count {
		if _, err := fast.Put(ctx, "k", value); err != nil {
			t.Fatal(err)
		}
		if r := <-events; len(r.Events) != 1 {
			t.Fatalf("%v", r.Err())
		}
	}
	if n := metric(t, address, "belay_proxy_slow_watches_total"); n == 0 {
		t.Error("the client was not slow")
	}
	if n := metric(t, address, "belay_proxy_watch_queue_bytes"); n > 2<<20 {
		t.Errorf("%v bytes are queued", n)
	}
	for version := int64(1); version <= count; {
		r, err := slow.Recv()
		if err != nil || r.Canceled {
			t.Fatalf("%v, %v", r, err)
		}
		for _, e := range r.Events {
			if e.Kv.Version != version {
				t.Fatalf("version %d instead of %d", e.Kv.Version, version)
			}
			version++
		}
	}
}

// TestKeepAlives: keepalives of many clients for one lease are few for the cluster, leases that are
// gone are soon known to be, and one that nobody keeps alive expires.
func TestKeepAlives(t *testing.T) {
	t.Parallel()
	member := startMember(t)
	_, address := startProxy(t, "--endpoints="+member)
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	lease := pb.NewLeaseClient(dial(t, address))
	granted, err := lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 60})
	if err != nil {
		t.Fatal(err)
	}
	const clients, each = 5, 20
	for range clients {
		s, err := pb.NewLeaseClient(dial(t, address)).LeaseKeepAlive(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for range each {
			if err := s.Send(&pb.LeaseKeepAliveRequest{ID: granted.ID}); err != nil {
				t.Fatal(err)
			}
			if r, err := s.Recv(); err != nil || r.ID != granted.ID || r.TTL < 30 || r.TTL > 60 || r.Header.GetClusterId() == 0 {
				t.Fatalf("%v, %v", r, err)
			}
		}
		if err := s.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if r, err := s.Recv(); err != io.EOF {
			t.Fatalf("after the last request: %v, %v", r, err)
		}
	}
	if n := metric(t, address, "belay_proxy_upstream_keepalives_total"); n < 1 || n > clients*each/2 {
		t.Errorf("the cluster was asked %v times for %d keepalives", n, clients*each)
	}
	s, err := lease.LeaseKeepAlive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ttl := func(id int64) int64 {
		t.Helper()
		if err := s.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
		r, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return r.TTL
	}
	if n := ttl(granted.ID); n < 30 {
		t.Errorf("TTL %d", n)
	}
	if _, err := lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: granted.ID}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if n := ttl(granted.ID); n != 0 {
			return fmt.Errorf("a lease that is revoked has TTL %d", n)
		}
		return nil
	})
	// Revoked by somebody else: for maxPace at most it is not noticed.
	other, err := lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 60})
	if err != nil {
		t.Fatal(err)
	}
	ttl(other.ID)
	if _, err := pb.NewLeaseClient(dial(t, member)).LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: other.ID}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if n := ttl(other.ID); n != 0 {
			return fmt.Errorf("a lease that is revoked has TTL %d", n)
		}
		return nil
	})
	// The proxy keeps nothing alive by itself, though the stream is open.
	short, err := lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 2})
	if err != nil {
		t.Fatal(err)
	}
	ttl(short.ID)
	direct := pb.NewLeaseClient(dial(t, member))
	eventually(t, func() error {
		r, err := direct.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: short.ID})
		if err == nil && r.TTL >= 0 {
			err = fmt.Errorf("a lease that nobody keeps alive has TTL %d", r.TTL)
		}
		return err
	})
}

// TestStop: a proxy that ends does not wait for watches and keepalives, and tells their clients.
func TestStop(t *testing.T) {
	t.Parallel()
	member := startMember(t)
	p, address := startProxy(t, "--endpoints="+member)
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	watch := watchK(t, ctx, address)
	keep, err := pb.NewLeaseClient(dial(t, address)).LeaseKeepAlive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := keep.Send(&pb.LeaseKeepAliveRequest{ID: 7}); err != nil {
		t.Fatal(err)
	}
	if r, err := keep.Recv(); err != nil || r.TTL != 0 {
		t.Fatalf("%v, %v", r, err)
	}
	p.relay.Stop()
	if _, err := watch.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the watch ends with %v", err)
	}
	if _, err := keep.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the keepalives end with %v", err)
	}
}
