package datadir

import (
	"context"
	"net/http"
	"time"

	"go.uber.org/zap"
)

// Seeds describe the cluster that a member without data makes or joins.
type Seeds struct {
	InitialCluster string // name=peer-url,...
	Token          string // goes into the members' ids
	// ServerName is the name that peers' certificates must have, as long as this process runs;
	// empty: each its own address.
	ServerName string
	// Join, if not nil, finds the others, waiting for them until ctx ends: InitialCluster is then
	// only this member, and id is computed from it and Token.
	Join func(ctx context.Context, id uint64) (initialCluster string, err error)
}

// A Newcomer is a member without data: what its flags say about it and its cluster.
type Newcomer struct {
	Name  string
	Seeds Seeds
	// Existing: the cluster runs already, and this member was added to it.
	Existing    bool
	MaxLearners int          // that the joined cluster may have
	Client      *http.Client // asks the other members
	Logger      *zap.Logger
}

// OtherURLs are the peer URLs in --initial-cluster that are not this member's; none if it cannot be
// read.
func OtherURLs(name, initialCluster string) (urls []string) {
	members, err := initialMembers(initialCluster, "")
	if err != nil {
		return nil
	}
	for _, m := range members {
		if m.Name != name {
			urls = append(urls, m.PeerURLs...)
		}
	}
	return urls
}

// foundingPatience is how long a start of a new cluster waits for a member that does not run yet.
const foundingPatience = time.Second

// Identify finds the identity of a member without data, in a new cluster or in a running one. It
// asks the other members, and fails if they know this member as one that has run: what it promised
// is gone with its data.
func (n Newcomer) Identify(ctx context.Context) (Identity, error) {
	if n.Logger == nil {
		n.Logger = zap.NewNop()
	}
	id, err := Found(n.Name, n.Seeds.InitialCluster, n.Seeds.Token)
	if err != nil {
		return Identity{}, err
	}
	j := joiner{client: n.Client, logger: n.Logger, timeout: joinTimeout, name: n.Name, maxLearners: n.MaxLearners}
	if n.Existing {
		return j.join(ctx, id.Members)
	}
	j.timeout = foundingPatience
	if as, yes := j.bootstrapped(ctx, id); yes {
		return Identity{}, damaged("member %x has already been bootstrapped", as)
	}
	if n.Seeds.Join == nil {
		return id, nil
	}
	all, err := n.Seeds.Join(ctx, id.Member)
	if err != nil {
		return Identity{}, err
	}
	return Found(n.Name, all, n.Seeds.Token)
}
