package state

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/coreos/go-semver/semver"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.etcd.io/etcd/api/v3/version"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/store"
)

// Stored forms (the keys are built by package store):
//
//	member id         JSON of the member, as etcd's `members` bucket has it
//	removed id        empty
//	alarm type, id    empty, or the byte 1 if the member raised it itself (command.Itself)
//	cluster version   text, "3.7.0"
//	downgrade         JSON {"target-version":"...","enabled":bool}, as in etcd's `cluster` bucket

// cluster is everything known about the cluster itself. A published value never changes: the
// applier changes a copy.
type cluster struct {
	members   map[uint64]*command.Member
	removed   map[uint64]bool
	version   *semver.Version // nil until the leader has set it
	downgrade command.Downgrade
	alarms    alarmSet
}

type alarmKey struct {
	alarm  pb.AlarmType
	member uint64
}

// alarmSet holds the active alarms, and for each whether the member concerned raised it itself,
// rather than a client.
type alarmSet map[alarmKey]raisedItself

type raisedItself bool

func (s alarmSet) any() bool { return len(s) > 0 }

// list returns the alarms of one type, or of all for NONE, by type and member.
func (s alarmSet) list(t pb.AlarmType) []*pb.AlarmMember {
	var list []*pb.AlarmMember
	for k := range s {
		if t == pb.AlarmType_NONE || t == k.alarm {
			list = append(list, &pb.AlarmMember{MemberID: k.member, Alarm: k.alarm})
		}
	}
	slices.SortFunc(list, func(a, b *pb.AlarmMember) int {
		return cmp.Or(cmp.Compare(a.Alarm, b.Alarm), cmp.Compare(a.MemberID, b.MemberID))
	})
	return list
}

func (c *cluster) alarmActive(t pb.AlarmType) bool {
	for k := range c.alarms {
		if k.alarm == t {
			return true
		}
	}
	return false
}

func (c *cluster) clone() *cluster {
	d := *c
	d.members, d.removed, d.alarms = maps.Clone(c.members), maps.Clone(c.removed), maps.Clone(c.alarms)
	return &d
}

func (c *cluster) sorted() []*command.Member {
	list := make([]*command.Member, 0, len(c.members))
	for _, id := range slices.Sorted(maps.Keys(c.members)) {
		list = append(list, c.members[id].Clone())
	}
	return list
}

// change returns the batch's own copy, to be changed; it becomes visible with the batch.
func (a *application) change() *cluster {
	if a.cluster == a.m.published.Load() {
		a.cluster = a.cluster.clone()
	}
	return a.cluster
}

// publishCluster publishes c and updates the metrics.
func (m *Machine) publishCluster(c *cluster) {
	old := m.published.Load()
	if old == c {
		return
	}
	m.published.Store(c)
	if old == nil {
		old = &cluster{}
	}
	for id := range old.members {
		if c.members[id] == nil {
			m.knownPeer(id, 0)
		}
	}
	for id := range c.removed {
		m.knownPeer(id, 0)
	}
	for id := range c.members {
		m.knownPeer(id, 1)
	}
	m.metrics.isLearner.Set(0)
	if self := c.members[m.cfg.MemberID]; self != nil && self.IsLearner {
		m.metrics.isLearner.Set(1)
	}
	if old.version != nil {
		m.metrics.clusterVersion.WithLabelValues(minorVersion(old.version)).Set(0)
	}
	if c.version != nil {
		m.metrics.clusterVersion.WithLabelValues(minorVersion(c.version)).Set(1)
	}
	for k := range old.alarms {
		if _, ok := c.alarms[k]; !ok {
			m.metrics.alarms.WithLabelValues(command.IDText(k.member), k.alarm.String()).Set(0)
		}
	}
	for k := range c.alarms {
		m.metrics.alarms.WithLabelValues(command.IDText(k.member), k.alarm.String()).Set(1)
	}
}

func (m *Machine) knownPeer(id uint64, v float64) {
	m.metrics.knownPeers.WithLabelValues(command.IDText(m.cfg.MemberID), command.IDText(id)).Set(v)
}

func minorVersion(v *semver.Version) string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// Members returns the members, sorted by ID. The caller may keep and change them.
func (m *Machine) Members() []*command.Member { return m.published.Load().sorted() }

// Member returns one member, or nil.
func (m *Machine) Member(id uint64) *command.Member { return m.published.Load().members[id].Clone() }

// IsLearner reports whether a member is one that does not vote; false for an unknown one. It is
// asked with every request.
func (m *Machine) IsLearner(id uint64) bool {
	member := m.published.Load().members[id]
	return member != nil && member.IsLearner
}

// IsRemoved reports whether a member with this id was removed; such an id never comes back.
func (m *Machine) IsRemoved(id uint64) bool { return m.published.Load().removed[id] }

// ClusterVersion is the version that all members understand, as the leader has determined it; nil
// before that.
func (m *Machine) ClusterVersion() *semver.Version {
	v := m.published.Load().version
	if v == nil {
		return nil
	}
	c := *v
	return &c
}

// DowngradeInfo is the downgrade in progress.
func (m *Machine) DowngradeInfo() command.Downgrade { return m.published.Load().downgrade }

// Alarms returns the active alarms, by type and member.
func (m *Machine) Alarms() []*pb.AlarmMember {
	return m.published.Load().alarms.list(pb.AlarmType_NONE)
}

// AlarmActive reports whether some member has raised the alarm.
func (m *Machine) AlarmActive(t pb.AlarmType) bool { return m.published.Load().alarmActive(t) }

// Alarm reports whether this alarm of a member is active, and whether the member raised it itself.
func (m *Machine) Alarm(t pb.AlarmType, member uint64) (active, itself bool) {
	by, ok := m.published.Load().alarms[alarmKey{t, member}]
	return ok, bool(by)
}

// QuotaFits reports whether a request fits into the space quota: the server's check before it
// proposes a PutRequest, TxnRequest or LeaseGrantRequest. Everything else fits.
func (m *Machine) QuotaFits(req any) bool { return m.quota.fits(Cost(req)) }

// QuotaBytes is the limit in force; below 0 there is none.
func (m *Machine) QuotaBytes() int64 { return m.quota.limit }

// readCluster reads the stored form.
func readCluster(r store.Reader) (*cluster, error) {
	c := &cluster{members: map[uint64]*command.Member{}, removed: map[uint64]bool{}, alarms: alarmSet{}}
	err := eachKey(r, store.MembersSpan, func(key, value []byte) error {
		id, ok := store.ParseMemberKey(key)
		member := new(command.Member)
		if err := json.Unmarshal(value, member); err != nil || !ok || member.ID != id {
			return fmt.Errorf("state: stored member %x is not a member: %q (%v)", key, value, err)
		}
		c.members[id] = member
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := eachKey(r, store.RemovedMembersSpan, func(key, _ []byte) error {
		id, ok := store.ParseRemovedMemberKey(key)
		if !ok {
			return fmt.Errorf("state: stored removed member has the key %x", key)
		}
		c.removed[id] = true
		return nil
	}); err != nil {
		return nil, err
	}
	if err := eachKey(r, store.AlarmsSpan, func(key, value []byte) error {
		alarm, id, ok := store.ParseAlarmKey(key)
		if !ok {
			return fmt.Errorf("state: stored alarm has the key %x", key)
		}
		c.alarms[alarmKey{pb.AlarmType(alarm), id}] = len(value) > 0
		return nil
	}); err != nil {
		return nil, err
	}
	b, ok, err := r.Get(store.ClusterKey(clusterVersionName))
	if err != nil {
		return nil, err
	}
	if ok {
		if c.version, err = semver.NewVersion(string(b)); err != nil {
			return nil, fmt.Errorf("state: stored cluster version %q: %w", b, err)
		}
	}
	b, ok, err = r.Get(store.ClusterKey(downgradeName))
	if err != nil {
		return nil, err
	}
	if ok {
		if err := json.Unmarshal(b, &c.downgrade); err != nil {
			return nil, fmt.Errorf("state: stored downgrade %q: %w", b, err)
		}
	}
	return c, nil
}

// alarm answers and applies AlarmRequest. An action or alarm that does nothing answers with no
// alarms.
func (a *application) alarm(r *pb.AlarmRequest, by raisedItself) *pb.AlarmResponse {
	resp := &pb.AlarmResponse{Header: a.revisionHeader()}
	k := alarmKey{r.Alarm, r.MemberID}
	member := &pb.AlarmMember{MemberID: r.MemberID, Alarm: r.Alarm}
	switch r.Action {
	case pb.AlarmRequest_GET:
		resp.Alarms = a.cluster.alarms.list(r.Alarm)
	case pb.AlarmRequest_ACTIVATE:
		if r.Alarm == pb.AlarmType_NONE {
			break
		}
		if _, active := a.cluster.alarms[k]; !active {
			a.change().alarms[k] = by
			var value []byte
			if by {
				value = []byte{1}
			}
			a.set(store.AlarmKey(int32(k.alarm), k.member), value)
		}
		resp.Alarms = append(resp.Alarms, member)
	case pb.AlarmRequest_DEACTIVATE:
		if _, active := a.cluster.alarms[k]; active {
			delete(a.change().alarms, k)
			a.delete(store.AlarmKey(int32(k.alarm), k.member))
			resp.Alarms = append(resp.Alarms, member)
		}
	}
	return resp
}

func (a *application) setClusterVersion(r *membershippb.ClusterVersionSetRequest) error {
	v, err := semver.NewVersion(r.Ver)
	if err != nil {
		return ErrBadVersion
	}
	if old := a.cluster.version; old != nil {
		a.m.logger.Info("updated cluster version", append(a.m.ids(),
			zap.String("from", minorVersion(old)), zap.String("to", minorVersion(v)))...)
	} else {
		a.m.logger.Info("set initial cluster version", append(a.m.ids(), zap.String("cluster-version", minorVersion(v)))...)
	}
	a.m.SayCapabilities(v)
	if own := semver.New(version.Version); (semver.Version{Major: own.Major, Minor: own.Minor}).LessThan(*v) {
		// etcd stops here. We continue until an entry comes that we do not know; see the package
		// comment.
		a.m.logger.Error("invalid downgrade; server version is lower than determined cluster version",
			zap.String("current-server-version", own.String()), zap.String("determined-cluster-version", minorVersion(v)))
	}
	a.change().version = v
	a.set(store.ClusterKey(clusterVersionName), []byte(v.String()))
	return nil
}

// SayCapabilities logs that what a cluster version allows is on.
func (m *Machine) SayCapabilities(v *semver.Version) {
	m.logger.Info("enabled capabilities for version", zap.String("cluster-version", minorVersion(v)))
}

// setMemberAttributes stores what a member published about itself: its name and client URLs.
func (a *application) setMemberAttributes(r *membershippb.ClusterMemberAttrSetRequest) error {
	id := r.GetMember_ID()
	old := a.cluster.members[id]
	if old == nil {
		a.m.logger.Warn("skipped attributes update of removed member", append(a.m.ids(), zap.String("updated-peer-id", command.IDText(id)))...)
		if a.cluster.removed[id] {
			return nil
		}
		return ErrMemberNotFound // etcd panics; no member of ours proposes it before it was added
	}
	member := old.Clone()
	member.Name = r.GetMemberAttributes().GetName()
	member.ClientURLs = slices.Clone(r.GetMemberAttributes().GetClientUrls())
	a.saveMember(member)
	return nil
}

func (a *application) setDowngrade(r *membershippb.DowngradeInfoSetRequest) {
	d := command.Downgrade{}
	if r.Enabled {
		d = command.Downgrade{TargetVersion: r.Ver, Enabled: true}
	}
	a.change().downgrade = d
	a.set(store.ClusterKey(downgradeName), mustJSON(d))
}

func (a *application) saveMember(member *command.Member) {
	a.change().members[member.ID] = member
	a.set(store.MemberKey(member.ID), mustJSON(member))
}

// ids are the fields that etcd puts into every line about members.
func (m *Machine) ids() []zap.Field {
	return []zap.Field{zap.String("cluster-id", command.IDText(m.cfg.ClusterID)), zap.String("local-member-id", command.IDText(m.cfg.MemberID))}
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil { // strings, numbers and booleans only
		panic(fmt.Sprintf("state: encode %T: %v", v, err))
	}
	return b
}

const (
	clusterVersionName = "version"
	downgradeName      = "downgrade"
)
