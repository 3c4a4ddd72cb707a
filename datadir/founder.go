package datadir

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

// A Founder is a member that made the first log of its cluster at this start. It asked the others
// whether they know it as one that ran before, but those that were down could not answer. Such a
// peer is asked again before any of its messages is accepted: a member that lost its data must not
// vote in a term in which it may have voted, nor count for what it may have acknowledged.
//
// A peer that was behind when the data was lost may not know. Nothing can make up for that.
type Founder struct {
	env FounderEnv

	// over is set when there is a leader: from then on the cluster may know this member from this
	// start.
	over atomic.Bool

	mu    sync.Mutex
	asked map[uint64]bool // peers that do not know this member as one that ran
}

var errUnheard = errors.New("the peer has yet to say whether it knows this member")

// FounderEnv is what a Founder needs of its member. All of it is set before the first message
// comes.
type FounderEnv struct {
	Member uint64 // this one
	// Client asks the other members; only the Founder uses it.
	Client *http.Client
	// URLs are a peer's.
	URLs func(peer uint64) []string
	// KnownBy is what a peer's requests said about this member (transport.Transport.KnownBy).
	KnownBy func(peer uint64) (started, said bool)
	// Leader is the leader's id, 0 if there is none; LeaderChanged is closed when it changes.
	Leader        func() uint64
	LeaderChanged func() <-chan struct{}
	// Failed ends the member. It does not wait.
	Failed func(error)
	Logger *zap.Logger
}

// NewFounder makes a Founder; Watch must run.
func NewFounder(env FounderEnv) *Founder {
	if env.Logger == nil {
		env.Logger = zap.NewNop()
	}
	return &Founder{env: env, asked: make(map[uint64]bool)}
}

// Watch waits for a leader, or until stop is closed.
func (f *Founder) Watch(stop <-chan struct{}) {
	for {
		changed := f.env.LeaderChanged()
		if f.env.Leader() != 0 {
			f.over.Store(true)
			f.env.Client.CloseIdleConnections()
			return
		}
		select {
		case <-changed:
		case <-stop:
			return
		}
	}
}

// Hear returns an error unless a message of this peer may be accepted. It may take a second, and
// make the member fail.
func (f *Founder) Hear(ctx context.Context, peer uint64) error {
	f.mu.Lock()
	asked := f.asked[peer]
	f.mu.Unlock()
	if asked || f.over.Load() || f.env.Leader() != 0 {
		return nil
	}
	knows := false
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err := peers.Ask(ctx, f.env.Client, f.env.URLs(peer), peers.Question{Path: peers.PathMembers, MaxAnswer: maxMembersBytes}, func(a peers.Answer) error {
		var members []*command.Member
		if err := errors.Join(a.OK(), json.Unmarshal(a.Body, &members)); err != nil {
			return err
		}
		knows = started(members, f.env.Member)
		return nil
	})
	if err != nil {
		// It may refuse our requests, for example because of a certificate that names another
		// address, and still send us its own. These carry the answer to our question.
		var said bool
		if knows, said = f.env.KnownBy(peer); !said {
			return fmt.Errorf("%w: %w", errUnheard, err)
		}
	}
	if knows && !f.over.Load() && f.env.Leader() == 0 {
		f.env.Logger.Warn("this member has run before and its data is gone: remove it from the cluster and add it again (belay ctl member remove, belay ctl member add)",
			zap.String("local-member-id", command.IDText(f.env.Member)), zap.String("remote-peer-id", command.IDText(peer)))
		f.env.Failed(damaged("member %x has already been bootstrapped, says member %x", f.env.Member, peer))
		return errUnheard
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked[peer] = true
	return nil
}
