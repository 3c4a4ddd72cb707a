package clients

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
)

// TestCoreDNS serves a zone that lies in Belay and asks for it as a resolver does: every kind of
// record, then changes, a lease that ends, and the loss of the leader.
func TestCoreDNS(t *testing.T) {
	wantAll(t)
	program := builtFrom(t, "coredns", ".", "coredns")
	for _, e := range entries() {
		t.Run(e.String(), func(t *testing.T) {
			d := enter(t, e, "/skydns/")
			dns := serveZone(t, program, d)
			kv := d.client(t, d.Endpoints()...)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			put := func(name, value string, opts ...clientv3.OpOption) {
				t.Helper()
				if _, err := kv.Put(ctx, "/skydns/"+name, value, opts...); err != nil {
					t.Fatal(err)
				}
			}
			put("local/cluster/web/a", `{"host":"10.0.0.1","port":80,"priority":10,"weight":5,"ttl":60}`)
			put("local/cluster/web/b", `{"host":"10.0.0.2","port":81,"priority":20,"weight":5,"ttl":60}`)
			put("local/cluster/six", `{"host":"fd00::1"}`)
			put("local/cluster/alias", `{"host":"six.cluster.local"}`)
			put("local/cluster/text", `{"text":"hello from the store"}`)
			put("local/cluster/post", `{"host":"10.0.0.9","mail":true,"priority":5}`)

			wantDNS(ctx, t, "A of two", func() ([]string, error) { return dns.LookupHost(ctx, "web.cluster.local.") }, "10.0.0.1", "10.0.0.2")
			wantDNS(ctx, t, "A of one", func() ([]string, error) { return dns.LookupHost(ctx, "a.web.cluster.local.") }, "10.0.0.1")
			wantDNS(ctx, t, "AAAA", func() ([]string, error) { return dns.LookupHost(ctx, "six.cluster.local.") }, "fd00::1")
			wantDNS(ctx, t, "AAAA behind a CNAME", func() ([]string, error) { return dns.LookupHost(ctx, "alias.cluster.local.") }, "fd00::1")
			wantDNS(ctx, t, "TXT", func() ([]string, error) { return dns.LookupTXT(ctx, "text.cluster.local.") }, "hello from the store")
			wantDNS(ctx, t, "SRV", func() ([]string, error) {
				_, records, err := dns.LookupSRV(ctx, "", "", "web.cluster.local.")
				var list []string
				for _, r := range records {
					list = append(list, fmt.Sprintf("%s %d %d %d", r.Target, r.Port, r.Priority, r.Weight))
				}
				return list, err
			}, "a.web.cluster.local. 80 10 100", "b.web.cluster.local. 81 20 100")
			wantDNS(ctx, t, "MX", func() ([]string, error) {
				records, err := dns.LookupMX(ctx, "post.cluster.local.")
				var list []string
				for _, r := range records {
					list = append(list, fmt.Sprintf("%s %d", r.Host, r.Pref))
				}
				return list, err
			}, "post.cluster.local. 5")
			wantDNS(ctx, t, "nothing", func() ([]string, error) { return dns.LookupHost(ctx, "none.cluster.local.") })

			put("local/cluster/web/b", `{"host":"10.0.0.3"}`)
			wantDNS(ctx, t, "a change", func() ([]string, error) { return dns.LookupHost(ctx, "web.cluster.local.") }, "10.0.0.1", "10.0.0.3")
			lease, err := kv.Grant(ctx, 2)
			if err != nil {
				t.Fatal(err)
			}
			put("local/cluster/web/c", `{"host":"10.0.0.4"}`, clientv3.WithLease(lease.ID))
			wantDNS(ctx, t, "a leased record", func() ([]string, error) { return dns.LookupHost(ctx, "c.web.cluster.local.") }, "10.0.0.4")
			wantDNS(ctx, t, "the lease's end", func() ([]string, error) { return dns.LookupHost(ctx, "web.cluster.local.") }, "10.0.0.1", "10.0.0.3")

			failover(ctx, t, d.Cluster)
			if _, err := kv.Delete(ctx, "/skydns/local/cluster/web/a"); err != nil {
				t.Fatal(err)
			}
			wantDNS(ctx, t, "a removal after a failover", func() ([]string, error) { return dns.LookupHost(ctx, "web.cluster.local.") }, "10.0.0.3")
		})
	}
}

// serveZone starts CoreDNS for the zone cluster.local and returns a resolver that asks it.
func serveZone(t *testing.T, program string, d *door) *net.Resolver {
	dir := t.TempDir()
	port, err := cluster.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "Corefile")
	entrance := ""
	if d.ca != nil {
		entrance += fmt.Sprintf("\t\ttls %s %s %s\n", d.ca.Cert("client"), d.ca.Key("client"), d.ca.CA())
	}
	if d.user != "" {
		entrance += fmt.Sprintf("\t\tcredentials %s %q\n", d.user, d.password)
	}
	config := fmt.Sprintf("cluster.local:%d {\n\terrors\n\tetcd cluster.local {\n\t\tpath /skydns\n\t\tendpoint %s\n%s\t}\n}\n", port, strings.Join(urls(d.Cluster), " "), entrance)
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-conf", file)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("coredns: %s", text)
		}
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", port))
	}}
}

// wantDNS asks until the answer is the wanted one. No answer and no such name are the empty list.
func wantDNS(ctx context.Context, t *testing.T, what string, ask func() ([]string, error), want ...string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		got, err := ask()
		slices.Sort(got)
		var none *net.DNSError
		if errors.As(err, &none) && none.IsNotFound {
			got, err = nil, nil
		}
		if err == nil && slices.Equal(got, want) {
			return
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			t.Fatalf("%s: %q, %v; want %q", what, got, err, want)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
