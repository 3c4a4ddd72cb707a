package peers

import (
	"cmp"
	"encoding/json"
	"fmt"
)

// What a member that heals and the others say to each other; package datadir (heal.go) has the steps.
//
// A member that heals is no member that could name itself: its id must not speak. So anybody may
// ask under PathHeal, and nothing is believed of what is asked: the leader looks in its own list
// for the member meant, and asks back under the peer URLs that it has of it (PathHealing). Only who
// is there, and shows the certificate that a member must show, can say that it heals, and with
// which nonce.

// A HealQuestion asks the leader for an heir, or to promote it. Ids are hexadecimal, "": not known.
type HealQuestion struct {
	Nonce    string   `json:"nonce"`
	Before   string   `json:"before,omitempty"` // the nonce of which Member is the heir
	Member   string   `json:"member,omitempty"` // whose data is damaged
	PeerURLs []string `json:"peerURLs"`         // by the sender's flags; names the member where Member does not
	Heir     string   `json:"heir,omitempty"`   // that an earlier answer named
	Promote  bool     `json:"promote,omitempty"`
}

// MaxHealBytes bounds a HealQuestion, a HealingQuestion, and their answers without the members.
const MaxHealBytes = 16 << 10

// An Outcome is what came of a HealQuestion.
type Outcome string

const (
	// HealWait: not now; Why says why. Nothing was changed that another attempt would not go on with.
	HealWait Outcome = "wait"
	// HealJoin: Heir is in the cluster, and the member that it replaces is not.
	HealJoin Outcome = "join"
	// HealDone: Heir is all that it is to be: a voter, or a learner in the place of one.
	HealDone Outcome = "done"
	// HealRemoved: the member was removed by somebody else; it is none any more.
	HealRemoved Outcome = "removed"
	// HealUnknown: the leader knows no member with this id or these peer URLs.
	HealUnknown Outcome = "unknown"
)

// A HealAnswer is the answer to a HealQuestion.
type HealAnswer struct {
	Outcome Outcome         `json:"outcome"`
	Why     string          `json:"why,omitempty"`
	Name    string          `json:"name"`    // of who answers
	Healing bool            `json:"healing"` // who answers is damaged itself
	Leads   bool            `json:"leads"`
	Copy    Copy            `json:"copy"` // of who answers
	Heir    string          `json:"heir,omitempty"`
	Cluster string          `json:"cluster,omitempty"`
	Voter   bool            `json:"voter,omitempty"`   // Heir is to be promoted
	Members json.RawMessage `json:"members,omitempty"` // as PathMembers tells them
}

// A HealingQuestion asks a member whether it heals with this nonce.
type HealingQuestion struct {
	Nonce string `json:"nonce"`
}

// A HealingAnswer says that it does; who does not answers 404.
type HealingAnswer struct {
	Nonce  string `json:"nonce"`
	Member string `json:"member,omitempty"` // whose data is damaged, where it is known
	Found  string `json:"found"`
	Copy   Copy   `json:"copy"`
	// Differs: its data can be read, and is not that of the others.
	Differs bool `json:"differs,omitempty"`
}

// A Copy is how much of the cluster's data a member has, as far as it can be read.
type Copy struct {
	LogTerm  uint64 `json:"logTerm"`  // of the last entry
	LogIndex uint64 `json:"logIndex"` // the last entry
	Applied  uint64 `json:"applied"`  // the last entry that the store has
	Revision int64  `json:"revision"`
	Damage   string `json:"damage,omitempty"` // what cannot be read; empty: nothing
}

// Compare says which of two copies has more: by the last entry's term and index, as raft compares
// logs, then by what is applied, then by whether it is whole.
func (c Copy) Compare(o Copy) int {
	return cmp.Or(cmp.Compare(c.LogTerm, o.LogTerm), cmp.Compare(max(c.LogIndex, c.Applied), max(o.LogIndex, o.Applied)),
		cmp.Compare(c.Applied, o.Applied), cmp.Compare(c.whole(), o.whole()))
}

func (c Copy) whole() int {
	if c.Damage == "" {
		return 1
	}
	return 0
}

func (c Copy) String() string {
	kind := "whole"
	if c.Damage != "" {
		kind = "damaged"
	}
	return fmt.Sprintf("%s, log up to entry %d of term %d, applied up to %d, revision %d", kind, c.LogIndex, c.LogTerm, c.Applied, c.Revision)
}
