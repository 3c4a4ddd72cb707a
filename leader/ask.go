package leader

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/peers"
)

// Versions is the answer of /version. The first three fields are etcd's.
type Versions struct {
	Server  string `json:"etcdserver"`
	Cluster string `json:"etcdcluster"`
	Storage string `json:"storage"`
	Belay   string `json:"belay,omitempty"` // empty: not one of ours
}

// ErrNoCompactionHash answers a peer that asks for the hash of a compaction that this process has
// not done, or no longer keeps.
var ErrNoCompactionHash = errors.New("no hash of a compaction of this revision is kept")

var errNoWay = errors.New("server: no way to other members")

// Members is what a member knows about the others, and how it reaches them.
type Members struct {
	MemberID, ClusterID uint64
	All                 func() []*command.Member // this one included
	Client              *http.Client             // nil: they cannot be reached
	Logger              *zap.Logger              // required
}

// others are the members that can be asked.
func (m *Members) others() (members []*command.Member) {
	for _, o := range m.All() {
		if o.ID != m.MemberID && len(o.PeerURLs) > 0 {
			members = append(members, o)
		}
	}
	return members
}

// versions asks all other members for their versions at the same time; those that do not answer
// have nil.
func (m *Members) versions(ctx context.Context) map[uint64]*Versions {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		found = make(map[uint64]*Versions)
	)
	for _, o := range m.All() {
		if o.ID == m.MemberID {
			continue
		}
		wg.Go(func() {
			v, err := m.versionOf(ctx, o)
			if err != nil {
				m.Logger.Warn("failed to get version", zap.String("remote-member-id", command.IDText(o.ID)), zap.Error(err))
			}
			mu.Lock()
			found[o.ID] = v
			mu.Unlock()
		})
	}
	wg.Wait()
	return found
}

func (m *Members) versionOf(ctx context.Context, o *command.Member) (*Versions, error) {
	if m.Client == nil {
		return nil, errNoWay
	}
	lastErr := errors.New("server: member has no peer URLs")
	for _, u := range o.PeerURLs {
		v, err := m.versionAt(ctx, u)
		if err == nil {
			return v, nil
		}
		m.Logger.Warn("failed to reach the peer URL", zap.String("address", strings.TrimSuffix(u, "/")+peers.PathVersion),
			zap.String("remote-member-id", command.IDText(o.ID)), zap.Error(err))
		lastErr = err
	}
	return nil, lastErr
}

func (m *Members) versionAt(ctx context.Context, peerURL string) (*Versions, error) {
	a, err := peers.At(ctx, m.Client, peerURL, peers.Question{Path: peers.PathVersion})
	if err != nil {
		return nil, err
	}
	var v Versions
	if err := json.Unmarshal(a.Body, &v); err != nil {
		return nil, fmt.Errorf("answer of %s: %w", a.URL, err)
	}
	return &v, nil
}

// hashes asks all other members for the hash of a revision at the same time; of is the kind of
// hash.
func (m *Members) hashes(ctx context.Context, rev int64, of string, patience time.Duration) []peerHash {
	members := m.others()
	answers := make([]peerHash, len(members))
	var wg sync.WaitGroup
	for i, o := range members {
		wg.Go(func() {
			a := &answers[i]
			a.id, a.endpoints = o.ID, o.PeerURLs
			for _, u := range o.PeerURLs {
				bounded, cancel := context.WithTimeout(ctx, patience)
				a.covered, a.current, a.err = m.hashAt(bounded, u, rev, of)
				cancel()
				if a.err == nil {
					return
				}
				// A member that did not keep a compaction's hash, or that is behind, is no failure.
				say := m.Logger.Warn
				if of == peers.HashOfCompaction {
					say = m.Logger.Debug
				}
				say("failed hash kv request", zap.String("local-member-id", command.IDText(m.MemberID)),
					zap.Int64("requested-revision", rev), zap.String("remote-peer-endpoint", u), zap.Error(a.err))
			}
		})
	}
	wg.Wait()
	return answers
}

// hashAt asks the member behind a peer URL.
func (m *Members) hashAt(ctx context.Context, peerURL string, rev int64, of string) (h covered, current int64, err error) {
	if m.Client == nil {
		return h, 0, errNoWay
	}
	body, err := json.Marshal(&pb.HashKVRequest{Revision: rev})
	if err != nil {
		return h, 0, err
	}
	header := http.Header{}
	header.Set("Content-Type", "application/json")
	header.Set(peers.HeaderCluster, command.IDText(m.ClusterID))
	header.Set(peers.HeaderHashOf, of)
	a, err := peers.At(ctx, m.Client, peerURL, peers.Question{Path: peers.PathHashKV, Header: header, Body: body})
	if err != nil {
		return h, 0, err
	}
	text := string(a.Body)
	switch {
	case a.Status == http.StatusBadRequest && strings.Contains(text, mvcc.ErrCompacted.Error()):
		return h, 0, rpctypes.ErrCompacted
	case a.Status == http.StatusBadRequest && strings.Contains(text, mvcc.ErrFutureRev.Error()):
		return h, 0, rpctypes.ErrFutureRev
	case a.Status == http.StatusBadRequest && strings.Contains(text, ErrNoCompactionHash.Error()):
		return h, 0, ErrNoCompactionHash
	case a.Status == http.StatusPreconditionFailed && strings.Contains(text, "cluster ID mismatch"):
		return h, 0, rpctypes.ErrClusterIDMismatch
	case a.Status != http.StatusOK:
		return h, 0, fmt.Errorf("unknown error: %s", strings.TrimSpace(text))
	}
	var r pb.HashKVResponse
	if err := json.Unmarshal(a.Body, &r); err != nil {
		return h, 0, err
	}
	return covered{rev, r.CompactRevision, r.Hash}, r.Header.GetRevision(), nil
}
