package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sort"
	"strings"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/datadir"
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

// foundCluster is this member's identity in a cluster of these members.
func foundCluster(name, initialCluster, token string) (identity, error) {
	members, err := initialMembers(initialCluster, token)
	if err != nil {
		return identity{}, err
	}
	own := memberByName(members, name)
	if own == nil {
		return identity{}, fmt.Errorf("couldn't find local name %q in the initial cluster configuration", name)
	}
	return identity{member: own.ID, cluster: clusterID(members), members: members, fresh: true}, nil
}

func memberByName(members []*command.Member, name string) *command.Member {
	if i := slices.IndexFunc(members, func(m *command.Member) bool { return m.Name == name }); i >= 0 {
		return members[i]
	}
	return nil
}

// bootstrap finds out who a member without data is: in a new cluster, or in one
// that runs already.
func (n *Node) bootstrap() (identity, error) {
	ctx := context.Background()
	seeds := Seeds{InitialCluster: n.cfg.InitialCluster, Token: n.cfg.InitialClusterToken}
	if n.cfg.Seeds != nil {
		var err error
		if seeds, err = n.cfg.Seeds(ctx); err != nil {
			return identity{}, err
		}
	}
	n.peerServerName = seeds.ServerName
	client := n.peerClient(time.Second + n.electionTimeout())
	defer client.CloseIdleConnections()
	id, err := foundCluster(n.cfg.Name, seeds.InitialCluster, seeds.Token)
	if err != nil {
		return identity{}, err
	}
	j := joiner{client: client, logger: n.logger, timeout: joinTimeout, name: n.cfg.Name, maxLearners: n.cfg.MaxLearners}
	if n.cfg.JoinExisting {
		return j.join(ctx, id.members)
	}
	j.timeout = time.Second // so long every start of a new cluster waits for members that do not run yet
	if j.bootstrapped(ctx, id) {
		return identity{}, fmt.Errorf("member %x has already been bootstrapped", id.member)
	}
	if seeds.Join == nil {
		return id, nil
	}
	all, err := seeds.Join(ctx, id.member)
	if err != nil {
		return identity{}, err
	}
	return foundCluster(n.cfg.Name, all, seeds.Token)
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
	return datadir.SyncDir(fs, fs.PathDir(dir))
}

func urlStrings(urls []url.URL) []string {
	out := make([]string, len(urls))
	for i := range urls {
		out[i] = urls[i].String()
	}
	return out
}
