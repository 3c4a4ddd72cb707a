package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/raftlog"
)

// identity is who this member is in which cluster.
type identity struct {
	member, cluster uint64
	// members are the cluster's, as far as known before the state machine knows
	// them: from --initial-cluster or from the running cluster that is joined.
	members []*command.Member
	// fresh: there was no log and this start makes the first one.
	fresh bool
	// joining: the members exist already and this one learns the state from them.
	joining bool
}

// initialMembers turns --initial-cluster into members with their ids, sorted by
// id, as every member of a new cluster computes them alike.
func initialMembers(initialCluster, token string) ([]*command.Member, error) {
	byName := map[string][]string{}
	for _, part := range strings.Split(initialCluster, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, u, ok := strings.Cut(part, "=")
		if !ok || name == "" || u == "" {
			return nil, fmt.Errorf("--initial-cluster: %q is not of the form name=peer-url", part)
		}
		byName[name] = append(byName[name], u)
	}
	if len(byName) == 0 {
		return nil, errors.New("initial cluster unset and no discovery endpoints found")
	}
	var members []*command.Member
	for name, urls := range byName {
		sort.Strings(urls)
		members = append(members, &command.Member{
			ID: command.MemberID(urls, token, nil), Name: name, PeerURLs: urls,
		})
	}
	slices.SortFunc(members, func(a, b *command.Member) int {
		return strings.Compare(fmt.Sprintf("%016x", a.ID), fmt.Sprintf("%016x", b.ID))
	})
	seen := map[string]bool{}
	for i, m := range members {
		for _, u := range m.PeerURLs {
			if seen[u] {
				return nil, fmt.Errorf("initial cluster %q has duplicate url", initialCluster)
			}
			seen[u] = true
		}
		if i > 0 && m.ID == members[i-1].ID {
			return nil, fmt.Errorf("initial cluster %q has two members with the id %x", initialCluster, m.ID)
		}
	}
	return members, nil
}

func clusterID(members []*command.Member) uint64 {
	ids := make([]uint64, len(members))
	for i, m := range members {
		ids[i] = m.ID
	}
	return command.ClusterID(ids)
}

// newCluster computes this member's identity in a cluster that does not exist
// yet.
func newCluster(cfg *Config) (identity, error) {
	members, err := initialMembers(cfg.InitialCluster, cfg.InitialClusterToken)
	if err != nil {
		return identity{}, err
	}
	i := slices.IndexFunc(members, func(m *command.Member) bool { return m.Name == cfg.Name })
	if i < 0 {
		return identity{}, fmt.Errorf("couldn't find local name %q in the initial cluster configuration", cfg.Name)
	}
	own := members[i]
	return identity{member: own.ID, cluster: clusterID(members), members: members, fresh: true}, nil
}

// writeFirstLog makes the log of a new cluster: one AddNode entry for each
// member, committed. It is written beside its place and renamed into it, so a
// log that exists is either complete or that of a member that joined.
func writeFirstLog(dir string, opts raftlog.Options, id identity) error {
	fs := opts.FS
	temporary := dir + ".new"
	if err := fs.RemoveAll(temporary); err != nil {
		return err
	}
	var entries []*raftpb.Entry
	for i, m := range id.members {
		context, err := json.Marshal(&command.Member{ID: m.ID, PeerURLs: m.PeerURLs, Name: m.Name})
		if err != nil {
			return err
		}
		data, err := proto.Marshal(&raftpb.ConfChange{
			Type: raftpb.ConfChangeAddNode.Enum(), NodeId: new(m.ID), Context: context,
		})
		if err != nil {
			return err
		}
		entries = append(entries, &raftpb.Entry{
			Type: raftpb.EntryConfChange.Enum(), Term: new(uint64(1)), Index: new(uint64(i + 1)), Data: data,
		})
	}
	opts.Released = func([]*raftpb.Message) {}
	log, err := raftlog.Open(temporary, opts)
	if err != nil {
		return err
	}
	log.Append(raftlog.Append{
		HardState: &raftpb.HardState{Term: new(uint64(1)), Vote: new(uint64(0)), Commit: new(uint64(len(entries)))},
		Entries:   entries,
	})
	if err := errors.Join(log.Sync(context.Background()), log.Close()); err != nil {
		return err
	}
	if err := fs.Rename(temporary, dir); err != nil {
		return err
	}
	return syncDir(fs, fs.PathDir(dir))
}

// joinTimeout bounds one question to one peer of the cluster that is joined.
const joinTimeout = 5 * time.Second

// joinCluster asks the running members of --initial-cluster who this member is:
// it must have been added with `member add` under the same peer URLs.
func joinCluster(cfg *Config, client *http.Client, logger *zap.Logger) (identity, error) {
	given, err := initialMembers(cfg.InitialCluster, cfg.InitialClusterToken)
	if err != nil {
		return identity{}, err
	}
	i := slices.IndexFunc(given, func(m *command.Member) bool { return m.Name == cfg.Name })
	if i < 0 {
		return identity{}, fmt.Errorf("couldn't find local name %q in the initial cluster configuration", cfg.Name)
	}
	own := given[i]
	var cluster uint64
	var running []*command.Member
	for _, m := range given {
		if m == own {
			continue
		}
		for _, u := range m.PeerURLs {
			cluster, running, err = fetchMembers(client, u)
			if err == nil {
				break
			}
			logger.Warn("failed to get cluster info from peer", zap.String("address", u), zap.Error(err))
		}
		if running != nil {
			break
		}
	}
	if running == nil {
		return identity{}, errors.New("cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs")
	}
	if len(running) != len(given) {
		return identity{}, fmt.Errorf("error validating peerURLs {ClusterID:%x Members:[%s] RemovedMemberIDs:[]}: member count is unequal: the cluster has %d members, --initial-cluster names %d; add this one first with: belay ctl member add %s --peer-urls=%s",
			cluster, memberStrings(running), len(running), len(given), cfg.Name, strings.Join(own.PeerURLs, ","))
	}
	id := identity{cluster: cluster, members: running, fresh: true, joining: true}
	for _, m := range running {
		urls := slices.Clone(m.PeerURLs)
		sort.Strings(urls)
		match := slices.IndexFunc(given, func(g *command.Member) bool { return slices.Equal(g.PeerURLs, urls) })
		if match < 0 {
			return identity{}, fmt.Errorf("error validating peerURLs {ClusterID:%x Members:[%s] RemovedMemberIDs:[]}: PeerURLs: no match found for existing member (%x, %v), last resolver error (%v)",
				cluster, memberStrings(running), m.ID, m.PeerURLs, nil)
		}
		if given[match] == own {
			id.member = m.ID
		}
	}
	if id.member == 0 {
		return identity{}, fmt.Errorf("the cluster has no member with the peer urls %s; add it first with: belay ctl member add %s --peer-urls=%s",
			strings.Join(own.PeerURLs, ","), cfg.Name, strings.Join(own.PeerURLs, ","))
	}
	return id, nil
}

func memberStrings(members []*command.Member) string {
	var b bytes.Buffer
	for i, m := range members {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "&{ID:%x RaftAttributes:{PeerURLs:%v IsLearner:%v} Attributes:{Name:%s ClientURLs:%v}}",
			m.ID, m.PeerURLs, m.IsLearner, m.Name, m.ClientURLs)
	}
	return b.String()
}

// maxMembersBytes bounds the answer of /members.
const maxMembersBytes = 16 << 20

func fetchMembers(client *http.Client, peerURL string) (cluster uint64, members []*command.Member, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), joinTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, peerURL+"/members", nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxMembersBytes))
	if err != nil {
		return 0, nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return 0, nil, fmt.Errorf("%s/members answered %s: %.100s", peerURL, resp.Status, body)
	}
	if err := json.Unmarshal(body, &members); err != nil {
		return 0, nil, fmt.Errorf("%s/members: %w", peerURL, err)
	}
	cluster, err = strconv.ParseUint(resp.Header.Get("X-Etcd-Cluster-ID"), 16, 64)
	if err != nil {
		return 0, nil, fmt.Errorf("%s/members has no valid X-Etcd-Cluster-ID: %w", peerURL, err)
	}
	if len(members) == 0 {
		return 0, nil, fmt.Errorf("%s/members: the member has not learned the cluster's members yet", peerURL)
	}
	return cluster, members, nil
}

func urlStrings(urls []url.URL) []string {
	out := make([]string, len(urls))
	for i := range urls {
		out[i] = urls[i].String()
	}
	return out
}
