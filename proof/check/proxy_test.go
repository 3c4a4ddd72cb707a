package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
)

// A proxyProcess is a proxy of Belay's that runs.
type proxyProcess struct {
	address string
	args    []string
	binary  string
	log     string
	cmd     *exec.Cmd
}

// startProxyProcess starts `belay proxy`, or its gateway, before endpoints and waits until it passes
// a call on.
func startProxyProcess(t *testing.T, kind string, endpoints []string, args ...string) *proxyProcess {
	t.Helper()
	port, err := cluster.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	p := &proxyProcess{address: fmt.Sprintf("127.0.0.1:%d", port), binary: Belay(t), log: filepath.Join(t.TempDir(), "log")}
	p.args = []string{"proxy"}
	if kind == "gateway" {
		p.args = append(p.args, "gateway")
	} else if engine := os.Getenv("BELAY_RPC_ENGINE"); engine != "" {
		p.args = append(p.args, "--rpc-engine="+engine)
	}
	p.args = append(append(p.args, "--listen-addr="+p.address, "--endpoints="+strings.Join(endpoints, ",")), args...) // of a flag the last one counts
	p.start(t)
	t.Cleanup(p.kill)
	return p
}

func (p *proxyProcess) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.cmd = exec.Command(p.binary, p.args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{p.address}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := eventually(t.Context(), func() error {
		bounded, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := client.Get(bounded, "x")
		return err
	}); err != nil {
		text, _ := os.ReadFile(p.log)
		t.Fatalf("%v\n%s", err, text)
	}
}

// kill ends it as a crash does.
func (p *proxyProcess) kill() {
	_ = p.cmd.Process.Kill() // it may be gone
	_ = p.cmd.Wait()
}

// TestProxySignals: a proxy and a gateway end by the signal that stops them, as etcd's do, so that
// their parent sees who has ended them.
func TestProxySignals(t *testing.T) {
	onlyBelay(t)
	t.Parallel()
	c := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 1})
	for _, kind := range []string{"proxy", "gateway"} {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
			p := startProxyProcess(t, kind, c.Endpoints())
			if err := p.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			err := p.cmd.Wait()
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Sys().(syscall.WaitStatus).Signal() != sig {
				t.Errorf("%s ended with %v at %v", kind, err, sig)
			}
		}
	}
}

// TestProxies: etcd's own etcdctl is answered the same through Belay's proxy and gateway as by the
// member itself, Belay's or etcd's.
func TestProxies(t *testing.T) {
	onlyBelay(t)
	t.Parallel()
	tools := EtcdTools(t)
	for _, kind := range []cluster.Kind{cluster.Belay, cluster.Etcd} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			cfg := cluster.Config{Kind: kind, Size: 1}
			if kind == cluster.Etcd {
				cfg.Binary = tools.Etcd
			}
			c := startCluster(t, cfg)
			endpoints := c.Endpoints()
			proxy := startProxyProcess(t, "proxy", endpoints, "--advertise-client-url=")
			gateway := startProxyProcess(t, "gateway", endpoints)
			// What differs from one run to the next.
			changes := regexp.MustCompile(`"(revision|raft_term|raftTerm|raftIndex|raftAppliedIndex|dbSize|dbSizeInUse|ttl)":[0-9]+|127\.0\.0\.1:[0-9]+|"?ts"?:.*`)
			run := func(endpoint, line, stdin string) string {
				cmd := exec.CommandContext(t.Context(), tools.Etcdctl, strings.Fields(line)...)
				cmd.Env = append(os.Environ(), "ETCDCTL_ENDPOINTS="+endpoint)
				cmd.Stdin = strings.NewReader(stdin)
				var out, errs bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &errs
				err := cmd.Run()
				last := strings.TrimSpace(errs.String())
				last = last[strings.LastIndex(last, "\n")+1:]
				return changes.ReplaceAllString(fmt.Sprintf("%s| %s| %v", out.String(), last, err), "$1")
			}
			_, all := proxyRounds(t)
			run(endpoints[0], "put key value", "")
			for _, c := range []struct {
				line, stdin string
				always      bool
			}{
				{"put key value -w json", "", false},
				{"get key -w json", "", true},
				{"get --prefix k --consistency=s --keys-only --sort-by=MODIFY -w json", "", false},
				{"get key --rev 1000000", "", false},
				{"get --prefix --stream k", "", false},
				{"txn -w json", "val(\"key\") = \"value\"\n\nput key value\n\nput key other\n\n", true},
				{"del none -w json", "", false},
				{"lease revoke 77", "", true},
				{"lease timetolive 77 -w json", "", false},
				{"compaction 1000000", "", false},
				{"member list -w json", "", true},
				{"member promote 77", "", false},
				{"alarm list -w json", "", false},
				{"role get none", "", false},
				{"auth status -w json", "", false},
				{"endpoint hashkv --rev 1 -w json", "", false},
				{"lock name echo locked", "", false},
			} {
				if !c.always && !all {
					continue
				}
				want := run(endpoints[0], c.line, c.stdin)
				for _, p := range []*proxyProcess{proxy, gateway} {
					if p == gateway && c.stdin != "" && !all {
						continue // bytes are bytes
					}
					if got := run(p.address, c.line, c.stdin); got != want {
						t.Errorf("etcdctl %s through %q:\n%s\nthe member:\n%s", c.line, p.args, got, want)
					}
				}
			}
		})
	}
}

// proxyRounds is how often TestProxyFailover kills a member and a proxy, and whether TestProxies tries
// every command.
func proxyRounds(t *testing.T) (rounds int, all bool) {
	t.Helper()
	text := os.Getenv("BELAY_PROXY_ROUNDS")
	if text == "" {
		return 1, false
	}
	rounds, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return rounds, true
}

// TestProxyFailover kills members and proxies with SIGKILL under writes, reads and watches that go
// through two proxies: every watch has every event once and in order, what was acknowledged is
// there, what is read from the proxies' caches is linearizable, or not older than it may be, and
// goes back on no connection.
func TestProxyFailover(t *testing.T) {
	onlyBelay(t)
	t.Parallel()
	c := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 3})
	flags := []string{"--cache-prefix=" + readsPrefix, "--cache-staleness=" + readsStaleness.String()}
	proxies := []*proxyProcess{startProxyProcess(t, "proxy", c.Endpoints(), flags...), startProxyProcess(t, "proxy", c.Endpoints(), flags...)}
	addresses := []string{proxies[0].address, proxies[1].address}
	rounds, _ := proxyRounds(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute+time.Duration(rounds)*time.Minute)
	defer cancel()
	client := func(endpoints ...string) *clientv3.Client {
		c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialKeepAliveTime: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	const keys, watchers = 3, 8
	seen := make([][]string, watchers)
	stopped := make(chan struct{}, watchers)
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	newest := make([]atomic.Int64, watchers)
	for i := range watchers {
		// Half have one proxy alone, and wait for it when it is dead.
		endpoints := addresses
		if i%2 == 0 {
			endpoints = addresses[i/2%2 : i/2%2+1]
		}
		events := client(endpoints...).Watch(watching, "k", clientv3.WithPrefix(), clientv3.WithRev(1))
		go func() {
			defer func() { stopped <- struct{}{} }()
			for r := range events {
				for _, e := range r.Events {
					seen[i] = append(seen[i], fmt.Sprintf("%d %s %s", e.Kv.ModRevision, e.Kv.Key, e.Kv.Value))
				}
				if n := len(r.Events); n > 0 {
					newest[i].Store(r.Events[n-1].Kv.ModRevision)
				}
			}
		}()
	}
	writer := client(addresses...)
	lease, err := writer.Grant(ctx, 30)
	if err != nil {
		t.Fatal(err)
	}
	alive, err := writer.KeepAlive(ctx, lease.ID)
	if err != nil {
		t.Fatal(err)
	}
	acknowledged := make(map[int64]string)
	value, last := 0, int64(0)
	write := func() {
		bounded, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		value++
		r, err := writer.Put(bounded, fmt.Sprintf("k%d", value%keys), fmt.Sprint(value))
		if err != nil {
			return // it may have run
		}
		if r.Header.Revision <= last {
			t.Errorf("a write at revision %d after one at %d", r.Header.Revision, last)
		}
		last = r.Header.Revision
		acknowledged[last] = fmt.Sprintf("%d k%d %d", last, value%keys, value)
		if get, err := writer.Get(bounded, fmt.Sprintf("k%d", value%keys)); err == nil && get.Kvs[0].ModRevision < last {
			t.Errorf("a read at revision %d after a write at %d", get.Kvs[0].ModRevision, last)
		}
	}
	until := func(acks int) {
		t.Helper()
		for want := len(acknowledged) + acks; len(acknowledged) < want; write() {
			if ctx.Err() != nil {
				t.Fatal(ctx.Err())
			}
		}
	}
	reads := startProxyReads(t, ctx, addresses)
	until(5)
	for round := range rounds {
		member, proxy := c.Members[round%3], proxies[round%2]
		if err := member.Kill(); err != nil {
			t.Fatal(err)
		}
		until(10)
		proxy.kill()
		until(10)
		if err := member.Start(); err != nil {
			t.Fatal(err)
		}
		proxy.start(t)
		until(5)
		if err := member.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := eventually(ctx, func() error {
		if cacheHits(t, addresses[0]) == 0 || cacheHits(t, addresses[1]) == 0 {
			return errors.New("a proxy answers nothing from its cache")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	reads.end()
	// Everything has come when every watch has the last event.
	for i := range watchers {
		if err := eventually(ctx, func() error {
			if n := newest[i].Load(); n < last {
				return fmt.Errorf("watch %d has revision %d of %d", i, n, last)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	for done := false; !done; {
		select {
		case r := <-alive:
			if r == nil {
				t.Fatal("a lease that is kept alive is lost")
			}
		default:
			done = true
		}
	}
	if r, err := writer.TimeToLive(ctx, lease.ID); err != nil || r.TTL < 1 {
		t.Errorf("a lease that is kept alive: %v, %v", r, err)
	}
	stopWatching()
	for range watchers {
		<-stopped
	}
	var history []string
	for r := range client(c.Endpoints()...).Watch(ctx, "k", clientv3.WithPrefix(), clientv3.WithRev(1)) {
		for _, e := range r.Events {
			history = append(history, fmt.Sprintf("%d %s %s", e.Kv.ModRevision, e.Kv.Key, e.Kv.Value))
		}
		if n := len(r.Events); n > 0 && r.Events[n-1].Kv.ModRevision >= last {
			break
		}
	}
	for i, events := range seen {
		for at, want := range history {
			if at >= len(events) || events[at] != want {
				t.Fatalf("watch %d: event %d is not %q, %d of %d events", i, at, want, len(events), len(history))
			}
		}
	}
	for revision, want := range acknowledged {
		if !slices.Contains(history, want) {
			t.Errorf("the write at revision %d is lost: %q", revision, want)
		}
	}
}
