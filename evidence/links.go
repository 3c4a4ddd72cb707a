package evidence

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/belaydb/belay/command"
)

const (
	pingInterval = 500 * time.Millisecond
	pingTimeout  = 2 * time.Second
	// pingsAtOnce: a ping does not wait for the previous one, so that a peer whose answers are lost
	// is still heard from.
	pingsAtOnce = int(pingTimeout / pingInterval)
	// silentAfter and unreachableAfter: how long until it is worth an event.
	silentAfter      = 1500 * time.Millisecond
	unreachableAfter = 2 * time.Second
	// slowRoundTrip is what makes a link slow: a quarter of the default election timeout.
	slowRoundTrip = 250 * time.Millisecond
	// A round trip that takes this much longer than usual was late: most likely something was lost
	// and retransmitted. lossyCount of lateWindow make the link lossy.
	lateRoundTrip = 150 * time.Millisecond
	lateWindow    = 30
	lossyCount    = 3
	// longSpell: more than so many late in a row are no losses. The link was slow for a while, which
	// was an event of its own when it was; another late one beside such a spell proves nothing.
	longSpell  = 6
	roundTrips = 120 // kept: those of a minute
)

// PingAnswer is a peer's answer to a ping.
type PingAnswer struct {
	Life     string `json:"life"`          // of the peer's process
	NearMiss uint64 `json:"near_miss_seq"` // of the peer's ring
	Leader   string `json:"leader"`        // the leader as the peer knows it, in hexadecimal; 0: none
	// Fresh: the connection had to be made first, so the time means nothing.
	Fresh bool `json:"-"`
}

// LinkReport is the state of a link, as one end sees it.
type LinkReport struct {
	Peer      string  `json:"peer"`
	RTT       float64 `json:"rtt_seconds"`       // the median of the last thirty; 0: none yet
	Tail      float64 `json:"rtt_tail_seconds"`  // the third longest of the last minute
	Late      int     `json:"late_of_last_30"`   // round trips
	HeardAgo  float64 `json:"heard_seconds_ago"` // anything at all; -1: never
	AnswerAgo float64 `json:"answered_seconds_ago"`
	Why       Absence `json:"why,omitempty"` // the last failure: refused, closed, timeout
}

// Links pings the peers and keeps their round trips. It records what is wrong, and the election
// timeout is tuned from it.
type Links struct {
	ring *Ring
	ask  func(ctx context.Context, id uint64) (PingAnswer, error)
	now  func() time.Time

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex
	peers   map[uint64]*link
	polled  time.Time
	stopped bool
}

// link is guarded by Links.mu.
type link struct {
	heard, answered time.Time
	took            [roundTrips]time.Duration // of round trip n: at n % roundTrips
	n               int
	why             Absence
	out             int // pings without an answer yet
	life            string
	nearMiss        uint64
}

// NewLinks makes Links without peers. ask pings one peer; it may take as long as its context.
func NewLinks(ring *Ring, ask func(ctx context.Context, id uint64) (PingAnswer, error)) *Links {
	l := &Links{ring: ring, ask: ask, now: time.Now, peers: make(map[uint64]*link)}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// Start begins to ping.
func (l *Links) Start() {
	l.running.Go(func() {
		tick := time.NewTicker(pingInterval)
		defer tick.Stop()
		for {
			select {
			case <-l.ctx.Done():
				return
			case <-tick.C:
				for _, id := range l.poll(l.now()) {
					l.running.Go(func() { l.ping(id) })
				}
			}
		}
	})
}

// Stop ends the pings and waits for them.
func (l *Links) Stop() {
	l.mu.Lock()
	l.stopped = true
	l.mu.Unlock()
	l.cancel()
	l.running.Wait()
}

// SetPeers sets the peers to ping.
func (l *Links) SetPeers(ids []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.peers {
		if !slices.Contains(ids, id) {
			delete(l.peers, id)
		}
	}
	for _, id := range ids {
		if l.peers[id] == nil {
			l.peers[id] = &link{}
		}
	}
}

// Heard records that a ping came from a peer.
func (l *Links) Heard(id uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k := l.peers[id]; k != nil {
		k.heard = l.now()
	}
}

// poll records what is wrong and returns the peers to ping.
func (l *Links) poll(now time.Time) (ping []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// While this process did not run it heard nobody, which says nothing about them.
	if gap := now.Sub(l.polled) - pingInterval; !l.polled.IsZero() && gap > pingInterval/2 {
		for _, k := range l.peers {
			if !k.heard.IsZero() {
				k.heard = k.heard.Add(gap)
			}
			if !k.answered.IsZero() {
				k.answered = k.answered.Add(gap)
			}
		}
	}
	l.polled = now
	for id, k := range l.peers {
		// A peer that was never heard from has not started yet.
		if silent := now.Sub(k.heard); !k.heard.IsZero() && silent >= silentAfter {
			l.ring.Record(Event{Kind: Silent, Peer: id, Took: silent})
		}
		if gone := now.Sub(k.answered); !k.answered.IsZero() && gone >= unreachableAfter {
			why := k.why
			if why == Answered {
				why = TimedOut
			}
			l.ring.Record(Event{Kind: Unreachable, Peer: id, Took: gone, Note: string(why)})
		} else if median, late, spells := k.recent(); median >= slowRoundTrip || late >= lossyCount && spells > 1 {
			l.ring.Record(Event{Kind: SlowLink, Peer: id, Took: median, Value: int64(late)})
		}
		if k.out < pingsAtOnce && !l.stopped {
			k.out++
			ping = append(ping, id)
		}
	}
	return ping
}

func (l *Links) ping(id uint64) {
	ctx, cancel := context.WithTimeout(l.ctx, pingTimeout)
	start := l.now()
	answer, err := l.ask(ctx, id)
	cancel()
	l.pinged(id, start, l.now(), answer, err)
}

func (l *Links) pinged(id uint64, start, end time.Time, answer PingAnswer, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.peers[id]
	if k == nil {
		return
	}
	k.out = max(0, k.out-1)
	if err != nil {
		k.why = WhyNot(err)
		return
	}
	k.answered, k.heard, k.why = end, end, ""
	k.life, k.nearMiss = answer.Life, answer.NearMiss
	// A time during which this process was paused is not the network's.
	if !answer.Fresh && end.Sub(l.polled) < 2*pingInterval {
		k.took[k.n%roundTrips] = end.Sub(start)
		k.n++
	}
}

// recent is the median of the last round trips, how many of them were late, and in how many spells:
// what is lost now and then comes late now and then, and what was held up for a while comes late in
// one spell. Long spells are not among them. Too few mean nothing.
func (k *link) recent() (median time.Duration, late, spells int) {
	const few = 4
	n := min(k.n, lateWindow)
	if n < few {
		return 0, 0, 0
	}
	var buf [lateWindow]time.Duration
	for i := range n {
		buf[i] = k.took[(k.n-1-i)%roundTrips]
	}
	// A link that became slow a moment ago is judged by its newest round trips.
	newest := slices.Clone(buf[:min(n, 8)])
	slices.Sort(newest)
	median = newest[len(newest)/2]
	all := slices.Clone(buf[:n])
	slices.Sort(all)
	usual := all[n/4]
	if median > 2*usual+lateRoundTrip {
		return median, 0, 0 // it is slow now, not lossy
	}
	// Of a link that became slower, what is about as slow as the newest is not late.
	// A spell lasts until round trips are as usual again.
	bound, normal := 2*max(usual, median)+lateRoundTrip, 2*max(usual, median)+lateRoundTrip/3
	in, long := 0, 0 // late ones of the spell that goes on: in the window, and in all
	end := func() {
		if in > 0 && long <= longSpell {
			late, spells = late+in, spells+1
		}
		in, long = 0, 0
	}
	for i := range min(k.n, roundTrips) {
		d := k.took[(k.n-1-i)%roundTrips]
		if i >= n && (long == 0 || d <= normal) {
			break // a spell that reaches out of the window is seen to its beginning
		}
		switch {
		case d > bound:
			long++
			if i < n {
				in++
			}
		case d <= normal:
			end()
		}
	}
	end()
	return median, late, spells
}

// RoundTrip is the time of a round trip to a peer: the median of the newest, and the third longest
// of the last minute. ok: there are enough of them.
func (l *Links) RoundTrip(id uint64) (median, tail time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.peers[id]
	if k == nil {
		return 0, 0, false
	}
	median, _, _ = k.recent()
	return median, k.tail(), median > 0
}

func (k *link) tail() time.Duration {
	var worst [3]time.Duration // the longest first
	for _, d := range k.took[:min(k.n, roundTrips)] {
		switch {
		case d > worst[0]:
			worst = [3]time.Duration{d, worst[0], worst[1]}
		case d > worst[1]:
			worst = [3]time.Duration{worst[0], d, worst[1]}
		case d > worst[2]:
			worst[2] = d
		}
	}
	return worst[2]
}

// Unanswered is how long a peer has not answered, and why; 0: it answers, or never did.
func (l *Links) Unanswered(id uint64) (time.Duration, Absence) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.peers[id]
	if k == nil || k.answered.IsZero() {
		return 0, ""
	}
	if gone := l.now().Sub(k.answered); gone >= unreachableAfter {
		return gone, k.why
	}
	return 0, ""
}

// peerNearMiss is the newest near miss that a peer has reported.
func (l *Links) peerNearMiss(id uint64) (life string, seq uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k := l.peers[id]; k != nil {
		return k.life, k.nearMiss
	}
	return "", 0
}

// Peers are the members that are pinged.
func (l *Links) Peers() []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := make([]uint64, 0, len(l.peers))
	for id := range l.peers {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Report describes all links.
func (l *Links) Report() []LinkReport {
	ids := l.Peers()
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	ago := func(t time.Time) float64 {
		if t.IsZero() {
			return -1
		}
		return max(0, now.Sub(t).Seconds())
	}
	reports := make([]LinkReport, 0, len(ids))
	for _, id := range ids {
		k := l.peers[id]
		if k == nil {
			continue
		}
		median, late, _ := k.recent()
		reports = append(reports, LinkReport{
			Peer: command.IDText(id), RTT: median.Seconds(), Tail: k.tail().Seconds(), Late: late,
			HeardAgo: ago(k.heard), AnswerAgo: ago(k.answered), Why: k.why,
		})
	}
	return reports
}

// WhyNot classifies an error of the network.
func WhyNot(err error) Absence {
	var timeout net.Error
	switch {
	case err == nil:
		return Answered
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, net.ErrClosed):
		return Closed
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return TimedOut
	}
	return TimedOut
}
