package transport

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/belaydb/belay/peers"
)

const (
	probeInterval = 4 * time.Second
	// probeName is etcd's name of the prober for raft messages.
	probeName = "ROUND_TRIPPER_RAFT_MESSAGE"
	// maxClockDrift is the difference of clocks from which it is logged.
	maxClockDrift = time.Second
	// The shortest time between two lines about an unhealthy peer, or about clock drift.
	unhealthyLogInterval = 5 * time.Second
	driftLogInterval     = 30 * time.Second
)

// probeAnswer is what /raft/probing answers.
type probeAnswer struct {
	OK  bool
	Now time.Time
}

// probe measures the round trip to the peer, over a connection that is kept, until the peer stops.
func (p *peer) probe() {
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	var unhealthyLogged, driftLogged time.Time
	for {
		rtt, drift, err := p.probeOnce()
		switch {
		case p.ctx.Err() != nil:
			return
		case err != nil:
			if time.Since(unhealthyLogged) >= unhealthyLogInterval {
				unhealthyLogged = time.Now()
				p.logger.Warn("prober detected unhealthy status", zap.String("round-tripper-name", probeName),
					zap.String("remote-peer-id", p.name), zap.Duration("rtt", time.Duration(p.rtt.Load())), zap.Error(err))
			}
		default:
			p.m.roundTrip.Observe(rtt.Seconds())
			drifted := driftIsSure(drift, rtt)
			if old := p.rtt.Load(); old > 0 {
				rtt = time.Duration(old) + (rtt-time.Duration(old))/8 // as TCP smooths
			}
			p.rtt.Store(int64(max(rtt, 1)))
			if drifted && time.Since(driftLogged) >= driftLogInterval {
				driftLogged = time.Now()
				p.logger.Warn("prober found high clock drift", zap.String("round-tripper-name", probeName),
					zap.String("remote-peer-id", p.name), zap.Duration("clock-drift", drift), zap.Duration("rtt", rtt))
			}
		}
		select {
		case <-p.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// driftIsSure says whether clocks differ by more than maxClockDrift whenever within the round trip
// the peer read its own. etcd takes it to be the middle, and reports a peer that stood still, or a
// slow link, as one whose clock is wrong.
func driftIsSure(drift, rtt time.Duration) bool { return drift.Abs()-rtt/2 > maxClockDrift }

// probeOnce sends one probe. drift is how far the peer's clock is behind ours.
func (p *peer) probeOnce() (rtt, drift time.Duration, err error) {
	u := p.urls.pick()
	if u == nil {
		return 0, 0, errNoURL
	}
	target := *u
	target.Path = peers.PathRaftProbing
	ctx, cancel := context.WithTimeout(p.ctx, probeInterval)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return 0, 0, err
	}
	p.t.setRequestHeaders(req.Header, p.id)
	start := time.Now()
	resp, err := p.t.requestRT.RoundTrip(req)
	if err != nil {
		p.urls.unreachable(u)
		return 0, 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		p.urls.unreachable(u)
		return 0, 0, fmt.Errorf("got unexpected HTTP status code %s from %s", resp.Status, target.String())
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return 0, 0, err
	}
	end := time.Now()
	var a probeAnswer
	if err := json.Unmarshal(body, &a); err != nil {
		return 0, 0, err
	}
	if !a.OK {
		return 0, 0, fmt.Errorf("the peer says that it is not healthy")
	}
	p.sawHeaders(resp.Header)
	rtt = end.Sub(start)
	return rtt, start.Add(rtt / 2).Sub(a.Now), nil
}
