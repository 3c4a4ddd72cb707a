package transport

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/coreos/go-semver/semver"
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
	start := time.Now()
	body, header, err := p.get(p.ctx, peers.PathRaftProbing)
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
	p.sawHeaders(header)
	rtt = end.Sub(start)
	return rtt, start.Add(rtt / 2).Sub(a.Now), nil
}

// get asks the peer under one of its URLs.
func (p *peer) get(ctx context.Context, path string) (body []byte, header http.Header, err error) {
	u := p.urls.pick()
	if u == nil {
		return nil, nil, errNoURL
	}
	target := *u
	target.Path = path
	ctx, cancel := context.WithTimeout(ctx, probeInterval)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return nil, nil, err
	}
	p.t.setRequestHeaders(req.Header, p.id)
	resp, err := p.t.requestRT.RoundTrip(req)
	if err != nil {
		p.urls.unreachable(u)
		return nil, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		p.urls.unreachable(u)
		return nil, nil, fmt.Errorf("got unexpected HTTP status code %s from %s", resp.Status, target.String())
	}
	body, err = io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	return body, resp.Header, err
}

// software asks the peer what it runs: since the last handshake it may have become another, and what
// is not made for it could destroy its data. etcd writes any body down as its database.
func (p *peer) software(ctx context.Context) (s Software, err error) {
	_, header, err := p.get(ctx, peers.PathRaftProbing)
	if err != nil {
		return s, err
	}
	p.sawHeaders(header)
	if s.Kind = kindOf(header); s.Kind == KindBelay {
		return s, nil
	}
	body, _, err := p.get(ctx, peers.PathVersion)
	if err != nil {
		return s, err
	}
	var told struct {
		Server string `json:"etcdserver"`
	}
	if err := json.Unmarshal(body, &told); err != nil {
		return s, fmt.Errorf("its answer to %s: %w", peers.PathVersion, err)
	}
	if s.Version, err = semver.NewVersion(told.Server); err != nil {
		return s, fmt.Errorf("its version %q: %w", told.Server, err)
	}
	return s, nil
}
