package check

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/metadata"

	"github.com/belaydb/belay/proof/cluster"
)

// TestMove runs members of both kinds in one cluster: a member that was moved comes back so late
// that etcd's leader sends it its database; then Belay leads two of three, and a new member of etcd
// gets a database from it; then etcd leads again. All members hold the same all the time.
func TestMove(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	etcd, belay := EtcdTools(t).Etcd, Belay(t)
	c := startCluster(t, cluster.Config{Kind: cluster.Etcd, Binary: etcd, Size: 3, Args: []string{
		"--bcrypt-cost=4", "--unsafe-no-fsync", "--snapshot-count=50", "--snapshot-catchup-entries=50", "--strict-reconfig-check=false",
		"--corrupt-check-time=1s", "--compact-hash-check-time=1s", "--feature-gates=InitialCorruptCheck=true,CompactHashCheck=true",
	}})
	m1, m2, m3 := c.Members[0], c.Members[1], c.Members[2]
	fillForRestore(t, ctx, m1.Endpoint())
	admin := rootClient(t, m3.Endpoint())
	head := func(m *cluster.Member) int64 {
		t.Helper()
		r, err := rootClient(t, m.Endpoint()).Get(ctx, "x")
		if err != nil {
			t.Fatalf("%s: %v", m.Name, err)
		}
		return r.Header.Revision
	}
	puts := func(n int) {
		t.Helper()
		for i := range n {
			if _, err := admin.Put(ctx, fmt.Sprint("later/", i%20), fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	same := func(when string) {
		t.Helper()
		rev := head(m3)
		want := append(contentOf(t, ctx, m3.Endpoint(), rev), hashesOf(t, ctx, m3.Endpoint(), rev-30, rev, 3)...)
		for _, m := range []*cluster.Member{m1, m2} {
			head(m)
			sameStory(t, when+", "+m.Name, append(contentOf(t, ctx, m.Endpoint(), rev), hashesOf(t, ctx, m.Endpoint(), rev-30, rev, 3)...), want)
		}
	}
	lead := func(m *cluster.Member) {
		t.Helper()
		if err := moveLeader(ctx, c, m, "root"); err != nil {
			t.Fatal(err)
		}
	}

	lead(m3)
	migrateMember(t, ctx, m1, cluster.Belay, belay, "")
	puts(200) // the log of etcd's leader does not reach back so far any more
	if err := errors.Join(m1.Start(), m1.WaitReady(ctx)); err != nil {
		t.Fatal(err)
	}
	wantLog(t, m1, `"received and saved database snapshot"`)
	same("etcd's snapshot")
	members := membersOf(t, ctx, c)

	migrateMember(t, ctx, m2, cluster.Belay, belay, "")
	if err := errors.Join(m2.Start(), m2.WaitReady(ctx)); err != nil {
		t.Fatal(err)
	}
	lead(m1)
	puts(100)
	same("Belay leads")
	if now := membersOf(t, ctx, c); now != members {
		t.Errorf("the members are\n%s\nwere\n%s", now, members)
	}

	tokensAnywhere(t, ctx, c)

	// A new member has nothing, and what a leader that was moved has of the log begins later.
	admin = rootClient(t, m1.Endpoint())
	renew(t, ctx, admin, m3)
	wantLog(t, m1, `"format":"etcd"`)
	puts(20)
	same("Belay's snapshot")
	lead(m3)
	puts(20)
	same("etcd leads again")
	// Each has compacted by itself what it got in its own way.
	rev := head(m3)
	if _, err := admin.Compact(ctx, rev-40, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	puts(20)
	rev = head(m3)
	want := hashesOf(t, ctx, m3.Endpoint(), rev-50, rev, 1)
	for _, m := range []*cluster.Member{m1, m2} {
		head(m)
		sameStory(t, "compacted, "+m.Name, hashesOf(t, ctx, m.Endpoint(), rev-50, rev, 1), want)
	}
	if alarms, err := admin.AlarmList(ctx); err != nil || len(alarms.Alarms) > 0 {
		t.Errorf("alarms: %v, %v", alarms, err)
	}
}

// tokensAnywhere has root log in at each member and show the token at all: clients log in at one
// endpoint and call another.
func tokensAnywhere(t *testing.T, ctx context.Context, c *cluster.Cluster) {
	t.Helper()
	for _, from := range c.Members {
		conn, err := from.Dial()
		if err != nil {
			t.Fatal(err)
		}
		said, err := pb.NewAuthClient(conn).Authenticate(ctx, &pb.AuthenticateRequest{Name: "root", Password: "pw"})
		conn.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range c.Members {
			conn, err := at.Dial()
			if err != nil {
				t.Fatal(err)
			}
			_, err = pb.NewKVClient(conn).Range(metadata.AppendToOutgoingContext(ctx, "token", said.Token), &pb.RangeRequest{Key: []byte("x")})
			conn.Close()
			if err != nil {
				t.Errorf("the token of %s (%s) at %s (%s): %v", from.Name, from.Kind(), at.Name, at.Kind(), err)
			}
		}
	}
}

// migrateMember stops a member and makes its data that of another kind, whose program it runs from its
// next start on. version is that of etcd, "3.6", if it becomes one.
func migrateMember(t testing.TB, ctx context.Context, m *cluster.Member, kind cluster.Kind, binary, version string) {
	t.Helper()
	var exit *exec.ExitError
	if err := m.Stop(ctx); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if err := migrateData(ctx, m, Belay(t), version); err != nil {
		t.Fatal(err)
	}
	m.Become(kind, binary)
}

// migrateData makes the data of a stopped member Belay's, or with a version that of this etcd.
func migrateData(ctx context.Context, m *cluster.Member, belay, version string) error {
	args := []string{"util", "migrate", "--in-place", "--data-dir", m.DataDir}
	if version != "" {
		args = append(args, "--to-etcd="+version)
	}
	for _, kept := range []string{"member.etcd", "member.belay"} { // of the last time
		if err := os.RemoveAll(filepath.Join(m.DataDir, kept)); err != nil {
			return err
		}
	}
	if out, err := exec.CommandContext(ctx, belay, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: migrate: %w\n%s", m.Name, err, out)
	}
	return nil
}

// renew removes a member and starts it again as a new one without data, which it gets from the
// others.
func renew(t testing.TB, ctx context.Context, admin *clientv3.Client, m *cluster.Member) {
	t.Helper()
	list, err := admin.MemberList(ctx)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list.Members, func(e *pb.Member) bool { return e.Name == m.Name })
	if _, err := admin.MemberRemove(ctx, list.Members[i].ID); err != nil {
		t.Fatal(err)
	}
	_ = m.Kill() // it ends by itself, too
	if err := os.RemoveAll(m.DataDir); err != nil {
		t.Fatal(err)
	}
	added, err := admin.MemberAddAsLearner(ctx, []string{m.PeerURL})
	if err != nil {
		t.Fatal(err)
	}
	m.SetArgs(existing)
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	if err := eventually(ctx, func() error {
		_, err := admin.MemberPromote(ctx, added.Member.ID)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}

// moveLeader makes a member the leader. user "" is nobody.
func moveLeader(ctx context.Context, c *cluster.Cluster, m *cluster.Member, user string) error {
	var clients []*clientv3.Client
	defer func() {
		for _, cl := range clients {
			cl.Close()
		}
	}()
	statusOf := func(m *cluster.Member) (*clientv3.Client, *clientv3.StatusResponse, error) {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		cfg := clientv3.Config{Endpoints: []string{m.Endpoint()}, Logger: zap.NewNop(), Username: user}
		if user != "" {
			cfg.Password = "pw"
		}
		cl, err := clientv3.New(cfg)
		if err != nil {
			return nil, nil, err
		}
		clients = append(clients, cl)
		s, err := cl.Status(ctx, m.Endpoint())
		return cl, s, err
	}
	return eventually(ctx, func() error {
		_, to, err := statusOf(m)
		if err != nil || to.Leader == to.Header.MemberId {
			return err
		}
		for _, from := range c.Members {
			if cl, s, err := statusOf(from); err == nil && s.Leader == s.Header.MemberId {
				if _, err := cl.MoveLeader(ctx, to.Header.MemberId); err != nil {
					return err
				}
			}
		}
		return fmt.Errorf("%s does not lead yet", m.Name)
	})
}

func wantLog(t testing.TB, m *cluster.Member, text string) {
	t.Helper()
	log, err := os.ReadFile(m.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(log), text) {
		t.Errorf("%s never logged %s", m.Name, text)
	}
}
