package leader

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/belaydb/belay/command"
)

// TestAgreement sorts members by what they have.
func TestAgreement(t *testing.T) {
	own := covered{9, 3, 0xa}
	at := func(id uint64, hash uint32, compact int64) peerHash {
		return peerHash{id: id, covered: covered{9, compact, hash}}
	}
	down := peerHash{id: 4, err: rpctypes.ErrFutureRev}
	for _, tc := range []struct {
		counts bool
		peers  []peerHash
		want   string
		own    bool
	}{
		{true, nil, "the same data: 1", true},
		{false, nil, "the same data: none", false},
		{true, []peerHash{at(3, 0xa, 3), at(2, 0xa, 3)}, "the same data: 1, 2, 3", true},
		{false, []peerHash{at(2, 0xb, 3), at(3, 0xb, 3)}, "the same data: 2, 3", false},
		{false, []peerHash{at(2, 0xa, 3), at(3, 0xb, 3)}, "the same data: 2; other data: 3", true},
		{false, []peerHash{at(2, 0xa, 2), at(3, 0xb, 3), at(5, 0xb, 3), down}, "the same data: 3, 5; other data: 2; not compared: 4", false},
	} {
		a := agreement(1, own, tc.counts, tc.peers)
		if got := shortIDs(a.String()); got != tc.want || a.Own != tc.own {
			t.Errorf("%+v: %s, own %v; want %s, %v", tc.peers, got, a.Own, tc.want, tc.own)
		}
	}
}

// shortIDs leaves out the zeros of ids.
func shortIDs(text string) string { return strings.ReplaceAll(text, "000000000000000", "") }

// TestOutlierStays: a member that is named leaves only if the others are a quorum that agrees, and it
// does not agree with them.
func TestOutlierStays(t *testing.T) {
	three := []*command.Member{{ID: 1}, {ID: 2}, {ID: 3}}
	five := append(three[:3:3], &command.Member{ID: 4}, &command.Member{ID: 5})
	for _, tc := range []struct {
		name    string
		corrupt []uint64
		members []*command.Member
		away    uint64 // not connected
		etcd    uint64
		often   error
		found   Agreement
		err     error
		why     string // empty: it leaves
	}{
		{name: "the others agree", corrupt: []uint64{1}, members: three, found: Agreement{Equal: []uint64{2, 3}}},
		{name: "one of two that are named, of five", corrupt: []uint64{1, 2}, members: five, found: Agreement{Equal: []uint64{3, 4, 5}}},
		{name: "nobody knows who", corrupt: []uint64{0, 1}, members: three, why: "nobody knows whose is right"},
		{name: "two of three are named", corrupt: []uint64{1, 3}, members: three, why: "only 1 of the 3 voters are connected and not named"},
		{name: "one is away", corrupt: []uint64{1}, members: three, away: 3, why: "only 1 of the 3 voters are connected"},
		{name: "of two", corrupt: []uint64{1}, members: three[:2], why: "only 1 of the 2 voters"},
		{name: "alone", corrupt: []uint64{1}, members: three[:1], why: "only 0 of the 1 voters"},
		{name: "beside an etcd", corrupt: []uint64{1}, members: three, etcd: 2, why: "is an etcd"},
		{name: "too often", corrupt: []uint64{1}, members: three, often: errors.New("has healed 2 times"), why: "has healed 2 times"},
		{name: "the others differ", corrupt: []uint64{1}, members: three, found: Agreement{Equal: []uint64{2}, Different: []uint64{3}}, why: "only 1 of the 3 voters have the same data"},
		{name: "it is as the others are", corrupt: []uint64{1}, members: three, found: Agreement{Equal: []uint64{2, 3}, Own: true}, why: "that of the others now"},
		{name: "it cannot read", corrupt: []uint64{1}, members: three, err: errors.New("a block"), why: "cannot be hashed: a block"},
	} {
		o := NewOutlier(OutlierConfig{
			MemberID: 1, Corrupt: func() []uint64 { return tc.corrupt }, Members: func() []*command.Member { return tc.members },
			Connected: func(id uint64) bool { return id != tc.away }, IsEtcd: func(id uint64) bool { return id == tc.etcd },
			MayHeal: func() error { return tc.often },
			Agree:   func(context.Context, []uint64, bool) (Agreement, error) { return tc.found, tc.err },
		})
		found, why := o.look(t.Context())
		if (why == "") != (tc.why == "") || !strings.Contains(why, tc.why) || (found == "") == (why == "") {
			t.Errorf("%s: found %q, stays because of %q, want %q", tc.name, found, why, tc.why)
		}
	}
}

// TestOutlierLeaves once, when the alarm names it.
func TestOutlierLeaves(t *testing.T) {
	left := make(chan string, 2)
	o := NewOutlier(OutlierConfig{
		MemberID: 1, Corrupt: func() []uint64 { return []uint64{1} }, Members: func() []*command.Member { return []*command.Member{{ID: 1}, {ID: 2}, {ID: 3}} },
		Connected: func(uint64) bool { return true }, IsEtcd: func(uint64) bool { return false }, MayHeal: func() error { return nil },
		Agree: func(context.Context, []uint64, bool) (Agreement, error) { return Agreement{Equal: []uint64{2, 3}}, nil },
		Leave: func(found string) { left <- found },
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	o.Run(ctx)
	if ctx.Err() != nil || len(left) != 1 {
		t.Errorf("it left %d times, %v", len(left), ctx.Err())
	}
}
