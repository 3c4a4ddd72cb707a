package check

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding/gzip"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/belaydb/belay/server/electionpb"
	"github.com/belaydb/belay/server/lockpb"
)

// metrics says the values of those series that the same requests must leave alike.
func (r *teller) metrics(i int, note string) {
	resp, err := freshClient.Get(r.c.Members[i].ClientURL + "/metrics")
	if err != nil {
		r.say("metrics: %v", err)
		return
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.say("metrics: %v", err)
		return
	}
	var lines []string
	for line := range strings.Lines(string(body)) {
		line = strings.TrimSpace(line)
		name, _, _ := strings.Cut(line, "{")
		name, _, _ = strings.Cut(name, " ")
		switch {
		case strings.HasPrefix(line, "#") || strings.HasSuffix(line, " 0"),
			strings.Contains(name, "seconds"), strings.Contains(name, "healthcheck"), strings.Contains(name, "msg_received"), strings.Contains(name, "msg_sent"), strings.Contains(name, "slow_watcher"),
			strings.Contains(name, "events_total"), strings.Contains(line, `"Watch"`),
			strings.HasSuffix(name, "mvcc_range_total"), strings.HasSuffix(name, "mvcc_txn_total"), (strings.HasSuffix(name, "mvcc_watcher_total") || strings.HasSuffix(name, "mvcc_watch_stream_total")) && note == "after everything":
			// Times, Belay's own check, the ends of streams, which etcd counts as messages, its own
			// reads, which it counts as ranges, and watches of which one is just about to end.
		case strings.HasPrefix(name, "grpc_server_") && strings.HasSuffix(name, "_total"),
			strings.HasPrefix(name, "etcd_debugging_mvcc_") && !strings.Contains(name, "db_") && !strings.Contains(name, "bucket") && !strings.HasSuffix(name, "_sum"),
			strings.HasPrefix(name, "etcd_mvcc_") && !strings.Contains(name, "db_") && !strings.Contains(name, "bucket") && !strings.HasSuffix(name, "_sum"),
			strings.HasPrefix(name, "etcd_lease_"), strings.HasPrefix(name, "etcd_debugging_lease_") && !strings.Contains(name, "ttl_total"),
			strings.HasPrefix(name, "etcd_server_") && !strings.Contains(name, "duration") && !strings.Contains(name, "heartbeat") && !strings.Contains(name, "slow") && !strings.Contains(name, "proposals") && !strings.Contains(name, "feature"),
			strings.HasPrefix(name, "etcd_debugging_auth"), strings.HasPrefix(name, "etcd_debugging_server"),
			strings.HasPrefix(name, "etcd_cluster_"):
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	for _, line := range lines {
		r.say("%s: %s", note, line)
	}
}

func callStories() []story {
	return []story{
		{name: "what gRPC itself answers", tell: func(r *teller) {
			ground(r)
			invoke := func(method string, opts ...grpc.CallOption) {
				ctx, cancel := context.WithTimeout(r.ctx, 5*time.Second)
				defer cancel()
				var header, trailer metadata.MD
				out := &emptypb.Empty{}
				err := r.conn(0).Invoke(ctx, method, &emptypb.Empty{}, out, append(opts, grpc.WaitForReady(true), grpc.Header(&header), grpc.Trailer(&trailer))...)
				r.say("%s => %s, header %v, trailer %v", method, r.shown(&emptypb.Empty{}, err), header, trailer)
			}
			for _, m := range []string{"/etcdserverpb.KV/Nothing", "/etcdserverpb.KV/", "/etcdserverpb.Nothing/Range", "/x.Y/Z", "/etcdserverpb.KV/range", "/etcdserverpb.kv/Range", "/etcdserverpb.KV/Range/x",
				"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "/grpc.channelz.v1.Channelz/GetServers",
				"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List", "/grpc.health.v1.Health/Watch", "/etcdserverpb.KV/Range", "/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive",
				"/etcdserverpb.Maintenance/Status", "/v3lockpb.Lock/Lock", "/v3lockpb.Lock/Nothing", "/v3electionpb.Election/Nothing", "/etcdserverpb.KV/RangeStream"} {
				switch m {
				case "/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive", "/grpc.health.v1.Health/Watch", "/v3lockpb.Lock/Lock":
					continue // they wait
				}
				invoke(m)
				invoke(m, grpc.UseCompressor(gzip.Name))
			}
			for _, service := range []string{"", "etcdserverpb.KV", "x", "\x00"} {
				resp, err := healthpb.NewHealthClient(r.conn(0)).Check(r.ctx, &healthpb.HealthCheckRequest{Service: service})
				r.say("health %q %v %s", service, resp.GetStatus(), r.shown(&emptypb.Empty{}, err))
				ctx, cancel := context.WithTimeout(r.ctx, 2*time.Second)
				stream, err := healthpb.NewHealthClient(r.conn(0)).Watch(ctx, &healthpb.HealthCheckRequest{Service: service})
				if err == nil {
					resp, err = stream.Recv()
				}
				cancel()
				r.say("watch health %q %v %s", service, resp.GetStatus(), r.shown(&emptypb.Empty{}, err))
			}
			for _, md := range [][]string{{"hasleader", "false"}, {"hasleader", "TRUE"}, {"hasleader", "true", "hasleader", "false"}, {"client-api-version", "3.7"}, {"client-api-version", ""}, {"client-api-version", "x y"},
				{"client-api-version", "1", "client-api-version", "2"}, {"x-bin", "\xff\x00"}, {"authorization", "x"}, {"token", "x"}, {"grpcgateway-accept", "x"}, {"grpc-timeout-x", "1"}, {"user-agent", "x"}, {"x", strings.Repeat("v", 7000)}} {
				r.with(func() {
					r.say("with %.60q", md)
					r.call(0, "KV/Range", &pb.RangeRequest{Key: []byte("a/1")})
					r.call(0, "KV/Put", &pb.PutRequest{Key: []byte("a/1")})
					r.call(0, "Maintenance/Status", &pb.StatusRequest{})
					r.call(0, "Auth/AuthStatus", &pb.AuthStatusRequest{})
				}, md...)
			}
			r.metrics(0, "after all that")
		}},
		{name: "a stop while calls wait", tell: func(r *teller) {
			ground(r)
			r.call(0, "Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: 31, TTL: 3000})
			for _, kill := range []bool{false, true} {
				ends := map[string]chan error{}
				wait := func(what string, do func() error) {
					c := make(chan error, 1)
					ends[what] = c
					go func() { c <- do() }()
				}
				r.call(0, "Lock/Lock", &lockpb.LockRequest{Name: []byte("held"), Lease: 7001})
				r.call(0, "Election/Campaign", &electionpb.CampaignRequest{Name: []byte("led"), Lease: 7001, Value: []byte("v")})
				wait("a lock", func() error {
					_, err := r.ask(r.ctx, 0, "Lock/Lock", &lockpb.LockRequest{Name: []byte("held"), Lease: 31})
					return err
				})
				r.awaitCount("held/", 2)
				wait("a campaign", func() error {
					_, err := r.ask(r.ctx, 0, "Election/Campaign", &electionpb.CampaignRequest{Name: []byte("led"), Lease: 31})
					return err
				})
				r.awaitCount("led/", 2)
				w := r.watch(0)
				w.create(&pb.WatchCreateRequest{Key: []byte("w")})
				w.next(1)
				keep, err := pb.NewLeaseClient(r.conn(0)).LeaseKeepAlive(r.ctx)
				if err != nil {
					r.say("%v", err)
					return
				}
				_ = keep.Send(&pb.LeaseKeepAliveRequest{ID: 31})
				if _, err := keep.Recv(); err != nil {
					r.say("%v", err)
				}
				wait("keepalives", func() error { _, err := keep.Recv(); return err })
				observed, err := electionpb.NewElectionClient(r.conn(0)).Observe(r.ctx, &electionpb.LeaderRequest{Name: []byte("led")})
				if err != nil {
					r.say("%v", err)
					return
				}
				if _, err := observed.Recv(); err != nil {
					r.say("%v", err)
				}
				wait("an observer", func() error { _, err := observed.Recv(); return err })
				r.restart(0, kill)
				for _, what := range slices.Sorted(maps.Keys(ends)) {
					select {
					case err := <-ends[what]:
						r.say("killed %v: %s ends with %v", kill, what, status.Code(err))
					case <-time.After(20 * time.Second):
						r.say("killed %v: %s goes on", kill, what)
					}
				}
				for range w.got { // to its end
				}
				r.say("killed %v: a watch ends with %v", kill, status.Code(w.err))
				r.call(0, "KV/Range", &pb.RangeRequest{Key: []byte("held/"), RangeEnd: []byte("held0"), KeysOnly: true})
				r.call(0, "KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte("held/"), RangeEnd: []byte("led0")})
			}
		}},
		{name: "calls that wait while leaders change", size: 3, tell: func(r *teller) {
			ground(r)
			r.call(0, "Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: 31, TTL: 3000})
			r.lead(0, 0, 1, 2)
			for _, change := range []string{"a transfer", "a kill"} {
				r.say("%s", change)
				r.call(1, "Lock/Lock", &lockpb.LockRequest{Name: []byte("held"), Lease: 7001})
				r.call(1, "Election/Campaign", &electionpb.CampaignRequest{Name: []byte("led"), Lease: 7001, Value: []byte("v")})
				locked, led := make(chan string, 1), make(chan string, 1)
				patient, cancel := context.WithTimeout(r.ctx, time.Minute)
				defer cancel()
				conn := r.conn(1)
				go func() {
					resp, err := lockpb.NewLockClient(conn).Lock(patient, &lockpb.LockRequest{Name: []byte("held"), Lease: 31})
					locked <- r.shown(resp, err)
				}()
				r.awaitCount("held/", 2)
				go func() {
					resp, err := electionpb.NewElectionClient(conn).Campaign(patient, &electionpb.CampaignRequest{Name: []byte("led"), Lease: 31, Value: []byte("w")})
					led <- r.shown(resp, err)
				}()
				r.awaitCount("led/", 2)
				w := r.watch(1)
				w.create(&pb.WatchCreateRequest{Key: []byte("held/"), RangeEnd: []byte("held0"), PrevKv: true})
				w.next(1)
				keep, err := pb.NewLeaseClient(conn).LeaseKeepAlive(r.ctx)
				if err != nil {
					r.say("%v", err)
					return
				}
				renew := func() {
					_ = keep.Send(&pb.LeaseKeepAliveRequest{ID: 31})
					resp, err := keep.Recv()
					r.say("renewed %s", r.shown(resp, err))
				}
				renew()
				observed, err := electionpb.NewElectionClient(conn).Observe(r.ctx, &electionpb.LeaderRequest{Name: []byte("led")})
				if err != nil {
					r.say("%v", err)
					return
				}
				hear := func() {
					resp, err := observed.Recv()
					r.say("observed %s", r.shown(resp, err))
				}
				hear()
				if change == "a kill" {
					_ = r.c.Members[0].Kill()
					r.leader(1, 2)
				} else {
					r.lead(2, 0, 1, 2)
				}
				r.settle(1, 2)
				renew()
				r.call(2, "Lock/Unlock", &lockpb.UnlockRequest{Key: []byte("held/1b59")})
				r.say("locked %s", <-locked)
				w.next(1)
				r.call(2, "KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte("led/1b59")})
				r.say("led %s", <-led)
				hear()
				r.call(1, "KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte("held/"), RangeEnd: []byte("led0")})
				w.next(1)
				renew()
				w.cancel()
				if change == "a transfer" {
					r.lead(0, 0, 1, 2)
				}
			}
		}},
		{name: "metrics of the same requests", args: []string{"--metrics=extensive"}, tell: func(r *teller) {
			ground(r)
			everything(r, 0, "metrics")
			r.metrics(0, "after everything")
			w := r.watch(0)
			for range 5 {
				w.create(&pb.WatchCreateRequest{Key: []byte("m")})
			}
			w.next(5)
			r.put("m", "1")
			w.silent(500 * time.Millisecond)
			r.metrics(0, "with five watches")
			w.drop(3)
			w.next(1)
			w.cancel()
			r.call(0, "KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte("a/"), RangeEnd: []byte("a0")})
			r.call(0, "Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: 7001})
			r.call(0, "KV/Compact", &pb.CompactionRequest{Revision: 14, Physical: true})
			if err := eventually(r.ctx, func() error {
				resp, err := freshClient.Get(r.c.Members[0].ClientURL + "/metrics")
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				if err == nil && !strings.Contains(string(body), "\netcd_debugging_mvcc_watch_stream_total 0\n") {
					err = fmt.Errorf("the streams are still counted")
				}
				return err
			}); err != nil {
				r.say("%v", err)
			}
			r.metrics(0, "after a compaction")
			r.restart(0, false)
			r.metrics(0, "after a stop")
			usersAndRoles(r)
			r.by(0, "u", func() {
				r.call(0, "KV/Put", &pb.PutRequest{Key: []byte("b")})
				r.call(0, "KV/Put", &pb.PutRequest{Key: []byte("a/1")})
			})
			r.call(0, "KV/Put", &pb.PutRequest{Key: []byte("b")})
			r.metrics(0, "with users")
		}},
	}
}
