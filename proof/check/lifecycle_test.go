package check

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/proof/cluster"
)

// byTheNameOfEtcd is Belay's program through a link called etcd, as which it takes etcd's place.
func byTheNameOfEtcd(t testing.TB) string {
	t.Helper()
	link := filepath.Join(t.TempDir(), "etcd")
	if err := os.Symlink(Belay(t), link); err != nil {
		t.Fatal(err)
	}
	return link
}

// bothSides runs f for Belay under the name etcd and for etcd, at the same time, and compares the
// results line by line.
func bothSides(t *testing.T, f func(t *testing.T, binary string) []string) {
	t.Helper()
	names := []string{"belay", "etcd"}
	binaries := []string{byTheNameOfEtcd(t), binaryOf(t, cluster.Etcd)}
	var lines [2][]string
	t.Run("sides", func(t *testing.T) {
		for i, name := range names {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				lines[i] = f(t, binaries[i])
			})
		}
	})
	for i := range max(len(lines[0]), len(lines[1])) {
		var got, want string
		if i < len(lines[0]) {
			got = lines[0][i]
		}
		if i < len(lines[1]) {
			want = lines[1][i]
		}
		if got != want {
			t.Errorf("line %d:\nbelay %s\netcd  %s", i, got, want)
		}
	}
}

// ending runs a server that is to fail, and returns how it did: exit code, message, error. What
// differs each time is replaced by a word.
func ending(ctx context.Context, binary, dir string, words *strings.Replacer, args ...string) string {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Dir, cmd.Env = dir, []string{"PATH=" + os.Getenv("PATH")}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return fmt.Sprintf("did not fail: %v", err)
	}
	result := "said nothing"
	for line := range strings.Lines(said.String()) {
		var l struct{ Level, Msg, Error string }
		if json.Unmarshal([]byte(line), &l) == nil && (l.Level == "fatal" || l.Level == "panic" || strings.HasPrefix(l.Msg, "failed to bootstrap") || l.Msg == "failed to verify flags") {
			// Belay's text continues with who may have the port.
			why, _, _ := strings.Cut(l.Error, "; another program")
			result = l.Msg + ": " + why
		}
	}
	ids := regexp.MustCompile(`\b[0-9a-f]{13,16}\b`)
	result = strings.Replace(words.Replace(result), "cannot listen on M1: ", "", 1)
	return fmt.Sprintf("%d %s", exit.ExitCode(), ids.ReplaceAllString(result, "ID"))
}

// TestBootstrapFails compares how servers end that cannot make or join a cluster.
func TestBootstrapFails(t *testing.T) {
	t.Parallel()
	bothSides(t, func(t *testing.T, binary string) []string {
		c := startCluster(t, cluster.Config{Kind: cluster.Etcd, Binary: binary, Size: 1})
		m := c.Members[0]
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{m.Endpoint()}, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		for token, size := range map[string]string{"bad": "x", "full": "1"} {
			if _, err := client.Put(ctx, "/_etcd/registry/"+token+"/_config/size", size); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := client.Put(ctx, "/_etcd/registry/full/members/1", "other=http://127.0.0.1:1"); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		ofEtcd2, ofBoth := t.TempDir(), t.TempDir()
		for _, dir := range []string{ofEtcd2 + "/proxy", ofBoth + "/proxy", ofBoth + "/member"} {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		cases := [][]string{
			{"--initial-cluster=m1=M1"},
			{"--initial-cluster="},
			{"--initial-cluster=x"},
			{"--initial-cluster=m1=M1,x=http://127.0.0.1:1"},
			{"--initial-cluster=x=PEER,x=http://127.0.0.1:1"},
			{"--initial-cluster=x=PEER,m1=PEER"},
			{"--initial-cluster=x=PEER", "--initial-advertise-peer-urls=PEER,http://127.0.0.1:1"},
			{"--initial-cluster-state=existing", "--initial-cluster=m1=M1"},
			{"--initial-cluster-state=existing", "--initial-cluster=x=PEER"},
			{"--initial-cluster-state=existing", "--initial-cluster=x=PEER,m1=http://127.0.0.1:1"},
			{"--initial-cluster-state=existing", "--initial-cluster=x=PEER,m1=M1"},
			{"--initial-cluster-state=existing", "--initial-cluster=x=PEER,m1=PEER"},
			{"--discovery-endpoints=CLIENT", "--discovery-token=none"},
			{"--discovery-endpoints=CLIENT", "--discovery-token=bad"},
			{"--discovery-endpoints=CLIENT", "--discovery-token=full"},
			{"--discovery-endpoints=CLIENT", "--discovery-token=none", "--initial-cluster-state=existing"},
			{"--initial-cluster=x=PEER", "--data-dir=" + file},
			{"--initial-cluster=x=PEER", "--data-dir=" + file + "/x"},
			{"--initial-cluster=x=PEER", "--data-dir=" + ofEtcd2},
			{"--initial-cluster=x=PEER", "--data-dir=" + ofBoth},
			{"--initial-cluster=x=PEER", "--listen-client-urls=https://127.0.0.1:OWN", "--advertise-client-urls=https://127.0.0.1:OWN"},
			{"--initial-cluster=x=PEER", "--listen-peer-urls=M1"},
			{"--initial-cluster=x=PEER", "--auth-token=unknown"},
		}
		lines := make([]string, len(cases))
		var wg sync.WaitGroup
		limit := make(chan struct{}, 4)
		for i, args := range cases {
			wg.Go(func() {
				limit <- struct{}{}
				defer func() { <-limit }()
				dir, err := os.MkdirTemp(t.TempDir(), "case")
				if err != nil {
					t.Error(err)
					return
				}
				var ports [2]string
				for p := range ports {
					port, err := cluster.FreePort()
					if err != nil {
						t.Error(err)
						return
					}
					ports[p] = fmt.Sprint(port)
				}
				peer, clients := "http://127.0.0.1:"+ports[0], "http://127.0.0.1:"+ports[1]
				fill := strings.NewReplacer("PEER", peer, "M1", m.PeerURL, "CLIENT", m.ClientURL, "OWN", ports[1])
				given := strings.Join(args, " ")
				full := []string{"--name=x"}
				for _, f := range [][2]string{{"--data-dir", filepath.Join(dir, "data")}, {"--listen-peer-urls", peer}, {"--listen-client-urls", clients},
					{"--advertise-client-urls", clients}, {"--initial-advertise-peer-urls", peer}} {
					if !strings.Contains(given, f[0]+"=") {
						full = append(full, f[0]+"="+f[1])
					}
				}
				for _, a := range args {
					full = append(full, fill.Replace(a))
				}
				words := strings.NewReplacer(peer, "PEER", m.PeerURL, "M1", m.ClientURL, "CLIENT", ports[0], "PORT", ports[1], "OWN",
					strings.TrimPrefix(m.PeerURL, "http://"), "M1", file, "FILE", dir, "DIR")
				lines[i] = given + " => " + ending(ctx, binary, dir, words, full...)
				lines[i] = strings.NewReplacer(file, "FILE", ofEtcd2, "ETCD2", ofBoth, "BOTH").Replace(lines[i])
			})
		}
		wg.Wait()
		return lines
	})
}

// TestDowngradeRPCs compares validate, enable and cancel, and what members tell of it: one, and the
// last of three.
func TestDowngradeRPCs(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			downgradeRPCs(t, size)
		})
	}
}

func downgradeRPCs(t *testing.T, size int) {
	bothSides(t, func(t *testing.T, binary string) (lines []string) {
		c := startCluster(t, cluster.Config{Kind: cluster.Etcd, Binary: binary, Size: size, Args: []string{"--downgrade-check-time=200ms"}})
		m := c.Members[size-1]
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{m.Endpoint()}, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
		// The cluster's version is decided a moment after the first write.
		becomes := func(version string) {
			for _, m := range c.Members {
				if err := eventually(ctx, func() error {
					resp, err := http.Get(m.ClientURL + "/version")
					if err != nil {
						return err
					}
					defer resp.Body.Close()
					if body, err := io.ReadAll(resp.Body); !strings.Contains(string(body), `"etcdcluster":"`+version+`"`) {
						return fmt.Errorf("%s: %s, want cluster version %s (%v)", m.Name, body, version, err)
					}
					return nil
				}); err != nil {
					say("%v", err)
				}
			}
		}
		call := func(action clientv3.DowngradeAction, version string) {
			resp, err := client.Downgrade(ctx, action, version)
			if err != nil {
				say("%v %q: %v", action, version, err)
				return
			}
			say("%v %q: %s", action, version, resp.Version)
		}
		status := func() string {
			resp, err := client.Status(ctx, m.Endpoint())
			if err != nil {
				return err.Error()
			}
			return fmt.Sprint(resp.DowngradeInfo.GetEnabled(), " ", resp.DowngradeInfo.GetTargetVersion())
		}
		enabled := func() string {
			resp, err := http.Get(m.PeerURL + "/downgrade/enabled")
			if err != nil {
				return err.Error()
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			return fmt.Sprint(resp.StatusCode, " ", string(body))
		}
		becomes("3.7.0")
		for _, v := range []string{"", "3", "x", "3.5", "3.6", "3.6.0", "3.6.9", "3.7.0", "3.8", "4.6", "2.6", "3.6.0-rc.1", "v3.6.0"} {
			call(clientv3.DowngradeValidate, v)
		}
		call(clientv3.DowngradeCancel, "")
		call(clientv3.DowngradeEnable, "3.5.0")
		say("%s, %s", status(), enabled())
		call(clientv3.DowngradeEnable, "3.6.0")
		say("%s, %s", status(), enabled())
		call(clientv3.DowngradeEnable, "3.6.0")
		becomes("3.6.0")
		call(clientv3.DowngradeValidate, "3.6.0")
		call(clientv3.DowngradeValidate, "3.5.0")
		say("%s, %s", status(), enabled())
		call(clientv3.DowngradeCancel, "")
		say("%s, %s", status(), enabled())
		becomes("3.7.0")
		call(clientv3.DowngradeCancel, "3.6.0")
		return lines
	})
}

// admin is a client of a cluster's running members.
func admin(t testing.TB, members ...*cluster.Member) *clientv3.Client {
	t.Helper()
	var endpoints []string
	for _, m := range members {
		endpoints = append(endpoints, m.Endpoint())
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

const anyCode = -1

// endsWith waits for a member to end and wants the exit code and the words in its log.
func endsWith(t *testing.T, m *cluster.Member, code int, words ...string) {
	t.Helper()
	select {
	case <-m.Exited():
	case <-time.After(30 * time.Second):
		t.Fatalf("%s still runs:\n%s", m.Name, m.LogTail(10))
	}
	got := 0
	var exit *exec.ExitError
	if errors.As(m.ExitErr(), &exit) {
		got = exit.ExitCode()
	}
	log, err := os.ReadFile(m.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range words {
		if !bytes.Contains(log, []byte(w)) {
			t.Errorf("the log of %s does not say %q", m.Name, w)
		}
	}
	if got != code && code != anyCode {
		t.Errorf("%s ended with %v, want exit code %d", m.Name, m.ExitErr(), code)
	}
	_ = m.Kill() // it has ended; it may be started again
}

func existing(args []string) []string {
	i := slices.Index(args, "--initial-cluster-state")
	args[i+1] = "existing"
	return args
}

// TestMembersComeAndGo walks three members through what may happen to one: it is removed while it
// is down, loses its data, is added again as a learner, promoted; two are lost for good, and the
// third continues alone by --force-new-cluster; one of the lost comes back.
func TestMembersComeAndGo(t *testing.T) {
	t.Parallel()
	c := startCluster(t, cluster.Config{Kind: checkKind(t), Size: 3})
	m1, m2, m3 := c.Members[0], c.Members[1], c.Members[2]
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	rest := admin(t, m1, m2)
	if _, err := rest.Put(ctx, "before", "1"); err != nil {
		t.Fatal(err)
	}
	idOf := func(name string) uint64 {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		list, err := rest.MemberList(ctx)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(list.Members, func(e *pb.Member) bool { return e.Name == name })
		if i < 0 {
			t.Fatalf("%s is not in %v", name, list.Members)
		}
		return list.Members[i].ID
	}

	// Its data is lost: neither flag lets it in.
	if err := m3.Kill(); err != nil {
		t.Fatal(err)
	}
	aside := m3.DataDir + ".aside"
	if err := os.Rename(m3.DataDir, aside); err != nil {
		t.Fatal(err)
	}
	if err := m3.Start(); err != nil {
		t.Fatal(err)
	}
	endsWith(t, m3, 1, fmt.Sprintf("member %x has already been bootstrapped", idOf("m3")))
	if checkKind(t) == cluster.Belay { // etcd joins, and panics on what the leader sends it
		m3.SetArgs(existing)
		_ = os.RemoveAll(m3.DataDir)
		if err := m3.Start(); err != nil {
			t.Fatal(err)
		}
		endsWith(t, m3, 1, "this member has run before and its data is gone")
	}
	if err := os.RemoveAll(m3.DataDir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(aside, m3.DataDir); err != nil {
		t.Fatal(err)
	}

	// Removed while it is down, with its data: it hears of it and ends in order.
	id := idOf("m3")
	if err := eventually(ctx, func() error { _, err := rest.MemberRemove(ctx, id); return err }); err != nil {
		t.Fatal(err)
	}
	if err := m3.Start(); err != nil {
		t.Fatal(err)
	}
	// (etcd may hear of it before it listens, and calls that an error.)
	removed := map[cluster.Kind]int{cluster.Belay: 0, cluster.Etcd: anyCode}[checkKind(t)]
	endsWith(t, m3, removed, "the member has been permanently removed from the cluster", "data-dir used by this member must be removed")
	if err := os.RemoveAll(m3.DataDir); err != nil {
		t.Fatal(err)
	}

	// A learner: only one, none that is not in sync is promoted, none twice.
	var added *clientv3.MemberAddResponse
	if err := eventually(ctx, func() (err error) {
		added, err = rest.MemberAddAsLearner(ctx, []string{m3.PeerURL})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	// wants the answer of text, once there is a leader who can give it.
	wants := func(what, text string, call func() error) {
		t.Helper()
		var got error
		if eventually(ctx, func() error {
			if got = call(); got == nil || got.Error() != text {
				return errors.New("another answer")
			}
			return nil
		}) != nil {
			t.Errorf("%s: %v, want %s", what, got, text)
		}
	}
	wants("a second learner", "etcdserver: too many learner members in cluster", func() error {
		_, err := rest.MemberAddAsLearner(ctx, []string{"http://127.0.0.1:1"})
		return err
	})
	promote := func() error { _, err := rest.MemberPromote(ctx, added.Member.ID); return err }
	wants("a learner that does not run", "etcdserver: can only promote a learner member which is in sync with leader", promote)
	m3.SetArgs(existing)
	if err := m3.Start(); err != nil {
		t.Fatal(err)
	}
	learns(ctx, t, m3)
	if err := eventually(ctx, promote); err != nil && !strings.HasSuffix(err.Error(), "can only promote a learner member") { // it has been, and the answer was lost
		t.Fatal(err)
	}
	wants("a voter", "etcdserver: can only promote a learner member", promote)
	if err := m3.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := rest.Put(ctx, "after", "2"); err != nil {
		t.Fatal(err)
	}

	// A quorum is lost for good. What m1 has not written when it is killed only the others have.
	if _, err := admin(t, m1).Get(ctx, "after"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	for _, m := range []*cluster.Member{m1, m2, m3} {
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	m1.SetArgs(func(args []string) []string { return append(args, "--force-new-cluster") })
	if err := m1.Start(); err != nil {
		t.Fatal(err)
	}
	if err := m1.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	alone := admin(t, m1)
	kept := map[string]string{"before": "1", "after": "2"}
	if checkKind(t) == cluster.Etcd {
		delete(kept, "after") // committed, but the commit index was not on disk: etcd drops it
	}
	for key, want := range kept {
		resp, err := alone.Get(ctx, key)
		if err != nil || len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != want {
			t.Errorf("%s after --force-new-cluster: %v, %v", key, resp, err)
		}
	}
	list, err := alone.MemberList(ctx)
	if err != nil || len(list.Members) != 1 || list.Members[0].Name != "m1" {
		t.Errorf("members after --force-new-cluster: %v, %v", list, err)
	}
	if _, err := alone.Put(ctx, "alone", "3"); err != nil {
		t.Error(err)
	}
	if err := m2.Start(); err != nil {
		t.Fatal(err)
	}
	endsWith(t, m2, removed, "data-dir used by this member must be removed")

	// The flag does no harm a second time, and is not needed.
	m1.SetArgs(func(args []string) []string { return args[:len(args)-1] })
	if err := m1.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m1.Start(); err != nil {
		t.Fatal(err)
	}
	if err := m1.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	// It grows to three again, with new names: a member publishes its name at each start.
	for i, m := range []*cluster.Member{m2, m3} {
		if err := os.RemoveAll(m.DataDir); err != nil {
			t.Fatal(err)
		}
		if err := eventually(ctx, func() error { _, err := alone.MemberAdd(ctx, []string{m.PeerURL}); return err }); err != nil {
			t.Fatal(err)
		}
		_ = m.Kill() // it has ended, or never ran since
		m.SetArgs(func(args []string) []string {
			args = existing(args)
			members := []string{"m1=" + m1.PeerURL, "again2=" + m2.PeerURL, "again3=" + m3.PeerURL}
			args[slices.Index(args, "--initial-cluster")+1] = strings.Join(members[:i+2], ",")
			args[slices.Index(args, "--name")+1] = fmt.Sprintf("again%d", i+2)
			return args
		})
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		if err := m.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range c.Members {
		resp, err := admin(t, m).Get(ctx, "a", clientv3.WithRange("b"))
		if err != nil || len(resp.Kvs) != len(kept) { // and alone, less before
			t.Errorf("%s after the cluster has grown again: %v, %v", m.Name, resp, err)
		}
	}

	// A member by another name is the same member.
	if err := m3.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	m3.SetArgs(func(args []string) []string {
		args[slices.Index(args, "--name")+1] = "renamed"
		return args
	})
	if err := m3.Start(); err != nil {
		t.Fatal(err)
	}
	if err := eventually(ctx, func() error {
		list, err := alone.MemberList(ctx)
		if err != nil {
			return err
		}
		var names []string
		for _, m := range list.Members {
			names = append(names, m.Name)
		}
		if slices.Sort(names); !slices.Equal(names, []string{"again2", "m1", "renamed"}) {
			return fmt.Errorf("members %q", names)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// learns wants of a learner what etcd's answers: reads of what it has, and nothing else.
func learns(ctx context.Context, t *testing.T, m *cluster.Member) {
	t.Helper()
	client := admin(t, m)
	if err := eventually(ctx, func() error {
		resp, err := client.Get(ctx, "before", clientv3.WithSerializable())
		if err == nil && len(resp.Kvs) != 1 {
			err = errors.New("it has not learned yet")
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	if st, err := client.Status(ctx, m.Endpoint()); err != nil || !st.IsLearner {
		t.Errorf("status of a learner: %v, %v", st, err)
	}
	conn, err := m.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	kv, members := pb.NewKVClient(conn), pb.NewClusterClient(conn)
	refused := map[string]func() error{
		"put":                func() error { _, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("a")}); return err },
		"linearizable range": func() error { _, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte("a")}); return err },
		"txn":                func() error { _, err := kv.Txn(ctx, &pb.TxnRequest{}); return err },
		"delete":             func() error { _, err := kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("a")}); return err },
		"compact":            func() error { _, err := kv.Compact(ctx, &pb.CompactionRequest{Revision: 1}); return err },
		"lease": func() error {
			_, err := pb.NewLeaseClient(conn).LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 60})
			return err
		},
		"member list": func() error { _, err := members.MemberList(ctx, &pb.MemberListRequest{}); return err },
		"hash":        func() error { _, err := pb.NewMaintenanceClient(conn).HashKV(ctx, &pb.HashKVRequest{}); return err },
		"users":       func() error { _, err := pb.NewAuthClient(conn).UserList(ctx, &pb.AuthUserListRequest{}); return err },
		"move leader": func() error {
			_, err := pb.NewMaintenanceClient(conn).MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: 1})
			return err
		},
		"defragment": func() error {
			_, err := pb.NewMaintenanceClient(conn).Defragment(ctx, &pb.DefragmentRequest{})
			return err
		},
		"watch": func() error {
			stream, err := pb.NewWatchClient(conn).Watch(ctx)
			if err != nil {
				return err
			}
			_, err = stream.Recv()
			return err
		},
		"lease keepalive": func() error {
			stream, err := pb.NewLeaseClient(conn).LeaseKeepAlive(ctx)
			if err != nil {
				return err
			}
			_, err = stream.Recv()
			return err
		},
	}
	for what, call := range refused {
		err := call()
		if s := status.Convert(err); s.Code() != codes.FailedPrecondition || s.Message() != "etcdserver: rpc not supported for learner" {
			t.Errorf("%s on a learner: %v", what, err)
		}
	}
}

// TestDiscovery makes clusters of two whose members find each other in a third cluster: one of etcd
// and one of Belay.
func TestDiscovery(t *testing.T) {
	t.Parallel()
	for _, service := range []cluster.Kind{cluster.Etcd, cluster.Belay} {
		t.Run(string(service), func(t *testing.T) {
			t.Parallel()
			keeper := startCluster(t, cluster.Config{Kind: service, Size: 1}).Members[0]
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if _, err := admin(t, keeper).Put(ctx, "/_etcd/registry/tok/_config/size", "2"); err != nil {
				t.Fatal(err)
			}
			c := newCluster(t, cluster.Config{Kind: checkKind(t), Size: 2})
			for _, m := range c.Members {
				m.SetArgs(func(args []string) []string {
					i := slices.Index(args, "--initial-cluster")
					args = slices.Delete(args, i, i+2)
					return append(args, "--discovery-endpoints="+keeper.ClientURL, "--discovery-token=tok")
				})
				if err := m.Start(); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.WaitReady(ctx); err != nil {
				t.Fatal(err)
			}
			list, err := admin(t, c.Members...).MemberList(ctx)
			if err != nil || len(list.Members) != 2 {
				t.Errorf("%v, %v", list, err)
			}
			// Once there is data the token means nothing.
			m := c.Members[0]
			if err := m.Stop(ctx); err != nil {
				t.Fatal(err)
			}
			if err := keeper.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := m.Start(); err != nil {
				t.Fatal(err)
			}
			if err := m.WaitReady(ctx); err != nil {
				t.Fatal(err)
			}
			if log, err := os.ReadFile(m.LogPath); err != nil || !bytes.Contains(log, []byte("discovery token is ignored since cluster already initialized; valid logs are found")) {
				t.Errorf("no warning that the token is ignored (%v)", err)
			}
		})
	}
}

// TestOtherToken starts a third member with another token than the two that run: neither side takes
// it for one of its own, and both say why, with both clusters' ids.
func TestOtherToken(t *testing.T) {
	t.Parallel()
	bothSides(t, func(t *testing.T, binary string) (lines []string) {
		c := newCluster(t, cluster.Config{Kind: cluster.Etcd, Binary: binary, Size: 3})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for _, m := range c.Members[:2] {
			if err := m.Start(); err != nil {
				t.Fatal(err)
			}
		}
		for _, m := range c.Members[:2] {
			if err := m.WaitReady(ctx); err != nil {
				t.Fatal(err)
			}
		}
		stranger := c.Members[2]
		stranger.SetArgs(func(args []string) []string {
			args[slices.Index(args, "--initial-cluster-token")+1] = "another"
			return args
		})
		if err := stranger.Start(); err != nil {
			t.Fatal(err)
		}
		sides := map[string][]*cluster.Member{"the stranger": c.Members[2:], "the two": c.Members[:2]}
		said := func(side string) (lines []string) {
			for _, m := range sides[side] {
				data, err := os.ReadFile(m.LogPath)
				if err != nil {
					t.Fatal(err)
				}
				for line := range strings.Lines(string(data)) {
					var l map[string]any
					if !strings.Contains(line, "cluster ID mismatch") || json.Unmarshal([]byte(line), &l) != nil {
						continue
					}
					delete(l, "stacktrace")     // Belay has none in lines that explain themselves
					delete(l, "remote-address") // etcd does not say where a stranger asks from
					lines = append(lines, fmt.Sprintf("%s: %s %s %v", side, l["level"], l["msg"], slices.Sorted(maps.Keys(l))))
				}
			}
			slices.Sort(lines)
			return slices.Compact(lines)
		}
		if err := eventually(ctx, func() error {
			lines = append(said("the stranger"), said("the two")...)
			if len(lines) < 6 { // three kinds of connections, each refused by name
				return fmt.Errorf("said only %q", lines)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		// The two continue as if it were not there.
		if _, err := admin(t, c.Members[:2]...).Put(ctx, "a", "b"); err != nil {
			t.Error(err)
		}
		return lines
	})
}

// TestWipedAlone empties a member's data directory while no other member runs that could tell it
// so. It starts as one of a new cluster, but the first peer that it meets ends it: it must not vote
// in a term in which it may have voted before. etcd lets it in.
func TestWipedAlone(t *testing.T) {
	onlyBelay(t)
	t.Parallel()
	c := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 3})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	wiped, rest := c.Members[2], c.Members[:2]
	if _, err := admin(t, c.Members...).Put(ctx, "a", "1"); err != nil {
		t.Fatal(err)
	}
	// Two that have not heard of each other before, because the third led, take no one for wiped.
	for _, m := range c.Members {
		if st, err := admin(t, m).Status(ctx, m.Endpoint()); err != nil {
			t.Fatal(err)
		} else if st.Leader == st.Header.MemberId {
			if err := m.Kill(); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	for _, m := range c.Members {
		if m.PID() != 0 {
			if err := m.WaitReady(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.Close()
	if err := os.RemoveAll(wiped.DataDir); err != nil {
		t.Fatal(err)
	}
	if err := wiped.Start(); err != nil {
		t.Fatal(err)
	}
	if err := eventually(ctx, func() error {
		if log, err := os.ReadFile(wiped.LogPath); err != nil || bytes.Count(log, []byte("now serving peer/client/metrics")) < 2 {
			return fmt.Errorf("it does not serve yet: %w", err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := rest[0].Start(); err != nil {
		t.Fatal(err)
	}
	endsWith(t, wiped, 1, "has already been bootstrapped, says member", "this member has run before and its data is gone")
	if err := rest[1].Start(); err != nil {
		t.Fatal(err)
	}
	if err := rest[0].WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if resp, err := admin(t, rest...).Get(ctx, "a"); err != nil || len(resp.Kvs) != 1 {
		t.Errorf("%v, %v", resp, err)
	}
}

// TestFoundersLoseLeader kills the leader of a new cluster. The followers have never heard of each
// other until then, and by then each knows the other as a member that runs: they must not take each
// other for members that lost their data (both once ended, and with them the cluster).
func TestFoundersLoseLeader(t *testing.T) {
	onlyBelay(t)
	t.Parallel()
	c := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 3})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := admin(t, c.Members...).Put(ctx, "a", "1"); err != nil {
		t.Fatal(err)
	}
	leader := leaderOf(ctx, t, c, admin(t, c.Members...))
	if err := leader.Kill(); err != nil {
		t.Fatal(err)
	}
	rest := slices.DeleteFunc(slices.Clone(c.Members), func(m *cluster.Member) bool { return m == leader })
	client := admin(t, rest...)
	if err := eventually(ctx, func() error {
		bounded, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err := client.Put(bounded, "a", "2")
		return err
	}); err != nil {
		t.Errorf("%v\n%s", err, c.Tails(3))
	}
	for _, m := range rest {
		select {
		case <-m.Exited():
			t.Errorf("a member that lost its leader ended: %v\n%s", m.ExitErr(), m.LogTail(3))
		default:
		}
	}
}
