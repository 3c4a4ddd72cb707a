package live

import (
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/cli/doctor/histogram"
	"github.com/belaydb/belay/cli/doctor/metrics"
)

// A Cluster is what its members told.
type Cluster struct {
	At        time.Time
	Endpoints []string
	ID        uint64
	User      string
	TLS       bool
	Members   []*Member
	Errors    []string // endpoints that did not tell who the members are, with why
	Strangers []string // endpoints that are no member's and do not answer, with why
	Others    []Other
	Alarms    []*pb.AlarmMember
	AlarmsErr error
	AuthKnown bool // whether Auth was told
	Auth      bool
	Machine   Machine // the one that doctor runs on
}

// An Other is a process that answers where a member of the cluster was expected, and is not that
// member. Of what it told nothing else is kept: it would be taken for the cluster's.
type Other struct {
	Endpoint  string
	Member    *Member // whose endpoint it is; nil: nobody's, it is among the Endpoints alone
	ClusterID uint64  // what it says that it is
	MemberID  uint64
}

// An otherError is why there is no Status of a member at whose endpoint a member of another cluster
// answers.
type otherError struct{ Other }

func (e otherError) Error() string {
	return fmt.Sprintf("a member of another cluster answers there: %x of cluster %x", e.MemberID, e.ClusterID)
}

// Answers tells by the header of an answer from m's endpoint whether a member of m's cluster gave it;
// an error says who did.
func (m *Member) Answers(h *pb.ResponseHeader) error {
	if h.GetClusterId() == m.ClusterID {
		return nil
	}
	return otherError{Other{Endpoint: m.Endpoint, Member: m, ClusterID: h.GetClusterId(), MemberID: h.GetMemberId()}}
}

// setOthersApart takes from the members what was told by others than they.
func (c *Cluster) setOthersApart() {
	for _, m := range c.Members {
		if m.Status == nil || m.Status.Header == nil {
			continue
		}
		h := m.Status.Header
		if m.Err = m.Answers(h); m.Err == nil && h.MemberId == m.ID {
			continue
		}
		c.Others = append(c.Others, Other{Endpoint: m.Endpoint, Member: m, ClusterID: h.ClusterId, MemberID: h.MemberId})
		m.Status, m.Later, m.Read, m.Before, m.After, m.MetricsErr = nil, nil, Answer{}, nil, nil, m.Err
		m.Clock, m.RTT, m.Certificates, m.Belay = Clock{}, nil, nil, nil
	}
}

// A Member is one of them. What it did not tell is nil or zero.
type Member struct {
	ID           uint64
	ClusterID    uint64
	Name         string // or its id, if it has none
	PeerURLs     []string
	ClientURLs   []string
	Learner      bool
	Started      bool // it has told the cluster its name once
	Endpoint     string
	Here         bool // it runs on the machine that doctor runs on
	Status       *clientv3.StatusResponse
	Later        *clientv3.StatusResponse // Status, after Options.Between
	Err          error                    // why there is no Status
	Health       string                   // what /health says where Status does not answer
	Read         Answer                   // of a linearizable read
	MetricsURL   string
	Before       *metrics.Scrape
	After        *metrics.Scrape // nil if only one scrape was answered
	MetricsErr   error
	Clock        Clock
	RTT          []time.Duration // from here
	Certificates []Certificate
	Belay        *Events // nil for etcd
}

// An Answer is that of one request.
type Answer struct {
	Took time.Duration
	Err  error
}

// A Clock is how far a member's is ahead of that here, with the uncertainty to either side.
type Clock struct {
	Known  bool
	Ahead  time.Duration
	Within time.Duration
}

// A Certificate is one that a member shows, its own first.
type Certificate struct {
	Subject             string
	NotBefore, NotAfter time.Time
	CA                  bool
}

// Events are what a member of Belay remembers of its troubles (docs/operations.md, Incidents).
type Events struct {
	MemberID string    `json:"member_id"`
	Name     string    `json:"name"`
	Uptime   float64   `json:"uptime_seconds"`
	Now      string    `json:"now"` // by its own clock
	Verdicts []Verdict `json:"verdicts"`
	Links    []Link    `json:"links"`
}

// A Link is what a member of Belay measures of the way to another, by a ping twice a second.
type Link struct {
	Peer string  `json:"peer"`             // its id, in hexadecimal
	RTT  float64 `json:"rtt_seconds"`      // the median of the last 30; 0: none yet
	Tail float64 `json:"rtt_tail_seconds"` // the third longest of the last minute
	Late int     `json:"late_of_last_30"`  // 150 ms more than usual
}

// link is how the way from m to another is now, as m measures it; false if m does not.
func (m *Member) link(to string) (l Link, ok bool) {
	if m.Belay == nil {
		return l, false
	}
	i := slices.IndexFunc(m.Belay.Links, func(l Link) bool { return l.Peer == to && l.RTT > 0 })
	if i < 0 {
		return l, false
	}
	return m.Belay.Links[i], true
}

// A Verdict is one that a member gave while it led.
type Verdict struct {
	Time     string   `json:"time"`
	Incident string   `json:"incident"`
	Cause    string   `json:"cause"`
	Members  []string `json:"members"`
	Links    []string `json:"links"`
	Evidence []string `json:"evidence"`
	Advice   string   `json:"advice"`
	Missing  []string `json:"missing"`
}

// silent tells whether no member answers at all.
func (c *Cluster) silent() bool {
	return !slices.ContainsFunc(c.Members, func(m *Member) bool { return m.Status != nil || m.Before != nil })
}

// voters are the members that vote.
func (c *Cluster) voters() (all []*Member) {
	for _, m := range c.Members {
		if !m.Learner {
			all = append(all, m)
		}
	}
	return all
}

// leader is the member that most answers name; nil if none does.
func (c *Cluster) leader() *Member {
	votes := map[uint64]int{}
	for _, m := range c.Members {
		if st := m.latest(); st != nil && st.Leader != 0 {
			votes[st.Leader]++
		}
	}
	var leader *Member
	for _, m := range c.Members {
		if votes[m.ID] > 0 && (leader == nil || votes[m.ID] > votes[leader.ID]) {
			leader = m
		}
	}
	return leader
}

// byID is nil for an id that is no member's.
func (c *Cluster) byID(id uint64) *Member {
	if at := slices.IndexFunc(c.Members, func(m *Member) bool { return m.ID == id }); at >= 0 {
		return c.Members[at]
	}
	return nil
}

// latest is the last status that the member told.
func (m *Member) latest() *clientv3.StatusResponse {
	if m.Later != nil {
		return m.Later
	}
	return m.Status
}

// scrape is the last one.
func (m *Member) scrape() *metrics.Scrape {
	if m.After != nil {
		return m.After
	}
	return m.Before
}

// between is the time between the two scrapes; 0 if there are not two.
func (m *Member) between() time.Duration {
	if m.Before == nil || m.After == nil {
		return 0
	}
	return m.After.At.Sub(m.Before.At)
}

// grown is by how much a counter grew between the scrapes; ok is false if that cannot be told.
func (m *Member) grown(name string) (by float64, ok bool) {
	if m.between() == 0 {
		return 0, false
	}
	a, ok1 := m.Before.Value(name)
	b, ok2 := m.After.Value(name)
	return b - a, ok1 && ok2 && b >= a
}

// uptime is how long the process has run; 0 if it does not tell.
func (m *Member) uptime() time.Duration {
	s := m.scrape()
	if start, ok := s.Value("process_start_time_seconds"); ok && start > 0 {
		return max(0, s.At.Sub(time.Unix(0, int64(start*1e9))))
	}
	return 0
}

// histogram is a member's over the time between the scrapes if that holds at least few
// observations, else since its start; over says which. It is not told of fewer.
func (m *Member) histogram(name string, few float64) (h metrics.Histogram, over string, ok bool) {
	now, ok := m.scrape().Histogram(name)
	if !ok || now.Count < few {
		return h, "", false
	}
	h, over = m.recently(now, name, few)
	return h, over, true
}

// sinceStart is over what a histogram is that is not of the time between the two scrapes.
const sinceStart = "since its start"

// fewTrips are round trips enough to judge a link. Of the metric members make one in 5 s.
const fewTrips = 5

// recently is what a histogram of the last scrape counted between the two if that is at least few
// observations, else all that it has; over says which.
func (m *Member) recently(now metrics.Histogram, name string, few float64) (h metrics.Histogram, over string) {
	if m.After != nil {
		if before, ok := now.Among(m.Before.Histograms(name)); ok {
			if diff, ok := now.Since(before); ok && diff.Count >= few {
				return diff, "in " + metrics.Seconds(m.between().Seconds())
			}
		}
	}
	return now, sinceStart
}

// Histograms are those of all members, of the metrics that are named.
func (c *Cluster) Histograms(names []string) (all []histogram.Series) {
	for _, m := range c.Members {
		var before *metrics.Scrape
		if m.After != nil {
			before = m.Before
		}
		all = append(all, histogram.Of(m.Name, before, m.scrape(), names, func(id string) string { return peerName(c, id) })...)
	}
	return all
}
