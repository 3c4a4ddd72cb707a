package command

import (
	"crypto/sha1"
	"encoding/binary"
	"slices"
	"strconv"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Member is one member of the cluster. Its JSON is etcd's (membership.Member), as stored in etcd's
// `members` bucket and as carried by conf changes.
type Member struct {
	ID         uint64   `json:"id"`
	PeerURLs   []string `json:"peerURLs"`
	IsLearner  bool     `json:"isLearner,omitempty"`
	Name       string   `json:"name,omitempty"` // empty until the member has started once and published itself
	ClientURLs []string `json:"clientURLs,omitempty"`
}

// Clone returns a copy that shares no memory; nil for nil.
func (m *Member) Clone() *Member {
	if m == nil {
		return nil
	}
	c := *m
	c.PeerURLs = slices.Clone(m.PeerURLs)
	c.ClientURLs = slices.Clone(m.ClientURLs)
	return &c
}

// IsStarted reports whether the member has ever published its name and URLs.
func (m *Member) IsStarted() bool { return m.Name != "" }

// Proto is the member as the Cluster service answers it. It shares memory with m.
func (m *Member) Proto() *pb.Member {
	return &pb.Member{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, IsLearner: m.IsLearner}
}

// MemberID is etcd's id of a member: the first eight bytes of the SHA-1 of its sorted peer URLs,
// the cluster token and, for a member added to a running cluster, the time in decimal Unix seconds.
func MemberID(peerURLs []string, clusterToken string, now *time.Time) uint64 {
	var b []byte
	for _, u := range slices.Sorted(slices.Values(peerURLs)) {
		b = append(b, u...)
	}
	b = append(b, clusterToken...)
	if now != nil {
		b = strconv.AppendInt(b, now.Unix(), 10)
	}
	sum := sha1.Sum(b)
	return binary.BigEndian.Uint64(sum[:8])
}

// ClusterID is etcd's id of a cluster: the first eight bytes of the SHA-1 of the sorted ids of its
// first members.
func ClusterID(memberIDs []uint64) uint64 {
	var b []byte
	for _, id := range slices.Sorted(slices.Values(memberIDs)) {
		b = binary.BigEndian.AppendUint64(b, id)
	}
	sum := sha1.Sum(b)
	return binary.BigEndian.Uint64(sum[:8])
}

// Quorum is how many of the voters decide: more than half of them.
func Quorum(voters int) int { return voters/2 + 1 }

// IDText is the id of a member, a cluster or a raft log as etcd's logs, metrics and headers have
// ids: in hexadecimal, without padding.
func IDText(id uint64) string { return strconv.FormatUint(id, 16) }
