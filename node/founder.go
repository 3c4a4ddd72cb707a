package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/peers"
)

// A founder is a member that made the first log of its cluster at this start. It asked the others
// whether they know it as one that ran before, but those that were down then could not say so. Such a
// peer is asked again before anything that it says is heard: a member that lost its data must not
// vote in a term in which it may have voted, nor count for what it may have acknowledged.
//
// What a peer does not know itself, because it was behind when the data was lost, it cannot tell.
// No member can make up for that.
type founder struct {
	n      *Node
	client *http.Client

	// over is set when there is a leader: from then on the cluster may know this member by what it
	// told of itself at this start.
	over atomic.Bool

	mu    sync.Mutex
	asked map[uint64]bool // peers that do not know this member as one that ran
}

var errUnheard = errors.New("the peer has yet to say whether it knows this member")

func newFounder(n *Node) *founder {
	return &founder{n: n, asked: make(map[uint64]bool), client: n.peerClient(time.Second)}
}

// watch waits for a leader, or for the member's stop.
func (f *founder) watch() {
	for {
		changed := f.n.replica.LeaderChanged()
		if f.n.replica.Leader() != 0 {
			f.over.Store(true)
			f.client.CloseIdleConnections()
			return
		}
		select {
		case <-changed:
		case <-f.n.stop:
			return
		}
	}
}

// hear says whether a message of this peer may be taken. It may take a second, and make the member
// fail.
func (f *founder) hear(ctx context.Context, peer uint64) error {
	f.mu.Lock()
	asked := f.asked[peer]
	f.mu.Unlock()
	if asked || f.over.Load() || f.n.replica.Leader() != 0 {
		return nil
	}
	f.n.peersMu.Lock()
	urls := f.n.peers[peer]
	f.n.peersMu.Unlock()
	knows := false
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err := peers.Ask(ctx, f.client, urls, peers.Question{Path: peers.PathMembers, MaxAnswer: maxMembersBytes}, func(a peers.Answer) error {
		var members []*command.Member
		if err := errors.Join(a.OK(), json.Unmarshal(a.Body, &members)); err != nil {
			return err
		}
		knows = started(members, f.n.id.member)
		return nil
	})
	if err != nil {
		// It may refuse our calls, for a certificate that names another address say, and call us
		// all the same. Its calls tell what we would have asked.
		var said bool
		if knows, said = f.n.transport.KnownBy(peer); !said {
			return fmt.Errorf("%w: %w", errUnheard, err)
		}
	}
	if knows && !f.over.Load() && f.n.replica.Leader() == 0 {
		f.n.logger.Warn("this member has run before and its data is gone: remove it from the cluster and add it again (belay ctl member remove, belay ctl member add)",
			zap.String("local-member-id", command.IDText(f.n.id.member)), zap.String("remote-peer-id", command.IDText(peer)))
		f.n.fail(fmt.Errorf("member %x has already been bootstrapped, says member %x", f.n.id.member, peer))
		return errUnheard
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked[peer] = true
	return nil
}
