package replica

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

// diskScenario runs the disk watch of a leader over made-up time. Its commands:
//
//	disk [healthy|sync=D count=N at=D]  from at on, count syncs of D each, one after another
//	peer id=N [state=S] [oldest=D] [median=D] [late=D] [unknown] [inactive] [behind=BYTES] [stuck] [from=D] [previous]
//	    how a peer does from a time on; stuck: it acknowledges nothing appended later
//	run for=D [handover=D] [voters=N] [refuse]
//	    prints changes of state, hand-overs, and why there is none. After a hand-over
//	    the member leads again at once, as after an election that it won: the worst
//	    case for flapping. refuse: no transfer succeeds.
type diskScenario struct {
	syncs []struct{ from, to time.Duration }
	peers map[uint64][]peerPhase
	order []uint64
}

type peerPhase struct {
	from  time.Duration
	view  peerView
	stuck bool
	prev  bool
}

func (sc *diskScenario) run(t *testing.T, d *datadriven.TestData) string {
	switch d.Cmd {
	case "reset":
		*sc = diskScenario{peers: map[uint64][]peerPhase{}}
		return ""
	case "disk":
		at, each, count := argDuration(t, d, "at"), argDuration(t, d, "sync"), 1
		d.MaybeScanArgs(t, "count", &count)
		for range count {
			sc.syncs = append(sc.syncs, struct{ from, to time.Duration }{at, at + each})
			at += each
		}
		return ""
	case "peer":
		p := peerPhase{from: argDuration(t, d, "from"), view: peerView{active: !d.HasArg("inactive"), known: !d.HasArg("unknown")}}
		d.ScanArgs(t, "id", &p.view.id)
		d.MaybeScanArgs(t, "behind", &p.view.behind)
		state := "healthy"
		d.MaybeScanArgs(t, "state", &state)
		if err := p.view.report.State.UnmarshalText([]byte(state)); err != nil {
			t.Fatal(err)
		}
		p.view.report.Oldest, p.view.report.Median = argDuration(t, d, "oldest"), argDuration(t, d, "median")
		p.view.late = argDuration(t, d, "late")
		p.stuck, p.prev = d.HasArg("stuck"), d.HasArg("previous")
		if sc.peers[p.view.id] == nil {
			sc.order = append(sc.order, p.view.id)
		}
		sc.peers[p.view.id] = append(sc.peers[p.view.id], p)
		return ""
	case "run":
		return sc.simulate(t, d)
	}
	return "unknown command"
}

func (sc *diskScenario) simulate(t *testing.T, d *datadriven.TestData) string {
	const tick = 100 * time.Millisecond
	var out strings.Builder
	total, voters := argDuration(t, d, "for"), len(sc.order)+1
	d.MaybeScanArgs(t, "voters", &voters)
	w := diskWatch{handOverAfter: defaultDiskStallHandOver}
	if d.HasArg("handover") {
		w.handOverAfter = argDuration(t, d, "handover")
	}
	start := time.Unix(1000, 0)
	var why noHandOver
	for at := time.Duration(0); at <= total; at += tick {
		now := start.Add(at)
		last := uint64(100 + at/tick) // an entry is appended at each tick
		var s diskSample
		for _, sync := range sc.syncs {
			if sync.from <= at && at < sync.to {
				s.oldest = at - sync.from
			}
			if at-tick < sync.to && sync.to <= at {
				s.took = sync.to - sync.from
			}
		}
		if before := w.observe(now, s); before != w.state {
			fmt.Fprintf(&out, "%v: %s -> %s\n", at, before, w.state)
		}
		var peers []peerView
		for _, id := range sc.order {
			for i := len(sc.peers[id]) - 1; i >= 0; i-- {
				phase := sc.peers[id][i]
				if phase.from > at {
					continue
				}
				v := phase.view
				v.match = last
				if phase.stuck {
					v.match = uint64(100 + phase.from/tick)
				}
				if phase.prev && w.previous == 0 {
					w.previous, w.previousEnd = id, now
				}
				peers = append(peers, v)
				break
			}
		}
		to, reason := w.decide(now, s, last, voters, peers)
		if reason != "" && reason != why {
			fmt.Fprintf(&out, "%v: goes on leading: %s\n", at, reason)
		}
		why = reason
		if to != 0 {
			if d.HasArg("refuse") {
				fmt.Fprintf(&out, "%v: hand over to %d, which does not take it\n", at, to)
				w.failed(now, to)
				continue
			}
			fmt.Fprintf(&out, "%v: hand over to %d\n", at, to)
			w.handedOver = now
		}
	}
	if out.Len() == 0 {
		return "nothing happens\n"
	}
	return out.String()
}

func argDuration(t *testing.T, d *datadriven.TestData, name string) time.Duration {
	text := "0s"
	d.MaybeScanArgs(t, name, &text)
	v, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestDiskWatch(t *testing.T) {
	datadriven.Walk(t, filepath.Join("testdata", "disk"), func(t *testing.T, path string) {
		var sc diskScenario
		datadriven.RunTest(t, path, sc.run)
	})
}

func TestDiskReportJSON(t *testing.T) {
	for _, d := range []DiskReport{{}, {DiskDead, 61 * time.Second, 3 * time.Millisecond, 1 << 30, DiskStalled, 7 * time.Second, 1 << 40, true}} {
		data, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		var got DiskReport
		if err := json.Unmarshal(data, &got); err != nil || got != d {
			t.Errorf("%s is read as %+v, %v; was %+v", data, got, err, d)
		}
	}
	for _, bad := range []string{`{}`, `{"state":"well"}`, `{"state":"healthy","oldest_seconds":-1}`, `[]`, ``} {
		var d DiskReport
		if err := json.NewDecoder(bytes.NewReader([]byte(bad))).Decode(&d); err == nil {
			t.Errorf("%q is taken for %+v", bad, d)
		}
	}
}
