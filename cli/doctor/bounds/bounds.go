// Package bounds is the one home of what doctor calls near, many, late or soon, for the findings on a
// cluster that runs (live) and for the alerts that watch it (rules). The bounds of latencies are
// histogram.Kinds.
//
// Files: bounds.go.
package bounds

import "time"

// Members and leadership.
const (
	// LeaderChanges within an hour are many: restarting three members one after the other makes up to
	// three.
	LeaderChanges = 4
	// LeaderChangesHourly is how many there may be each hour, as a mean since a member started.
	LeaderChangesHourly = 1
	// Restarts of one member within an hour are many.
	Restarts = 3
	// LateHeartbeats within a quarter of an hour are many.
	LateHeartbeats = 10
)

// Requests.
const (
	// PendingProposals of one member are many.
	PendingProposals = 100
	// FailedProposals of one member within a quarter of an hour are many; an election fails some.
	FailedProposals = 20
	// ApplyGapSlow and ApplyGapBad are entries that are committed and not applied; etcd refuses
	// requests when there are 5,000.
	ApplyGapSlow, ApplyGapBad = 1000, 4500
	// ApplyLagSlow and ApplyLagBad are how long an entry waits to be applied, seconds; Belay refuses
	// writes when it is 5 s.
	ApplyLagSlow, ApplyLagBad = 1.0, 4.0
	// SlowApplies a second are many.
	SlowApplies = 0.1
	// FailedSome and FailedMany are parts of the requests that fail.
	FailedSome, FailedMany = 0.01, 0.05
)

// FailedCodes are the codes of answers that are the cluster's fault, or may be.
func FailedCodes() []string {
	return []string{"Unavailable", "ResourceExhausted", "DeadlineExceeded", "Internal", "DataLoss", "Unknown"}
}

// Space.
const (
	// QuotaNear and QuotaFull are parts of the quota.
	QuotaNear, QuotaFull = 0.80, 0.95
	// DiskNear and DiskFull are multiples of the free space with less than which a member of Belay
	// raises NOSPACE.
	DiskNear, DiskFull = 8, 2
	// FullSoon and FullNow are times until the quota is reached.
	FullSoon, FullNow = 24 * time.Hour, 4 * time.Hour
	// FreeShare is the part of etcd's database file that is free when a defragmentation is worth its
	// stop, and FreeFile the size of the file, in bytes, from which on it matters.
	FreeShare, FreeFile = 0.5, 500 << 20
	// HistoryKept is how many revisions since the last compaction are many.
	HistoryKept = 5_000_000
)

// Watches, leases, process.
const (
	// PendingEvents that wait for watchers are many.
	PendingEvents = 10_000
	// LeaseGrants a second are many.
	LeaseGrants = 100
	// Descriptors is the part of the limit of open files that is near to it.
	Descriptors = 0.8
	// CertificateSoon and CertificateNow are the times before a certificate expires.
	CertificateSoon, CertificateNow = 30 * 24 * time.Hour, 7 * 24 * time.Hour
	// SlowSync is the age of a sync at which Belay calls its disk slow, and its store stalled.
	SlowSync = time.Second
)
