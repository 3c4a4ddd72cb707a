package rules

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/belaydb/belay/cli/doctor/bounds"
	"github.com/belaydb/belay/cli/doctor/histogram"
	"github.com/belaydb/belay/cli/doctor/metrics"
)

// The latencies that alerts look at.
const (
	fsyncs     = "etcd_disk_wal_fsync_duration_seconds"
	commits    = "etcd_disk_backend_commit_duration_seconds"
	roundTrips = "etcd_network_peer_round_trip_time_seconds"
)

// Latencies are the histograms that Tune looks at.
func Latencies() []string { return []string{fsyncs, commits, roundTrips} }

// few is how many observations tune a bound at least.
const few = 100

// Timers are those of raft.
type Timers struct{ Heartbeat, Election time.Duration }

// DefaultTimers are etcd's and Belay's.
var DefaultTimers = Timers{100 * time.Millisecond, time.Second}

// Bounds are the figures that differ between clusters, latencies in seconds. The others are of
// package bounds.
type Bounds struct {
	FsyncSlow, FsyncBad   float64
	CommitSlow, CommitBad float64
	TripSlow, TripBad     float64
	LeaseGrants           float64 // a second
}

// NewBounds are those of a cluster with these timers: those of histogram.Kinds, which are made for
// the default timers, and in proportion where they come from the timers. A leader of etcd's beats
// only between its fsyncs, so one of half an election timeout is near to costing it its place; a
// round trip should be half a heartbeat interval at most, and an election timeout ten of them: at a
// quarter of it any delay costs a leader its place.
//
// Belay's leaders beat whatever their disks do, so there the timers say nothing of a sync.
func NewBounds(kind Kind, t Timers) Bounds {
	fsync, commit, trip := histogram.KindOf(fsyncs), histogram.KindOf(commits), histogram.KindOf(roundTrips)
	beat := t.Heartbeat.Seconds() / DefaultTimers.Heartbeat.Seconds()
	election := t.Election.Seconds() / DefaultTimers.Election.Seconds()
	fsyncBad := fsync.Bad
	if kind == Etcd {
		fsyncBad *= election
	}
	return Bounds{
		FsyncSlow: min(fsync.Slow, fsyncBad/2), FsyncBad: fsyncBad,
		CommitSlow: commit.Slow, CommitBad: commit.Bad,
		TripSlow: trip.Slow * beat, TripBad: trip.Bad * election,
		LeaseGrants: bounds.LeaseGrants,
	}
}

// Measured is what a cluster is like while it is well.
type Measured struct {
	Series []histogram.Series
	// Grants of leases a second, since the members started; 0 if not known.
	Grants float64
	// Members with their size and quota, in bytes.
	Sizes []Size
}

// A Size is that of one member's database.
type Size struct {
	Member      string
	Used, Quota float64 // Quota 0 or less: none
}

// Tune raises what would fire on a cluster that is well, by what was measured on it, and says why.
// It lowers nothing. A bound of what is slow never passes that of what is bad, which the timers and
// clients set and no habit excuses: it is said if that leaves no room.
func Tune(kind Kind, b Bounds, m Measured) (Bounds, []string) {
	var notes []string
	say := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	latency := func(metric string, slow *float64, bad float64, times float64) {
		kind := histogram.KindOf(metric)
		worst, where, n := 0.0, "", 0
		for _, s := range m.Series {
			if s.Kind.Metric != metric || s.H.Count < few {
				continue
			}
			n++
			if p99, _ := s.H.Quantile(0.99); p99 > worst {
				worst, where = p99, s.Source
				if s.Peer != "" {
					where += " to " + s.Peer
				}
			}
		}
		if n == 0 {
			say("%s: %s, the default: fewer than %d observations each.", kind.Name, metrics.Seconds(*slow), few)
			return
		}
		was := *slow
		wanted := round(worst * times)
		*slow = max(was, min(wanted, bad/2))
		switch {
		case *slow == was:
			say("%s: %s, the default; the longest p99 is %s (%s).", kind.Name, metrics.Seconds(was), metrics.Seconds(worst), where)
		case wanted > bad/2:
			say("%s: %s, half of what is bad. The longest p99 is %s (%s): look into that first, `belay doctor` says more.", kind.Name, metrics.Seconds(*slow), metrics.Seconds(worst), where)
		default:
			say("%s: %s, %g times the longest p99, %s (%s).", kind.Name, metrics.Seconds(*slow), times, metrics.Seconds(worst), where)
		}
	}
	if kind == Etcd { // Belay's alerts on disks are of stalls
		latency(fsyncs, &b.FsyncSlow, b.FsyncBad, 3)
		latency(commits, &b.CommitSlow, b.CommitBad, 3)
	}
	latency(roundTrips, &b.TripSlow, b.TripBad, 2)
	if grants := round(3 * m.Grants); grants > b.LeaseGrants {
		b.LeaseGrants = grants
		say("leases: %g grants a second, 3 times the mean of %s.", grants, strconv.FormatFloat(m.Grants, 'f', 1, 64))
	}
	var quotas []float64
	for _, s := range m.Sizes {
		switch {
		case s.Quota <= 0:
			say("quota: %s has none, so QuotaNear and QuotaFullSoon say nothing of it.", s.Member)
		case s.Used > s.Quota*bounds.QuotaNear:
			say("quota: %s is at %.0f %% now, QuotaNear will fire.", s.Member, 100*s.Used/s.Quota)
		}
		if !slices.Contains(quotas, s.Quota) {
			quotas = append(quotas, s.Quota)
		}
	}
	if len(quotas) > 1 {
		say("quota: the members have different ones; the smallest decides for all.")
	}
	return b, notes
}

// round has two digits.
func round(f float64) float64 {
	if f <= 0 || math.IsInf(f, 0) || math.IsNaN(f) {
		return 0
	}
	digit := math.Pow(10, math.Floor(math.Log10(f))-1)
	rounded, _ := strconv.ParseFloat(strconv.FormatFloat(math.Ceil(f/digit-1e-9)*digit, 'g', 3, 64), 64)
	return rounded
}
