package server

import (
	"testing"
	"time"

	"github.com/belaydb/belay/command"
)

// A lost quorum is told once, when it has lasted, and its end once.
func TestQuorumIsToldOnce(t *testing.T) {
	members := []*command.Member{{ID: 1, Name: "m1"}, {ID: 2, Name: "m2"}, {ID: 3, Name: ""}, {ID: 4, Name: "l", IsLearner: true}}
	w := quorumWatch{own: 1}
	there := map[uint64]bool{2: true, 3: true}
	start := time.Now()
	leader := uint64(2)
	look := func(at time.Duration, want quorumNews) {
		t.Helper()
		if got := w.look(start.Add(at), members, func(id uint64) bool { return there[id] }, leader); got != want {
			t.Errorf("at %s: %d, want %d", at, got, want)
		}
	}
	look(0, noQuorumNews)
	there[3] = false
	leader = 0 // an election
	look(time.Second, noQuorumNews)
	look(10*time.Second, noQuorumNews)
	leader = 2
	look(11*time.Second, noQuorumNews)
	leader, there[2] = 0, false
	look(12*time.Second, noQuorumNews)
	look(14*time.Second, noQuorumNews)
	look(15*time.Second, quorumLost)
	if got, want := w.missingText(start.Add(15*time.Second)), "2 (m2) for 3s, 3 (never started) for 14s"; got != want {
		t.Errorf("missing: %s, want %s", got, want)
	}
	look(16*time.Second, noQuorumNews)
	there[2] = true // connected, but nobody leads yet
	look(17*time.Second, noQuorumNews)
	leader = 1
	look(18*time.Second, quorumBack)
	if got := start.Add(18 * time.Second).Sub(w.since); got != 6*time.Second {
		t.Errorf("lasted %s", got)
	}
	w.since = time.Time{}
	look(19*time.Second, noQuorumNews)
	// A flap that ends before it was told is not told.
	leader, there[2] = 0, false
	look(20*time.Second, noQuorumNews)
	leader = 1
	look(21*time.Second, noQuorumNews)
	leader = 0
	look(22*time.Second, noQuorumNews)
	look(24*time.Second, noQuorumNews)
	look(25*time.Second, quorumLost)
}
