package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/server/electionpb"
	"github.com/belaydb/belay/state"
)

const oldRevision = "etcdserver: revision of auth store is old"

// newSigningMember is newSafeMember with JWT; token gives a context with one that a user was given
// under a revision.
func newSigningMember(t *testing.T) (m *member, token func(user string, revision uint64) context.Context) {
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("secret"), 0o600))
	tokens, err := auth.NewTokens(nil, "jwt,sign-method=HS256,priv-key="+secret, 0)
	must(t, err)
	m = newSafeMember(t, tokens)
	return m, func(user string, revision uint64) context.Context {
		token, err := tokens.Assign(user, revision, "", 0)
		must(t, err)
		return metadata.AppendToOutgoingContext(t.Context(), "token", token)
	}
}

// watchAs opens a stream of watches; it ends with the test.
func (m *member) watchAs(ctx context.Context) *watchTester {
	ctx, cancel := context.WithTimeout(ctx, 4*streamTimeout)
	m.t.Cleanup(cancel)
	st, err := pb.NewWatchClient(m.conn).Watch(ctx)
	must(m.t, err)
	return &watchTester{Watch_WatchClient: st, t: m.t, cancel: cancel}
}

// created makes a watch and waits for it.
func (w *watchTester) created(key, end string) (id int64) {
	w.t.Helper()
	w.create(&pb.WatchCreateRequest{Key: []byte(key), RangeEnd: []byte(end)})
	r := w.recv()
	if !r.Created || r.Canceled {
		w.t.Fatalf("%v", r)
	}
	return r.WatchId
}

// ended waits for the end of a watch; events may come before it.
func (w *watchTester) ended(id int64, reason error) {
	w.t.Helper()
	for {
		r := w.recv()
		if len(r.Events) > 0 {
			continue
		}
		if r.WatchId != id || !r.Canceled || r.Created || r.CompactRevision != 0 || r.CancelReason != reason.Error() {
			w.t.Fatalf("%v, want %d to be canceled: %v", r, id, reason)
		}
		return
	}
}

// watchers is how many there are.
func (m *member) watchers() float64 {
	families, err := m.reg.Gather()
	must(m.t, err)
	for _, f := range families {
		if f.GetName() == "etcd_debugging_mvcc_watcher_total" {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	m.t.Fatal("no such metric")
	return 0
}

// change is root's.
type change func(context.Context, pb.AuthClient) error

var (
	revokeRole change = func(ctx context.Context, c pb.AuthClient) error {
		_, err := c.UserRevokeRole(ctx, &pb.AuthUserRevokeRoleRequest{Name: "alice", Role: "alice"})
		return err
	}
	revokePermission change = func(ctx context.Context, c pb.AuthClient) error {
		_, err := c.RoleRevokePermission(ctx, &pb.AuthRoleRevokePermissionRequest{Role: "alice", Key: []byte("b"), RangeEnd: []byte("d")})
		return err
	}
	deleteRole change = func(ctx context.Context, c pb.AuthClient) error {
		_, err := c.RoleDelete(ctx, &pb.AuthRoleDeleteRequest{Role: "alice"})
		return err
	}
	deleteUser change = func(ctx context.Context, c pb.AuthClient) error {
		_, err := c.UserDelete(ctx, &pb.AuthUserDeleteRequest{Name: "alice"})
		return err
	}
	changePassword change = func(ctx context.Context, c pb.AuthClient) error {
		_, err := c.UserChangePassword(ctx, &pb.AuthUserChangePasswordRequest{Name: "alice", Password: "another"})
		return err
	}
	unrelated change = func(ctx context.Context, c pb.AuthClient) error {
		_, err := c.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: "unrelated"})
		return err
	}
)

var endings = []struct {
	name   string
	change change
	reason error
}{
	{"role revoked", revokeRole, rpctypes.ErrGRPCPermissionDenied},
	{"permission revoked", revokePermission, rpctypes.ErrGRPCPermissionDenied},
	{"role deleted", deleteRole, rpctypes.ErrGRPCPermissionDenied},
	{"user deleted", deleteUser, rpctypes.ErrGRPCInvalidAuthToken},
	{"password changed", changePassword, rpctypes.ErrGRPCInvalidAuthToken},
}

// A watch ends when its client loses the right to it, with the reason for which a new one would be
// refused; not before, and nobody else's.
func TestWatchEndsWithItsRight(t *testing.T) {
	for _, kind := range []string{"simple", "jwt"} {
		for _, c := range endings {
			t.Run(kind+" "+c.name, func(t *testing.T) {
				var m *member
				if kind == "simple" {
					m = newSafeMember(t, nil)
				} else {
					m, _ = newSigningMember(t)
				}
				alice := m.watchAs(m.as("alice"))
				one, two := alice.created("b", ""), alice.created("b", "d")
				others := m.watchAs(m.as("root"))
				id := others.created("b", "")

				must(t, unrelated(m.as("root"), m.auth))
				_, err := m.kv.Put(m.as("root"), &pb.PutRequest{Key: []byte("b")})
				must(t, err)
				for range 2 {
					if r := alice.recv(); len(r.Events) != 1 {
						t.Fatalf("after a change that is no concern of hers: %v", r)
					}
				}
				others.recv()

				must(t, c.change(m.as("root"), m.auth))
				ids := map[int64]bool{one: true, two: true}
				for range 2 {
					r := alice.recv()
					if !ids[r.WatchId] || !r.Canceled || r.Created || r.CancelReason != c.reason.Error() {
						t.Fatalf("%v", r)
					}
					delete(ids, r.WatchId)
				}
				_, err = m.kv.Put(m.as("root"), &pb.PutRequest{Key: []byte("b")})
				must(t, err)
				if r := others.recv(); r.WatchId != id || len(r.Events) != 1 {
					t.Fatalf("root: %v", r)
				}
				// The stream is good for what she may still do.
				alice.create(&pb.WatchCreateRequest{Key: []byte("b")})
				if r := alice.recv(); !r.Created || !r.Canceled {
					t.Fatalf("%v", r)
				}
			})
		}
	}
}

// Of several watches of a stream only those end for which there is no right any more.
func TestWatchesThatAreAllowedGoOn(t *testing.T) {
	m := newSafeMember(t, nil)
	root := m.as("root")
	_, err := m.auth.RoleGrantPermission(root, &pb.AuthRoleGrantPermissionRequest{Name: "alice",
		Perm: &authpb.Permission{PermType: authpb.Permission_READ, Key: []byte("x")}})
	must(t, err)
	alice := m.watchAs(m.as("alice"))
	b, x := alice.created("b", "d"), alice.created("x", "")
	must(t, revokePermission(root, m.auth))
	alice.ended(b, rpctypes.ErrGRPCPermissionDenied)
	_, err = m.kv.Put(root, &pb.PutRequest{Key: []byte("x")})
	must(t, err)
	if r := alice.recv(); r.WatchId != x || len(r.Events) != 1 {
		t.Fatalf("%v", r)
	}
	// The id of what was ended is free once its client has cancelled it.
	alice.request(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: b}}})
	if r := alice.recv(); r.WatchId != b || !r.Canceled {
		t.Fatalf("%v", r)
	}
}

// A certificate is not a password: what it may goes by its name alone, until the user is deleted.
func TestSessionOfACertificate(t *testing.T) {
	m := newSafeMember(t, nil)
	p := m.cfg.State.Policy()
	s := p.NewSession(auth.Identity{User: "alice", Revision: p.Revision()}, false)
	must(t, changePassword(m.as("root"), m.auth))
	who, err := m.cfg.State.Policy().Resume(s)
	must(t, err)
	must(t, m.cfg.State.Policy().Read(who, []byte("b"), nil))
	must(t, deleteUser(m.as("root"), m.auth))
	who, err = m.cfg.State.Policy().Resume(s)
	must(t, err)
	if err := m.cfg.State.Policy().Read(who, []byte("b"), nil); !errors.Is(err, auth.ErrPermissionDenied) {
		t.Fatal(err)
	}
}

// When authentication is turned on, watches of nobody end, and those of whose token is good go on;
// off ends nothing.
func TestWatchWhenAuthIsTurnedOn(t *testing.T) {
	m, token := newSigningMember(t)
	disable := func() {
		t.Helper()
		_, err := m.auth.AuthDisable(m.as("root"), &pb.AuthDisableRequest{})
		must(t, err)
	}
	disable()
	nobody := m.watchAs(t.Context())
	id := nobody.created("b", "")
	alice := m.watchAs(token("alice", m.cfg.State.Policy().Revision()))
	hers, notHers := alice.created("b", ""), alice.created("x", "")
	_, err := m.auth.AuthEnable(t.Context(), &pb.AuthEnableRequest{})
	must(t, err)
	nobody.ended(id, rpctypes.ErrGRPCUserEmpty)
	alice.ended(notHers, rpctypes.ErrGRPCPermissionDenied)
	disable()
	_, err = m.kv.Put(t.Context(), &pb.PutRequest{Key: []byte("b")})
	must(t, err)
	if r := alice.recv(); r.WatchId != hers || len(r.Events) != 1 {
		t.Fatalf("%v", r)
	}
}

// No event that was applied after a right was revoked reaches whoever had it, however the two meet;
// nor does a watch that is being made meanwhile outlive the right.
func TestNoEventAfterTheRight(t *testing.T) {
	m := newSafeMember(t, nil)
	root := m.as("root")
	for round := range 30 {
		alice := m.watchAs(m.as("alice"))
		alice.created("b", "")
		put := func(key string) int64 {
			resp, err := m.kv.Put(root, &pb.PutRequest{Key: []byte(key)})
			must(t, err)
			return resp.Header.Revision
		}
		for range 1 + round%3 {
			put("b")
		}
		making := make(chan struct{})
		go func() {
			defer close(making)
			for range 3 {
				_ = alice.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("c")}}})
			}
		}()
		must(t, revokeRole(root, m.auth))
		last := put("x")
		put("b")
		put("c")
		<-making
		open := 4 // watches made or being made
		for open > 0 {
			r := alice.recv()
			for _, ev := range r.Events {
				if ev.Kv.ModRevision > last {
					t.Fatalf("round %d: told of revision %d, the right ended before %d", round, ev.Kv.ModRevision, last)
				}
			}
			if r.Canceled {
				open--
			}
		}
		_, err := m.auth.UserGrantRole(root, &pb.AuthUserGrantRoleRequest{User: "alice", Role: "alice"})
		must(t, err)
	}
}

// An Observe ends with the right to its election, and a Campaign that waits does not go on waiting.
func TestElectionEndsWithItsRight(t *testing.T) {
	for _, c := range endings {
		t.Run(c.name, func(t *testing.T) {
			m := newSafeMember(t, nil)
			root := m.as("root")
			client := electionpb.NewElectionClient(m.conn)
			_, err := client.Campaign(root, &electionpb.CampaignRequest{Name: []byte("b"), Value: []byte("first")})
			must(t, err)
			alice, cancel := context.WithTimeout(m.as("alice"), 4*streamTimeout)
			defer cancel()
			observe, err := client.Observe(alice, &electionpb.LeaderRequest{Name: []byte("b")})
			must(t, err)
			_, err = observe.Recv()
			must(t, err)
			empty, err := client.Observe(alice, &electionpb.LeaderRequest{Name: []byte("c")}) // one that nobody has won
			must(t, err)
			campaign := make(chan error, 1)
			go func() {
				_, err := client.Campaign(alice, &electionpb.CampaignRequest{Name: []byte("b"), Value: []byte("second")})
				campaign <- err
			}()
			until(t, "all to wait", func() bool { return m.watchers() == 4 }) // the candidate watches two keys
			must(t, unrelated(root, m.auth))
			must(t, c.change(root, m.auth))
			want := status.Convert(c.reason).Message()
			_, err = observe.Recv()
			checkStatus(t, err, codes.Unknown, want)
			_, err = empty.Recv()
			checkStatus(t, err, codes.Unknown, want)
			checkStatus(t, <-campaign, codes.Unknown, want)
		})
	}
}

// What is sent for longer stops, too: a snapshot at the chunk after root's right ended, a streamed
// range likewise.
func TestLongAnswersEndWithTheirRight(t *testing.T) {
	m := newSafeMember(t, nil, func(c *Config, _ *state.Config) { c.MaxRequestBytes = 64 << 10 })
	root := m.as("root")
	for i := range 400 { // more than grpc's windows and the test's pipe hold
		_, err := m.kv.Put(root, &pb.PutRequest{Key: fmt.Appendf(nil, "b%03d", i), Value: make([]byte, 32<<10)})
		must(t, err)
	}
	_, err := m.auth.UserGrantRole(root, &pb.AuthUserGrantRoleRequest{User: "alice", Role: "root"})
	must(t, err)
	alice, cancel := context.WithTimeout(m.as("alice"), 4*streamTimeout)
	defer cancel()
	snapshot, err := m.maintenance.Snapshot(alice, &pb.SnapshotRequest{})
	must(t, err)
	_, err = snapshot.Recv()
	must(t, err)
	stream, err := m.kv.RangeStream(alice, &pb.RangeRequest{Key: []byte("b"), RangeEnd: []byte("d")})
	must(t, err)
	_, err = stream.Recv()
	must(t, err)
	must(t, deleteUser(root, m.auth))
	const invalid = "etcdserver: invalid auth token"
	for err = nil; err == nil; {
		_, err = snapshot.Recv()
	}
	if errors.Is(err, io.EOF) {
		t.Fatal("the snapshot was sent whole")
	}
	checkStatus(t, err, codes.Unauthenticated, invalid)
	for err = nil; err == nil; {
		_, err = stream.Recv()
	}
	if errors.Is(err, io.EOF) {
		t.Fatal("the range was sent whole")
	}
}

// A JWT of root that is older than the last change of users and roles rules no more, whatever it
// asks for; one of now does.
func TestOldRootTokens(t *testing.T) {
	m, token := newSigningMember(t)
	stolen := token("root", m.cfg.State.Policy().Revision())
	granted, err := m.lease.LeaseGrant(m.as("root"), &pb.LeaseGrantRequest{TTL: 1000})
	must(t, err)
	calls := map[string]func(context.Context) error{
		"user add": func(ctx context.Context) error {
			_, err := m.auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "eve", Password: "x"})
			return err
		},
		"user add without password": func(ctx context.Context) error {
			_, err := m.auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "cn", Options: &authpb.UserAddOptions{NoPassword: true}})
			return err
		},
		"user get": func(ctx context.Context) error {
			_, err := m.auth.UserGet(ctx, &pb.AuthUserGetRequest{Name: "alice"})
			return err
		},
		"user list": func(ctx context.Context) error {
			_, err := m.auth.UserList(ctx, &pb.AuthUserListRequest{})
			return err
		},
		"role get": func(ctx context.Context) error {
			_, err := m.auth.RoleGet(ctx, &pb.AuthRoleGetRequest{Role: "alice"})
			return err
		},
		"role grant": func(ctx context.Context) error {
			_, err := m.auth.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: "alice", Perm: &authpb.Permission{Key: []byte("x")}})
			return err
		},
		"snapshot": func(ctx context.Context) error {
			s, err := m.maintenance.Snapshot(ctx, &pb.SnapshotRequest{})
			must(t, err)
			_, err = s.Recv()
			return err
		},
		"hash":   func(ctx context.Context) error { _, err := m.maintenance.Hash(ctx, &pb.HashRequest{}); return err },
		"hashkv": func(ctx context.Context) error { _, err := m.maintenance.HashKV(ctx, &pb.HashKVRequest{}); return err },
		"defragment": func(ctx context.Context) error {
			_, err := m.maintenance.Defragment(ctx, &pb.DefragmentRequest{})
			return err
		},
		"disarm": func(ctx context.Context) error {
			_, err := m.maintenance.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_CORRUPT})
			return err
		},
		"compact": func(ctx context.Context) error {
			_, err := m.kv.Compact(ctx, &pb.CompactionRequest{Revision: 1})
			return err
		},
		"member add": func(ctx context.Context) error {
			_, err := m.cluster.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:9"}, IsLearner: true})
			return err
		},
		"lease keys": func(ctx context.Context) error {
			_, err := m.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: granted.ID, Keys: true})
			return err
		},
		"leases": func(ctx context.Context) error {
			_, err := m.lease.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
			return err
		},
		"keep alive": func(ctx context.Context) error {
			s, err := m.lease.LeaseKeepAlive(ctx)
			must(t, err)
			must(t, s.Send(&pb.LeaseKeepAliveRequest{ID: granted.ID}))
			_, err = s.Recv()
			return err
		},
		"revoke": func(ctx context.Context) error {
			_, err := m.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: granted.ID})
			return err
		},
		"range": func(ctx context.Context) error {
			_, err := m.kv.Range(ctx, &pb.RangeRequest{Key: []byte("b")})
			return err
		},
		"put": func(ctx context.Context) error {
			_, err := m.kv.Put(ctx, &pb.PutRequest{Key: []byte("b")})
			return err
		},
	}
	_, err = m.auth.UserChangePassword(m.as("root"), &pb.AuthUserChangePasswordRequest{Name: "root", Password: "root's"})
	must(t, err)
	n := len(m.replica.requests())
	for name, call := range calls {
		t.Run("old "+name, func(t *testing.T) { checkStatus(t, call(stolen), codes.InvalidArgument, oldRevision) })
	}
	if got := len(m.replica.requests()); got != n {
		t.Errorf("%d of the refused requests were replicated", got-n)
	}
	for name, call := range calls {
		// As each client does that is told so: a new token for each call.
		err := call(m.as("root"))
		if code := status.Code(err); code == codes.InvalidArgument || code == codes.PermissionDenied || code == codes.Unauthenticated {
			t.Errorf("now %s: %v", name, err)
		}
	}
}

// A member that has not heard of a change asks the others before it lets an old JWT into the log,
// where it would rule.
func TestOldRootTokensAtAMemberBehind(t *testing.T) {
	m, token := newSigningMember(t)
	ctx := token("root", m.cfg.State.Policy().Revision())
	before := m.replica.barriers.Load()
	_, err := m.auth.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: "r"})
	must(t, err)
	if m.replica.barriers.Load() == before {
		t.Fatal("judged by what this member has applied alone")
	}
}

// Simple tokens are of now whatever was changed: each of many changes passes, though they race with
// each other.
func TestSimpleTokensAreNeverOld(t *testing.T) {
	m := newSafeMember(t, nil)
	root := m.as("root")
	errs := make(chan error)
	for g := range 4 {
		go func() {
			for i := range 25 {
				if _, err := m.auth.RoleAdd(root, &pb.AuthRoleAddRequest{Name: fmt.Sprint(g, i)}); err != nil {
					errs <- err
					return
				}
				if _, err := m.maintenance.HashKV(root, &pb.HashKVRequest{}); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range 4 {
		select {
		case err := <-errs:
			must(t, err)
		case <-time.After(4 * streamTimeout):
			t.Fatal("stuck")
		}
	}
}

// A policy that comes between the judgement and the watch is seen by one of the two that look.
func TestRightThatEndsMeanwhile(t *testing.T) {
	m := newSafeMember(t, nil)
	root := m.as("root")
	md, _ := metadata.FromOutgoingContext(m.as("alice"))
	may := m.callers.rightsOf(metadata.NewIncomingContext(t.Context(), md))
	judged := 0
	err := may.admitIf(func(p *auth.Policy, who auth.Identity) error {
		err := p.Read(who, []byte("b"), nil)
		if judged++; judged == 1 {
			must(t, revokeRole(root, m.auth))
		}
		return err
	}, func() { t.Error("begun") })
	if !errors.Is(err, auth.ErrPermissionDenied) || judged != 2 {
		t.Fatalf("judged %d times: %v", judged, err)
	}
}
