package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/node"
	"github.com/belaydb/belay/server/electionpb"
	"github.com/belaydb/belay/server/lockpb"
)

// wait bounds what a test waits for.
const wait = time.Minute

// startMember runs a cluster of one in this process and returns where it serves clients.
func startMember(t *testing.T) string {
	t.Helper()
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	var n *node.Node
	var address string
	eventually(t, func() (err error) { // between free and its use another test may take a port
		address = free()
		n, err = startNode(t, address, free())
		return err
	})
	t.Cleanup(n.Stop)
	c := dial(t, address)
	eventually(t, func() error {
		_, err := pb.NewKVClient(c).Range(t.Context(), &pb.RangeRequest{Key: []byte("x")})
		return err
	})
	return address
}

func startNode(t *testing.T, address, peer string) (*node.Node, error) {
	client, peers := []url.URL{{Scheme: "http", Host: address}}, []url.URL{{Scheme: "http", Host: peer}}
	return node.Start(context.Background(), node.Config{
		Settings: node.Settings{
			Cluster: node.Cluster{Name: "m", DataDir: filepath.Join(t.TempDir(), "data"), InitialCluster: "m=http://" + peer, InitialClusterToken: "proxy"},
			Ports:   node.Ports{ListenClientURLs: client, AdvertiseClientURLs: client, ListenPeerURLs: peers, AdvertisePeerURLs: peers},
			Raft:    node.Raft{UnsafeNoFsync: true},
			Data:    node.Data{AuthToken: "simple"},
		},
		TickInterval: 10 * time.Millisecond, ElectionTicks: 10, BcryptCost: 4, AuthTokenTTL: time.Minute,
	})
}

func eventually(t *testing.T, do func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(wait); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = do(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

func dial(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// startProxy starts a proxy with these flags, on a port of its own, and returns its address.
// BELAY_RPC_ENGINE is its --rpc-engine.
func startProxy(t *testing.T, args ...string) (*proxy, string) {
	t.Helper()
	var o options
	fs := pflag.NewFlagSet("proxy", pflag.ContinueOnError)
	o.register(fs)
	own := []string{"--listen-addr=127.0.0.1:0"}
	if engine := os.Getenv("BELAY_RPC_ENGINE"); engine != "" {
		own = append(own, "--rpc-engine="+engine)
	}
	if err := fs.Parse(append(own, args...)); err != nil {
		t.Fatal(err)
	}
	if err := o.check(fs); err != nil {
		t.Fatal(err)
	}
	p, err := start(t.Context(), &o, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.stop)
	return p, p.ports.front.Addr().String()
}

// TestLikeTheMember asks a member the same through a proxy and directly: the answers are the same to
// the byte, and so are the errors.
func TestLikeTheMember(t *testing.T) {
	t.Parallel()
	member := startMember(t)
	_, address := startProxy(t, "--endpoints="+member)
	direct, through := dial(t, member), dial(t, address)
	key := []byte("k")
	for _, r := range []*pb.PutRequest{{Key: key, Value: []byte("1")}, {Key: []byte("l"), Value: []byte("2")}} {
		if _, err := pb.NewKVClient(through).Put(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		method          string
		request, answer proto.Message
	}{
		{"/etcdserverpb.KV/Range", &pb.RangeRequest{Key: key}, &pb.RangeResponse{}},
		{"/etcdserverpb.KV/Range", &pb.RangeRequest{Key: key, RangeEnd: []byte{0}, Serializable: true, KeysOnly: true, Limit: 1}, &pb.RangeResponse{}},
		{"/etcdserverpb.KV/Range", &pb.RangeRequest{}, &pb.RangeResponse{}},
		{"/etcdserverpb.KV/Range", &pb.RangeRequest{Key: key, Revision: 1 << 40}, &pb.RangeResponse{}},
		{"/etcdserverpb.KV/Txn", &pb.TxnRequest{Compare: []*pb.Compare{{Key: key, Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: []byte("1")}}},
			Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}}}, &pb.TxnResponse{}},
		{"/etcdserverpb.KV/Compact", &pb.CompactionRequest{Revision: 1 << 40}, &pb.CompactionResponse{}},
		{"/etcdserverpb.Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: 7}, &pb.LeaseRevokeResponse{}},
		{"/etcdserverpb.Lease/LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: 7}, &pb.LeaseTimeToLiveResponse{}},
		{"/etcdserverpb.Cluster/MemberRemove", &pb.MemberRemoveRequest{ID: 7}, &pb.MemberRemoveResponse{}},
		{"/etcdserverpb.Cluster/MemberPromote", &pb.MemberPromoteRequest{ID: 7}, &pb.MemberPromoteResponse{}},
		{"/etcdserverpb.Auth/RoleGet", &pb.AuthRoleGetRequest{Role: "none"}, &pb.AuthRoleGetResponse{}},
		{"/etcdserverpb.Auth/Authenticate", &pb.AuthenticateRequest{Name: "a", Password: "b"}, &pb.AuthenticateResponse{}},
		{"/etcdserverpb.Maintenance/HashKV", &pb.HashKVRequest{}, &pb.HashKVResponse{}},
		{"/etcdserverpb.Maintenance/Alarm", &pb.AlarmRequest{}, &pb.AlarmResponse{}},
		{"/v3lockpb.Lock/Unlock", &lockpb.UnlockRequest{Key: []byte("none")}, &lockpb.UnlockResponse{}},
		{"/v3electionpb.Election/Leader", &electionpb.LeaderRequest{Name: []byte("none")}, &electionpb.LeaderResponse{}},
		{"/etcdserverpb.KV/Nothing", &pb.RangeRequest{}, &pb.RangeResponse{}},
	} {
		want, got := proto.Clone(c.answer), proto.Clone(c.answer)
		wantErr := direct.Invoke(t.Context(), c.method, c.request, want)
		gotErr := through.Invoke(t.Context(), c.method, c.request, got)
		if !proto.Equal(status.Convert(wantErr).Proto(), status.Convert(gotErr).Proto()) || !proto.Equal(want, got) {
			t.Errorf("%s {%v}: %v, %v; the member says %v, %v", c.method, c.request, got, gotErr, want, wantErr)
		}
	}
	// Streams.
	for _, c := range []*grpc.ClientConn{direct, through} {
		s, err := pb.NewKVClient(c).RangeStream(t.Context(), &pb.RangeRequest{Key: key, RangeEnd: []byte{0}})
		if err != nil {
			t.Fatal(err)
		}
		count := 0
		for {
			r, err := s.Recv()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			count += len(r.RangeResponse.Kvs)
		}
		if count != 2 {
			t.Errorf("a RangeStream has %d keys", count)
		}
	}
	// A deadline is the member's, too.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := lockpb.NewLockClient(through).Lock(t.Context(), &lockpb.LockRequest{Name: []byte("one")}); err != nil {
		t.Fatal(err)
	}
	if _, err := lockpb.NewLockClient(through).Lock(ctx, &lockpb.LockRequest{Name: []byte("one")}); status.Code(err).String() != "DeadlineExceeded" {
		t.Errorf("a lock that is taken: %v", err)
	}
}

// TestUsers: who a client is goes with each of its calls.
func TestUsers(t *testing.T) {
	t.Parallel()
	member := startMember(t)
	p, address := startProxy(t, "--endpoints="+member)
	client := func(user string) *clientv3.Client {
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{address}, Username: user, Password: user})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	anonymous := client("")
	ctx := t.Context()
	for _, do := range []func() error{
		func() error { _, err := anonymous.UserAdd(ctx, "root", "root"); return err },
		func() error { _, err := anonymous.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := anonymous.UserAdd(ctx, "u", "u"); return err },
		func() error { _, err := anonymous.RoleAdd(ctx, "r"); return err },
		func() error {
			_, err := anonymous.RoleGrantPermission(ctx, "r", "mine", "", clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		func() error { _, err := anonymous.UserGrantRole(ctx, "u", "r"); return err },
		func() error { _, err := anonymous.AuthEnable(ctx); return err },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := anonymous.Get(ctx, "mine"); err != rpctypes.ErrUserEmpty {
		t.Errorf("without a user: %v", err)
	}
	u, root := client("u"), client("root")
	if _, err := u.Put(ctx, "mine", "1"); err != nil {
		t.Error(err)
	}
	if _, err := u.Get(ctx, "other"); err != rpctypes.ErrPermissionDenied {
		t.Errorf("another's key: %v", err)
	}
	if _, err := root.Put(ctx, "other", "1"); err != nil {
		t.Error(err)
	}
	watching, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if r := <-u.Watch(watching, "other", clientv3.WithRev(1)); !r.Canceled || len(r.Events) > 0 {
		t.Errorf("a watch of another's key: %v", r)
	}
	if r := <-u.Watch(watching, "mine", clientv3.WithRev(1)); len(r.Events) != 1 {
		t.Errorf("a watch of one's own key: %v", r)
	}
	// A right that is taken away: the member ends the watch, and nothing that is written since comes.
	mine := u.Watch(watching, "mine", clientv3.WithCreatedNotify())
	if r := <-mine; !r.Created {
		t.Fatalf("not created: %v", r)
	}
	if _, err := root.RoleRevokePermission(ctx, "r", "mine", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := root.Put(ctx, "mine", "secret"); err != nil {
		t.Fatal(err)
	}
	for r := range mine { // clientv3 closes what a member has cancelled
		if len(r.Events) > 0 {
			t.Errorf("a watch whose right is gone: %v", r)
		}
	}
	if watching.Err() != nil {
		t.Error("a watch whose right is gone goes on")
	}
	if err := p.clusterHealth(ctx); err != nil {
		t.Errorf("health of a cluster with users: %v", err)
	}
}

// TestNamespace: clients of a proxy with a namespace see their keys alone, by their own names.
func TestNamespace(t *testing.T) {
	t.Parallel()
	member := startMember(t)
	_, address := startProxy(t, "--endpoints="+member, "--namespace=ns/")
	var clients []*clientv3.Client
	for _, a := range []string{member, address} {
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{a}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		clients = append(clients, c)
	}
	direct, in := clients[0], clients[1]
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"a", "ns.", "ns/out", "ns0", "z"} {
		_, err := direct.Put(ctx, key, "direct")
		must(err)
	}
	_, err := in.Put(ctx, "in", "1")
	must(err)
	keys := func(c *clientv3.Client, key string, opts ...clientv3.OpOption) string {
		r, err := c.Get(ctx, key, opts...)
		must(err)
		var list []string
		for _, kv := range r.Kvs {
			list = append(list, string(kv.Key))
		}
		return strings.Join(list, " ")
	}
	for _, c := range []struct{ got, want string }{
		{keys(direct, "ns/", clientv3.WithPrefix()), "ns/in ns/out"},
		{keys(in, "", clientv3.WithPrefix()), "in out"},
		{keys(in, "j", clientv3.WithFromKey()), "out"},
		{keys(in, "a", clientv3.WithRange("o")), "in"},
	} {
		if c.got != c.want {
			t.Errorf("keys %q, want %q", c.got, c.want)
		}
	}
	if _, err := in.Get(ctx, ""); err != rpctypes.ErrEmptyKey {
		t.Errorf("no key: %v", err)
	}
	txn, err := in.Txn(ctx).If(clientv3.Compare(clientv3.Value("in"), "=", "1")).
		Then(clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("in", "2", clientv3.WithPrevKV())}, nil), clientv3.OpGet("in")).Commit()
	must(err)
	nested := txn.Responses[0].GetResponseTxn().Responses[0].GetResponsePut()
	if !txn.Succeeded || string(nested.PrevKv.Key) != "in" || string(txn.Responses[1].GetResponseRange().Kvs[0].Key) != "in" {
		t.Errorf("txn: %v", txn)
	}
	watch := in.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(1), clientv3.WithPrevKV())
	var seen []string
	for len(seen) < 3 {
		r := <-watch
		must(r.Err())
		for _, e := range r.Events {
			seen = append(seen, string(e.Kv.Key)+"="+string(e.Kv.Value))
		}
	}
	if got := strings.Join(seen, " "); got != "out=direct in=1 in=2" {
		t.Errorf("the watch has %q", got)
	}
	lease, err := in.Grant(ctx, 60)
	must(err)
	for c, key := range map[*clientv3.Client]string{direct: "other", in: "leased"} {
		_, err := c.Put(ctx, key, "", clientv3.WithLease(lease.ID))
		must(err)
	}
	ttl, err := in.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
	must(err)
	if len(ttl.Keys) != 1 || string(ttl.Keys[0]) != "leased" {
		t.Errorf("a lease's keys are %q", ttl.Keys)
	}
	lock, err := lockpb.NewLockClient(in.ActiveConnection()).Lock(ctx, &lockpb.LockRequest{Name: []byte("lock")})
	must(err)
	if !bytes.HasPrefix(lock.Key, []byte("lock/")) || keys(direct, "ns/lock/", clientv3.WithPrefix()) != "ns/"+string(lock.Key) {
		t.Errorf("a lock's key is %q", lock.Key)
	}
	_, err = lockpb.NewLockClient(in.ActiveConnection()).Unlock(ctx, &lockpb.UnlockRequest{Key: lock.Key})
	must(err)
	if left := keys(direct, "ns/lock/", clientv3.WithPrefix()); left != "" {
		t.Errorf("after the unlock there is %q", left)
	}
	election := electionpb.NewElectionClient(in.ActiveConnection())
	won, err := election.Campaign(ctx, &electionpb.CampaignRequest{Name: []byte("e"), Lease: int64(lease.ID), Value: []byte("v")})
	must(err)
	leader, err := election.Leader(ctx, &electionpb.LeaderRequest{Name: []byte("e")})
	must(err)
	if string(won.Leader.Name) != "e" || string(leader.Kv.Key) != string(won.Leader.Key) {
		t.Errorf("elected %v, leader %v", won, leader)
	}
	_, err = election.Proclaim(ctx, &electionpb.ProclaimRequest{Leader: won.Leader, Value: []byte("w")})
	must(err)
	_, err = election.Resign(ctx, &electionpb.ResignRequest{Leader: won.Leader})
	must(err)
	_, err = in.Delete(ctx, "", clientv3.WithFromKey())
	must(err)
	if got := keys(direct, "", clientv3.WithPrefix()); got != "a ns. ns0 other z" {
		t.Errorf("after all was deleted in the namespace there is %q", got)
	}
}

// TestResolver: proxies with one prefix tell their clients of each other, and one that ends is gone.
func TestResolver(t *testing.T) {
	t.Parallel()
	member := startMember(t)
	flags := []string{"--endpoints=" + member, "--resolver-prefix=proxies", "--resolver-ttl=30"}
	one, address := startProxy(t, append(flags, "--advertise-client-url=one:1")...)
	two, _ := startProxy(t, append(flags, "--advertise-client-url=two:2")...)
	list := func() string {
		r, err := pb.NewClusterClient(dial(t, address)).MemberList(t.Context(), &pb.MemberListRequest{})
		if err != nil {
			return err.Error()
		}
		var urls []string
		for _, m := range r.Members {
			urls = append(urls, m.ClientURLs...)
		}
		if len(urls) == 2 && urls[0] == "two:2" {
			urls[0], urls[1] = urls[1], urls[0]
		}
		return strings.Join(urls, " ")
	}
	expect := func(want string) {
		t.Helper()
		eventually(t, func() error {
			if got := list(); got != want {
				return io.ErrUnexpectedEOF
			}
			return nil
		})
	}
	expect("one:1 two:2")
	two.resolver.stop()
	expect("one:1")
	one.resolver.stop()
	kv, err := pb.NewKVClient(dial(t, member)).Range(t.Context(), &pb.RangeRequest{Key: []byte("proxies"), RangeEnd: []byte("proxiet")})
	if err != nil || len(kv.Kvs) > 0 {
		t.Errorf("what is left of them: %v, %v", kv, err)
	}
}

// get asks a proxy for a page.
func get(t *testing.T, address, path string) (code int, text string) {
	t.Helper()
	r, err := http.Get("http://" + address + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// TestPages asks for what a proxy serves over HTTP.
func TestPages(t *testing.T) {
	t.Parallel()
	member := startMember(t)
	_, address := startProxy(t, "--endpoints="+member, "--enable-pprof")
	page := func(path string) (int, string) { return get(t, address, path) }
	eventually(t, func() error {
		if code, text := page("/readyz"); code != http.StatusOK {
			return errors.New(text)
		}
		return nil
	})
	for path, want := range map[string]string{
		"/health": `{"health":"true","reason":""}`, "/proxy/health": `{"health":"true","reason":""}`, "/livez": "ok", "/readyz": "ok",
		"/metrics": "\netcd_server_has_leader 1", "/proxy/metrics": "\nbelay_proxy_members_fit 1", "/debug/pprof/cmdline": "",
	} {
		if code, text := page(path); code != http.StatusOK || !strings.Contains(text, want) {
			t.Errorf("%s: %d %.300s", path, code, text)
		}
	}
	if code, _ := page("/other"); code != http.StatusNotFound {
		t.Errorf("another path: %d", code)
	}
	_, metrics := page("/proxy/metrics")
	for _, name := range []string{
		"etcd_grpc_proxy_cache_hits_total", "etcd_grpc_proxy_cache_keys_total", "etcd_grpc_proxy_cache_misses_total",
		"etcd_grpc_proxy_events_coalescing_total", "etcd_grpc_proxy_watchers_coalescing_total",
	} {
		if !strings.Contains(metrics, "\n"+name+" ") {
			t.Errorf("no metric %s", name)
		}
	}
	told, err := os.ReadFile("../../docs/proxy.md")
	if err != nil {
		t.Fatal(err)
	}
	own := regexp.MustCompile(`belay_proxy_[a-z_]+`)
	shown := own.FindAllString(metrics, -1)
	for _, name := range shown {
		if !bytes.Contains(told, []byte("`"+name+"`")) {
			t.Errorf("docs/proxy.md does not name %s", name)
		}
	}
	for _, name := range own.FindAllString(string(told), -1) {
		if !slices.Contains(shown, name) {
			t.Errorf("docs/proxy.md names %s, which is not there", name)
		}
	}
	// Nobody to pass a call on to.
	_, lonely := startProxy(t, "--endpoints=127.0.0.1:1")
	r, err := http.Get("http://" + lonely + "/health")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var h health
	if err := json.NewDecoder(r.Body).Decode(&h); err != nil || h.Health != "false" || !strings.HasPrefix(h.Reason, "GET ERROR:") || r.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("health without a cluster: %d %v, %v", r.StatusCode, h, err)
	}
}

// TestFlags: what flags may not be is said, with etcd's texts where it has some.
func TestFlags(t *testing.T) {
	for args, want := range map[string]string{
		"proxy|--resolver-prefix=x": "invalid resolver-ttl 0\n",
		"proxy|--resolver-ttl=1":    `invalid resolver-prefix ""`,
		"proxy|--resolver-prefix=x|--resolver-ttl=1|--advertise-client-url=": `invalid advertise-client-url ""`,
		"proxy|--auto-tls|--self-signed-cert-validity=0":                     "selfSignedCertValidity is invalid,it should be greater than 0",
		"proxy|--tls-min-version=1":                                          "tls-min-version is invalid: ",
		"proxy|--tls-max-version=1":                                          "tls-max-version is invalid: ",
		"proxy|--tls-min-version=TLS1.3|--tls-max-version=TLS1.2":            "min version (TLS1.3) is greater than max version (TLS1.2)",
		"proxy|--tls-min-version=TLS1.3|--listen-cipher-suites=a":            "cipher suites cannot be configured when only TLS1.3 is enabled",
		"proxy|--cache-bytes=-1":                                             "--cache-bytes=-1 is negative",
		"proxy|--rpc-engine=x":                                               `--rpc-engine="x" is neither "belay" nor "grpc-go"`,
		"proxy|--cache-staleness=0":                                          "--cache-staleness=0s is not positive",
		"proxy|--experimental-leasing-prefix=x":                              "leasing is not served",
		"proxy|--listen-addr=x":                                              `--listen-addr="x" is not host:port`,
		"proxy|--listen-addr=127.0.0.1:0|--endpoints=ftp://a:1":              "a scheme is http, https, unix or unixs",
		"proxy|--listen-addr=127.0.0.1:0|--metrics-addr=https://127.0.0.1:0": "https needs --cert-file and --key-file",
		"proxy|--listen-addr=127.0.0.1:0|--cert=none|--key=none":             "cannot use the files of --cert=none",
		"proxy|endpoints=a:1":                                                `unexpected "endpoints=a:1"`,
		"proxy|--no-such":                                                    "unknown flag: --no-such",
		"gateway|--endpoints=a":                                              `error parsing endpoint "a"`,
		"gateway|--endpoints=127.0.0.1:2|--listen-addr=x":                    "failed to validate listen address: x",
		"gateway|--endpoints=127.0.0.1:2|--listen-addr=127.0.0.1:2":          "should not resolve to the gateway listen addr (127.0.0.1:2)",
	} {
		words := strings.Split(args, "|")
		for _, name := range []string{"belay proxy", "etcd"} {
			line := words[1:]
			switch {
			case name == "etcd" && words[0] == "proxy":
				line = append([]string{"grpc-proxy", "start"}, line...)
			case name == "etcd":
				line = append([]string{"gateway", "start"}, line...)
			case words[0] == "gateway":
				line = append([]string{"gateway"}, line...)
			}
			var out, errs bytes.Buffer
			if code := Main(name, line, &out, &errs); code != 1 || !strings.Contains(errs.String(), want) {
				t.Errorf("%s %q: code %d, %q, want %q", name, line, code, errs.String(), want)
			}
		}
	}
}

// TestTLS: a proxy shows a certificate of its own, and reaches what has one: here another proxy.
func TestTLS(t *testing.T) {
	t.Parallel()
	member := startMember(t)
	_, first := startProxy(t, "--endpoints="+member, "--auto-tls", "--data-dir="+t.TempDir())
	_, second := startProxy(t, "--endpoints=https://"+first, "--insecure-skip-tls-verify")
	_, strict := startProxy(t, "--endpoints=https://"+first)
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"https://" + first}, TLS: &tls.Config{InsecureSkipVerify: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Put(ctx, "k", "v"); err != nil {
		t.Fatal(err)
	}
	through := newClient(t, second)
	r, err := through.Get(ctx, "k")
	if err != nil || len(r.Kvs) != 1 {
		t.Fatalf("%v, %v", r, err)
	}
	if w := <-through.Watch(ctx, "k", clientv3.WithRev(1)); len(w.Events) != 1 {
		t.Errorf("%v", w)
	}
	pages := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: wait}
	health, err := pages.Get("https://" + first + "/health")
	if err != nil {
		t.Fatal(err)
	}
	defer health.Body.Close()
	if health.StatusCode != http.StatusOK {
		t.Errorf("health: %d", health.StatusCode)
	}
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := pb.NewKVClient(dial(t, strict)).Range(short, &pb.RangeRequest{Key: []byte("k")}); err == nil {
		t.Error("a certificate that nobody vouches for is believed")
	}
}
