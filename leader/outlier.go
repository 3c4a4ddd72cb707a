package leader

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/peers"
)

// A member that the CORRUPT alarm names leaves by itself (--heal) and comes back with the others'
// data. It looks before it leaves, since a cluster with a member that differs is better off than
// one without a quorum: it stays unless a quorum of the voters, without those that are named, have the
// same data now, are connected to it, and its own is another. The leader, which replaces it, looks
// again (server/heal.go).
//
// No vote is lost. Unlike one whose log is damaged, this member could keep all that it promised; that
// its id never speaks again once the others have agreed is what datadir/heal.go shows, which asks no
// more than that the others are a quorum.
//
// While nobody knows who is right (the alarm of member 0), or too few are not named, nothing is
// changed, by this rule and by the leader's: whoever came back with the leader's data would make a
// majority of it, and the other copy, perhaps the good one, would be the next to be replaced.

const (
	outlierLook = time.Second
	// outlierRest is between two comparisons, each of which reads all data of all members.
	outlierRest = 30 * time.Second
)

// An Agreement is what came of a comparison of some members' data.
type Agreement struct {
	Equal     []uint64 // the most of those asked whose data is the same
	Different []uint64 // the rest of those that answered
	Silent    []uint64 // that could not be compared
	Own       bool     // this member's data is that of Equal
}

// String names the members.
func (a Agreement) String() string {
	text := "the same data: " + idList(a.Equal)
	if len(a.Different) > 0 {
		text += "; other data: " + idList(a.Different)
	}
	if len(a.Silent) > 0 {
		text += "; not compared: " + idList(a.Silent)
	}
	return text
}

func idList(ids []uint64) string {
	if len(ids) == 0 {
		return "none"
	}
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = command.IDText(id)
	}
	return strings.Join(names, ", ")
}

// Agree compares the data of the members named, of which this one may be one, with each other and with
// this member's. With still, each is asked for its newest revision, which are the same ones where
// nothing is written because of the alarm; else for this member's newest, which a member that lags
// cannot answer. An error is one of reading this member's data.
func (c *Corruption) Agree(ctx context.Context, among []uint64, still bool) (a Agreement, err error) {
	start := time.Now()
	own, err := c.hash(ctx)
	if err != nil {
		return a, err
	}
	rev := own.rev
	if still {
		rev = 0
	}
	var answers []peerHash
	for _, p := range c.others.hashes(ctx, rev, peers.HashOfState, c.patience(time.Since(start))) {
		if slices.Contains(among, p.id) {
			if p.rev = own.rev; still {
				p.rev = p.current
			}
			answers = append(answers, p)
		}
	}
	return agreement(c.cfg.MemberID, own, slices.Contains(among, c.cfg.MemberID), answers), nil
}

// agreement sorts answers; counts: this member is one of those compared.
func agreement(local uint64, own covered, counts bool, answers []peerHash) (a Agreement) {
	groups := map[covered][]uint64{}
	if counts {
		groups[own] = []uint64{local}
	}
	for _, p := range answers {
		if p.err != nil {
			a.Silent = append(a.Silent, p.id)
			continue
		}
		groups[p.covered] = append(groups[p.covered], p.id)
	}
	var most covered
	for data, ids := range groups {
		if len(ids) > len(groups[most]) || len(ids) == len(groups[most]) && slices.Min(ids) < slices.Min(groups[most]) {
			most = data
		}
	}
	for data, ids := range groups {
		if data != most {
			a.Different = append(a.Different, ids...)
		}
	}
	a.Equal, a.Own = groups[most], len(groups) > 0 && own == most
	for _, ids := range [][]uint64{a.Equal, a.Different, a.Silent} {
		slices.Sort(ids)
	}
	return a
}

// Undecided says why nobody may be replaced by others' data while the alarm CORRUPT names these
// members; "": those that it does not name may.
func Undecided(corrupt []uint64) string {
	if slices.Contains(corrupt, 0) {
		return "the members' data differs and no majority of them has the same, so nobody knows whose is right: compare them, see Integrity in docs/operations.md, and disarm the alarm CORRUPT of member 0"
	}
	return ""
}

// Short says why voters are no quorum by themselves; "": they are. whose tells what they are.
func Short(voters []uint64, of int, whose string) string {
	if quorum := command.Quorum(of); len(voters) < quorum {
		return fmt.Sprintf("only %d of the %d voters %s (%s), and a quorum is %d", len(voters), of, whose, idList(voters), quorum)
	}
	return ""
}

// OutlierConfig is what Outlier needs.
type OutlierConfig struct {
	MemberID  uint64
	Corrupt   func() []uint64 // whom the alarm CORRUPT names; 0: nobody knows whom
	Members   func() []*command.Member
	Connected func(id uint64) bool
	IsEtcd    func(id uint64) bool // it is known to be none of Belay's
	Agree     func(ctx context.Context, among []uint64, still bool) (Agreement, error)
	MayHeal   func() error // nil: this member has not healed too often
	// Leave stops this member, so that it heals; the text says why. It does not wait.
	Leave  func(found string)
	Logger *zap.Logger // nil: none
}

// Outlier has this member leave when the alarm CORRUPT names it, and the others can do without it.
type Outlier struct {
	cfg  OutlierConfig
	said string // why it stays, as logged last
	when time.Time
}

// NewOutlier makes it; nothing is looked at before Run.
func NewOutlier(cfg OutlierConfig) *Outlier {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	return &Outlier{cfg: cfg}
}

// Run looks until ctx ends, or the member leaves.
func (o *Outlier) Run(ctx context.Context) {
	tick := time.NewTicker(outlierLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if !slices.Contains(o.cfg.Corrupt(), o.cfg.MemberID) {
				o.said, o.when = "", time.Time{}
				continue
			}
			if now.Sub(o.when) < outlierRest {
				continue
			}
			found, why := o.look(ctx)
			if ctx.Err() != nil {
				return
			}
			if why == "" {
				o.cfg.Leave(found)
				return
			}
			if o.when = time.Now(); why != o.said {
				o.said = why
				o.cfg.Logger.Error("this member's data differs from the others' by the corruption check, and it does not heal",
					zap.String("member-id", command.IDText(o.cfg.MemberID)), zap.String("because", why))
			}
		}
	}
}

// look says why this member stays; "": it may leave, because of what was found.
func (o *Outlier) look(ctx context.Context) (found, why string) {
	corrupt, members := o.cfg.Corrupt(), o.cfg.Members()
	if why := Undecided(corrupt); why != "" {
		return "", why
	}
	var sound []uint64 // voters that are not named, and connected
	voters := 0
	for _, m := range members {
		if m.ID != o.cfg.MemberID && o.cfg.IsEtcd(m.ID) {
			return "", fmt.Sprintf("member %s is an etcd; only a cluster of Belay heals", command.IDText(m.ID))
		}
		if m.IsLearner {
			continue
		}
		voters++
		if m.ID != o.cfg.MemberID && !slices.Contains(corrupt, m.ID) && o.cfg.Connected(m.ID) {
			sound = append(sound, m.ID)
		}
	}
	slices.Sort(sound)
	if why := Short(sound, voters, "are connected and not named by the alarm CORRUPT"); why != "" {
		return "", why
	}
	if err := o.cfg.MayHeal(); err != nil {
		return "", err.Error()
	}
	a, err := o.cfg.Agree(ctx, sound, true)
	switch {
	case errors.Is(err, context.Canceled):
		return "", err.Error()
	case err != nil: // that it cannot be read is damage, too, which is found elsewhere
		return "", fmt.Sprintf("its data cannot be hashed: %v", err)
	}
	if why := Short(a.Equal, voters, "have the same data"); why != "" {
		return "", fmt.Sprintf("%s; %v", why, a)
	}
	if a.Own {
		return "", "its data is that of the others now; disarm the alarm: belay ctl alarm disarm"
	}
	return fmt.Sprintf("the alarm CORRUPT names this member, and its data differs from that of a quorum; %v", a), ""
}
