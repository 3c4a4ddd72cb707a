package embed

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/embed/internal/local"
)

// Options of Start and StartCluster. The zero value is a member in memory that only Client reaches.
type Options struct {
	// Name is the member's; empty: "belay". The members of StartCluster have a number behind it.
	Name string
	// Dir is the data directory; of StartCluster, where each member has one. What it holds from an
	// earlier start is gone on with. Empty: the data is in memory, and gone with the member.
	Dir string
	// ClientURLs are where others reach the member, as of --listen-client-urls. Port 0 is one that
	// the system chooses; Endpoints tells it. Empty: nowhere but by Client. StartCluster takes only
	// URLs with port 0.
	ClientURLs []string
	// PeerURLs are where members of other processes reach this one, which Flags then have to name in
	// --initial-cluster, with the port. Empty: nowhere. StartCluster takes none.
	PeerURLs []string
	// Flags are more of `belay server`'s, each as --name=value, such as
	// --quota-backend-bytes=8589934592. An error names those that Options have a field for.
	Flags []string
	// Logger gets what `belay server` logs; nil: nobody does.
	Logger *zap.Logger
}

// A Member is a server that runs in this process. It may be used from any goroutine.
type Member struct{ m *local.Member }

// Start runs one member and returns when it serves. If it fails, also because ctx ends, nothing is
// left running.
func Start(ctx context.Context, o Options) (*Member, error) {
	if o.Name == "" {
		o.Name = "belay"
	}
	network := local.NewNetwork()
	spec := o.spec(o.Name, o.Dir, network, network.Host())
	if len(o.PeerURLs) == 0 {
		spec.Initial = o.Name + "=" + local.PeerURL(spec.Host)
	}
	m, err := begin(ctx, spec)
	if err != nil {
		return nil, err
	}
	if err := m.Ready(ctx); err != nil {
		m.Stop()
		return nil, fmt.Errorf("embed: %w", err)
	}
	return &Member{m}, nil
}

func (o *Options) spec(name, dir string, network *local.Network, host string) local.Spec {
	s := local.Spec{
		Name: name, Dir: dir, Flags: o.Flags, Logger: o.Logger, Network: network, Host: host,
		PeerURLs: o.PeerURLs, ClientURLs: o.ClientURLs,
	}
	if dir == "" {
		s.Dir, s.FS = "/"+name, vfs.NewMem()
	}
	if o.Logger == nil {
		s.Logger = zap.NewNop()
	}
	s.Logger = s.Logger.With(zap.String("member", name))
	return s
}

func begin(ctx context.Context, s local.Spec) (*local.Member, error) {
	m, err := local.Start(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("embed: member %s: %w", s.Name, err)
	}
	return m, nil
}

// Name is the member's.
func (m *Member) Name() string { return m.m.Name }

// ID is the member's, as `endpoint status` shows it.
func (m *Member) ID() uint64 { return m.m.ID() }

// Leader is the ID of the member that this one follows, or its own; 0: none.
func (m *Member) Leader() uint64 { return m.m.Leader() }

// Endpoints are the member's client URLs, with the ports that it has. Without Options.ClientURLs
// they are names that only Client knows.
func (m *Member) Endpoints() []string { return m.m.Endpoints() }

// Client makes a client of this member; close it. It gives no certificate: make one by clientv3 of
// Endpoints where the flags ask for it.
func (m *Member) Client() (*clientv3.Client, error) { return local.Client(m.m) }

// Stop ends the member in order: it hands leadership over if others are there, lets open calls end,
// and makes what was applied durable. It returns when that is done, and may be called twice.
func (m *Member) Stop() { m.m.Stop() }

// Done is closed when the member has ended, by Stop or by itself: it was removed from its cluster,
// or its disk failed.
func (m *Member) Done() <-chan struct{} { return m.m.Done() }

// Err is why the member ended by itself; nil while it runs, and after Stop.
func (m *Member) Err() error { return m.m.Err() }

// A Cluster is members of this process that are the whole cluster. It may be used from any
// goroutine.
type Cluster struct{ members []*Member }

// maxMembers is more than any use has for members.
const maxMembers = 9

// StartCluster runs size members that reach each other inside this process, and returns when all
// serve. If it fails, also because ctx ends, nothing is left running.
func StartCluster(ctx context.Context, size int, o Options) (_ *Cluster, err error) {
	if size < 1 || size > maxMembers {
		return nil, fmt.Errorf("embed: a cluster of %d members: it must be 1 to %d", size, maxMembers)
	}
	if len(o.PeerURLs) > 0 {
		return nil, errors.New("embed: StartCluster takes no PeerURLs: its members reach each other inside the process")
	}
	for _, u := range o.ClientURLs {
		if !strings.HasSuffix(u, ":0") {
			return nil, fmt.Errorf("embed: StartCluster cannot have all members listen on %s: give port 0", u)
		}
	}
	if o.Name == "" {
		o.Name = "belay"
	}
	network := local.NewNetwork()
	var names, hosts, initial []string
	for i := range size {
		names, hosts = append(names, fmt.Sprintf("%s%d", o.Name, i+1)), append(hosts, network.Host())
		initial = append(initial, names[i]+"="+local.PeerURL(hosts[i]))
	}
	c := &Cluster{}
	defer func() {
		if err != nil {
			c.Stop()
		}
	}()
	for i, name := range names {
		dir := ""
		if o.Dir != "" {
			dir = filepath.Join(o.Dir, name)
		}
		spec := o.spec(name, dir, network, hosts[i])
		spec.Initial = strings.Join(initial, ",")
		m, err := begin(ctx, spec)
		if err != nil {
			return nil, err
		}
		c.members = append(c.members, &Member{m})
	}
	for _, m := range c.members {
		if err := m.m.Ready(ctx); err != nil {
			return nil, fmt.Errorf("embed: %w", err)
		}
	}
	return c, nil
}

// Members are the cluster's, in the order of their names.
func (c *Cluster) Members() []*Member { return slices.Clone(c.members) }

// Client makes a client of all members; close it.
func (c *Cluster) Client() (*clientv3.Client, error) {
	var members []*local.Member
	for _, m := range c.members {
		members = append(members, m.m)
	}
	return local.Client(members...)
}

// Endpoints are the client URLs of all members; see Member.Endpoints.
func (c *Cluster) Endpoints() (urls []string) {
	for _, m := range c.members {
		urls = append(urls, m.Endpoints()...)
	}
	return urls
}

// Stop ends all members, each as its Stop does.
func (c *Cluster) Stop() {
	var stopping sync.WaitGroup
	for _, m := range c.members {
		stopping.Go(m.Stop)
	}
	stopping.Wait()
}
