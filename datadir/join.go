package datadir

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-semver/semver"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/discovery"
	"github.com/belaydb/belay/internal/version"
	"github.com/belaydb/belay/peers"
)

const (
	// joinTimeout bounds one request to one peer of the cluster that is joined.
	joinTimeout = 10 * time.Second
	// downgradeTimeout bounds the request whether the cluster is being downgraded. An etcd member
	// answers it only with a quorum; and if this member is the second of two there is none until it
	// has joined: the cluster's writes then wait for it, and it must not wait for them.
	downgradeTimeout = time.Second
	// matchTimeout bounds the resolution of host names.
	matchTimeout = 30 * time.Second
	// maxMembersBytes bounds the answer of /members.
	maxMembersBytes = 16 << 20
)

// joiner asks the members of a running cluster, before this member is part of it.
type joiner struct {
	client      *http.Client
	logger      *zap.Logger
	timeout     time.Duration // of one question
	name        string        // of this member
	maxLearners int
}

// running is a cluster as one of its members reports it.
type running struct {
	id      uint64
	members []*command.Member // sorted by id
}

// String is etcd's form.
func (c *running) String() string {
	var members []string
	for _, m := range c.members {
		members = append(members, fmt.Sprintf("&{ID:%x RaftAttributes:{PeerURLs:%v IsLearner:%v} Attributes:{Name:%s ClientURLs:%v}}",
			m.ID, m.PeerURLs, m.IsLearner, m.Name, m.ClientURLs))
	}
	return fmt.Sprintf("{ClusterID:%x Members:[%s] RemovedMemberIDs:[]}", c.id, strings.Join(members, " "))
}

// join finds this member among those of the running cluster: it must have been
// added with `member add` under the same peer URLs, and must not have run yet.
func (j *joiner) join(ctx context.Context, given []*command.Member) (Identity, error) {
	cluster, err := j.ask(ctx, j.others(given), true)
	if err != nil {
		return Identity{}, fmt.Errorf("cannot fetch cluster info from peer urls: %w", err)
	}
	own, err := j.match(ctx, given, cluster)
	if err != nil {
		if len(cluster.members) < len(given) {
			j.logger.Warn("--initial-cluster names more members than the cluster has; was this member added to it? (belay ctl member add NAME --peer-urls=URL)",
				zap.Int("in-cluster", len(cluster.members)), zap.Int("in-initial-cluster", len(given)))
		}
		return Identity{}, fmt.Errorf("error validating peerURLs %s: %w", cluster, err)
	}
	if !j.compatible(ctx, own, cluster) {
		return Identity{}, errors.New("incompatible with current running cluster")
	}
	learners := 0
	for _, m := range cluster.members {
		if m.IsLearner {
			learners++
		}
	}
	if learners > j.maxLearners {
		return Identity{}, errors.New("membership: too many learner members in cluster")
	}
	if started(cluster.members, own) {
		// It ran, and what it promised is gone with its data. etcd lets it join, and it panics on
		// what the leader sends.
		j.logger.Warn("this member has run before and its data is gone: remove it from the cluster and add it again (belay ctl member remove, belay ctl member add)",
			zap.String("local-member-id", command.IDText(own)))
		return Identity{}, damaged("member %x has already been bootstrapped", own)
	}
	return Identity{Member: own, Cluster: cluster.id, Members: cluster.members, Fresh: true, Joining: true}, nil
}

func started(members []*command.Member, id uint64) bool {
	return slices.ContainsFunc(members, func(m *command.Member) bool { return m.ID == id && len(m.ClientURLs) > 0 })
}

// bootstrapped asks the other members of a new cluster whether it runs already and knows this
// member as started: then its data was lost, and a first log would let it vote twice.
// So does a member of the same cluster that ran under these peer URLs and has another id, as one
// that was added or has healed.
func (j *joiner) bootstrapped(ctx context.Context, id Identity) (as uint64, yes bool) {
	cluster, err := j.ask(ctx, j.others(id.Members), false)
	if err != nil {
		return 0, false
	}
	if started(cluster.members, id.Member) {
		return id.Member, true
	}
	own := memberByName(id.Members, j.name)
	for _, m := range cluster.members {
		if cluster.id == id.Cluster && own != nil && len(m.ClientURLs) > 0 && slices.Equal(slices.Sorted(slices.Values(m.PeerURLs)), own.PeerURLs) {
			return m.ID, true
		}
	}
	return 0, false
}

// others are the peer URLs of all but this member.
func (j *joiner) others(members []*command.Member) (urls []string) {
	for _, m := range members {
		if m.Name != j.name {
			urls = append(urls, m.PeerURLs...)
		}
	}
	slices.Sort(urls)
	return urls
}

// match returns the id under which the cluster knows the given member with this name.
func (j *joiner) match(ctx context.Context, given []*command.Member, cluster *running) (own uint64, err error) {
	if len(given) != len(cluster.members) {
		return 0, errors.New("member count is unequal")
	}
	ctx, cancel := context.WithTimeout(ctx, matchTimeout)
	defer cancel()
	for _, m := range cluster.members {
		var last error
		i := slices.IndexFunc(given, func(g *command.Member) bool {
			last = j.sameURLs(ctx, m.PeerURLs, g.PeerURLs)
			return last == nil
		})
		if i < 0 {
			return 0, fmt.Errorf("PeerURLs: no match found for existing member (%x, %v), last resolver error (%w)", m.ID, m.PeerURLs, last)
		}
		if given[i].Name == j.name {
			own = m.ID
		}
	}
	if own == 0 {
		// Two members of the cluster matched one given member.
		return 0, fmt.Errorf("PeerURLs: no member of the cluster has those of %s", j.name)
	}
	return own, nil
}

func (j *joiner) sameURLs(ctx context.Context, a, b []string) error {
	var parsed [2][]url.URL
	for side, texts := range [][]string{a, b} {
		for _, s := range texts {
			u, err := url.Parse(s)
			if err != nil {
				return fmt.Errorf("failed to parse string to URL: %q", s)
			}
			parsed[side] = append(parsed[side], *u)
		}
	}
	return discovery.SameURLs(ctx, j.logger, parsed[0], parsed[1])
}

// ask returns the answer of the first member that gives one. loud: failures are logged.
func (j *joiner) ask(ctx context.Context, peerURLs []string, loud bool) (*running, error) {
	for _, u := range peerURLs {
		address := u + peers.PathMembers
		fail := func(what string, err error) {
			if loud {
				j.logger.Warn(what, zap.String("address", address), zap.Error(err))
			}
		}
		a, err := j.get(ctx, u, peers.PathMembers)
		if err != nil {
			fail("failed to get cluster response", err)
			continue
		}
		var members []*command.Member
		if err := json.Unmarshal(a.Body, &members); err != nil {
			fail("failed to unmarshal cluster response", err)
			continue
		}
		id, err := strconv.ParseUint(a.Header.Get(peers.HeaderCluster), 16, 64)
		if err != nil {
			fail("failed to parse cluster ID", err)
			continue
		}
		if len(members) == 0 {
			return nil, errors.New("failed to get raft cluster member(s) from the given URLs")
		}
		slices.SortFunc(members, func(a, b *command.Member) int {
			return strings.Compare(fmt.Sprintf("%016x", a.ID), fmt.Sprintf("%016x", b.ID))
		})
		return &running{id: id, members: members}, nil
	}
	return nil, errors.New("could not retrieve cluster information from the given URLs")
}

// get asks under one URL, within the timeout of a request.
func (j *joiner) get(ctx context.Context, peerURL, path string) (peers.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, j.timeout)
	defer cancel()
	a, err := peers.At(ctx, j.client, peerURL, peers.Question{Path: path, MaxAnswer: maxMembersBytes})
	if err == nil {
		err = a.OK()
	}
	return a, err
}

// compatible reports whether this version can be a member of the cluster: at least one member must
// have a cluster version in range, and none one out of range. Members may be down.
func (j *joiner) compatible(ctx context.Context, own uint64, cluster *running) bool {
	lowest, highest := semver.New(version.MinCluster), semver.New(version.Etcd)
	highest = &semver.Version{Major: highest.Major, Minor: highest.Minor}
	if j.downgrading(ctx, own, cluster) {
		highest.Minor++
		lowest = highest
	}
	ok := false
	for _, m := range cluster.members {
		if m.ID == own {
			continue
		}
		member := zap.String("remote-member-id", command.IDText(m.ID))
		var told struct {
			Cluster string `json:"etcdcluster"`
		}
		if err := j.askMember(ctx, m, peers.PathVersion, func(body []byte) error { return json.Unmarshal(body, &told) }); err != nil {
			j.logger.Warn("failed to get version", member, zap.Error(err))
			continue
		}
		running, err := semver.NewVersion(told.Cluster)
		switch {
		case err != nil:
			j.logger.Warn("failed to parse cluster version of remote member", member,
				zap.String("remote-member-cluster-version", told.Cluster), zap.Error(err))
			continue
		case running.LessThan(*lowest):
			j.logger.Warn("cluster version of remote member is not compatible; too low", member,
				zap.String("remote-member-cluster-version", running.String()), zap.String("minimum-cluster-version-supported", lowest.String()))
			return false
		case highest.LessThan(*running):
			j.logger.Warn("cluster version of remote member is not compatible; too high", member,
				zap.String("remote-member-cluster-version", running.String()), zap.String("maximum-cluster-version-supported", highest.String()))
			return false
		}
		ok = true
	}
	return ok
}

// downgrading reports whether the cluster is being downgraded: all members are asked at once, and
// the first answer counts. Without an answer in time it returns false.
func (j *joiner) downgrading(ctx context.Context, own uint64, cluster *running) bool {
	ctx, cancel := context.WithTimeout(ctx, downgradeTimeout)
	defer cancel()
	type answer struct {
		from    uint64
		enabled bool
		err     error
	}
	answers := make(chan answer, len(cluster.members))
	asked := 0
	for _, m := range cluster.members {
		if m.ID == own {
			continue
		}
		asked++
		go func() {
			a := answer{from: m.ID}
			a.err = j.askMember(ctx, m, peers.PathDowngradeEnabled, func(body []byte) (err error) {
				a.enabled, err = strconv.ParseBool(string(body))
				return err
			})
			answers <- a
		}()
	}
	for range asked {
		a := <-answers
		if a.err == nil {
			return a.enabled
		}
		j.logger.Warn("failed to get downgrade enabled status", zap.String("remote-member-id", command.IDText(a.from)), zap.Error(a.err))
	}
	return false
}

// askMember asks a member under its URLs until take accepts an answer.
func (j *joiner) askMember(ctx context.Context, m *command.Member, path string, take func([]byte) error) error {
	last := errors.New("the member has no peer URLs")
	for _, u := range m.PeerURLs {
		a, err := j.get(ctx, u, path)
		if err == nil {
			err = take(a.Body)
		}
		if err == nil {
			return nil
		}
		if errors.Is(err, context.Canceled) {
			return err // nobody waits for it any more: another member has answered
		}
		j.logger.Warn("failed to reach the peer URL", zap.String("address", u+path), zap.String("remote-member-id", command.IDText(m.ID)), zap.Error(err))
		last = err
	}
	return last
}
