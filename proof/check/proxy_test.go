package check

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
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
	}
	p.args = append(append(p.args, "--listen-addr="+p.address, "--endpoints="+strings.Join(endpoints, ",")), args...)
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
			for _, c := range []struct{ line, stdin string }{
				{"put key value -w json", ""},
				{"get key -w json", ""},
				{"get --prefix k --consistency=s --keys-only --sort-by=MODIFY -w json", ""},
				{"get key --rev 1000000", ""},
				{"get --prefix --stream k", ""},
				{"txn -w json", "val(\"key\") = \"value\"\n\nput key value\n\nput key other\n\n"},
				{"del none -w json", ""},
				{"lease revoke 77", ""},
				{"lease timetolive 77 -w json", ""},
				{"compaction 1000000", ""},
				{"member list -w json", ""},
				{"member promote 77", ""},
				{"alarm list -w json", ""},
				{"role get none", ""},
				{"auth status -w json", ""},
				{"endpoint hashkv --rev 1 -w json", ""},
				{"lock name echo locked", ""},
			} {
				want := run(endpoints[0], c.line, c.stdin)
				for _, p := range []*proxyProcess{proxy, gateway} {
					if got := run(p.address, c.line, c.stdin); got != want {
						t.Errorf("etcdctl %s through %q:\n%s\nthe member:\n%s", c.line, p.args, got, want)
					}
				}
			}
		})
	}
}
