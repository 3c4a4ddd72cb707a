package ctl

import (
	"fmt"
	"strconv"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/internal/show"
)

// hexHeader and hexMember are header and member with IDs in hexadecimal, for json with --hex.
type hexHeader struct {
	ClusterID string `json:"cluster_id"`
	MemberID  string `json:"member_id"`
	Revision  int64  `json:"revision,omitempty"`
	RaftTerm  uint64 `json:"raft_term,omitempty"`
}

type hexMember struct {
	ID         string   `json:"ID"`
	Name       string   `json:"name,omitempty"`
	PeerURLs   []string `json:"peerURLs,omitempty"`
	ClientURLs []string `json:"clientURLs,omitempty"`
	IsLearner  bool     `json:"isLearner,omitempty"`
}

// hexMembers is the answer of any member command.
type hexMembers struct {
	Header  *hexHeader   `json:"header"`
	Member  *hexMember   `json:"member,omitempty"` // of member add
	Members []*hexMember `json:"members"`
}

func hexHeaderOf(h *pb.ResponseHeader) *hexHeader {
	if h == nil {
		return nil
	}
	return &hexHeader{
		ClusterID: fmt.Sprintf("%x", h.GetClusterId()), MemberID: fmt.Sprintf("%x", h.GetMemberId()),
		Revision: h.GetRevision(), RaftTerm: h.GetRaftTerm(),
	}
}

func hexMemberOf(m *pb.Member) *hexMember {
	if m == nil {
		return nil
	}
	return &hexMember{
		ID: fmt.Sprintf("%x", m.GetID()), Name: m.GetName(),
		PeerURLs: m.GetPeerURLs(), ClientURLs: m.GetClientURLs(), IsLearner: m.GetIsLearner(),
	}
}

// memberJSON is nil, meaning the message itself, unless IDs are wanted in hexadecimal.
func (o *output) memberJSON(h *pb.ResponseHeader, added *pb.Member, members []*pb.Member) any {
	if !o.hex {
		return nil
	}
	j := &hexMembers{Header: hexHeaderOf(h), Member: hexMemberOf(added), Members: make([]*hexMember, len(members))}
	for i, m := range members {
		j.Members[i] = hexMemberOf(m)
	}
	return j
}

func (o *output) memberAdd(name, peerURLs string, r *pb.MemberAddResponse) reply {
	return reply{
		raw:  r,
		json: o.memberJSON(r.GetHeader(), r.GetMember(), r.GetMembers()),
		simple: func(p *page) {
			as := " "
			if r.GetMember().GetIsLearner() {
				as = " as learner "
			}
			p.printf("Member %16x added%sto cluster %16x\n", r.GetMember().GetID(), as, r.GetHeader().GetClusterId())

			// The environment that the new member needs.
			var initial []string
			for _, m := range r.GetMembers() {
				n := m.GetName()
				if m.GetID() == r.GetMember().GetID() {
					n = name
				}
				for _, u := range m.GetPeerURLs() {
					initial = append(initial, n+"="+u)
				}
			}
			p.line()
			p.printf("ETCD_NAME=%q\n", name)
			p.printf("ETCD_INITIAL_CLUSTER=%q\n", strings.Join(initial, ","))
			p.printf("ETCD_INITIAL_ADVERTISE_PEER_URLS=%q\n", peerURLs)
			p.printf("ETCD_INITIAL_CLUSTER_STATE=\"existing\"\n")
		},
	}
}

// memberChanged is the answer of remove, update and promote.
func (o *output) memberChanged(id uint64, done string, raw any, h *pb.ResponseHeader, members []*pb.Member) reply {
	return reply{
		raw:    raw,
		json:   o.memberJSON(h, nil, members),
		simple: func(p *page) { p.printf("Member %16x %s cluster %16x\n", id, done, h.GetClusterId()) },
	}
}

func (o *output) memberList(r *pb.MemberListResponse) reply {
	rows := [][]string{{"ID", "Status", "Name", "Peer Addrs", "Client Addrs", "Is Learner"}}
	for _, m := range r.GetMembers() {
		status := "started"
		if m.GetName() == "" {
			status = "unstarted" // a member publishes its name when it starts
		}
		rows = append(rows, []string{
			fmt.Sprintf("%x", m.GetID()), status, m.GetName(),
			strings.Join(m.GetPeerURLs(), ","), strings.Join(m.GetClientURLs(), ","), strconv.FormatBool(m.GetIsLearner()),
		})
	}
	return reply{
		raw:    r,
		json:   o.memberJSON(r.GetHeader(), nil, r.GetMembers()),
		simple: commaLines(rows),
		table:  func() [][]string { return rows },
		fields: func(p *page) {
			p.header(r.GetHeader())
			for _, m := range r.GetMembers() {
				p.id("ID", m.GetID())
				p.quoted("Name", m.GetName())
				for _, u := range m.GetPeerURLs() {
					p.quoted("PeerURL", u)
				}
				for _, u := range m.GetClientURLs() {
					p.quoted("ClientURL", u)
				}
				p.field("IsLearner", m.GetIsLearner())
				p.line()
			}
		},
	}
}

// commaLines prints a table's data rows as comma separated lines.
func commaLines(rows [][]string) func(p *page) {
	return func(p *page) {
		for _, row := range rows[1:] {
			p.line(strings.Join(row, ", "))
		}
	}
}

// The answers of the endpoint commands, one for each endpoint.
type (
	endpointHealth struct {
		Endpoint string `json:"endpoint"`
		Health   bool   `json:"health"`
		Took     string `json:"took"`
		Error    string `json:"error,omitempty"`
	}
	endpointStatus struct {
		Endpoint string                   `json:"Endpoint"`
		Status   *clientv3.StatusResponse `json:"Status"`
		Wide     *wideStatus              `json:"Wide,omitempty"`
	}
	endpointHash struct {
		Endpoint string                   `json:"Endpoint"`
		HashKV   *clientv3.HashKVResponse `json:"HashKV"`
	}
)

func healthReply(list []endpointHealth) reply {
	return reply{
		json: list,
		simple: func(p *page) {
			for _, h := range list {
				if h.Error == "" {
					p.printf("%s is healthy: successfully committed proposal: took = %v\n", h.Endpoint, h.Took)
				} else {
					fmt.Fprintf(&p.err, "%s is unhealthy: failed to commit proposal: %v\n", h.Endpoint, h.Error)
				}
			}
		},
		table: func() [][]string {
			rows := [][]string{{"endpoint", "health", "took", "error"}}
			for _, h := range list {
				rows = append(rows, []string{h.Endpoint, strconv.FormatBool(h.Health), h.Took, h.Error})
			}
			return rows
		},
		fields: func(p *page) {
			for _, h := range list {
				p.quoted("Endpoint", h.Endpoint)
				p.field("Health", h.Health)
				p.field("Took", h.Took)
				p.field("Error", h.Error)
				p.line()
			}
		},
	}
}

func statusReply(list []endpointStatus, wide bool) reply {
	rows := [][]string{{
		"endpoint", "ID", "version", "storage version", "db size", "in use", "percentage not in use", "quota", "is leader", "is learner",
		"raft term", "raft index", "raft applied index", "errors", "downgrade target version", "downgrade enabled",
	}}
	for _, e := range list {
		s := (*pb.StatusResponse)(e.Status)
		rows = append(rows, []string{
			e.Endpoint,
			fmt.Sprintf("%x", s.GetHeader().GetMemberId()),
			s.GetVersion(),
			s.GetStorageVersion(),
			show.Bytes(s.GetDbSize()),
			show.Bytes(s.GetDbSizeInUse()),
			fmt.Sprintf("%d%%", percentFree(s.GetDbSize(), s.GetDbSizeInUse())),
			show.Bytes(s.GetDbSizeQuota()),
			strconv.FormatBool(s.GetLeader() == s.GetHeader().GetMemberId()),
			strconv.FormatBool(s.GetIsLearner()),
			strconv.FormatUint(s.GetRaftTerm(), 10),
			strconv.FormatUint(s.GetRaftIndex(), 10),
			strconv.FormatUint(s.GetRaftAppliedIndex(), 10),
			strings.Join(s.GetErrors(), ", "),
			s.GetDowngradeInfo().GetTargetVersion(),
			strconv.FormatBool(s.GetDowngradeInfo().GetEnabled()),
		})
	}
	if wide {
		rows[0] = append(rows[0], wideColumns...)
		for i, e := range list {
			rows[i+1] = append(rows[i+1], e.Wide.row()...)
		}
	}
	return reply{
		json:   list,
		simple: commaLines(rows),
		table:  func() [][]string { return rows },
		fields: func(p *page) {
			for _, e := range list {
				s := (*pb.StatusResponse)(e.Status)
				p.header(s.GetHeader())
				p.quoted("Version", s.GetVersion())
				p.quoted("StorageVersion", s.GetStorageVersion())
				p.field("DBSize", s.GetDbSize())
				p.field("DBSizeInUse", s.GetDbSizeInUse())
				p.field("DBSizeQuota", s.GetDbSizeQuota())
				p.field("Leader", s.GetLeader())
				p.field("IsLearner", s.GetIsLearner())
				p.field("RaftIndex", s.GetRaftIndex())
				p.field("RaftAppliedIndex", s.GetRaftAppliedIndex())
				p.field("Errors", s.GetErrors())
				p.quoted("Endpoint", e.Endpoint)
				p.quoted("DowngradeTargetVersion", s.GetDowngradeInfo().GetTargetVersion())
				p.field("DowngradeEnabled", s.GetDowngradeInfo().GetEnabled())
				if wide {
					e.Wide.fields(p)
				}
				p.line()
			}
		},
	}
}

// percentFree is the unused share of the database file: 0 for a server that reports no size, where
// etcdctl divides by zero.
func percentFree(size, inUse int64) int64 {
	if size <= 0 {
		return 0
	}
	return 100 - inUse*100/size
}

func hashReply(list []endpointHash) reply {
	rows := [][]string{{"endpoint", "hash", "hash_revision"}}
	for _, e := range list {
		h := (*pb.HashKVResponse)(e.HashKV)
		rows = append(rows, []string{e.Endpoint, strconv.FormatUint(uint64(h.GetHash()), 10), strconv.FormatInt(h.GetHashRevision(), 10)})
	}
	return reply{
		json:   list,
		simple: commaLines(rows),
		table:  func() [][]string { return rows },
		fields: func(p *page) {
			for _, e := range list {
				h := (*pb.HashKVResponse)(e.HashKV)
				p.header(h.GetHeader())
				p.quoted("Endpoint", e.Endpoint)
				p.field("Hash", h.GetHash())
				p.field("HashRevision", h.GetHashRevision())
				p.line()
			}
		},
	}
}

func alarmReply(r *pb.AlarmResponse) reply {
	return reply{
		raw: r,
		simple: func(p *page) {
			for _, a := range r.GetAlarms() {
				// The message's text form without zero fields, always with one space: the library's
				// own varies from build to build.
				var parts []string
				if a.GetMemberID() != 0 {
					parts = append(parts, fmt.Sprintf("memberID:%d", a.GetMemberID()))
				}
				if a.GetAlarm() != pb.AlarmType_NONE {
					parts = append(parts, fmt.Sprintf("alarm:%s", a.GetAlarm()))
				}
				p.line(strings.Join(parts, " "))
			}
		},
		fields: func(p *page) {
			p.header(r.GetHeader())
			for _, a := range r.GetAlarms() {
				p.id("MemberID", a.GetMemberID())
				p.field("AlarmType", a.GetAlarm())
				p.line()
			}
		},
	}
}

func moveLeaderReply(leader, target uint64, r *pb.MoveLeaderResponse) reply {
	return reply{
		raw:    r,
		simple: func(p *page) { p.printf("Leadership transferred from %x to %x\n", leader, target) },
	}
}
