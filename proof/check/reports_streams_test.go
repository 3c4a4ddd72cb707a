package check

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/server/electionpb"
	"github.com/belaydb/belay/server/lockpb"
)

func permission(key, end string) *authpb.Permission {
	return &authpb.Permission{Key: []byte(key), RangeEnd: []byte(end), PermType: authpb.Permission_READWRITE}
}

func (r *teller) put(key, value string) {
	if _, err := r.ask(r.ctx, 0, "KV/Put", &pb.PutRequest{Key: []byte(key), Value: []byte(value)}); err != nil {
		r.say("put %s: %s", key, r.shown(nil, err))
	}
}

func streamStories() []story {
	return []story{
		{name: "watch ids and cancels", tell: func(r *teller) {
			ground(r)
			w := r.watch(0)
			for _, id := range []int64{1, 0, 0, 0, 5, 5, -1, -2, math.MaxInt64, math.MinInt64, 0} {
				w.create(&pb.WatchCreateRequest{Key: []byte("w"), WatchId: id})
				w.next(1)
			}
			r.put("w", "1")
			w.silent(300 * time.Millisecond)
			for _, id := range []int64{5, 5, -1, -2, 12345, 0, 1, math.MaxInt64} {
				w.drop(id)
			}
			w.silent(300 * time.Millisecond)
			for _, id := range []int64{5, 0, 0, 1} {
				w.create(&pb.WatchCreateRequest{Key: []byte("w"), WatchId: id, StartRevision: 2, PrevKv: true})
				w.next(2)
			}
			w.progress()
			w.next(1)
			w.send(&pb.WatchRequest{}) // says nothing
			w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{}})
			w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{}})
			w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{}})
			w.silent(500 * time.Millisecond)
			_ = w.stream.CloseSend()
			r.put("w", "2")
			w.silent(500 * time.Millisecond)
			w.cancel()
		}},
		{name: "watch nil requests", tell: func(r *teller) {
			ground(r)
			for _, b := range [][]byte{{}, {0x0a, 0}, {0x12, 0}, {0x1a, 0}, {0x22, 0}, {0x0a, 0x05, 1}, {0xff}, {0x08, 1}, {0x0a, 2, 0x0a, 0}, {0x0a, 0, 0x12, 0}, {0x1a, 0, 0x0a, 0}, {0x0a, 2, 0x28, 7}, {0x0a, 3, 0x2a, 1, 7}} {
				r.say("watch request %x", b)
				w := r.watch(0)
				w.send(rawMessage(b))
				w.silent(300 * time.Millisecond)
				w.create(&pb.WatchCreateRequest{Key: []byte("w"), WatchId: 3})
				w.silent(300 * time.Millisecond)
				r.put("w", "1")
				w.silent(300 * time.Millisecond)
				w.cancel()
			}
		}},
		{name: "watch ranges, filters and the past", tell: func(r *teller) {
			ground(r)
			r.call(0, "KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte("a/"), RangeEnd: []byte("a3")})
			r.call(0, "KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{
				{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("a/1"), Value: []byte("again")}}},
				{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("a/0"), Lease: 7001}}},
				{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("d/"), RangeEnd: []byte("d0")}}},
			}})
			r.call(0, "Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: 7001})
			for _, compact := range []int64{0, 5, 9, 17} {
				if compact > 0 {
					r.call(0, "KV/Compact", &pb.CompactionRequest{Revision: compact, Physical: true})
				}
				// All on one stream; the last one has something to tell when the others have.
				type asked struct {
					what  string
					lines []string
				}
				watches := map[int64]*asked{}
				var ids []int64
				w := r.watch(0)
				for _, keys := range [][2]string{{"", ""}, {"", "\x00"}, {"\x00", "\x00"}, {"a/", "a0"}, {"a/1", ""}, {"a/1", "\x00"}, {"d/", "d0"}, {"\xff\xff", "\x00"}, {"", "a"}, {"a/0", "a/0\x00"}} {
					for _, filters := range [][]pb.WatchCreateRequest_FilterType{nil, {pb.WatchCreateRequest_NOPUT}, {pb.WatchCreateRequest_NODELETE}, {0, 1}, {1, 1, 7, -1}} {
						for _, start := range []int64{1, 2, 5, 6, 9, 16, 17, 18, 19} {
							id := int64(len(ids) + 1)
							ids = append(ids, id)
							watches[id] = &asked{what: fmt.Sprintf("compacted %d, watch %q %v from %d", compact, keys, filters, start)}
							w.create(&pb.WatchCreateRequest{Key: []byte(keys[0]), RangeEnd: []byte(keys[1]), StartRevision: start, PrevKv: true, Filters: filters, WatchId: id})
						}
					}
				}
				for quiet := false; !quiet; {
					select {
					case resp, ok := <-w.got:
						if !ok {
							r.say("ended: %v", w.err)
							return
						}
						a := watches[resp.WatchId]
						for _, ev := range resp.Events { // where an answer ends is the server's affair
							a.lines = append(a.lines, r.shown(ev, nil))
						}
						if len(resp.Events) == 0 {
							a.lines = append(a.lines, r.shown(resp, nil))
						}
					case <-time.After(2 * time.Second):
						quiet = true
					}
				}
				w.cancel()
				for _, id := range ids {
					r.say("%s: %s", watches[id].what, strings.Join(watches[id].lines, " | "))
				}
				for _, req := range []*pb.WatchCreateRequest{{Key: []byte("b"), RangeEnd: []byte("a")}, {Key: []byte("b"), RangeEnd: []byte("b")}, {Key: []byte("b"), StartRevision: math.MinInt64}, {Key: []byte("b"), StartRevision: -1}, {Key: []byte("b"), StartRevision: math.MaxInt64}} {
					w := r.watch(0)
					w.create(req)
					w.silent(300 * time.Millisecond)
					w.cancel()
				}
			}
		}},
		{name: "watch progress", args: []string{"--watch-progress-notify-interval=700ms"}, tell: func(r *teller) {
			ground(r)
			w := r.watch(0)
			w.progress() // no watch yet
			w.silent(300 * time.Millisecond)
			w.create(&pb.WatchCreateRequest{Key: []byte("quiet")})
			w.next(1)
			w.progress()
			w.next(1)
			w.progress()
			w.progress()
			w.progress()
			w.next(3)
			r.put("other", "1")
			w.progress()
			w.next(1)
			w.create(&pb.WatchCreateRequest{Key: []byte("quiet"), StartRevision: 1000, WatchId: 7})
			w.next(1)
			w.progress()
			w.silent(500 * time.Millisecond)
			w.drop(7)
			w.next(1)
			w.progress()
			w.next(1)
			w.drop(0)
			w.next(1)
			w.progress() // no watch any more
			w.silent(300 * time.Millisecond)
			w.cancel()

			// By itself.
			w = r.watch(0)
			w.create(&pb.WatchCreateRequest{Key: []byte("quiet"), ProgressNotify: true})
			w.next(2)
			r.put("other", "2")
			w.next(1)
			w.create(&pb.WatchCreateRequest{Key: []byte("quiet"), ProgressNotify: true, StartRevision: 1000, WatchId: 8})
			w.next(1)
			w.next(1)
			w.cancel()
			w = r.watch(0)
			w.create(&pb.WatchCreateRequest{Key: []byte("quiet"), ProgressNotify: true, StartRevision: 1000})
			w.next(1)
			w.silent(2 * time.Second)
			w.cancel()
			w = r.watch(0)
			w.create(&pb.WatchCreateRequest{Key: []byte("a/1"), ProgressNotify: true, StartRevision: 2})
			w.next(3)
			w.cancel()
		}},
		{name: "many watches on a stream", tell: func(r *teller) {
			ground(r)
			w := r.watch(0)
			for i := range 3000 {
				w.create(&pb.WatchCreateRequest{Key: []byte("m"), StartRevision: int64(i % 3)})
			}
			w.next(3000)
			r.put("m", "1")
			seen := map[int64]int{}
			for range 3000 {
				select {
				case resp := <-w.got:
					seen[resp.WatchId] += len(resp.Events)
				case <-time.After(10 * time.Second):
				}
			}
			r.say("%d watches have got an event", len(seen))
			for i := range 3000 {
				w.drop(int64(i))
			}
			w.next(3000)
			w.silent(200 * time.Millisecond)
			w.cancel()
		}},
		{name: "watch large", args: []string{"--max-request-bytes=65536"}, tell: func(r *teller) {
			w := r.watch(0)
			w.create(&pb.WatchCreateRequest{Key: []byte("l"), RangeEnd: []byte("m"), Fragment: true, PrevKv: true})
			w.next(1)
			for range 2 {
				var txn pb.TxnRequest
				for i := range 60 {
					txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: fmt.Appendf(nil, "l%d", i), Value: make([]byte, 1000)}}})
				}
				_, err := r.ask(r.ctx, 0, "KV/Txn", &txn)
				r.say("txn: %v", err)
			}
			r.call(0, "KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte("l"), RangeEnd: []byte("m")})
			for range 3 {
				events := 0
				var ends []bool
				for events < 60 {
					select {
					case resp := <-w.got:
						events += len(resp.Events)
						ends = append(ends, resp.Fragment)
					case <-time.After(10 * time.Second):
						events = 1000
					}
				}
				r.say("%d events, the last part says %v", events, ends[len(ends)-1])
			}
			w.cancel()
		}},
		{name: "watch over restarts", tell: func(r *teller) {
			ground(r)
			r.call(0, "KV/Compact", &pb.CompactionRequest{Revision: 6})
			for _, kill := range []bool{true, false} {
				r.restart(0, kill)
				for _, start := range []int64{1, 5, 6, 7, 0} {
					w := r.watch(0)
					w.create(&pb.WatchCreateRequest{Key: []byte("a/"), RangeEnd: []byte("a0"), StartRevision: start, PrevKv: true})
					w.next(1)
					if start > 0 {
						w.past(9) // the last one of a/
					}
					w.cancel()
				}
				for _, rev := range []int64{0, 1, 5, 6, 7, 100} {
					r.call(0, "KV/Range", &pb.RangeRequest{Key: []byte("a/"), RangeEnd: []byte("a0"), Revision: rev})
					if rev > 0 && rev != 6 { // of what was compacted the compaction's own hash may be at hand
						r.call(0, "Maintenance/HashKV", &pb.HashKVRequest{Revision: rev})
					}
				}
				r.call(0, "KV/Compact", &pb.CompactionRequest{Revision: 6})
				r.call(0, "KV/Compact", &pb.CompactionRequest{Revision: 5, Physical: true})
			}
			r.call(0, "KV/Compact", &pb.CompactionRequest{Revision: 8, Physical: true})
			r.call(0, "Maintenance/HashKV", &pb.HashKVRequest{Revision: 8})
			r.call(0, "Maintenance/HashKV", &pb.HashKVRequest{})
			r.call(0, "Maintenance/HashKV", &pb.HashKVRequest{Revision: 6})
		}},
		{name: "the revision after everything is compacted", tell: func(r *teller) { // etcd 17780
			ground(r)
			for _, way := range []string{"delete", "txn", "revoke"} {
				switch way {
				case "delete":
					r.call(0, "KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
				case "txn":
					r.put("x", "1")
					r.call(0, "KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{
						{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("y")}}},
						{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("x")}}},
					}})
					r.call(0, "KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte("y")})
				case "revoke":
					r.call(0, "KV/Put", &pb.PutRequest{Key: []byte("z"), Lease: 7001})
					r.call(0, "Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: 7001})
				}
				resp, err := r.call(0, "KV/Range", &pb.RangeRequest{Key: []byte("x")})
				if err != nil {
					return
				}
				rev := resp.(*pb.RangeResponse).Header.Revision
				r.call(0, "KV/Compact", &pb.CompactionRequest{Revision: rev, Physical: true})
				r.call(0, "Maintenance/Defragment", &pb.DefragmentRequest{})
				for _, kill := range []bool{true, false} {
					r.restart(0, kill)
					r.call(0, "KV/Range", &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
					r.call(0, "KV/Range", &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: rev})
					r.call(0, "KV/Range", &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: rev - 1})
					r.call(0, "Maintenance/HashKV", &pb.HashKVRequest{Revision: rev})
					r.call(0, "KV/Compact", &pb.CompactionRequest{Revision: rev})
					r.call(0, "Maintenance/Status", &pb.StatusRequest{})
				}
				r.call(0, "KV/Put", &pb.PutRequest{Key: []byte("next"), Value: []byte(way), PrevKv: true})
			}
			// Open-ended deletes beside puts (etcd 22395), and what else overlaps.
			put := func(k string) *pb.RequestOp {
				return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(k)}}}
			}
			del := func(k, end string) *pb.RequestOp {
				return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(k), RangeEnd: []byte(end)}}}
			}
			nested := func(yes, no []*pb.RequestOp) *pb.RequestOp {
				return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: yes, Failure: no}}}
			}
			type ops = []*pb.RequestOp
			for _, o := range []ops{
				{del("a", "\x00"), put("a")}, {del("a", "\x00"), put("b")}, {put("b"), del("a", "\x00")}, {del("\x00", "\x00"), put("b")}, {del("a", "\x00\x01"), put("b")}, {del("b", "a"), put("b")},
				{del("a", "b"), put("b")}, {del("a", "b"), put("a")}, {del("a", "a"), put("a")}, {nested(ops{del("a", "\x00")}, nil), put("b")}, {nested(ops{put("a")}, ops{put("a")})},
				{nested(ops{put("a")}, ops{del("a", "")})}, {nested(ops{put("a")}, nil), nested(nil, ops{put("a")})}, {nested(ops{del("a", "")}, ops{del("a", "")}), del("a", "c")},
				{nested(nil, ops{nested(ops{put("a")}, nil)}), put("a")}, {put("a"), nested(nil, ops{put("a")})}, {nested(ops{put("a")}, ops{put("b")}), del("b", "")}, {nested(ops{del("q", "r")}, nil), nested(ops{put("q")}, nil)},
				{nested(ops{put("q")}, nil), nested(ops{del("q", "r")}, nil)}, {{}, put("a")}, {nested(nil, nil)}, {nested(nil, ops{{}})},
			} {
				r.call(0, "KV/Txn", &pb.TxnRequest{Success: o})
				r.call(0, "KV/Txn", &pb.TxnRequest{Failure: o})
			}
		}},
		{name: "elections and locks", tell: func(r *teller) {
			r.call(0, "Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: 1, TTL: 3000})
			r.call(0, "Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: 2, TTL: 3000})
			r.call(0, "Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: -3, TTL: 3000})
			campaign := func(name string, lease int64, value string) *electionpb.CampaignResponse {
				resp, err := r.call(0, "Election/Campaign", &electionpb.CampaignRequest{Name: []byte(name), Lease: lease, Value: []byte(value)})
				if err != nil {
					return &electionpb.CampaignResponse{Leader: &electionpb.LeaderKey{Name: []byte(name), Key: []byte("none")}}
				}
				return resp.(*electionpb.CampaignResponse)
			}
			for _, name := range []string{"e", "", "e/", "\xff\xfe", "e\x00", "e"} {
				first := campaign(name, 1, "one")
				again := campaign(name, 1, "one again")
				r.call(0, "Election/Leader", &electionpb.LeaderRequest{Name: []byte(name)})
				ctx, cancel := context.WithTimeout(r.ctx, time.Second)
				_, err := r.ask(ctx, 0, "Election/Campaign", &electionpb.CampaignRequest{Name: []byte(name), Lease: 2, Value: []byte("two")})
				cancel()
				r.say("second campaign: %s", r.shown(nil, err))
				r.awaitCount(name+"/", 1)
				r.call(0, "KV/Range", &pb.RangeRequest{Key: []byte(name + "/"), RangeEnd: []byte(name + "0")})
				stale := &electionpb.LeaderKey{Name: []byte(name), Key: first.Leader.Key, Rev: first.Leader.Rev + 1, Lease: 1}
				r.call(0, "Election/Proclaim", &electionpb.ProclaimRequest{Leader: stale, Value: []byte("stale")})
				r.call(0, "Election/Resign", &electionpb.ResignRequest{Leader: stale})
				r.call(0, "Election/Leader", &electionpb.LeaderRequest{Name: []byte(name)})
				r.call(0, "Election/Proclaim", &electionpb.ProclaimRequest{Leader: again.Leader, Value: []byte("news")})
				r.call(0, "Election/Proclaim", &electionpb.ProclaimRequest{Leader: &electionpb.LeaderKey{}, Value: []byte("news")})
				r.call(0, "Election/Resign", &electionpb.ResignRequest{Leader: &electionpb.LeaderKey{}})
				r.call(0, "Election/Leader", &electionpb.LeaderRequest{Name: []byte(name)})
				r.call(0, "Election/Resign", &electionpb.ResignRequest{Leader: again.Leader})
				r.call(0, "Election/Resign", &electionpb.ResignRequest{Leader: again.Leader})
				r.call(0, "Election/Leader", &electionpb.LeaderRequest{Name: []byte(name)})
				r.call(0, "KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte(name + "/"), RangeEnd: []byte(name + "0")})
			}
			campaign("neg", -3, "negative")
			campaign("neg", math.MinInt64, "")
			// Observe: what there is, news, a resignation, another one.
			observe := func(name string) grpc.ServerStreamingClient[electionpb.LeaderResponse] {
				s, err := electionpb.NewElectionClient(r.conn(0)).Observe(r.ctx, &electionpb.LeaderRequest{Name: []byte(name)}, grpc.WaitForReady(true))
				if err != nil {
					r.t.Error(err)
				}
				return s
			}
			hear := func(s grpc.ServerStreamingClient[electionpb.LeaderResponse]) {
				resp, err := s.Recv()
				r.say("observed %s", r.shown(resp, err))
			}
			o := observe("o")
			led := campaign("o", 1, "first")
			hear(o)
			r.call(0, "Election/Proclaim", &electionpb.ProclaimRequest{Leader: led.Leader, Value: []byte("second")})
			hear(o)
			late := observe("o")
			hear(late)
			r.call(0, "Election/Resign", &electionpb.ResignRequest{Leader: led.Leader})
			campaign("o", 2, "third")
			hear(o)
			hear(late)
			r.call(0, "Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: 2})
			campaign("o", 1, "fourth")
			hear(o)
			hear(late)

			lock := func(name string, lease int64, d time.Duration) {
				ctx, cancel := context.WithTimeout(r.ctx, d)
				defer cancel()
				resp, err := r.ask(ctx, 0, "Lock/Lock", &lockpb.LockRequest{Name: []byte(name), Lease: lease})
				r.say("lock %q with %d: %s", name, lease, r.shown(resp, err))
				if status.Code(err) == codes.DeadlineExceeded {
					r.awaitCount(name+"/", 1)
				}
			}
			r.call(0, "Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: 2, TTL: 3000})
			for _, name := range []string{"l", "", "l/", "\xff\xfe", "l\x00"} {
				lock(name, 1, 10*time.Second)
				lock(name, 1, 10*time.Second) // the same lease has it already
				lock(name, 2, time.Second)
				r.call(0, "KV/Range", &pb.RangeRequest{Key: []byte(name + "/"), RangeEnd: []byte(name + "0")})
				lock(name, -3, time.Second)
				lock(name, 99999, time.Second)
				r.call(0, "Lock/Unlock", &lockpb.UnlockRequest{Key: []byte(name + "/1")})
				lock(name, 2, 10*time.Second)
				r.call(0, "Lock/Unlock", &lockpb.UnlockRequest{Key: []byte(name + "/2")})
				r.call(0, "KV/Range", &pb.RangeRequest{Key: []byte(name + "/"), RangeEnd: []byte(name + "0")})
			}
			// Whoever waits gets it when the lease of the first ends.
			lock("end", 1, 10*time.Second)
			done := make(chan string)
			go func() {
				ctx, cancel := context.WithTimeout(r.ctx, 10*time.Second)
				defer cancel()
				resp, err := r.ask(ctx, 0, "Lock/Lock", &lockpb.LockRequest{Name: []byte("end"), Lease: 2})
				done <- r.shown(resp, err)
			}()
			r.awaitCount("end/", 2)
			r.call(0, "Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: 1})
			r.say("waited: %s", <-done)
			// And whoever's own lease ends while it waits is told.
			r.call(0, "Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: 5, TTL: 3000})
		}},
	}
}

func (r *teller) awaitCount(prefix string, n int64) {
	if err := eventually(r.ctx, func() error {
		resp, err := r.ask(r.ctx, 0, "KV/Range", &pb.RangeRequest{Key: []byte(prefix), RangeEnd: append([]byte(prefix), 0xff), CountOnly: true})
		if err != nil {
			return err
		}
		if c := resp.(*pb.RangeResponse).Count; c != n {
			return fmt.Errorf("%d keys", c)
		}
		return nil
	}); err != nil {
		r.t.Error(err)
	}
}

func leaseStories() []story {
	leases := func(r *teller, members ...int) {
		for _, i := range members {
			r.call(i, "Lease/LeaseLeases", &pb.LeaseLeasesRequest{})
			for _, id := range []int64{1, 2, 3, 4, 5, -6, math.MaxInt64, math.MinInt64, 7777} {
				r.call(i, "Lease/LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: id, Keys: true})
			}
		}
	}
	begin := func(r *teller) {
		for _, g := range [][2]int64{{1, 1000}, {2, 3000}, {3, 5000}, {4, 9_000_000_000}, {5, 7000}, {-6, 9000}, {math.MaxInt64, 11000}, {math.MinInt64, 13000}} {
			r.call(0, "Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: g[0], TTL: g[1]})
		}
		put := func(key string, lease int64, ignore bool) {
			r.call(0, "KV/Put", &pb.PutRequest{Key: []byte(key), Lease: lease, IgnoreLease: ignore})
		}
		put("k1", 1, false)
		put("k2", 1, false)
		put("k3", 1, false)
		put("k1", 2, false) // another lease
		put("k2", 0, false) // none any more
		put("k3", 0, true)  // kept
		put("neg", -6, false)
		put("max", math.MaxInt64, false)
		put("min", math.MinInt64, false)
		put("none", -1, false)
		put("k4", 3, false)
		r.call(0, "KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte("k4")})
		put("k4", 5, false)
		for i := range 30 {
			put(fmt.Sprintf("five/%d", i*7%30), 5, false)
		}
		r.call(0, "KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{
			{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("t1"), Lease: 1}}},
			{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("t2"), Lease: 424242}}},
		}})
		r.call(0, "KV/Txn", &pb.TxnRequest{Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("t2"), Lease: 424242}}}}})
		r.call(0, "KV/Txn", &pb.TxnRequest{
			Compare: []*pb.Compare{{Key: []byte("k3"), Target: pb.Compare_LEASE, TargetUnion: &pb.Compare_Lease{Lease: 1}}},
			Success: []*pb.RequestOp{
				{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("t1"), Lease: 2}}},
				{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k3"), IgnoreLease: true, Value: []byte("txn")}}},
				{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("k3")}}},
			},
		})
	}
	end := func(r *teller, i int) {
		w := r.watch(i)
		w.create(&pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, PrevKv: true})
		w.next(1)
		for _, id := range []int64{5, 1, 2, -6, math.MaxInt64, math.MinInt64} {
			r.call(i, "Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: id})
			w.next(1)
			r.call(i, "Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: id})
		}
		w.cancel()
		r.call(i, "KV/Range", &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
		r.call(i, "Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: 5, TTL: 1000})
		r.keepAlive(i, 5, 4, 1, 3)
	}
	return []story{
		{name: "leases over restarts", tell: func(r *teller) {
			begin(r)
			leases(r, 0)
			for _, kill := range []bool{true, false} {
				r.restart(0, kill)
				leases(r, 0)
				r.keepAlive(0, 1, 2, -6, 424242, 0, math.MaxInt64, 4)
				r.call(0, "KV/Put", &pb.PutRequest{Key: []byte("after"), Lease: 3})
			}
			end(r, 0)
			r.restart(0, true)
			leases(r, 0)
		}},
		{name: "leases over a change of leader", size: 3, tell: func(r *teller) {
			r.lead(0, 0, 1, 2)
			begin(r)
			r.settle(0, 1, 2)
			leases(r, 0, 1, 2)
			r.lead(1, 0, 1, 2)
			leases(r, 0, 1, 2)
			r.keepAlive(0, 1, 2, 424242)
			r.keepAlive(1, 1, 2, 424242)
			r.keepAlive(2, 4, 5, math.MinInt64)
			_ = r.c.Members[1].Kill()
			r.leader(0, 2)
			r.settle(0, 2)
			leases(r, 0, 2)
			r.restart(0, true)
			r.settle(0, 2)
			leases(r, 0, 2)
			end(r, 2)
		}},
		{name: "leases that end by themselves", tell: func(r *teller) {
			w := r.watch(0)
			w.create(&pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, PrevKv: true})
			w.next(1)
			r.call(0, "Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: 11, TTL: 1})
			for _, k := range []string{"z", "a", "m"} {
				r.call(0, "KV/Put", &pb.PutRequest{Key: []byte(k), Lease: 11, Value: []byte("v")})
			}
			w.next(4)
			r.keepAlive(0, 11)
			r.call(0, "Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: 11})
			r.call(0, "Lease/LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: 11, Keys: true})
			r.call(0, "KV/Put", &pb.PutRequest{Key: []byte("a"), Lease: 11})
			// A kill while it runs.
			r.call(0, "Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: 12, TTL: 2})
			r.call(0, "KV/Put", &pb.PutRequest{Key: []byte("a"), Lease: 12})
			w.cancel()
			r.restart(0, true)
			r.awaitCount("a", 0)
			r.call(0, "KV/Range", &pb.RangeRequest{Key: []byte("a")})
			r.call(0, "Lease/LeaseLeases", &pb.LeaseLeasesRequest{})
		}},
	}
}

func authStories() []story {
	grant := func(r *teller, kind authpb.Permission_Type, key, end string) {
		r.call(0, "Auth/RoleGrantPermission", &pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: &authpb.Permission{PermType: kind, Key: []byte(key), RangeEnd: []byte(end)}})
	}
	return []story{
		{name: "odd permissions", tell: func(r *teller) {
			r.call(0, "Auth/RoleAdd", &pb.AuthRoleAddRequest{Name: "r"})
			for _, p := range [][2]string{{"a", "b"}, {"a", "c"}, {"a", ""}, {"a", "b"}, {"a", "a"}, {"b", "a"}, {"", ""}, {"", "\x00"}, {"", "b"}, {"\x00", "\x00"}, {"a", "\x00"}, {"\xff", "\x00"}, {"\xff", ""}, {"a", "c"}, {"a", "b\x00"}, {"a\x00", ""}, {"\xc3\x28", "\xc3\x29"}} {
				for _, kind := range []authpb.Permission_Type{0, 1, 2, 3, -1, 0} {
					grant(r, kind, p[0], p[1])
				}
				r.call(0, "Auth/RoleGet", &pb.AuthRoleGetRequest{Role: "r"})
			}
			for _, p := range [][2]string{{"a", "b"}, {"a", "z"}, {"a", "b"}, {"", ""}, {"a", ""}, {"\x00", "\x00"}, {"a", "\x00"}} {
				r.call(0, "Auth/RoleRevokePermission", &pb.AuthRoleRevokePermissionRequest{Role: "r", Key: []byte(p[0]), RangeEnd: []byte(p[1])})
			}
			r.call(0, "Auth/RoleGet", &pb.AuthRoleGetRequest{Role: "r"})
			r.call(0, "Auth/RoleGrantPermission", &pb.AuthRoleGrantPermissionRequest{Name: "root", Perm: permission("a", "b")})
			r.call(0, "Auth/RoleAdd", &pb.AuthRoleAddRequest{Name: "root"})
			r.call(0, "Auth/RoleGrantPermission", &pb.AuthRoleGrantPermissionRequest{Name: "root", Perm: permission("a", "b")})
			r.call(0, "Auth/RoleGet", &pb.AuthRoleGetRequest{Role: "root"})
			r.call(0, "Auth/RoleRevokePermission", &pb.AuthRoleRevokePermissionRequest{Role: "root", Key: []byte("a"), RangeEnd: []byte("b")})
			r.call(0, "Auth/AuthStatus", &pb.AuthStatusRequest{})
			for _, kill := range []bool{true, false} {
				r.restart(0, kill)
				r.call(0, "Auth/RoleGet", &pb.AuthRoleGetRequest{Role: "r"})
				r.call(0, "Auth/RoleList", &pb.AuthRoleListRequest{})
				r.call(0, "Auth/AuthStatus", &pb.AuthStatusRequest{})
			}
		}},
		{name: "odd ranges of users", args: []string{"--bcrypt-cost=4"}, tell: func(r *teller) {
			ground(r)
			usersAndRoles(r)
			sets := [][][2]string{
				{{"a", "b"}}, {{"a/1", ""}}, {{"a/1", ""}, {"a/2", ""}}, {{"a", "a/2"}, {"a/2", "b"}}, {{"a", "a/3"}, {"a/2", "b"}}, {{"\x00", "\x00"}}, {{"a/1", "\x00"}},
				{{"a/1", ""}, {"a/1\x00", "b"}}, {{"\xff", "\x00"}, {"a", "\xff"}},
			}
			for _, set := range sets {
				r.by(0, "root", func() {
					r.ask(r.ctx, 0, "Auth/RoleDelete", &pb.AuthRoleDeleteRequest{Role: "r"})
					r.ask(r.ctx, 0, "Auth/RoleAdd", &pb.AuthRoleAddRequest{Name: "r"})
					r.ask(r.ctx, 0, "Auth/UserGrantRole", &pb.AuthUserGrantRoleRequest{User: "u", Role: "r"})
					for _, p := range set {
						r.ask(r.ctx, 0, "Auth/RoleGrantPermission", &pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: permission(p[0], p[1])})
					}
				})
				r.by(0, "u", func() {
					r.say("permissions %q", set)
					for _, k := range [][2]string{{"a/1", ""}, {"a/1", "a/2"}, {"a/1", "a/3"}, {"a", "b"}, {"a/1", "a/1\x00"}, {"a", "\x00"}, {"a/1", "\x00"}, {"\x00", "\x00"}, {"", ""}, {"", "a"}, {"\xff\xff", "\x00"}} {
						r.call(0, "KV/Range", &pb.RangeRequest{Key: []byte(k[0]), RangeEnd: []byte(k[1]), CountOnly: true})
						r.call(0, "KV/DeleteRange", &pb.DeleteRangeRequest{Key: append([]byte(k[0]), 0), RangeEnd: []byte(k[1])})
						r.call(0, "KV/Txn", &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte(k[0]), RangeEnd: []byte(k[1]), Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{Version: 1}}}})
						w := r.watch(0)
						w.create(&pb.WatchCreateRequest{Key: []byte(k[0]), RangeEnd: []byte(k[1])})
						w.next(1)
						w.cancel()
					}
				})
			}
		}},
		{name: "odd names", args: []string{"--bcrypt-cost=4"}, tell: func(r *teller) {
			names := []string{"", " ", "root", "a b", "a:b", "ü", "a\x00b", "\n", "A", "a", strings.Repeat("n", 5000), "\xff"}
			for _, n := range names {
				r.call(0, "Auth/UserAdd", &pb.AuthUserAddRequest{Name: n, Password: "p"})
				r.call(0, "Auth/UserAdd", &pb.AuthUserAddRequest{Name: n, Password: "p"})
				r.call(0, "Auth/RoleAdd", &pb.AuthRoleAddRequest{Name: n})
				r.call(0, "Auth/UserGrantRole", &pb.AuthUserGrantRoleRequest{User: n, Role: n})
				r.call(0, "Auth/UserGrantRole", &pb.AuthUserGrantRoleRequest{User: n, Role: n})
				r.call(0, "Auth/UserGrantRole", &pb.AuthUserGrantRoleRequest{User: n, Role: "none"})
				r.call(0, "Auth/RoleGet", &pb.AuthRoleGetRequest{Role: n})
				r.call(0, "Auth/UserGet", &pb.AuthUserGetRequest{Name: n})
			}
			r.call(0, "Auth/UserAdd", &pb.AuthUserAddRequest{Name: "nopass", Password: "given", Options: &authpb.UserAddOptions{NoPassword: true}})
			r.call(0, "Auth/UserAdd", &pb.AuthUserAddRequest{Name: "empty"})
			r.call(0, "Auth/UserAdd", &pb.AuthUserAddRequest{Name: "hashed", HashedPassword: "nonsense"})
			r.call(0, "Auth/UserAdd", &pb.AuthUserAddRequest{Name: "hashed2", Password: "p", HashedPassword: "nonsense"})
			r.call(0, "Auth/UserAdd", &pb.AuthUserAddRequest{Name: "hashed3", HashedPassword: "JDJhJDA0JDAwMDAwMDAwMDAwMDAwMDAwMDAwMC4=", Options: &authpb.UserAddOptions{NoPassword: true}})
			r.call(0, "Auth/UserList", &pb.AuthUserListRequest{})
			r.call(0, "Auth/RoleList", &pb.AuthRoleListRequest{})
			r.call(0, "Auth/AuthEnable", &pb.AuthEnableRequest{})
			for _, n := range append(names[:len(names)-1], "nopass", "empty", "hashed", "hashed2", "hashed3", "nobody") {
				for _, p := range []string{"p", "", "wrong", "given"} {
					r.call(0, "Auth/Authenticate", &pb.AuthenticateRequest{Name: n, Password: p})
				}
			}
			var token string
			if resp, err := r.ask(r.ctx, 0, "Auth/Authenticate", &pb.AuthenticateRequest{Name: "root", Password: "p"}); err == nil {
				token = resp.(*pb.AuthenticateResponse).Token
			}
			r.with(func() {
				for _, n := range []string{"nopass", "empty", "a", "hashed"} {
					r.call(0, "Auth/UserChangePassword", &pb.AuthUserChangePasswordRequest{Name: n, Password: "new"})
					r.call(0, "Auth/Authenticate", &pb.AuthenticateRequest{Name: n, Password: "new"})
					r.call(0, "Auth/UserChangePassword", &pb.AuthUserChangePasswordRequest{Name: n})
					r.call(0, "Auth/Authenticate", &pb.AuthenticateRequest{Name: n, Password: ""})
					r.call(0, "Auth/UserChangePassword", &pb.AuthUserChangePasswordRequest{Name: n, HashedPassword: "nonsense"})
					r.call(0, "Auth/Authenticate", &pb.AuthenticateRequest{Name: n, Password: ""})
				}
				r.call(0, "Auth/UserDelete", &pb.AuthUserDeleteRequest{Name: "root"})
				r.call(0, "Auth/RoleDelete", &pb.AuthRoleDeleteRequest{Role: "root"})
				r.call(0, "Auth/UserRevokeRole", &pb.AuthUserRevokeRoleRequest{Name: "root", Role: "root"})
				r.call(0, "Auth/UserRevokeRole", &pb.AuthUserRevokeRoleRequest{Name: "a", Role: "root"})
				r.call(0, "Auth/RoleDelete", &pb.AuthRoleDeleteRequest{Role: "a"})
				r.call(0, "Auth/UserGet", &pb.AuthUserGetRequest{Name: "a"})
				r.call(0, "Auth/AuthStatus", &pb.AuthStatusRequest{})
			}, "token", token)
			for _, md := range [][]string{{"token", token}, {"authorization", token}, {"authorization", "Bearer " + token}, {"authorization", "bearer " + token}, {"authorization", "Bearer  " + token}, {"Token", token},
				{"token", ""}, {"token", "", "authorization", token}, {"token", "x", "authorization", token}, {"token", token, "token", "x"}, {"token", "x", "token", token}, {"token", " " + token}, {"authorization", ""}, {"authorization", "Basic cm9vdDpw"}} {
				shown := strings.ReplaceAll(fmt.Sprintf("%q", md), token, "TOKEN")
				r.with(func() {
					resp, err := r.ask(r.ctx, 0, "KV/Range", &pb.RangeRequest{Key: []byte("x")})
					r.say("%s => %s", shown, r.shown(resp, err))
					resp, err = r.ask(r.ctx, 0, "Maintenance/Status", &pb.StatusRequest{})
					r.say("%s => %s", shown, r.shown(resp, err))
				}, md...)
			}
		}},
		{name: "users, leases and transactions", args: []string{"--bcrypt-cost=4"}, tell: func(r *teller) {
			ground(r)
			usersAndRoles(r)
			r.by(0, "root", func() {
				r.call(0, "Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: 21, TTL: 2000})
				r.call(0, "Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: 22, TTL: 3000})
				r.call(0, "KV/Put", &pb.PutRequest{Key: []byte("b"), Lease: 21})
				r.call(0, "KV/Put", &pb.PutRequest{Key: []byte("a/9"), Lease: 22})
				r.call(0, "Auth/RoleGrantPermission", &pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: &authpb.Permission{PermType: authpb.Permission_READ, Key: []byte("ro")}})
				r.call(0, "Auth/RoleGrantPermission", &pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: &authpb.Permission{PermType: authpb.Permission_WRITE, Key: []byte("wo")}})
			})
			for _, who := range []string{"n", "u", "root"} {
				r.by(0, who, func() {
					op := func(o any) *pb.RequestOp {
						switch o := o.(type) {
						case *pb.PutRequest:
							return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: o}}
						case *pb.RangeRequest:
							return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: o}}
						case *pb.DeleteRangeRequest:
							return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: o}}
						case *pb.TxnRequest:
							return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: o}}
						}
						panic("no op")
					}
					for _, key := range []string{"a/1", "b", "ro", "wo"} {
						for _, lease := range []int64{0, 21, 22, 424242} {
							put := &pb.PutRequest{Key: []byte(key), Lease: lease}
							r.call(0, "KV/Put", put)
							r.call(0, "KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{op(put)}})
							r.call(0, "KV/Txn", &pb.TxnRequest{Failure: []*pb.RequestOp{op(put)}})
							r.call(0, "KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{op(&pb.TxnRequest{Failure: []*pb.RequestOp{op(put)}})}})
						}
						for _, m := range []*pb.PutRequest{{Key: []byte(key), PrevKv: true}, {Key: []byte(key), IgnoreValue: true}, {Key: []byte(key), IgnoreLease: true}} {
							r.call(0, "KV/Put", m)
						}
						r.call(0, "KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte(key), PrevKv: true})
						r.call(0, "KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte(key)})
						r.call(0, "KV/Txn", &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte(key), TargetUnion: &pb.Compare_Version{Version: 9}}}})
						r.call(0, "KV/Txn", &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte(key), TargetUnion: &pb.Compare_Version{Version: 9}}}, Success: []*pb.RequestOp{op(&pb.RangeRequest{Key: []byte("a/1")})}})
						r.call(0, "KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{op(&pb.DeleteRangeRequest{Key: []byte(key), PrevKv: true})}})
						r.call(0, "KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{op(&pb.RangeRequest{Key: []byte(key), Serializable: true})}})
						r.call(0, "KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{op(&pb.RangeRequest{Key: []byte("a/1")}), op(&pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte(key), TargetUnion: &pb.Compare_Version{Version: 9}}}})}})
						w := r.watch(0)
						w.create(&pb.WatchCreateRequest{Key: []byte(key)})
						w.next(1)
						w.cancel()
					}
					for _, id := range []int64{21, 22, 424242, 7001} {
						r.call(0, "Lease/LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: id})
						r.call(0, "Lease/LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: id, Keys: true})
						r.keepAlive(0, id)
					}
					r.keepAlive(0, 22, 21, 22)
					r.call(0, "Lease/LeaseLeases", &pb.LeaseLeasesRequest{})
					r.call(0, "Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: 21})
					r.call(0, "Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: 424242})
					for _, name := range []string{"u", "n", "root", "none", ""} {
						r.call(0, "Auth/UserGet", &pb.AuthUserGetRequest{Name: name})
						r.call(0, "Auth/RoleGet", &pb.AuthRoleGetRequest{Role: name})
					}
					r.call(0, "Auth/RoleGet", &pb.AuthRoleGetRequest{Role: "r"})
					r.call(0, "Auth/UserChangePassword", &pb.AuthUserChangePasswordRequest{Name: "u", Password: "u"})
					r.call(0, "Lock/Lock", &lockpb.LockRequest{Name: []byte("a/lock"), Lease: 22})
					r.call(0, "Lock/Lock", &lockpb.LockRequest{Name: []byte("lock"), Lease: 22})
					r.call(0, "Lock/Unlock", &lockpb.UnlockRequest{Key: []byte("a/lock/16")})
					r.call(0, "Election/Leader", &electionpb.LeaderRequest{Name: []byte("a/el")})
					r.call(0, "Election/Leader", &electionpb.LeaderRequest{Name: []byte("el")})
					r.call(0, "Election/Campaign", &electionpb.CampaignRequest{Name: []byte("a/el"), Lease: 22})
					r.call(0, "Election/Campaign", &electionpb.CampaignRequest{Name: []byte("el"), Lease: 22})
				})
			}
		}},
	}
}

func gatewayStories() []story {
	return []story{
		{name: "odd JSON", tell: func(r *teller) {
			ground(r)
			r.call(0, "KV/Compact", &pb.CompactionRequest{Revision: 4, Physical: true})
			seen := map[string]bool{}
			for _, b := range bases() {
				if seen[b.path] || b.path == "/v3/auth/enable" || b.path == "/v3/lock/lock" || b.path == "/v3/election/campaign" || b.path == "/v3/lease/grant" {
					continue
				}
				seen[b.path] = true
				for _, body := range []string{"", " ", "null", "[]", "[{}]", "0", `""`, "true", "{}{}", "{} x", "{", `{"`, "\xff", "\xef\xbb\xbf{}", `{"x":1}`, `{"":1}`, `{"header":{}}`, `{"key":null,"ID":null,"name":null}`, "{}\n\n", `{"@type":"x"}`, "//\n{}"} {
					if b.path == "/v3/maintenance/defragment" {
						continue
					}
					r.http(0, httpCase{path: b.path, body: body, method: "POST"})
				}
				for _, method := range []string{"GET", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "TRACE"} {
					r.http(0, httpCase{path: b.path, method: method})
				}
				r.http(0, httpCase{path: b.path + "/", body: "{}"})
				r.http(0, httpCase{path: b.path + "?key=Zm9v&name=x", body: "{}"})
				r.http(0, httpCase{path: strings.ToUpper(b.path), body: "{}"})
				r.http(0, httpCase{path: strings.Replace(b.path, "/v3/", "//v3//", 1), body: "{}"})
				r.http(0, httpCase{path: b.path, body: "{}", header: "X-HTTP-Method-Override: GET"})
				r.http(0, httpCase{path: b.path, body: "key=Zm9v", header: "Content-Type: application/x-www-form-urlencoded"})
				r.http(0, httpCase{path: b.path, body: "{}", header: "Content-Type: application/x-www-form-urlencoded\nX-HTTP-Method-Override: GET"})
				r.http(0, httpCase{path: b.path, body: "\x0a\x01a", header: "Content-Type: application/octet-stream"})
				r.http(0, httpCase{path: b.path, body: "{}", header: "Content-Type: application/json; charset=utf-8\nAccept: application/xml"})
				r.http(0, httpCase{path: b.path, body: "{}", header: "Accept-Encoding: gzip"})
				r.http(0, httpCase{path: b.path, body: "{}", header: "Content-Encoding: gzip"})
				r.http(0, httpCase{path: b.path, body: "{}", header: "Grpc-Timeout: 0n"})
				r.http(0, httpCase{path: b.path, body: "{}", header: "Grpc-Timeout: 10S"})
				r.http(0, httpCase{path: b.path, body: "{}", header: "Grpc-Metadata-Hasleader: true"})
				r.http(0, httpCase{path: b.path, body: "{}", header: "Grpc-Metadata-Token: x"})
				r.http(0, httpCase{path: b.path, body: "{}", header: "Authorization: x\nGrpc-Metadata-Authorization: y"})
				r.http(0, httpCase{path: b.path, body: "{}", header: "Grpc-Metadata-Client-Api-Version: 3.7\nGrpc-Metadata-X-Bin: !!"})
				r.http(0, httpCase{path: b.path, body: "{}", header: "Te: trailers"})
			}
			for _, c := range []httpCase{
				{path: "/v3/kv/range", body: `{"key":"YS8=","range_end":"YTA=","limit":2.0}`}, {path: "/v3/kv/range", body: `{"key":"YS8=","limit":2.5}`}, {path: "/v3/kv/range", body: `{"key":"YS8=","limit":"2.0"}`},
				{path: "/v3/kv/range", body: `{"key":"YS8=","limit":1e1}`}, {path: "/v3/kv/range", body: `{"key":"YS8=","limit":"1e1"}`}, {path: "/v3/kv/range", body: `{"key":"YS8=","limit":9223372036854775807}`},
				{path: "/v3/kv/range", body: `{"key":"YS8=","limit":9223372036854775808}`}, {path: "/v3/kv/range", body: `{"key":"YS8=","limit":"-9223372036854775809"}`}, {path: "/v3/kv/range", body: `{"key":"YS8=","limit":" 1"}`},
				{path: "/v3/kv/range", body: `{"key":"YS8=","limit":""}`}, {path: "/v3/kv/range", body: `{"key":"YS8=","limit":true}`}, {path: "/v3/kv/range", body: `{"key":"YS8=","limit":0x10}`}, {path: "/v3/kv/range", body: `{"key":"YS8=","limit":-0}`},
				{path: "/v3/kv/range", body: `{"key":"YS8=","sort_order":"descend"}`}, {path: "/v3/kv/range", body: `{"key":"YS8=","sort_order":"2"}`}, {path: "/v3/kv/range", body: `{"key":"YS8=","sort_order":9}`}, {path: "/v3/kv/range", body: `{"key":"YS8=","sort_order":2.0}`},
				{path: "/v3/kv/range", body: `{"key":"YS8=","sort_order":null}`}, {path: "/v3/kv/range", body: `{"key":"YS8=","keys_only":"true"}`}, {path: "/v3/kv/range", body: `{"key":"YS8=","keys_only":1}`}, {path: "/v3/kv/range", body: `{"key":"YS8=","keys_only":null}`},
				{path: "/v3/kv/range", body: `{"key":"YS8=","key":"Yg=="}`}, {path: "/v3/kv/range", body: `{"range_end":"YTA=","rangeEnd":"YTA=","key":"YS8="}`}, {path: "/v3/kv/range", body: `{"Key":"YS8="}`}, {path: "/v3/kv/range", body: `{"key":"YS8"}`},
				{path: "/v3/kv/range", body: `{"key":"YS8=="}`}, {path: "/v3/kv/range", body: `{"key":"_-"}`}, {path: "/v3/kv/range", body: `{"key":"YS8=\n"}`}, {path: "/v3/kv/range", body: `{"key":["YS8="]}`}, {path: "/v3/kv/range", body: `{"key":{"x":1}}`},
				{path: "/v3/kv/range", body: `{"key":"\u0059S8="}`}, {path: "/v3/kv/range", body: `{"key":"YS8=",}`}, {path: "/v3/kv/range", body: `{'key':'YS8='}`}, {path: "/v3/kv/range", body: `{"key":"YS8="} {"key":"YS8="}`},
				{path: "/v3/kv/put", body: `{"key":"anNvbg==","value":""}`}, {path: "/v3/kv/put", body: `{"key":"anNvbg==","value":null,"lease":"0"}`}, {path: "/v3/kv/put", body: `{"key":"anNvbg==","lease":7001}`}, {path: "/v3/kv/put", body: `{"key":"anNvbg==","lease":"7001"}`},
				{path: "/v3/kv/range", body: `{"key":"anNvbg=="}`},
				{path: "/v3/kv/txn", body: `{"success":[null]}`}, {path: "/v3/kv/txn", body: `{"success":null}`}, {path: "/v3/kv/txn", body: `{"success":{}}`}, {path: "/v3/kv/txn", body: `{"success":[{"request_range":null}]}`},
				{path: "/v3/kv/txn", body: `{"success":[{"request_range":{"key":"YS8="},"request_put":{"key":"YS8="}}]}`}, {path: "/v3/kv/txn", body: `{"success":[{"request_range":{"key":"YS8="},"requestRange":{"key":"YS8="}}]}`},
				{path: "/v3/kv/txn", body: `{"compare":[{"key":"YS8=","version":"1","value":"YQ=="}]}`}, {path: "/v3/kv/txn", body: `{"compare":[{"key":"YS8=","target":"VALUE"}]}`}, {path: "/v3/kv/txn", body: `{"compare":[{"key":"YS8=","target":4,"lease":1}]}`},
				{path: "/v3/kv/txn", body: `{"compare":[{"key":"YS8=","result":"NOT_EQUAL","range_end":"YTA=","mod_revision":"0"}],"success":[{"request_range":{"key":"YS8=","range_end":"YTA=","limit":"1"}}]}`},
				{path: "/v3/lease/keepalive", body: ""}, {path: "/v3/lease/keepalive", body: "null"}, {path: "/v3/lease/keepalive", body: `{"ID":7001}{"ID":"7001"} x`}, {path: "/v3/lease/keepalive", body: `[{"ID":7001}]`}, {path: "/v3/lease/keepalive", method: "POST"},
				{path: "/v3/watch", body: `{"create_request":{"key":"YS8="}}{"cancel_request":{"watch_id":"0"}}`, lines: 2}, {path: "/v3/watch", body: `{"create_request":{"key":"YS8=","filters":["NOPUT","NODELETE"]},"cancel_request":{}}`},
				{path: "/v3/watch", body: `{"create_request":{"key":"YS8=","filters":["NOPUT",1,9],"start_revision":1}}`, lines: 1}, {path: "/v3/watch", body: `{"create_request":{"key":"YS8=","filters":["x"]}}`}, {path: "/v3/watch", body: `{"create_request":null}`},
				{path: "/v3/watch", body: "{bad"}, {path: "/v3/watch", body: "[]"}, {path: "/v3/watch", body: `{"create_request":{"key":"YS8="}} x`, lines: 1},
				{path: "/v3/watch", body: `{"create_request":{"key":"YS8=","start_revision":1}}`, lines: 2}, // compacted: told, and not closed (patroni 3426)
				{path: "/v3/maintenance/snapshot", body: "{bad"}, {path: "/v3/election/observe", body: "{bad"}, {path: "/v3/election/observe", body: `{"name":1}`},
				{path: "/v3/kv/range?key=YS8=", method: "GET"}, {path: "/v3/kv/rangestream", body: "{}"}, {path: "/v3/health", body: "{}"}, {path: "/v3/maintenance/status?x=1", method: "GET"},
				{path: "/v3/auth/user/add", body: `{"name":"json","password":"p","options":{"no_password":true}}`}, {path: "/v3/auth/user/add", body: `{"name":"json2","hashedPassword":"x"}`}, {path: "/v3/auth/user/add", body: `{"name":"\ud800"}`}, {path: "/v3/auth/user/add", body: "{\"name\":\"\xff\"}"},
				{path: "/v3/auth/user/add", body: `{"name":"a\u0000b"}`}, {path: "/v3/auth/role/grant", body: `{"name":"none","perm":{"permType":"readwrite","key":"YQ=="}}`}, {path: "/v3/auth/role/grant", body: `{"name":"none","perm":{"permType":"READWRITE","key":"YQ==","range_end":"Yg=="}}`},
				{path: "/v3/cluster/member/add", body: `{"peerURLs":"http://127.0.0.1:1"}`}, {path: "/v3/cluster/member/add", body: `{"peerURLs":[1]}`}, {path: "/v3/cluster/member/add", body: `{"peer_urls":["x"]}`},
				{path: "/v3/cluster/member/remove", body: `{"ID":"18446744073709551615"}`}, {path: "/v3/cluster/member/remove", body: `{"ID":"18446744073709551616"}`}, {path: "/v3/cluster/member/remove", body: `{"ID":-1}`}, {path: "/v3/cluster/member/remove", body: `{"id":1}`},
				{path: "/version", method: "HEAD"}, {path: "/version/"}, {path: "/health/"}, {path: "/health", method: "HEAD"}, {path: "/health", method: "PUT"}, {path: "/livez", method: "POST"}, {path: "/readyz", method: "HEAD"}, {path: "/metrics", method: "POST", status: true},
				{path: "/metrics/x"}, {path: "/healthz"}, {path: "/v2/stats/self"}, {path: "/v2/members"}, {path: "/v3/"}, {path: "/%2e%2e/version"}, {path: "/health?x=%zz"}, {path: "//health"},
			} {
				r.http(0, c)
			}
			for _, header := range []string{"Origin: null", "Origin: http://x.example", "Origin: http://x.example\nAccess-Control-Request-Method: POST\nAccess-Control-Request-Headers: content-type"} {
				for _, method := range []string{"GET", "OPTIONS", "POST"} {
					r.http(0, httpCase{path: "/v3/kv/range", body: `{"key":"YS8="}`, method: method, header: header + "\nContent-Type: application/json"})
					r.http(0, httpCase{path: "/health", method: method, header: header + "\nContent-Type: application/json"})
				}
			}
		}},
		{name: "JSON with users", args: []string{"--bcrypt-cost=4"}, tell: func(r *teller) {
			ground(r)
			usersAndRoles(r)
			for _, who := range []string{"root", "u", "n", "", "x"} {
				token := who
				if len(who) > 1 || who == "u" || who == "n" {
					resp, err := r.ask(r.ctx, 0, "Auth/Authenticate", &pb.AuthenticateRequest{Name: who, Password: who})
					if err != nil {
						r.say("login %v", err)
						continue
					}
					token = resp.(*pb.AuthenticateResponse).Token
					r.word(token, "TOKEN")
				}
				for _, header := range []string{"Authorization: " + token, "Authorization: Bearer " + token, "Grpc-Metadata-Token: " + token, "Token: " + token, "Grpc-Metadata-Authorization: " + token} {
					if token == "" {
						header = ""
					}
					for _, b := range bases() {
						if b.method == "Lease/LeaseRevoke" || strings.HasPrefix(b.method, "Lease/LeaseT") || strings.Contains(b.method, "AuthDisable") || b.method == "Lease/LeaseGrant" || b.method == "KV/Compact" {
							continue
						}
						if !strings.HasPrefix(header, "Authorization: ") && b.method != "KV/Range" {
							continue
						}
						body := "{}"
						if data, err := protojsonMarshal(b.req); err == nil {
							body = data
						}
						r.http(0, httpCase{path: b.path, body: body, header: header})
					}
					r.http(0, httpCase{path: "/v3/watch", body: `{"create_request":{"key":"YS8x"}}`, lines: 1, header: header})
					r.http(0, httpCase{path: "/v3/lease/keepalive", body: `{"ID":"7001"}`, header: header})
					if token == "" {
						break
					}
				}
			}
		}},
	}
}
