package check

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/proof/cluster"
)

// TestAuthThreeMembers: users, roles, permissions and the auth revision survive restarts,
// elections, a snapshot and the death of all members at once; a token is good on all members and
// ends with the process that knows it. What three members of Belay say on the way is what three of
// etcd say.
func TestAuthThreeMembers(t *testing.T) {
	t.Parallel()
	var stories [2][]string
	t.Run("story", func(t *testing.T) {
		for i, kind := range []cluster.Kind{checkKind(t), cluster.Etcd} {
			t.Run(fmt.Sprint(i, " ", kind), func(t *testing.T) {
				t.Parallel()
				stories[i] = authStory(t, kind)
			})
		}
	})
	for i := range max(len(stories[0]), len(stories[1])) {
		if i >= len(stories[0]) || i >= len(stories[1]) || stories[0][i] != stories[1][i] {
			t.Fatalf("belay: %s\n\netcd: %s", strings.Join(stories[0][i:], "\n"), strings.Join(stories[1][i:], "\n"))
		}
	}
	if !t.Failed() {
		t.Log(strings.Join(stories[0], "\n"))
	}
}

func authStory(t *testing.T, kind cluster.Kind) (story []string) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	args := []string{"--unsafe-no-fsync", "--bcrypt-cost=4"}
	if kind == cluster.Etcd {
		args = append(args, "--snapshot-count=10", "--snapshot-catchup-entries=5")
	}
	c := startCluster(t, cluster.Config{Kind: kind, Size: 3, Args: args})
	ps := make([]*party, 3)
	for i, m := range c.Members {
		ps[i] = newParty(t, m)
	}
	say := func(format string, args ...any) { story = append(story, fmt.Sprintf(format, args...)) }
	must := ps[0].must
	ask := func(p *party, who, key string) string {
		_, err := pb.NewKVClient(p.conn).Range(p.ctx(who), &pb.RangeRequest{Key: []byte(key)})
		return fmt.Sprint(status.Code(err), " ", status.Convert(err).Message())
	}
	everywhere := func(what, who, key string) {
		for i, p := range ps {
			say("%s: %s asks member %d for %s: %s", what, who, i, key, ask(p, who, key))
		}
	}
	// login logs the users in at member i, and gives the tokens to all members' parties.
	login := func(i int, names ...string) {
		t.Helper()
		for _, name := range names {
			var token string
			must(eventually(ctx, func() error {
				r, err := pb.NewAuthClient(ps[i].conn).Authenticate(ctx, &pb.AuthenticateRequest{Name: name, Password: name})
				if err == nil {
					token = r.Token
				}
				return err
			}))
			for _, p := range ps {
				p.tokens[name] = token
				if kind == cluster.Etcd {
					// A member of etcd that lags behind does not know the token; Belay's catches up
					// first.
					must(eventually(ctx, func() error {
						if got := ask(p, name, "mine"); strings.HasPrefix(got, "Unauthenticated") {
							return errors.New(got)
						}
						return nil
					}))
				}
			}
		}
	}
	// rules are all users and roles, as a member reports them.
	rules := func(p *party) string {
		admin := pb.NewAuthClient(p.conn)
		var out []string
		st, err := admin.AuthStatus(p.ctx("root"), &pb.AuthStatusRequest{})
		must(err)
		out = append(out, fmt.Sprint(st.Enabled, " ", st.AuthRevision))
		users, err := admin.UserList(p.ctx("root"), &pb.AuthUserListRequest{})
		must(err)
		for _, name := range users.Users {
			u, err := admin.UserGet(p.ctx("root"), &pb.AuthUserGetRequest{Name: name})
			must(err)
			out = append(out, fmt.Sprint(name, u.Roles))
		}
		roles, err := admin.RoleList(p.ctx("root"), &pb.AuthRoleListRequest{})
		must(err)
		for _, name := range roles.Roles {
			r, err := admin.RoleGet(p.ctx("root"), &pb.AuthRoleGetRequest{Role: name})
			must(err)
			for _, perm := range r.Perm {
				out = append(out, fmt.Sprintf("%s %s %q %q", name, perm.PermType, perm.Key, perm.RangeEnd))
			}
		}
		return strings.Join(out, ", ")
	}
	leader := func() int {
		for i, p := range ps {
			if st, err := pb.NewMaintenanceClient(p.conn).Status(p.ctx("root"), &pb.StatusRequest{}); err == nil && st.Leader == st.Header.MemberId {
				return i
			}
		}
		return -1
	}

	ps[0].populate()
	login(1, "root", "mallory") // a token of one member is good on all, at once
	say("rules: %s", rules(ps[2]))
	everywhere("at first", "root", "secret")
	everywhere("at first", "mallory", "mine")
	everywhere("at first", "mallory", "secret")

	// The leader goes; tokens stay.
	move := func(name string) error {
		lead := leader()
		if lead < 0 {
			return rpctypes.ErrNotLeader
		}
		st, err := pb.NewMaintenanceClient(ps[(lead+1)%3].conn).Status(ps[0].ctx("root"), &pb.StatusRequest{})
		if err != nil {
			return err
		}
		_, err = pb.NewMaintenanceClient(ps[lead].conn).MoveLeader(ps[0].ctx(name), &pb.MoveLeaderRequest{TargetID: st.Header.MemberId})
		return err
	}
	var refused error
	must(eventually(ctx, func() error {
		if refused = move("mallory"); errors.Is(rpctypes.Error(refused), rpctypes.ErrNotLeader) {
			return refused
		}
		return nil
	}))
	say("mallory moves the leader: %v", refused)
	must(eventually(ctx, func() error { return move("root") }))
	must(c.WaitReady(ctx))
	everywhere("another leader", "root", "secret")
	say("rules: %s", rules(ps[0]))

	// A member is killed: it no longer knows the old tokens; the others do.
	old := ps[0].tokens["root"]
	must(ps[0].Kill())
	must(eventually(ctx, func() error { // the killed one may have led
		_, err := pb.NewKVClient(ps[1].conn).Range(ps[1].ctx("root"), &pb.RangeRequest{Key: []byte("secret")})
		return err
	}))
	_, err := pb.NewAuthClient(ps[1].conn).UserChangePassword(ps[1].ctx("root"), &pb.AuthUserChangePasswordRequest{Name: "mallory", Password: "mallory"})
	must(err)
	say("while one is down: mallory's token of before: %s", ask(ps[1], "mallory", "mine"))
	// So much that it needs a snapshot.
	kv := pb.NewKVClient(ps[1].conn)
	i := 0
	put := func() error {
		i++
		return eventually(ctx, func() error { // another leader, perhaps
			_, err := kv.Put(ps[1].ctx("root"), &pb.PutRequest{Key: fmt.Appendf(nil, "bulk%d", i%3), Value: make([]byte, 1<<20)})
			return err
		})
	}
	for range 50 {
		must(put())
	}
	if kind == cluster.Belay {
		must(outrun(ctx, t, c, put))
	}
	must(ps[0].Start())
	must(ps[0].WaitReady(ctx))
	must(eventually(ctx, func() error { // until it has caught up
		_, err := pb.NewAuthClient(ps[0].conn).Authenticate(ctx, &pb.AuthenticateRequest{Name: "root", Password: "root"})
		return err
	}))
	everywhere("after a snapshot", "root", "secret")
	login(0, "root", "mallory")
	everywhere("after a snapshot, logged in", "mallory", "mine")
	say("rules: %s", rules(ps[0]))
	ps[1].tokens["old"] = old
	say("the first token, where it was given: %s", ask(ps[1], "old", "secret"))

	// All are killed, a moment after the last login is in their logs: a member reapplies what it
	// had applied and not written once it gets it from the others, as etcd does.
	time.Sleep(500 * time.Millisecond)
	for _, p := range ps {
		must(p.Kill())
	}
	for _, p := range ps {
		must(p.Start())
	}
	must(c.WaitReady(ctx))
	before := ps[0].tokens["root"]
	login(2, "root", "mallory")
	say("rules: %s", rules(ps[1]))
	everywhere("all were killed", "mallory", "mine")
	everywhere("all were killed", "mallory", "secret")
	if kind == cluster.Belay {
		// etcd applies the last tenth of a second of its log again, and with it knows these tokens.
		for _, p := range ps {
			for name, token := range map[string]string{"first": old, "last": before} {
				p.tokens[name] = token
				if got := ask(p, name, "secret"); !strings.HasPrefix(got, "Unauthenticated") {
					t.Errorf("%s: the %s token from before all were killed: %s", p.LogPath, name, got)
				}
			}
		}
	}

	// Off and on again.
	_, err = pb.NewAuthClient(ps[0].conn).AuthDisable(ps[0].ctx("root"), &pb.AuthDisableRequest{})
	must(err)
	for i := range ps {
		must(eventually(ctx, func() error {
			_, err := pb.NewKVClient(ps[i].conn).Range(t.Context(), &pb.RangeRequest{Key: []byte("secret")})
			return err
		}))
	}
	_, err = pb.NewAuthClient(ps[0].conn).AuthEnable(t.Context(), &pb.AuthEnableRequest{})
	must(err)
	everywhere("off and on", "root", "secret")
	login(1, "root")
	say("rules: %s", rules(ps[2]))
	return story
}

// TestAuthSnapshotForEtcd: a snapshot taken with authentication on is restored by etcdutl, and real
// etcd serves the same users with the same passwords and rights.
func TestAuthSnapshotForEtcd(t *testing.T) {
	t.Parallel()
	tools := EtcdTools(t)
	c := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 1, Args: []string{"--bcrypt-cost=4"}})
	p := newParty(t, c.Members[0])
	p.populate()
	admin := pb.NewAuthClient(p.conn)
	_, err := admin.UserAdd(p.ctx("root"), &pb.AuthUserAddRequest{Name: "carol", Options: &authpb.UserAddOptions{NoPassword: true}})
	p.must(err)
	_, err = admin.RoleGrantPermission(p.ctx("root"), &pb.AuthRoleGrantPermissionRequest{Name: "mallory", Perm: &authpb.Permission{Key: []byte("a"), RangeEnd: []byte("\x00")}})
	p.must(err)
	before, err := admin.AuthStatus(p.ctx("root"), &pb.AuthStatusRequest{})
	p.must(err)

	dir := t.TempDir()
	file := filepath.Join(dir, "snapshot.db")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	run := func(program string, args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(ctx, program, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %s: %v\n%s", program, args, err, out)
		}
	}
	run(tools.Etcdctl, "--endpoints="+p.ClientURL, "--user=root:root", "snapshot", "save", file)
	e := newCluster(t, cluster.Config{Kind: cluster.Etcd, Size: 1, Dir: dir, Args: []string{"--bcrypt-cost=4"}}).Members[0]
	run(tools.Etcdutl, "snapshot", "restore", file, "--data-dir="+e.DataDir, "--name="+e.Name, "--initial-cluster="+e.Name+"="+e.PeerURL, "--initial-advertise-peer-urls="+e.PeerURL, "--initial-cluster-token=check")
	p.must(e.Start())
	p.must(e.WaitReady(ctx))

	q := newParty(t, e)
	q.login("root", "mallory")
	after, err := pb.NewAuthClient(q.conn).AuthStatus(q.ctx("root"), &pb.AuthStatusRequest{})
	p.must(err)
	if !after.Enabled || after.AuthRevision != before.AuthRevision {
		t.Errorf("etcd: %v, belay: %v", after, before)
	}
	for _, call := range []func(pb.AuthClient, *party) (proto.Message, error){
		func(a pb.AuthClient, p *party) (proto.Message, error) {
			return a.UserList(p.ctx("root"), &pb.AuthUserListRequest{})
		},
		func(a pb.AuthClient, p *party) (proto.Message, error) {
			return a.UserGet(p.ctx("mallory"), &pb.AuthUserGetRequest{Name: "mallory"})
		},
		func(a pb.AuthClient, p *party) (proto.Message, error) {
			return a.RoleList(p.ctx("root"), &pb.AuthRoleListRequest{})
		},
		func(a pb.AuthClient, p *party) (proto.Message, error) {
			return a.RoleGet(p.ctx("mallory"), &pb.AuthRoleGetRequest{Role: "mallory"})
		},
		func(a pb.AuthClient, p *party) (proto.Message, error) {
			return a.Authenticate(p.ctx(""), &pb.AuthenticateRequest{Name: "carol", Password: "x"})
		},
		func(a pb.AuthClient, p *party) (proto.Message, error) {
			return a.Authenticate(p.ctx(""), &pb.AuthenticateRequest{Name: "mallory", Password: "x"})
		},
	} {
		var answers [2]string
		for i, side := range []*party{p, q} {
			m, err := call(pb.NewAuthClient(side.conn), side)
			if err == nil {
				m.ProtoReflect().Clear(m.ProtoReflect().Descriptor().Fields().ByName("header"))
			}
			answers[i] = answer(m, err)
		}
		if answers[0] != answers[1] {
			t.Errorf("belay: %s\netcd: %s", answers[0], answers[1])
		}
	}
	for _, key := range []string{"mine", "secret", "0"} {
		var answers [2]string
		for i, side := range []*party{p, q} {
			r, err := pb.NewKVClient(side.conn).Range(side.ctx("mallory"), &pb.RangeRequest{Key: []byte(key)})
			answers[i] = fmt.Sprint(r.GetKvs(), err)
		}
		if answers[0] != answers[1] {
			t.Errorf("mallory reads %s\nbelay: %s\netcd: %s", key, answers[0], answers[1])
		}
	}
}

// TestAuthenticateLetsOthersWork: while many log in at the default cost of bcrypt, which takes all
// processors and more, and others send wrong passwords, puts continue and every login is answered.
func TestAuthenticateLetsOthersWork(t *testing.T) {
	t.Parallel()
	c := startCluster(t, cluster.Config{Kind: checkKind(t), Size: 1, Args: []string{"--unsafe-no-fsync"}})
	p := newParty(t, c.Members[0])
	p.populate()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const logins, puts = 32, 200
	var running sync.WaitGroup
	failed := make(chan error, logins)
	for i := range logins {
		running.Go(func() {
			password := "mallory"
			if i%2 == 1 {
				password = "wrong"
			}
			_, err := pb.NewAuthClient(p.conn).Authenticate(ctx, &pb.AuthenticateRequest{Name: "mallory", Password: password})
			if (err == nil) != (i%2 == 0) {
				failed <- fmt.Errorf("login %d with password %q: %w", i, password, err)
			}
		})
	}
	kv := pb.NewKVClient(p.conn)
	for i := range puts {
		if _, err := kv.Put(p.ctx("mallory"), &pb.PutRequest{Key: []byte("mine"), Value: fmt.Append(nil, i)}); err != nil {
			t.Fatal(err)
		}
	}
	running.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
}

// A client of etcd's own library with a name and password continues when its token ends: with the
// member, by a change of the password, by being switched off and on.
func TestAuthClientLogsInAgain(t *testing.T) {
	t.Parallel()
	c := startCluster(t, cluster.Config{Kind: checkKind(t), Size: 1, Args: []string{"--bcrypt-cost=4"}})
	p := newParty(t, c.Members[0])
	p.populate()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{p.ClientURL}, Username: "mallory", Password: "mallory", DialTimeout: 20 * time.Second})
	p.must(err)
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	put := func(when string) {
		t.Helper()
		if _, err := client.Put(ctx, "mine", when); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	put("at first")
	p.must(p.Kill())
	p.must(p.Start())
	p.must(p.WaitReady(ctx))
	put("after a kill")
	p.login("root")
	admin := pb.NewAuthClient(p.conn)
	_, err = admin.UserChangePassword(p.ctx("root"), &pb.AuthUserChangePasswordRequest{Name: "mallory", Password: "mallory"})
	p.must(err)
	put("after a change of the password")
	_, err = admin.AuthDisable(p.ctx("root"), &pb.AuthDisableRequest{})
	p.must(err)
	put("while it is off")
	_, err = admin.AuthEnable(t.Context(), &pb.AuthEnableRequest{})
	p.must(err)
	put("when it is on again")
	watched := client.Watch(ctx, "mine", clientv3.WithRev(1))
	if r := <-watched; r.Err() != nil || len(r.Events) == 0 {
		t.Errorf("watch: %v", r.Err())
	}
	if r := <-client.Watch(ctx, "mine", clientv3.WithPrefix()); !strings.Contains(fmt.Sprint(r.Err()), "permission denied") {
		t.Errorf("watch of a prefix: %v", r.Err())
	}
}
