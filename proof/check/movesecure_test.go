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
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/proof/cluster"
)

// TestMoveSecure and TestMoveSecureOlder move a running etcd to Belay and back by `belay util move
// --run` with TLS for clients and members, users, and logs in a --wal-dir, while a user who logged
// in at the beginning goes on. Who may not do it, or cannot, is told why before anything is
// stopped.
func TestMoveSecure(t *testing.T) {
	moveNewest(t, moveSecure)
}

func TestMoveSecureOlder(t *testing.T) {
	moveOlder(t, moveSecure)
}

// mover is a running cluster and `belay util move` for it.
type mover struct {
	c        *cluster.Cluster
	dir      string // of the scripts
	belay    string
	reach    []string // the flags that reach the cluster
	commands []string // the flags of --run
}

// newMover starts three members of an etcd by scripts. flags are those of each member, of these
// data directories, beside those of the cluster.
func newMover(t *testing.T, ctx context.Context, version, etcd string, cfg cluster.Config, flags func(m *cluster.Member) []string) *mover {
	t.Helper()
	minor := version[:strings.LastIndexByte(version, '.')]
	cfg.Kind, cfg.Binary, cfg.Size = cluster.Etcd, etcd, 3
	x := &mover{c: newCluster(t, cfg), dir: t.TempDir(), belay: Belay(t)}
	if err := os.Symlink(x.belay, filepath.Join(x.dir, "belay")); err != nil {
		t.Fatal(err)
	}
	var urls []string
	for _, m := range x.c.Members {
		if flags != nil {
			m.SetArgs(func(args []string) []string { return append(args, flags(m)...) })
		}
		unit(t, x.dir, m, map[cluster.Kind]string{cluster.Etcd: etcd, cluster.Belay: x.belay}, minor)
		x.script(t, ctx, "start-etcd-"+m.Name)
		urls = append(urls, m.ClientURL)
	}
	x.reach = []string{"--endpoints", strings.Join(urls, ",")}
	x.commands = []string{
		"--step-timeout", "2m", "--data-dir", filepath.Join(filepath.Dir(x.c.Members[0].DataDir), "{{.Name}}"),
		"--stop-command", "sh " + x.dir + "/stop-{{.Name}}", "--migrate-command", x.dir + "/{{.Migrate}}",
		"--start-command", "sh " + x.dir + "/start-{{.To}}-{{.Name}}",
	}
	return x
}

func (x *mover) script(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	if out, err := exec.CommandContext(ctx, "sh", filepath.Join(x.dir, name)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func (x *mover) move(ctx context.Context, args ...string) (said string, err error) {
	args = append(append([]string{"util", "move"}, x.reach...), args...)
	out, err := exec.CommandContext(ctx, x.belay, args...).CombinedOutput()
	return string(out), err
}

// run moves all members and wants it to work.
func (x *mover) run(t *testing.T, ctx context.Context, args ...string) {
	t.Helper()
	said, err := x.move(ctx, append(append([]string{"--run"}, x.commands...), args...)...)
	if err != nil || !strings.Contains(said, "; 3 moved by this run") {
		t.Fatalf("%v: %s", err, said)
	}
}

func moveSecure(t *testing.T, version, etcd string) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	a, stranger := newIssuer(t, "check"), newIssuer(t, "stranger")
	a.issue("server", nil)
	a.issue("good", nil)
	a.issue("member", nil)
	stranger.issue("stranger", nil)
	wal := t.TempDir()
	x := newMover(t, ctx, version, etcd, cluster.Config{TLS: a.client("good"), PeerTLS: true, Args: []string{
		"--cert-file=" + a.Cert("server"), "--key-file=" + a.Key("server"), "--trusted-ca-file=" + a.CA(), "--client-cert-auth", "--bcrypt-cost=4",
		"--peer-cert-file=" + a.Cert("member"), "--peer-key-file=" + a.Key("member"), "--peer-trusted-ca-file=" + a.CA(), "--peer-client-cert-auth",
	}}, func(m *cluster.Member) []string { return []string{"--wal-dir=" + filepath.Join(wal, m.Name)} })
	endpoints := x.reach
	with := func(cert string, from *issuer, more ...string) []string {
		return append(append(slices.Clone(endpoints), "--cacert", a.CA(), "--cert", from.Cert(cert), "--key", from.Key(cert)), more...)
	}
	as := func(user string) *clientv3.Client {
		t.Helper()
		cfg := clientv3.Config{Endpoints: strings.Split(endpoints[1], ","), TLS: a.client("good"), Logger: zap.NewNop(), DialTimeout: 30 * time.Second, Username: user}
		if user != "" {
			cfg.Password = "pw"
		}
		cl, err := clientv3.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cl.Close() })
		return cl
	}
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	anybody := as("")
	must(nil, eventually(ctx, func() error { _, err := anybody.Put(ctx, "first", "1"); return err }))
	for _, user := range []string{"root", "joe"} {
		must(anybody.UserAdd(ctx, user, "pw"))
		must(anybody.RoleAdd(ctx, user))
		must(anybody.UserGrantRole(ctx, user, user))
	}
	must(anybody.RoleGrantPermission(ctx, "joe", "load/", clientv3.GetPrefixRangeEnd("load/"), clientv3.PermissionType(clientv3.PermReadWrite)))
	must(anybody.AuthEnable(ctx))

	for _, tc := range []struct {
		reach []string
		says  string
	}{
		{with("good", a), "role root"},
		{with("good", a, "--user", "joe:pw"), "permission denied"},
		{with("good", a, "--user", "root:wrong"), "authentication failed"},
		{with("stranger", stranger, "--user", "root:pw"), "unknown certificate authority"},
		{append(slices.Clone(endpoints), "--user", "root:pw"), "certificate signed by unknown authority"},
		{[]string{"--endpoints", strings.ReplaceAll(endpoints[1], "https", "http")}, "speaks TLS"},
	} {
		x.reach = tc.reach
		for _, how := range [][]string{{"--plan"}, append([]string{"--run"}, x.commands...)} {
			if said, err := x.move(ctx, how...); err == nil || !strings.Contains(said, tc.says) || !strings.Contains(said, "Hint: ") {
				t.Errorf("%v: %v: %s, want %q", tc.reach, err, said, tc.says)
			}
		}
	}
	x.reach = with("good", a, "--user", "root:pw", "--wal-dir", filepath.Join(wal, "{{.Name}}"))

	joe := as("joe")
	loading, stop := context.WithCancel(ctx)
	var writing sync.WaitGroup
	var acked, failed int
	writing.Go(func() {
		for n := 0; loading.Err() == nil; n++ {
			put, done := context.WithTimeout(loading, 5*time.Second)
			if _, err := joe.Put(put, fmt.Sprintf("load/%06d", n), "x"); err == nil {
				acked++
			} else if loading.Err() == nil {
				failed++
			}
			done()
			select {
			case <-loading.Done():
			case <-time.After(2 * time.Millisecond):
			}
		}
	})
	defer writing.Wait()
	defer stop()
	x.run(t, ctx)
	for _, m := range x.c.Members {
		must(nil, errors.Join(os.RemoveAll(filepath.Join(m.DataDir, "member.etcd")), os.RemoveAll(filepath.Join(wal, m.Name, "wal.etcd"))))
	}
	x.run(t, ctx, "--to-etcd")
	stop()
	writing.Wait()
	got, err := joe.Get(ctx, "load/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil || got.Count < int64(acked) || acked < 100 {
		t.Errorf("%v, %v keys of %d acknowledged", err, got, acked)
	}
	t.Logf("etcd %s: %d writes acknowledged, %d failed", version, acked, failed)
}

// TestMoveGaps and TestMoveGapsOlder count what fails, and for how long nothing is answered, in a
// rolling restart of etcd, in a live move to Belay and in one back, each under the same load.
func TestMoveGaps(t *testing.T) {
	moveNewest(t, moveGaps)
}

func TestMoveGapsOlder(t *testing.T) {
	moveOlder(t, moveGaps)
}

// gaps is what clients see of an operation.
type gaps struct {
	mu       sync.Mutex
	done     map[string]int
	failed   map[string]int
	last     map[string]time.Time
	longest  map[string]time.Duration
	failures map[string]int // by text
}

func (g *gaps) saw(kind string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil {
		g.failed[kind]++
		g.failures[err.Error()]++
		return
	}
	now := time.Now()
	if last := g.last[kind]; !last.IsZero() {
		g.longest[kind] = max(g.longest[kind], now.Sub(last))
	}
	g.last[kind] = now
	g.done[kind]++
}

// under runs fn while 8 clients write and 8 read.
func under(t *testing.T, ctx context.Context, endpoints []string, what string, fn func()) *gaps {
	t.Helper()
	g := &gaps{done: map[string]int{}, failed: map[string]int{}, last: map[string]time.Time{}, longest: map[string]time.Duration{}, failures: map[string]int{}}
	loading, stop := context.WithCancel(ctx)
	var working sync.WaitGroup
	var next atomic.Int64
	for i := range 16 {
		client := newClient(t, endpoints)
		working.Go(func() {
			for loading.Err() == nil {
				call, done := context.WithTimeout(ctx, 10*time.Second)
				var err error
				kind := "writes"
				if key := fmt.Sprintf("load/%d", next.Add(1)%1000); i%2 == 0 {
					_, err = client.Put(call, key, "x")
				} else {
					kind = "reads"
					_, err = client.Get(call, key)
				}
				done()
				g.saw(kind, err)
				select {
				case <-loading.Done():
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
	began := time.Now()
	fn()
	took := time.Since(began)
	stop()
	working.Wait()
	t.Logf("%-28s %5.1f s: writes %6d, failed %3d, longest gap %5d ms; reads %6d, failed %3d, longest gap %5d ms; %v", what, took.Seconds(),
		g.done["writes"], g.failed["writes"], g.longest["writes"].Milliseconds(), g.done["reads"], g.failed["reads"], g.longest["reads"].Milliseconds(), g.failures)
	return g
}

func moveGaps(t *testing.T, version, etcd string) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	x := newMover(t, ctx, version, etcd, cluster.Config{}, nil)
	endpoints := x.c.Endpoints()
	client := newClient(t, endpoints)
	if err := eventually(ctx, func() error { _, err := client.Put(ctx, "first", "1"); return err }); err != nil {
		t.Fatal(err)
	}
	// As the move does it: the leader last, with its leadership handed over, each when the one
	// before is back.
	restart := func(kind cluster.Kind) func() {
		return func() {
			leader := leaderOf(ctx, t, x.c, client)
			order := slices.DeleteFunc(slices.Clone(x.c.Members), func(m *cluster.Member) bool { return m == leader })
			for _, m := range append(order, leader) {
				if m == leader {
					if err := moveLeader(ctx, x.c, order[0], ""); err != nil {
						t.Fatal(err)
					}
				}
				x.script(t, ctx, "stop-"+m.Name)
				x.script(t, ctx, fmt.Sprintf("start-%s-%s", kind, m.Name))
				if err := m.WaitReady(ctx); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	first := under(t, ctx, endpoints, "etcd "+version+" restarts", restart(cluster.Etcd))
	there := under(t, ctx, endpoints, "it moves to Belay", func() { x.run(t, ctx) })
	under(t, ctx, endpoints, "Belay restarts", restart(cluster.Belay))
	for _, m := range x.c.Members {
		if err := os.RemoveAll(filepath.Join(m.DataDir, "member.etcd")); err != nil {
			t.Fatal(err)
		}
	}
	back := under(t, ctx, endpoints, "it moves back", func() { x.run(t, ctx, "--to-etcd") })
	for _, kind := range []string{"writes", "reads"} {
		// A member more or less in the wrong moment is chance; what is lost for each request is
		// not.
		for _, g := range []*gaps{there, back} {
			if g.failed[kind] > 2*first.failed[kind]+16 || g.longest[kind] > 30*time.Second {
				t.Errorf("%s: %d failed and %v without any, in a restart of etcd %d and %v", kind, g.failed[kind], g.longest[kind], first.failed[kind], first.longest[kind])
			}
		}
	}
}
