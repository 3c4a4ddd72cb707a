package clients

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/proof/cluster"
)

// access is how the clients of a cluster come in.
type access struct {
	name string
	tls  bool // https, and clients must show a certificate
	auth bool // users are on
}

var (
	plain   = access{name: "plain"}
	secured = access{"users over TLS", true, true}
)

// secret is root's password where users are on.
const secret = "secret"

// entry is one cluster that a client is run against.
type entry struct {
	size int
	in   access
}

func (e entry) String() string { return fmt.Sprintf("%d %s", e.size, e.in.name) }

// entries are the clusters that each client is run against; the secured ones only with
// BELAY_CLIENTS=all.
func entries() []entry {
	list := []entry{{1, plain}, {3, plain}}
	if all() {
		list = append(list, entry{1, secured}, entry{3, secured})
	}
	return list
}

// door is a cluster and what its clients need to come in.
type door struct {
	*cluster.Cluster
	in access
	// ca has the certificates "client" for clients and "root" for the test's own calls, which are
	// root's by that name, and "nameless", which has no common name. nil without TLS.
	ca *cluster.Authority
	// user and password of the client; "" without users.
	user, password string
}

// open starts a cluster that ends with the test. The user is root.
func open(t testing.TB, kind cluster.Kind, size int, in access, args ...string) (*door, error) {
	t.Helper()
	d := &door{in: in}
	cfg := cluster.Config{Kind: kind, Size: size, Args: args}
	var err error
	if in.tls {
		if d.ca, err = cluster.NewAuthority(t.TempDir(), "clients"); err != nil {
			return nil, err
		}
		for _, name := range []string{"server", "client", "root", "nameless"} {
			if _, err := d.ca.Issue(name, func(c *x509.Certificate) {
				if name == "nameless" {
					c.Subject = pkix.Name{}
				}
			}); err != nil {
				return nil, err
			}
		}
		if cfg.TLS, err = d.ca.Client("root"); err != nil {
			return nil, err
		}
		cfg.Args = append(cfg.Args, "--cert-file="+d.ca.Cert("server"), "--key-file="+d.ca.Key("server"), "--trusted-ca-file="+d.ca.CA(), "--client-cert-auth")
	}
	if d.Cluster, err = startWith(t, cfg); err != nil || !in.auth {
		return d, err
	}
	c, err := d.dial(d.Endpoints()...) // there are no users yet
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err = c.UserAdd(ctx, "root", secret); err == nil {
		if _, err = c.UserGrantRole(ctx, "root", "root"); err == nil {
			_, err = c.AuthEnable(ctx)
		}
	}
	d.user, d.password = "root", secret
	return d, err
}

// enter is open with a user who may read and write below the prefixes, and no more.
func enter(t testing.TB, e entry, prefixes ...string) *door {
	t.Helper()
	d, err := open(t, checkKind(t), e.size, e.in)
	if err != nil {
		t.Fatal(err)
	}
	if !e.in.auth || len(prefixes) == 0 {
		return d
	}
	c := d.client(t, d.Endpoints()...)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err = c.RoleAdd(ctx, "application")
	for _, prefix := range prefixes {
		if err == nil {
			_, err = c.RoleGrantPermission(ctx, "application", prefix, clientv3.GetPrefixRangeEnd(prefix), clientv3.PermissionType(clientv3.PermReadWrite))
		}
	}
	if err == nil {
		if _, err = c.UserAdd(ctx, "application", "let me in"); err == nil {
			_, err = c.UserGrantRole(ctx, "application", "application")
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	d.user, d.password = "application", "let me in"
	return d
}

// client is etcd's client with the certificate, as the user.
func (d *door) client(t testing.TB, endpoints ...string) *clientv3.Client {
	t.Helper()
	c, err := d.dial(endpoints...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (d *door) dial(endpoints ...string) (*clientv3.Client, error) {
	var cfg *tls.Config
	if d.ca != nil {
		var err error
		if cfg, err = d.ca.Client("client"); err != nil {
			return nil, err
		}
	}
	return clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 10 * time.Second, TLS: cfg, Username: d.user, Password: d.password,
		DialKeepAliveTime: time.Second, DialKeepAliveTimeout: time.Second, Logger: zap.NewNop()})
}

// flags are etcdctl's; with prefix "dest-" those of make-mirror's destination.
func (d *door) flags(prefix string) (flags []string) {
	if d.ca != nil {
		flags = append(flags, "--"+prefix+"cacert="+d.ca.CA(), "--"+prefix+"cert="+d.ca.Cert("client"), "--"+prefix+"key="+d.ca.Key("client"))
		if prefix != "" {
			flags = append(flags, "--"+prefix+"insecure-transport=false")
		}
	}
	if d.user != "" {
		flags = append(flags, "--"+prefix+"user="+d.user+":"+d.password)
	}
	return flags
}
