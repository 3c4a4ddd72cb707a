package cache

import (
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// A mark is a barrier that was answered.
type mark struct {
	sent     time.Duration
	revision int64
}

// marks are those of the last Config.Staleness, ascending: whoever has a mark's revision knows of
// all that was acknowledged before it was sent.
type marks []mark

// marksCount bounds the marks: within the staleness there is one for each such part of it.
const marksCount = 16

func (ms *marks) add(m mark, staleness time.Duration) {
	all := *ms
	n := len(all)
	switch {
	case n > 0 && m.revision < all[n-1].revision:
		return // a member that answered late; the one before says more
	case n > 0 && m.revision == all[n-1].revision:
		all[n-1].sent = m.sent
	case n > 1 && all[n-1].sent-all[n-2].sent < staleness/marksCount:
		all[n-1] = m
	default:
		all = append(all, m)
	}
	for len(all) > 1 && m.sent-all[0].sent > staleness {
		all = all[1:]
	}
	*ms = all
}

// never is before any time: of what was not.
const never = -1 << 62

// freshAt is when the newest barrier was sent that is not above a revision.
func (ms marks) freshAt(revision int64) time.Duration {
	for i := len(ms) - 1; i >= 0; i-- {
		if ms[i].revision <= revision {
			return ms[i].sent
		}
	}
	return never
}

// A speaker is the member whose headers answers have.
type speaker struct {
	header  *pb.ResponseHeader // its revision is not used
	changes int64
}

func (s *speaker) is(h *pb.ResponseHeader) {
	if h == nil {
		return
	}
	if old := s.header; old == nil || old.ClusterId != h.ClusterId || old.MemberId != h.MemberId || old.RaftTerm != h.RaftTerm {
		s.header = h
		s.changes++
	}
}

// head is the header of an area's answers as it is on the wire.
func (s *speaker) head(a *area) []byte {
	if a.headAt == a.at && a.headChanges == s.changes && a.head != nil {
		return a.head
	}
	h := &pb.ResponseHeader{ClusterId: s.header.GetClusterId(), MemberId: s.header.GetMemberId(), RaftTerm: s.header.GetRaftTerm(), Revision: a.at}
	b, err := proto.Marshal(h)
	if err != nil {
		panic(err) // four numbers
	}
	a.head = protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), b)
	a.headAt, a.headChanges = a.at, s.changes
	return a.head
}
