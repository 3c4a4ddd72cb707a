package check

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
)

// withPeerURLs gives each member another peer URL. It starts nothing.
func withPeerURLs(c *cluster.Cluster, url func(i int, m *cluster.Member) string) {
	var replace []string
	for i, m := range c.Members {
		replace = append(replace, m.PeerURL, url(i, m))
	}
	words := strings.NewReplacer(replace...)
	for _, m := range c.Members {
		m.PeerURL = words.Replace(m.PeerURL)
		m.SetArgs(func(args []string) []string {
			for i := range args {
				args[i] = words.Replace(args[i])
			}
			return args
		})
	}
}

// Members whose peer URLs are sockets of the file system form a cluster, ask
// each other all that members ask, and take one more in.
func TestUnixPeers(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"unix", "unixs"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			a := newIssuer(t, "check")
			a.issue("peer", nil)
			cfg := cluster.Config{Kind: cluster.Belay, Binary: Belay(t), Size: 4, Dir: t.TempDir()}
			if scheme == "unixs" {
				cfg.Args = []string{"--peer-cert-file=" + a.Cert("peer"), "--peer-key-file=" + a.Key("peer"), "--peer-trusted-ca-file=" + a.CA(), "--peer-client-cert-auth"}
			}
			c, err := cluster.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(c.Close)
			withPeerURLs(c, func(i int, m *cluster.Member) string { return fmt.Sprintf("%s://localhost:%d", scheme, 20001+i) })
			// The fourth is no founder.
			fourth, founders := c.Members[3], c.Members[:3]
			all := strings.Join([]string{"m1=" + c.Members[0].PeerURL, "m2=" + c.Members[1].PeerURL, "m3=" + c.Members[2].PeerURL}, ",")
			for _, m := range founders {
				m.SetArgs(func(args []string) []string { return append(args, "--initial-cluster="+all) })
			}
			fourth.SetArgs(existing)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			for _, m := range founders {
				if err := m.Start(); err != nil {
					t.Fatal(err)
				}
			}
			for _, m := range founders {
				if err := m.WaitReady(ctx); err != nil {
					t.Fatalf("%v\n%s", err, c.Tails(20))
				}
			}
			cli := admin(t, founders...)
			if _, err := cli.Put(ctx, "before", ""); err != nil {
				t.Fatal(err)
			}
			// The members must have been connected for some seconds first.
			if err := eventually(ctx, func() error { _, err := cli.MemberAddAsLearner(ctx, []string{fourth.PeerURL}); return err }); err != nil {
				t.Fatal(err)
			}
			if err := fourth.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if t.Failed() {
					t.Log(fourth.LogTail(30))
				}
			})
			learns(ctx, t, fourth)
			// What only the leader can answer is asked of it by each.
			for _, m := range founders {
				own := admin(t, m)
				grant, err := own.Grant(ctx, 60)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := own.KeepAliveOnce(ctx, grant.ID); err != nil {
					t.Errorf("%s: renewal: %v", m.Name, err)
				}
				if _, err := own.TimeToLive(ctx, grant.ID, clientv3.WithAttachedKeys()); err != nil {
					t.Errorf("%s: time to live: %v", m.Name, err)
				}
			}
			// One that is started again finds the others.
			if err := founders[0].Kill(); err != nil {
				t.Fatal(err)
			}
			if err := founders[0].Start(); err != nil {
				t.Fatal(err)
			}
			if err := founders[0].WaitReady(ctx); err != nil {
				t.Fatalf("%v\n%s", err, c.Tails(20))
			}
			if _, err := admin(t, founders[0]).Put(ctx, "a", "b"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A member whose own calls its peers refuse, because its certificate names another
// address than they come from, serves all the same: the others call it.
func TestPeersThatRefuseOneMembersCalls(t *testing.T) {
	t.Parallel()
	a := newIssuer(t, "check")
	a.issue("good", nil)
	a.issue("elsewhere", func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = []net.IP{net.IPv4(127, 0, 0, 5)}, nil })
	c, err := cluster.New(cluster.Config{Kind: cluster.Belay, Binary: Belay(t), Size: 3, Dir: t.TempDir(), PeerTLS: true, Args: []string{
		"--peer-trusted-ca-file=" + a.CA(), "--peer-client-cert-auth"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	withPeerURLs(c, func(i int, m *cluster.Member) string {
		if i == 2 {
			return strings.Replace(m.PeerURL, "127.0.0.1", "127.0.0.5", 1)
		}
		return m.PeerURL
	})
	for i, m := range c.Members {
		name := "good"
		if i == 2 {
			name = "elsewhere"
		}
		m.SetArgs(func(args []string) []string {
			return append(args, "--peer-cert-file="+a.Cert(name), "--peer-key-file="+a.Key(name))
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatalf("%v\n%s", err, c.Tails(20))
	}
	if _, err := admin(t, c.Members[2]).Put(ctx, "a", "b"); err != nil {
		t.Fatal(err)
	}
}
