package check

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/proof/cluster"
	"github.com/belaydb/belay/server/electionpb"
	"github.com/belaydb/belay/server/lockpb"
)

// stream says a RangeStream as one answer: where chunks end is the server's affair.
func (r *teller) stream(i int, q *pb.RangeRequest) {
	ctx, cancel := context.WithTimeout(r.ctx, 20*time.Second)
	defer cancel()
	whole := &pb.RangeResponse{}
	stream, err := pb.NewKVClient(r.conn(i)).RangeStream(ctx, q, grpc.WaitForReady(true))
	for err == nil {
		var chunk *pb.RangeStreamResponse
		if chunk, err = stream.Recv(); err == nil {
			proto.Merge(whole, chunk.RangeResponse)
		}
	}
	if err == io.EOF {
		err = nil
	}
	r.say("m%d RangeStream %s => %s", i+1, printed(q), r.shown(whole, err))
}

// keepAlive says what is answered to renewals on one stream, and how it ends when the client has
// nothing more to say.
func (r *teller) keepAlive(i int, ids ...int64) {
	ctx, cancel := context.WithTimeout(r.ctx, 20*time.Second)
	defer cancel()
	stream, err := pb.NewLeaseClient(r.conn(i)).LeaseKeepAlive(ctx, grpc.WaitForReady(true))
	if err != nil {
		r.say("keepalive: %s", r.shown(nil, err))
		return
	}
	for _, id := range ids {
		_ = stream.Send(&pb.LeaseKeepAliveRequest{ID: id})
	}
	_ = stream.CloseSend()
	for {
		resp, err := stream.Recv()
		if err == io.EOF {
			r.say("m%d keepalive %d: end", i+1, ids)
			return
		}
		if err != nil {
			r.say("m%d keepalive %d: %s", i+1, ids, r.shown(nil, err))
			return
		}
		r.say("m%d keepalive %d: %s", i+1, ids, r.shown(resp, nil))
	}
}

// everything calls each unary method once, with nothing that waits for others. Calls run at the same
// time, for some last long in a cluster without a leader; what they write must not meet.
func everything(r *teller, i int, note string) {
	leader := &electionpb.LeaderKey{Name: []byte("x"), Key: []byte("x/1"), Rev: 1, Lease: 7001}
	range1 := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("a/1")}}}
	rangeSerial := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("a/1"), Serializable: true}}}
	put1 := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("e/1")}}}
	del1 := &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("none")}}}
	calls := []struct {
		method string
		req    proto.Message
	}{
		{"KV/Range", &pb.RangeRequest{Key: []byte("a/1")}},
		{"KV/Range", &pb.RangeRequest{Key: []byte("a/1"), Serializable: true}},
		{"KV/Range", &pb.RangeRequest{}},
		{"KV/Put", &pb.PutRequest{Key: []byte("e/1"), Value: []byte("v")}},
		{"KV/Put", &pb.PutRequest{Key: []byte("e/2"), Lease: 424242}},
		{"KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte("none")}},
		{"KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{range1}}},
		{"KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{rangeSerial}}},
		{"KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{put1}}},
		{"KV/Txn", &pb.TxnRequest{Failure: []*pb.RequestOp{put1}}},
		{"KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{del1}}},
		{"KV/Txn", &pb.TxnRequest{}},
		{"KV/Txn", &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("a/1")}}}},
		{"KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: []*pb.RequestOp{put1}}}}}}},
		{"KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Failure: []*pb.RequestOp{put1}, Success: []*pb.RequestOp{del1}}}}}}},
		{"KV/Compact", &pb.CompactionRequest{Revision: 1 << 40}},
		{"KV/Compact", &pb.CompactionRequest{Revision: -1, Physical: true}},
		{"Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: 7001, TTL: 900}},
		{"Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: 7100, TTL: 9_000_000_001}},
		{"Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: 424242}},
		{"Lease/LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: 7001, Keys: true}},
		{"Lease/LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: 424242}},
		{"Lease/LeaseLeases", &pb.LeaseLeasesRequest{}},
		{"Maintenance/Hash", &pb.HashRequest{}},
		{"Maintenance/HashKV", &pb.HashKVRequest{Revision: 5}},
		{"Maintenance/HashKV", &pb.HashKVRequest{Revision: 1 << 40}},
		{"Maintenance/Defragment", &pb.DefragmentRequest{}},
		{"Maintenance/Status", &pb.StatusRequest{}},
		{"Maintenance/MoveLeader", &pb.MoveLeaderRequest{TargetID: 77}},
		{"Maintenance/Alarm", &pb.AlarmRequest{}},
		{"Maintenance/Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NONE}},
		{"Maintenance/Downgrade", &pb.DowngradeRequest{Action: pb.DowngradeRequest_VALIDATE, Version: "3.4.0"}},
		{"Maintenance/Downgrade", &pb.DowngradeRequest{Action: pb.DowngradeRequest_VALIDATE, Version: "x"}},
		{"Maintenance/Downgrade", &pb.DowngradeRequest{Action: pb.DowngradeRequest_CANCEL}},
		{"Cluster/MemberList", &pb.MemberListRequest{}},
		{"Cluster/MemberList", &pb.MemberListRequest{Linearizable: true}},
		{"Cluster/MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{"bad"}}},
		{"Cluster/MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{r.c.Members[0].PeerURL}}},
		{"Cluster/MemberRemove", &pb.MemberRemoveRequest{ID: 77}},
		{"Cluster/MemberUpdate", &pb.MemberUpdateRequest{ID: 77, PeerURLs: []string{"http://127.0.0.1:1"}}},
		{"Cluster/MemberPromote", &pb.MemberPromoteRequest{ID: 77}},
		{"Cluster/MemberPromote", &pb.MemberPromoteRequest{ID: r.id("m1")}},
		{"Auth/AuthStatus", &pb.AuthStatusRequest{}},
		{"Auth/UserAdd", &pb.AuthUserAddRequest{Name: ""}},
		{"Auth/UserGet", &pb.AuthUserGetRequest{Name: "nobody"}},
		{"Auth/UserGet", &pb.AuthUserGetRequest{Name: "u"}},
		{"Auth/UserList", &pb.AuthUserListRequest{}},
		{"Auth/UserDelete", &pb.AuthUserDeleteRequest{Name: "nobody"}},
		{"Auth/UserChangePassword", &pb.AuthUserChangePasswordRequest{Name: "nobody", Password: "x"}},
		{"Auth/UserGrantRole", &pb.AuthUserGrantRoleRequest{User: "nobody", Role: "x"}},
		{"Auth/UserRevokeRole", &pb.AuthUserRevokeRoleRequest{Name: "nobody", Role: "x"}},
		{"Auth/RoleAdd", &pb.AuthRoleAddRequest{Name: ""}},
		{"Auth/RoleGet", &pb.AuthRoleGetRequest{Role: "none"}},
		{"Auth/RoleGet", &pb.AuthRoleGetRequest{Role: "r"}},
		{"Auth/RoleList", &pb.AuthRoleListRequest{}},
		{"Auth/RoleDelete", &pb.AuthRoleDeleteRequest{Role: "none"}},
		{"Auth/RoleGrantPermission", &pb.AuthRoleGrantPermissionRequest{Name: "none"}},
		{"Auth/RoleRevokePermission", &pb.AuthRoleRevokePermissionRequest{Role: "none"}},
		{"Auth/Authenticate", &pb.AuthenticateRequest{Name: "nobody", Password: "x"}},
		{"Lock/Unlock", &lockpb.UnlockRequest{Key: []byte("none")}},
		{"Lock/Lock", &lockpb.LockRequest{Name: []byte("x"), Lease: 424242}},
		{"Election/Leader", &electionpb.LeaderRequest{Name: []byte("none")}},
		{"Election/Campaign", &electionpb.CampaignRequest{Name: []byte("x"), Lease: 424242}},
		{"Election/Proclaim", &electionpb.ProclaimRequest{Leader: leader}},
		{"Election/Resign", &electionpb.ResignRequest{Leader: leader}},
	}
	answers := make([]string, len(calls))
	var wg sync.WaitGroup
	turns := make(chan struct{}, 1)
	if strings.Contains(note, "no quorum") {
		turns = make(chan struct{}, 100)
	}
	for n, c := range calls {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			start := time.Now()
			resp, err := r.ask(r.ctx, i, c.method, c.req)
			answers[n] = r.shown(resp, err)
			if took := time.Since(start); took >= 3*time.Second && c.method != "Cluster/MemberRemove" && c.method != "Cluster/MemberUpdate" {
				// The server's timeout, or twice that for reads that come while others wait. (A
				// change of members waits in etcd for as long as its client does.)
				answers[n] += " after a timeout"
			}
		})
	}
	wg.Wait()
	for n, c := range calls {
		r.say("%s: m%d %s %s => %s", note, i+1, c.method, printed(c.req), answers[n])
	}
	r.stream(i, &pb.RangeRequest{Key: []byte("a/"), RangeEnd: []byte("a0")})
	r.stream(i, &pb.RangeRequest{Key: []byte("a/"), RangeEnd: []byte("a0"), Serializable: true})
	r.keepAlive(i, 7001, 424242, 0)
	r.snapshot(i)
	w := r.watch(i)
	w.create(&pb.WatchCreateRequest{Key: []byte("a/1"), StartRevision: 1})
	w.next(2)
	w.drop(0)
	w.next(1)
	w.cancel()
	w = r.watch(i)
	w.create(&pb.WatchCreateRequest{Key: []byte("zz")})
	w.next(1)
	w.progress()
	w.next(1)
	w.cancel()
	var cases []httpCase
	for _, path := range []string{"/health", "/health?serializable=true", "/health?exclude=NOSPACE", "/health?exclude=CORRUPT", "/health?exclude=NONE", "/health?exclude=x&exclude=NOSPACE&exclude=CORRUPT",
		"/health?exclude=nospace", "/health?serializable=TRUE", "/health?serializable=1", "/livez", "/livez?verbose", "/livez?exclude=serializable_read", "/readyz", "/readyz?verbose",
		"/readyz?exclude=linearizable_read&verbose", "/readyz?exclude=x&verbose", "/readyz/linearizable_read", "/readyz/serializable_read", "/readyz/data_corruption", "/readyz/non_learner", "/livez/x"} {
		if strings.HasPrefix(path, "/readyz?") && strings.Contains(path, "verbose") {
			cases = append(cases, httpCase{path: path, status: true}) // Belay has one check more
			continue
		}
		cases = append(cases, httpCase{path: path})
	}
	cases = append(cases, []httpCase{
		{path: "/v3/kv/range", body: `{"key":"YS8x"}`}, {path: "/v3/kv/range", body: `{"key":"YS8x","serializable":true}`}, {path: "/v3/kv/put", body: `{"key":"ZS8x"}`},
		{path: "/v3/lease/keepalive", body: `{"ID":"424242"}`}, {path: "/v3/cluster/member/list", body: `{"linearizable":true}`, status: true}, {path: "/v3/maintenance/alarm", body: `{}`, status: true},
		{path: "/v3/watch", body: `{"create_request":{"key":"YS8x","start_revision":1}}`, lines: 1},
	}...)
	if strings.Contains(note, "no quorum") {
		r.https(i, cases)
		return
	}
	for _, c := range cases {
		r.http(i, c)
	}
}

func (r *teller) snapshot(i int) {
	ctx, cancel := context.WithTimeout(r.ctx, 20*time.Second)
	defer cancel()
	stream, err := pb.NewMaintenanceClient(r.conn(i)).Snapshot(ctx, &pb.SnapshotRequest{}, grpc.WaitForReady(true))
	parts := 0
	var last *pb.SnapshotResponse
	for err == nil {
		var part *pb.SnapshotResponse
		if part, err = stream.Recv(); err == nil {
			parts++
			last = part
		}
	}
	if err == io.EOF && last != nil {
		// The version is that of etcd's schema, which a learner of etcd's does not tell.
		r.say("m%d snapshot: %v of %d bytes at the end, %d left", i+1, parts > 0, len(last.Blob), last.RemainingBytes)
		return
	}
	r.say("m%d snapshot: %s", i+1, r.shown(nil, err))
}

// usersAndRoles are root, u with rights on a/, and n without any.
func usersAndRoles(r *teller) {
	for _, name := range []string{"root", "u", "n"} {
		r.call(0, "Auth/UserAdd", &pb.AuthUserAddRequest{Name: name, Password: name})
	}
	r.call(0, "Auth/RoleAdd", &pb.AuthRoleAddRequest{Name: "root"})
	r.call(0, "Auth/RoleAdd", &pb.AuthRoleAddRequest{Name: "r"})
	r.call(0, "Auth/RoleGrantPermission", &pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: permission("a/", "a0")})
	r.call(0, "Auth/UserGrantRole", &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"})
	r.call(0, "Auth/UserGrantRole", &pb.AuthUserGrantRoleRequest{User: "u", Role: "r"})
	r.call(0, "Auth/AuthEnable", &pb.AuthEnableRequest{})
}

// by runs part as somebody who logs in at member i.
func (r *teller) by(i int, name string, part func()) {
	var resp proto.Message
	if err := eventually(r.ctx, func() (err error) {
		resp, err = r.ask(r.ctx, i, "Auth/Authenticate", &pb.AuthenticateRequest{Name: name, Password: name})
		return err
	}); err != nil {
		r.say("login of %s: %v", name, err)
		return
	}
	r.with(part, "token", resp.(*pb.AuthenticateResponse).Token)
}

func stateStories() []story {
	alarm := func(kind pb.AlarmType) func(r *teller) {
		return func(r *teller) {
			ground(r)
			r.call(0, "Maintenance/Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: r.id("m1"), Alarm: kind})
			r.call(0, "Maintenance/Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: r.id("m1"), Alarm: kind})
			r.call(0, "Maintenance/Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: 12345, Alarm: kind})
			everything(r, 0, kind.String())
			r.restart(0, true)
			everything(r, 0, "killed under "+kind.String())
			r.restart(0, false)
			everything(r, 0, "stopped under "+kind.String())
			r.call(0, "Maintenance/Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_GET, MemberID: 12345})
			r.call(0, "Maintenance/Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_GET, Alarm: pb.AlarmType_CORRUPT})
			r.call(0, "Maintenance/Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: 12345, Alarm: pb.AlarmType_NONE})
			r.call(0, "Maintenance/Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: 777, Alarm: kind})
			r.call(0, "Maintenance/Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: r.id("m1"), Alarm: kind})
			r.call(0, "KV/Put", &pb.PutRequest{Key: []byte("still refused")})
			r.call(0, "Maintenance/Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: 12345, Alarm: kind})
			r.call(0, "KV/Put", &pb.PutRequest{Key: []byte("taken again")})
			r.call(0, "Maintenance/Alarm", &pb.AlarmRequest{})
		}
	}
	return []story{
		{name: "everything at one member", tell: func(r *teller) {
			ground(r)
			everything(r, 0, "one")
			r.restart(0, true)
			everything(r, 0, "killed")
			r.restart(0, false)
			everything(r, 0, "stopped")
			r.with(func() { everything(r, 0, "hasleader") }, "hasleader", "true")
		}},
		{name: "everything under NOSPACE", tell: alarm(pb.AlarmType_NOSPACE)},
		{name: "everything under CORRUPT", tell: alarm(pb.AlarmType_CORRUPT)},
		{name: "everything with users", tell: func(r *teller) {
			ground(r)
			usersAndRoles(r)
			everything(r, 0, "nobody")
			for _, name := range []string{"root", "u", "n"} {
				r.by(0, name, func() { everything(r, 0, name) })
			}
			r.with(func() { everything(r, 0, "invalid token") }, "token", "abcdefghijklmnop.12")
			r.restart(0, true)
			everything(r, 0, "nobody after a kill")
			r.by(0, "u", func() { everything(r, 0, "u after a kill") })
			r.restart(0, false)
			r.by(0, "root", func() {
				everything(r, 0, "root after a stop")
				r.call(0, "Auth/AuthDisable", &pb.AuthDisableRequest{})
				everything(r, 0, "a token of before")
				r.call(0, "Auth/AuthEnable", &pb.AuthEnableRequest{})
				everything(r, 0, "a token of before, on again")
			})
		}},
		{name: "everything by certificate", certificates: true, args: []string{"--bcrypt-cost=4"}, tell: func(r *teller) {
			ground(r)
			usersAndRoles(r)
			for _, name := range []string{"root", "u", "n", "nobody", "nameless"} {
				r.holding(name)
				everything(r, 0, "certificate of "+name)
			}
			r.by(0, "u", func() { everything(r, 0, "no name, token of u") })
		}},
		{name: "everything at version 3.6", args: []string{"--downgrade-check-time=200ms"}, tell: func(r *teller) {
			ground(r)
			r.call(0, "Maintenance/Downgrade", &pb.DowngradeRequest{Action: pb.DowngradeRequest_ENABLE, Version: "3.6.0"})
			if err := eventually(r.ctx, func() error {
				if version := r.httpLine(0, httpCase{path: "/version"}); !strings.Contains(version, `"etcdcluster":"3.6.0"`) {
					return fmt.Errorf("%s", version)
				}
				return nil
			}); err != nil {
				r.t.Error(err)
			}
			everything(r, 0, "3.6")
			r.restart(0, true)
			everything(r, 0, "3.6, killed")
			r.call(0, "Maintenance/Downgrade", &pb.DowngradeRequest{Action: pb.DowngradeRequest_CANCEL})
		}},
		{name: "everything at a follower", size: 3, tell: func(r *teller) {
			ground(r)
			r.lead(0, 0, 1, 2)
			everything(r, 0, "leader")
			everything(r, 1, "follower")
			r.lead(2, 0, 1, 2)
			everything(r, 1, "after a transfer")
			usersAndRoles(r)
			r.settle(0, 1, 2)
			everything(r, 1, "nobody")
			for _, name := range []string{"root", "u", "n"} {
				r.by(1, name, func() { everything(r, 1, name) })
			}
		}},
		{name: "no quorum", size: 3, tell: func(r *teller) {
			ground(r)
			r.call(1, "KV/Range", &pb.RangeRequest{Key: []byte("a/1")})
			r.settle(0, 1, 2)
			watching := r.watch(0)
			watching.create(&pb.WatchCreateRequest{Key: []byte("a/1")})
			watching.next(1)
			before := r.ctx
			r.ctx = metadata.AppendToOutgoingContext(before, "hasleader", "true")
			demanding := r.watch(0)
			demanding.create(&pb.WatchCreateRequest{Key: []byte("a/1")})
			demanding.next(1)
			r.ctx = before
			r.lead(1, 0, 1, 2)
			_ = r.c.Members[1].Kill()
			_ = r.c.Members[2].Kill()
			if err := eventually(r.ctx, func() error {
				resp, err := r.ask(r.ctx, 0, "Maintenance/Status", &pb.StatusRequest{})
				if err != nil {
					return err
				}
				if resp.(*pb.StatusResponse).Leader != 0 {
					return fmt.Errorf("still led: %v", resp)
				}
				return nil
			}); err != nil {
				r.t.Error(err)
			}
			time.Sleep(4 * time.Second) // beyond three election timeouts, after which both end what needs a leader
			demanding.next(1)
			watching.silent(100 * time.Millisecond)
			everything(r, 0, "no quorum")
			r.with(func() { everything(r, 0, "no quorum, hasleader") }, "hasleader", "true")
			for _, i := range []int{1, 2} {
				if err := r.c.Members[i].Start(); err != nil {
					r.t.Error(err)
				}
			}
			for _, m := range r.c.Members {
				if err := m.WaitReady(r.ctx); err != nil {
					r.t.Error(err)
				}
			}
			r.lead(0, 0, 1, 2)
			everything(r, 0, "with a quorum again")
			watching.cancel()
		}},
		{name: "everything at a learner", size: 1, tell: func(r *teller) {
			ground(r)
			learner := r.join(true)
			if learner < 0 {
				return
			}
			everything(r, learner, "learner")
			r.with(func() { everything(r, learner, "learner, hasleader") }, "hasleader", "true")
			r.restart2(learner)
			everything(r, learner, "learner after a kill")
			r.call(0, "Maintenance/MoveLeader", &pb.MoveLeaderRequest{TargetID: r.id("new")})
			r.call(0, "Cluster/MemberList", &pb.MemberListRequest{})
			r.call(0, "Cluster/MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:1"}, IsLearner: true})
			time.Sleep(1100 * time.Millisecond) // an id is made of the URL and the second: the learner's own would exist
			r.call(0, "Cluster/MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{r.c.Members[learner].PeerURL}})
			if err := eventually(r.ctx, func() error {
				_, err := r.ask(r.ctx, 0, "Cluster/MemberPromote", &pb.MemberPromoteRequest{ID: r.id("new")})
				return err
			}); err != nil {
				r.t.Error(err)
			}
			r.call(0, "Cluster/MemberPromote", &pb.MemberPromoteRequest{ID: r.id("new")})
			r.settle(0, learner)
			// Members count as healthy when they have been connected for five seconds.
			if err := eventually(r.ctx, func() error {
				_, err := r.ask(r.ctx, learner, "Cluster/MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{r.c.Members[0].PeerURL}})
				if status.Code(err) == codes.Unavailable {
					return err
				}
				return nil
			}); err != nil {
				r.t.Error(err)
			}
			everything(r, learner, "promoted")
		}},
		{name: "members that never start", size: 3, tell: func(r *teller) {
			ground(r)
			r.lead(0, 0, 1, 2)
			for _, i := range []int{0, 1} {
				resp, err := r.call(i, "Cluster/MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{fmt.Sprintf("http://127.0.0.1:%d", i+1), "http://127.0.0.1:9"}, IsLearner: i == 1})
				if a, ok := resp.(*pb.MemberAddResponse); ok && err == nil {
					r.know(a.Member.ID, fmt.Sprint("added", i))
				}
			}
			// The ids were not known when the answers were said.
			for n := range r.lines {
				r.lines[n] = r.plain(r.lines[n])
			}
			for _, i := range []int{0, 2} {
				r.call(i, "Cluster/MemberList", &pb.MemberListRequest{Linearizable: true})
				r.call(i, "Cluster/MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:9"}})
				r.call(i, "Cluster/MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:7", "http://127.0.0.1:7"}, IsLearner: true})
				r.call(i, "Cluster/MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:8"}})
				r.call(i, "Cluster/MemberPromote", &pb.MemberPromoteRequest{ID: r.id("m2")})
				for _, url := range []string{"", "x", "http://127.0.0.1:1", "http://127.0.0.1", "http://a:1/path", "unix://x", "ftp://127.0.0.1:1", " http://127.0.0.1:1", r.c.Members[0].PeerURL} {
					r.call(i, "Cluster/MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{url}, IsLearner: true})
				}
				r.call(i, "Cluster/MemberUpdate", &pb.MemberUpdateRequest{ID: r.id("m2"), PeerURLs: []string{r.c.Members[0].PeerURL}})
				r.call(i, "Cluster/MemberUpdate", &pb.MemberUpdateRequest{ID: r.id("m2"), PeerURLs: []string{r.c.Members[1].PeerURL}})
				r.call(i, "Cluster/MemberUpdate", &pb.MemberUpdateRequest{ID: r.id("m2"), PeerURLs: []string{"http://127.0.0.1:1"}})
			}
			for _, name := range []string{"added0", "added1"} {
				if !slices.Contains(r.words, name) {
					continue
				}
				r.call(1, "Cluster/MemberPromote", &pb.MemberPromoteRequest{ID: r.id(name)})
				r.call(1, "Cluster/MemberUpdate", &pb.MemberUpdateRequest{ID: r.id(name), PeerURLs: []string{"http://127.0.0.1:3"}})
				r.call(1, "Cluster/MemberRemove", &pb.MemberRemoveRequest{ID: r.id(name)})
				r.call(0, "Cluster/MemberRemove", &pb.MemberRemoveRequest{ID: r.id(name)})
				r.call(2, "Cluster/MemberUpdate", &pb.MemberUpdateRequest{ID: r.id(name), PeerURLs: []string{"http://127.0.0.1:3"}})
				r.call(2, "Cluster/MemberPromote", &pb.MemberPromoteRequest{ID: r.id(name)})
			}
			// One is down: what the strict check lets pass.
			_ = r.c.Members[2].Kill()
			time.Sleep(6 * time.Second) // the strict check counts who was there for five seconds
			r.lead(0, 0, 1)
			for _, i := range []int{0, 1} {
				r.call(i, "Cluster/MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:8"}})
				r.call(i, "Cluster/MemberRemove", &pb.MemberRemoveRequest{ID: r.id("m2")})
				r.call(i, "Cluster/MemberRemove", &pb.MemberRemoveRequest{ID: r.id("m1")})
				r.call(i, "Maintenance/MoveLeader", &pb.MoveLeaderRequest{TargetID: r.id("m1")})
			}
			r.call(1, "Cluster/MemberRemove", &pb.MemberRemoveRequest{ID: r.id("m3")})
			r.call(0, "Cluster/MemberList", &pb.MemberListRequest{Linearizable: true})
			r.call(0, "Cluster/MemberRemove", &pb.MemberRemoveRequest{ID: r.id("m2")})
		}},
	}
}

// join adds a member to the first and starts it; its id is called new.
func (r *teller) join(learner bool) int {
	c, err := cluster.New(cluster.Config{Kind: r.kind, Binary: binaryOf(r.t, r.kind), Size: 1, Dir: r.t.TempDir()})
	if err != nil {
		r.t.Error(err)
		return -1
	}
	r.t.Cleanup(c.Close)
	m := c.Members[0]
	resp, err := r.ask(r.ctx, 0, "Cluster/MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{m.PeerURL}, IsLearner: learner})
	if err != nil {
		r.t.Error(err)
		return -1
	}
	r.word(m.PeerURL, "new:peer")
	r.word(m.ClientURL, "new:client")
	r.word(m.Endpoint(), "new:endpoint")
	r.know(resp.(*pb.MemberAddResponse).Member.ID, "new")
	m.Name = "new"
	m.SetArgs(func(args []string) []string {
		for i := range args {
			switch args[i] {
			case "--initial-cluster":
				args[i+1] = fmt.Sprintf("%s=%s,new=%s", r.c.Members[0].Name, r.c.Members[0].PeerURL, m.PeerURL)
			case "--initial-cluster-state":
				args[i+1] = "existing"
			case "--name":
				args[i+1] = "new"
			}
		}
		return args
	})
	if err := m.Start(); err != nil {
		r.t.Error(err)
		return -1
	}
	r.c.Members = append(r.c.Members, m)
	i := len(r.c.Members) - 1
	if err := r.serves(i); err != nil {
		r.t.Error(err, m.LogTail(10))
		return -1
	}
	return i
}

// serves waits until a member, learners too, has what was there, and has told who it is.
func (r *teller) serves(i int) error {
	return eventually(r.ctx, func() error {
		resp, err := r.ask(r.ctx, i, "KV/Range", &pb.RangeRequest{Key: []byte("d/2"), Serializable: true})
		if err != nil {
			return err
		}
		if resp.(*pb.RangeResponse).Count == 0 {
			return fmt.Errorf("%s is behind", r.c.Members[i].Name)
		}
		list, err := r.ask(r.ctx, 0, "Cluster/MemberList", &pb.MemberListRequest{})
		if err != nil {
			return err
		}
		for _, m := range list.(*pb.MemberListResponse).Members {
			if len(m.ClientURLs) == 0 {
				return fmt.Errorf("%s has not told its URLs", m.Name)
			}
		}
		st, err := r.ask(r.ctx, i, "Maintenance/Status", &pb.StatusRequest{})
		if err != nil {
			return err
		}
		if st.(*pb.StatusResponse).Leader == 0 {
			return fmt.Errorf("%s has no leader", r.c.Members[i].Name)
		}
		return nil
	})
}

// restart2 kills a member that is no voter, and starts it again.
func (r *teller) restart2(i int) {
	m := r.c.Members[i]
	_ = m.Kill()
	if err := m.Start(); err != nil {
		r.t.Error(err)
	}
	if err := r.serves(i); err != nil {
		fmt.Fprintln(os.Stderr, m.LogTail(5))
		r.t.Error(err)
	}
}
