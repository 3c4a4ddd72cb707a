package config

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/doctor/metrics"
	"github.com/belaydb/belay/internal/show"
)

// A Member is one of the cluster.
type Member struct{ Name, Host string }

// Options say what a configuration is for.
type Options struct {
	For        string // ForEtcd or ForBelay
	Self       string // the name of the member whose configuration it is
	Members    []Member
	DataDir    string
	WALDir     string // "": in the data directory
	CertDir    string // of server.crt, server.key, peer.crt, peer.key, ca.crt; "": no TLS
	Token      string
	Kubernetes bool // its API server compacts

	ClientPort, PeerPort, MetricsPort int
}

// Measured is what was measured; zero: it was not.
type Measured struct {
	RTT     time.Duration // the longest median to another member's host
	RTTOf   string        // that host
	Sync    time.Duration // p99 of fdatasync on the disk of the data
	Writes  int           // of which that is
	Memory  int64         // bytes: of the machine, or the limit of the cgroup
	Free    int64         // bytes free on the disk of the data
	Missing []string      // what could not be measured, with the reason
}

// A Line is a setting with its reason.
type Line struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Reason string `json:"reason"`
}

// Validate says what is wrong with options.
func (o Options) Validate() error {
	self := false
	remote := false
	for _, m := range o.Members {
		self = self || m.Name == o.Self
		remote = remote || !loopback(m.Host)
		if m.Name == "" || m.Host == "" || strings.ContainsAny(m.Name+m.Host, "=,/ \n\"'$%#") {
			return fmt.Errorf("a member is NAME=HOST, as in m1=10.0.0.1, not %q=%q", m.Name, m.Host)
		}
	}
	switch {
	case o.For != ForEtcd && o.For != ForBelay:
		return fmt.Errorf("for %q: etcd or belay", o.For)
	case len(o.Members) == 0:
		return fmt.Errorf("no member is given: --members m1=10.0.0.1,m2=10.0.0.2,m3=10.0.0.3")
	case len(o.Members)%2 == 0:
		return fmt.Errorf("%d members bear no more failures than %d: name an odd number", len(o.Members), len(o.Members)-1)
	case !self:
		return fmt.Errorf("%q is not among the members: --name says which of them the configuration is for", o.Self)
	case remote && o.CertDir == "":
		return fmt.Errorf("the members are not on loopback addresses, where whoever reaches a port without TLS is let in: --cert-dir names the directory of server.crt, server.key, peer.crt, peer.key and ca.crt")
	case !filepath.IsAbs(o.DataDir) || strings.ContainsAny(o.DataDir+o.WALDir+o.CertDir, " \n\"'$%#"):
		return fmt.Errorf("the data directory is an absolute path, and no path has spaces, quotes, $, %% or #")
	}
	return nil
}

// Plan is the configuration, in the order in which it is read best.
// REQUIRES: o.Validate() is nil.
func Plan(o Options, m Measured) (lines []Line) {
	add := func(name, value, reason string, args ...any) {
		if len(args) > 0 {
			reason = fmt.Sprintf(reason, args...)
		}
		lines = append(lines, Line{name, value, reason})
	}
	scheme := "http"
	if o.CertDir != "" {
		scheme = "https"
	}
	at := func(host string, port int) string { return scheme + "://" + net.JoinHostPort(host, strconv.Itoa(port)) }
	var self Member
	var cluster []string
	for _, one := range o.Members {
		if one.Name == o.Self {
			self = one
		}
		cluster = append(cluster, one.Name+"="+at(one.Host, o.PeerPort))
	}
	add("name", o.Self, "the one of initial-cluster that this member is")
	add("data-dir", o.DataDir, "on a disk of its own if there is one: what others write there delays each write of the cluster%s", o.disk(m))
	if o.WALDir != "" {
		add("wal-dir", o.WALDir, "the log is what each write waits for; on a disk of its own nothing else delays it")
	}
	local := "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(o.MetricsPort))
	add("listen-peer-urls", at(self.Host, o.PeerPort), "for members; one address rather than all")
	add("listen-client-urls", at(self.Host, o.ClientPort), "for clients; one address rather than all")
	add("initial-advertise-peer-urls", at(self.Host, o.PeerPort), "must be what initial-cluster has for this member")
	add("advertise-client-urls", at(self.Host, o.ClientPort), "what clients are told who ask for the members")
	add("listen-metrics-urls", local, "metrics and health without a certificate, for this machine alone")
	n := len(o.Members)
	bear := fmt.Sprintf("%d members bear the loss of %d", n, (n-1)/2)
	if n == 1 {
		bear = "one member: while it is away, so is the cluster"
	}
	add("initial-cluster", strings.Join(cluster, ","), bear+"; read only while there is no data")
	add("initial-cluster-state", "new", "existing for a member that is added to a cluster that runs")
	add("initial-cluster-token", o.Token, "another one for each cluster, so that members of two never take each other for theirs")
	o.timers(m, add)
	o.space(m, add)
	if o.CertDir != "" {
		for _, side := range []struct{ prefix, file, who string }{{"", "server", "clients"}, {"peer-", "peer", "members"}} {
			add(side.prefix+"cert-file", filepath.Join(o.CertDir, side.file+".crt"), "shown to %s; it must name %s", side.who, self.Host)
			add(side.prefix+"key-file", filepath.Join(o.CertDir, side.file+".key"), "readable by the server's user alone")
			add(side.prefix+"client-cert-auth", "true", "who shows no certificate is not let in")
			add(side.prefix+"trusted-ca-file", filepath.Join(o.CertDir, "ca.crt"), "whose certificates of %s are believed", side.who)
		}
	}
	add("log-level", "info", "debug costs CPU and disk for each message")
	return lines
}

// disk is what is known of the disk, for a reason.
func (o Options) disk(m Measured) string {
	switch {
	case m.Sync == 0:
		return ""
	case m.Sync > 10*time.Millisecond:
		return fmt.Sprintf(" (measured: fdatasync p99 %s of %d, which is slow: over 10 ms)", metrics.Seconds(m.Sync.Seconds()), m.Writes)
	}
	return fmt.Sprintf(" (measured: fdatasync p99 %s of %d, which is well)", metrics.Seconds(m.Sync.Seconds()), m.Writes)
}

// timers sets the heartbeat to one and a half round trips, and the election timeout to ten heartbeats
// or more; on Belay, which tunes itself, only where it has to begin higher.
func (o Options) timers(m Measured, add func(name, value, reason string, args ...any)) {
	heartbeat := 100 * time.Millisecond
	why := "not measured (--measure); the default, for round trips up to 50 ms"
	if m.RTT > 0 {
		why = fmt.Sprintf("measured: %s to %s; the default is enough", metrics.Seconds(m.RTT.Seconds()), m.RTTOf)
		if want := (3 * m.RTT / 2).Round(10 * time.Millisecond); want > heartbeat {
			heartbeat = want
			why = fmt.Sprintf("measured: %s to %s; one and a half round trips", metrics.Seconds(m.RTT.Seconds()), m.RTTOf)
		}
	}
	if o.For == ForBelay && heartbeat == 100*time.Millisecond {
		return // the election timeout follows the measured round trips while it is not set
	}
	election := 10 * heartbeat
	reason := "ten heartbeats: one that is lost or late costs no leader its place"
	if stalls := (10 * (m.Sync + m.RTT)).Round(100 * time.Millisecond); o.For == ForEtcd && stalls > election {
		election = min(stalls, 50*time.Second)
		reason = fmt.Sprintf("ten times round trip and fsync (p99 %s): etcd's heartbeats wait for its disk", metrics.Seconds(m.Sync.Seconds()))
	}
	add("heartbeat-interval", strconv.FormatInt(heartbeat.Milliseconds(), 10), "milliseconds; "+why)
	add("election-timeout", strconv.FormatInt(election.Milliseconds(), 10), "milliseconds; "+reason)
}

func (o Options) space(m Measured, add func(name, value, reason string, args ...any)) {
	const gib = int64(1) << 30
	quota, why := 8*gib, "8 GiB, the most that etcd is made for; not measured (--measure)"
	if o.For == ForBelay {
		why = "8 GiB; a larger one has no cliff behind it; not measured (--measure)"
	}
	if m.Memory > 0 || m.Free > 0 {
		why = "8 GiB"
		if half := m.Memory / 2; m.Memory > 0 && o.For == ForEtcd && half < quota {
			quota, why = max(half/(gib/4)*(gib/4), gib/2), fmt.Sprintf("half of the memory (measured: %s), into which etcd maps its database", show.Bytes(m.Memory))
		}
		if half := m.Free / 2; m.Free > 0 && half < quota {
			quota, why = max(half/(gib/4)*(gib/4), gib/4), fmt.Sprintf("half of what the disk has free (measured: %s)", show.Bytes(m.Free))
		}
		if why == "8 GiB" {
			why = fmt.Sprintf("8 GiB; memory (%s) and disk (%s free) have the room", show.Bytes(m.Memory), show.Bytes(m.Free))
		}
	}
	add("quota-backend-bytes", strconv.FormatInt(quota, 10), "%s; at the quota writes are refused, so alert at 80 %%", why)
	if o.Kubernetes {
		add("auto-compaction-retention", "0", "the API server compacts every 5 min")
		return
	}
	add("auto-compaction-mode", "periodic", "by time, so that a watch can be interrupted for as long")
	add("auto-compaction-retention", "1h", "the history of an hour is kept; without compaction the quota fills with old revisions")
}
