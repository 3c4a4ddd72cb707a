package rolling

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/template"
)

// A place is what the commands of an operator are told of the member that is to change: the fields
// of --stop-command and the others.
type place struct {
	Name      string
	ID        string // hexadecimal
	Host      string // of its first peer URL
	PeerURL   string // its first
	ClientURL string // where it answers, or would
	DataDir   string
	WALDir    string // "" unless its log is apart
	From, To  Kind
	Version   string // "3.6": of the etcd, and --max-cluster-version of each Belay
	Migrate   string // the command that migrates DataDir
}

// Commands are templates of what an operator types for one member, of text/template with the fields
// of a place; "": it is asked for at the terminal.
type Commands struct {
	Stop, Migrate, Start string
	DataDir              string // of the member, on its machine
	WALDir               string // its --wal-dir; "": it has none
}

// filled is a template with a member's fields.
func filled(text string, p place) (string, error) {
	t, err := template.New("command").Option("missingkey=error").Parse(text)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	err = t.Execute(&out, p)
	return out.String(), err
}

// somewhere has all that a member has, for templates that cut and compare it.
var somewhere = place{Name: "a-member", ID: "8e9e05c52164694d", Host: "a.host.name", PeerURL: "http://a.host.name:2380", ClientURL: "http://a.host.name:2379",
	DataDir: "/data", WALDir: "/wal", From: Etcd, To: Belay, Version: "3.6", Migrate: "belay util migrate"}

// Check finds a template that cannot be used, before anything is done.
func (c Commands) Check() error {
	for _, f := range []struct{ flag, text string }{
		{"stop-command", c.Stop}, {"migrate-command", c.Migrate}, {"start-command", c.Start}, {"data-dir", c.DataDir}, {"wal-dir", c.WALDir},
	} {
		if _, err := filled(f.text, somewhere); err != nil {
			return fmt.Errorf("--%s: %w", f.flag, err)
		}
	}
	return nil
}

// A plan is what a move has to do in a cluster as it is.
type plan struct {
	to      Kind
	version string    // of etcd, "3.6"
	order   []*Member // that are of the other kind, or silent; the leader last
	done    []*Member
	// downgrade: the cluster's version has to be lowered first.
	downgrade bool
	commands  Commands
	cluster   *Cluster
	refused   error // why there is no plan
	secured   bool  // the cluster is asked over TLS, or as a user
}

// oldest and newest are the minor versions of etcd 3 whose members can share a cluster with Belay's.
const (
	oldestMinor = 5
	newestMinor = 7
)

// minor is that of a version "3.6" or "3.6.0".
func minor(version string) (int, bool) {
	parts := strings.Split(version, ".")
	if len(parts) < 2 || parts[0] != "3" {
		return 0, false
	}
	n, err := strconv.Atoi(parts[1])
	return n, err == nil
}

// newPlan tells what is to be done, or why nothing may. version is that of the etcds on the way back,
// "" that of the cluster. It asks nobody.
func newPlan(c *Cluster, to Kind, version string, commands Commands) (*plan, error) {
	p := &plan{to: to, version: version, commands: commands, cluster: c}
	if len(c.Voters()) < 3 {
		return nil, refuse("Hint: see \"Go at once\" in docs/migration.md", "a cluster of %d voters is not moved live: without one of them there is no quorum", len(c.Voters()))
	}
	if len(c.Alarms) > 0 {
		return nil, refuse("Hint: `belay ctl alarm list`; docs/operations.md says what to do", "there are alarms: %v", c.Alarms)
	}
	if h := c.healing(); h != nil {
		return nil, refuse("Hint: wait until it has", "member %x heals", h.ID)
	}
	versions := map[int]bool{}
	cluster := ""
	var silent []*Member
	for _, m := range c.Members {
		switch {
		case m.Name == "":
			return nil, refuse("Hint: start it, or remove it", "member %x was added and has never started", m.ID)
		case m.Status == nil:
			silent = append(silent, m)
			continue
		case m.Kind == "":
			return nil, refuse("Hint: --endpoints must be URLs where members speak HTTP, too", "%s (%s) does not say over HTTP whether it is an etcd or a Belay", m.Name, m.Endpoint)
		}
		if m.Kind == Etcd {
			n, ok := minor(m.Status.Version)
			if !ok || n < oldestMinor || n > newestMinor {
				return nil, refuse("Hint: etcd 3.4 is moved at once (docs/migration.md); a newer one not yet", "%s is an etcd %s: members of 3.%d to 3.%d can share a cluster with Belay", m.Name, m.Status.Version, oldestMinor, newestMinor)
			}
			versions[n] = true
		}
		if m.Version != "" {
			cluster = m.Version
		}
	}
	if len(silent) > 1 {
		return nil, refuse(quorumHint, "%s and %s do not answer", silent[0].Name, silent[1].Name)
	}
	if c.Leader == 0 || c.Member(c.Leader) == nil {
		return nil, refuse("Hint: belay doctor", "no member knows a leader")
	}
	if len(versions) > 1 {
		return nil, refuse("Hint: finish the upgrade of etcd first", "the etcds are of several minor versions")
	}
	now, ok := minor(cluster)
	if !ok {
		return nil, fmt.Errorf("no member says which version the cluster has (it says %q)", cluster)
	}
	if p.version == "" {
		p.version = fmt.Sprintf("3.%d", now)
		for n := range versions {
			p.version = fmt.Sprintf("3.%d", n)
		}
	}
	if to == Etcd {
		if err := p.mayGoBack(now, versions); err != nil {
			return nil, err
		}
	}
	for _, m := range c.Members {
		switch {
		case m.Kind == to:
			p.done = append(p.done, m)
		case m.ID == c.Leader:
		default:
			p.order = append(p.order, m)
		}
	}
	slices.SortStableFunc(p.order, func(a, b *Member) int { return rank(a) - rank(b) })
	if leader := c.Member(c.Leader); leader.Kind != to {
		p.order = append(p.order, leader)
	}
	return p, nil
}

// rank puts first what costs least: one that is stopped already, then those without a vote.
func rank(m *Member) int {
	switch {
	case m.Status == nil:
		return 0
	case m.IsLearner:
		return 1
	}
	return 2
}

// mayGoBack says whether etcds of the version can join; now is the minor of the cluster's version.
func (p *plan) mayGoBack(now int, versions map[int]bool) error {
	n, ok := minor(p.version)
	if !ok || n < oldestMinor || n > newestMinor {
		return refuse("", "--to-etcd=%s: 3.%d to 3.%d can share a cluster with Belay", p.version, oldestMinor, newestMinor)
	}
	for v := range versions {
		if v != n {
			return refuse("", "--to-etcd=%s: the etcds of this cluster are of 3.%d", p.version, v)
		}
	}
	switch {
	case now == n+1:
		p.downgrade = true
	case now > n:
		return refuse("Hint: see \"Back at once\" in docs/migration.md", "the cluster has version 3.%d, and an etcd %s cannot join it", now, p.version)
	}
	return nil
}

// place is what commands are told of a member.
func (p *plan) place(m *Member) (place, error) {
	at := place{Name: m.Name, ID: fmt.Sprintf("%x", m.ID), To: p.to, From: Etcd, Version: p.version, ClientURL: m.Endpoint}
	if p.to == Etcd {
		at.From = Belay
	}
	if len(m.PeerURLs) > 0 {
		at.PeerURL = m.PeerURLs[0]
		if u, err := url.Parse(at.PeerURL); err == nil {
			at.Host = u.Hostname()
		}
	}
	dir := "DATA-DIR"
	if p.commands.DataDir != "" {
		var err error
		if dir, err = filled(p.commands.DataDir, at); err != nil {
			return at, err
		}
	}
	at.DataDir = dir
	at.Migrate = "belay util migrate --data-dir " + dir
	if p.commands.WALDir != "" {
		var err error
		if at.WALDir, err = filled(p.commands.WALDir, at); err != nil {
			return at, err
		}
		at.Migrate += " --wal-dir " + at.WALDir
	}
	at.Migrate += " --in-place"
	if p.to == Etcd {
		at.Migrate += " --to-etcd=" + p.version
	}
	return at, nil
}

// doing are the three things that touch a process or its files, as a person is told them; and the
// commands, "" where a person does it.
type doing struct{ what, how, command string }

func (p *plan) doings(at place) ([]doing, error) {
	start := fmt.Sprintf("with the same flags, as `belay server`, and --max-cluster-version=%s", p.version)
	if p.to == Etcd {
		start = fmt.Sprintf("with the same flags, as etcd %s, without those that only Belay has", p.version)
	}
	all := []doing{
		{"stop", fmt.Sprintf("the %s, in order (systemctl stop, SIGTERM)", at.From), p.commands.Stop},
		{"migrate", at.Migrate, p.commands.Migrate},
		{"start", start, p.commands.Start},
	}
	for i := range all {
		if all[i].command == "" {
			continue
		}
		text, err := filled(all[i].command, at)
		if err != nil {
			return nil, err
		}
		all[i].command = text
	}
	return all, nil
}

// text is the plan as it is printed.
func (p *plan) text() (string, error) {
	var out strings.Builder
	c := p.cluster
	name := map[Kind]string{Etcd: "etcd " + p.version, Belay: "Belay"}[p.to]
	fmt.Fprintf(&out, "Cluster %x: %d members, %s leads.\n\n", c.ID, len(c.Members), c.Member(c.Leader).Name)
	for _, m := range c.Members {
		what := "does not answer: an earlier run may have stopped it"
		if m.Status != nil {
			what = string(m.Kind)
			if m.Kind == Etcd {
				what += " " + m.Status.Version
			}
			switch {
			case m.IsLearner:
				what += ", learner"
			case m.ID == c.Leader:
				what += ", leads"
			}
		}
		fmt.Fprintf(&out, "  %-12s %x  %s  %s\n", m.Name, m.ID, strings.Join(m.PeerURLs, ","), what)
	}
	if len(p.order) == 0 {
		fmt.Fprintf(&out, "\nAll members are %s: nothing is to be done.\n", name)
		return out.String(), nil
	}
	var endpoints []string
	for _, m := range c.Members {
		if m.Endpoint != "" {
			endpoints = append(endpoints, m.Endpoint)
		}
	}
	fmt.Fprintf(&out, "\n%d become %s, one at a time. Never stop a second one while one is stopped.\n\n", len(p.order), name)
	fmt.Fprintf(&out, "first\n  save      belay ctl --endpoints %s snapshot save before.db\n", c.Member(c.Leader).Endpoint)
	if p.downgrade {
		fmt.Fprintf(&out, "  lower     belay ctl --endpoints %s downgrade enable %s\n", strings.Join(endpoints, ","), p.version)
	}
	for _, m := range p.order {
		at, err := p.place(m)
		if err != nil {
			return "", err
		}
		all, err := p.doings(at)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&out, "\n%s (%s)\n", m.Name, at.Host)
		if m.ID == c.Leader {
			if to := p.heir(c, m.ID); to != nil {
				fmt.Fprintf(&out, "  hand over belay ctl --endpoints %s move-leader %x\n            (to %s)\n", strings.Join(endpoints, ","), to.ID, to.Name)
			}
		}
		for _, d := range all {
			how := d.how
			if d.command != "" {
				how = d.command
			}
			fmt.Fprintf(&out, "  %-9s %s\n", d.what, how)
		}
		fmt.Fprintf(&out, "  check     it answers as %s with the same ID, votes as before, has caught up;\n            all hashes are equal at one revision; no alarm\n", p.to)
	}
	out.WriteString("\nGood to know\n")
	for _, note := range p.notes() {
		fmt.Fprintf(&out, "  - %s\n", strings.ReplaceAll(wrapped(note, planWidth), "\n", "\n    "))
	}
	return out.String(), nil
}

// planWidth is how wide the prose of a plan is, characters.
const planWidth = 74

// wrapped breaks a sentence into lines between words.
func wrapped(text string, width int) string {
	var out strings.Builder
	at := 0
	for word := range strings.FieldsSeq(text) {
		switch {
		case at > 0 && at+1+len(word) > width:
			out.WriteByte('\n')
			at = 0
		case at > 0:
			out.WriteByte(' ')
			at++
		}
		out.WriteString(word)
		at += len(word)
	}
	return out.String()
}

// heir is who leads while a member changes: of the kind that all are to be, if there is one.
func (p *plan) heir(c *Cluster, but uint64) *Member {
	if m := c.furthest(func(m *Member) bool { return m.ID != but && m.Kind == p.to }); m != nil {
		return m
	}
	return c.furthest(func(m *Member) bool { return m.ID != but })
}

// notes are what has to be known of this cluster while both kinds are in it.
func (p *plan) notes() (all []string) {
	if p.secured {
		all = append(all, "The commands of `belay ctl` take the same --cacert, --cert, --key and --user as this one, or the variables ETCDCTL_CACERT and so on.")
	}
	if p.version == "3.5" {
		all = append(all, "The corruption checks of etcd 3.5 are experimental: leave them off while both kinds are there.")
	}
	all = append(all, "While an etcd leads, a stalled disk or a slow fdatasync of it stops writes, as ever. A Belay that leads bears its own.")
	if p.to == Belay {
		all = append(all,
			fmt.Sprintf("Every Belay is started with --max-cluster-version=%s, or there is no live way back when the last one has moved.", p.version),
			fmt.Sprintf("Back, at any point: the same command with --to-etcd=%s. Never put member.etcd back in its place: it has forgotten what it voted.", p.version))
	} else {
		all = append(all, "Never put member.etcd of the way in back in its place: it has forgotten what it voted. The data goes back by migrate.")
	}
	return append(all,
		"Verdicts, /belay/ping, measured timeouts and checkpoints of leases wait until all members are Belay; RangeStream works at members that know it.",
		"A member whose data cannot be migrated (damaged, no room) is replaced: stop it, and `belay ctl member replace NAME` with the other program.",
		"Any mix may stay for as long as you like.")
}
