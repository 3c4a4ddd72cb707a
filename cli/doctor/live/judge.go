package live

import (
	"fmt"
	"strings"

	"github.com/belaydb/belay/cli/doctor/report"
)

// checks are all that Judge looks at, in the order in which it tells of what is equally bad. Each
// adds findings for what is wrong, one for what it could not look at, or one that all is well.
var checks = []struct {
	id    string
	check func(*Cluster, *adder)
}{
	{"member-unreachable", checkReachable},
	{"no-leader", checkLeader},
	{"alarm", checkAlarms},
	{"read-slow", checkReads},
	{"certificate-expiry", checkCertificates},
	{"verdict", checkVerdicts},
	{"leader-changes", checkLeaderChanges},
	{"disk-slow", checkDisk},
	{"backend-slow", checkBackend},
	{"network-slow", checkRTT},
	{"peer-unreachable", checkPeers},
	{"proposals", checkProposals},
	{"member-behind", checkBehind},
	{"heartbeats-late", checkHeartbeats},
	{"quota", checkQuota},
	{"disk-full", checkFree},
	{"backup-too-old", checkBackups},
	{"history-kept", checkHistory},
	{"slow-watchers", checkWatchers},
	{"lease-churn", checkLeases},
	{"requests-failed", checkRequests},
	{"descriptors", checkDescriptors},
	{"cpu-busy", checkCPU},
	{"clock-differs", checkClocks},
	{"version", checkVersions},
	{"membership", checkMembership},
	{"open-to-all", checkOpen},
}

// An adder takes the findings of one check.
type adder struct {
	id   string
	r    *report.Report
	said bool
}

// add takes a finding of the check's id, or of one that begins with it.
func (a *adder) add(f report.Finding) {
	if f.ID == "" {
		f.ID = a.id
	}
	if f.Confidence == "" {
		f.Confidence = report.Certain
	}
	a.said = true
	a.r.Add(f)
}

// bad adds a finding with one line of advice or more.
func (a *adder) bad(severity report.Severity, member *Member, what, why string, evidence []string, do ...string) {
	f := report.Finding{Severity: severity, What: what, Why: why, Evidence: evidence, Do: do}
	if member != nil {
		f.Member = member.Name
	}
	a.add(f)
}

// unknown says what could not be looked at, and what would tell it.
func (a *adder) unknown(what string, evidence []string, do ...string) {
	a.add(report.Finding{Severity: report.Unknown, What: what, Evidence: evidence, Do: do})
}

// good says that all is well, if nothing else was said.
func (a *adder) good(format string, args ...any) {
	if !a.said {
		a.add(report.Finding{Severity: report.Good, What: fmt.Sprintf(format, args...)})
	}
}

// Judge makes the report of what was gathered. It asks nobody.
func Judge(c *Cluster) *report.Report {
	r := &report.Report{Command: "doctor", Subject: strings.Join(c.Endpoints, ","), At: c.At}
	if c.silent() {
		return nobody(c, r)
	}
	r.Summary = summary(c)
	for _, ch := range checks {
		ch.check(c, &adder{id: ch.id, r: r})
	}
	r.Tables = tables(c)
	r.Data = data(c)
	return r
}

// Nobody is the report of a command if no member answers; nil if one does.
func (c *Cluster) Nobody(command string) *report.Report {
	if !c.silent() {
		return nil
	}
	return nobody(c, &report.Report{Command: command, Subject: strings.Join(c.Endpoints, ","), At: c.At})
}

// nobody is the report when no member answers.
func nobody(c *Cluster, r *report.Report) *report.Report {
	r.Blind = true
	r.Add(report.Finding{
		ID: "nobody-answers", Severity: report.Critical, Confidence: report.Certain,
		What:     "No endpoint answers.",
		Evidence: append(append([]string(nil), c.Errors...), c.Strangers...),
		Why:      "Whether it is the cluster, the network or the way there cannot be told from here.",
		Do: []string{
			"check that the endpoints are client URLs (port 2379 as a rule), http:// or https:// as the members listen, and that a firewall lets them through",
			"on a member: is the process there, and what are its last lines of log? `belay doctor logs FILE` reads them",
		},
	})
	return r
}
