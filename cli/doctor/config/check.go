package config

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/doctor/report"
	"github.com/belaydb/belay/internal/show"
)

// A Host is what is known of the machine that a configuration is for; zero: it was not looked at.
type Host struct {
	MemoryBytes int64
	// Shares says who has data on the disk of the data directory, too: the system, another member.
	Shares []string
}

// Names of servers, for what differs between them.
const (
	ForEtcd  = "etcd"
	ForBelay = "belay"
)

// A checker looks at one configuration.
type checker struct {
	*File
	r     *report.Report
	known map[string]bool
	of    string // ForEtcd or ForBelay
	// told are the settings whose URLs are found wrong already.
	told map[string]bool
}

// Check makes the report of a configuration.
func Check(f *File, subject, of string, host Host, at time.Time) *report.Report {
	r := &report.Report{Command: "doctor config", Subject: subject, At: at}
	r.Summary = []string{fmt.Sprintf("%d settings, read as %s.", len(f.Settings), map[Form]string{
		Unit: "a systemd unit", Manifest: "a Kubernetes manifest", Kubeadm: "a kubeadm configuration", YAML: "the file of --config-file", Env: "variables",
	}[f.Form])}
	c := &checker{File: f, r: r, known: known(), of: of, told: map[string]bool{}}
	c.names()
	c.twice()
	c.timers()
	c.members()
	c.urls()
	c.security()
	c.space(host)
	c.dangers()
	c.around(host)
	if len(r.Findings) == 0 {
		r.Add(report.Finding{ID: "config-good", Severity: report.Good, Confidence: report.Certain, What: "nothing is wrong with it that can be seen from the file"})
	}
	return r
}

// get is the last value of a setting.
func (c *checker) get(name string) (s Setting, ok bool) {
	for _, one := range c.Settings {
		if one.Name == name {
			s, ok = one, true
		}
	}
	return s, ok
}

func (c *checker) value(name, otherwise string) string {
	if s, ok := c.get(name); ok {
		return s.Value
	}
	return otherwise
}

func (c *checker) is(name string) bool {
	on, err := strconv.ParseBool(c.value(name, "false"))
	return err == nil && on
}

// at is a setting as evidence.
func (s Setting) at() string {
	text := s.Name + ": " + s.Value
	switch {
	case s.Flag:
		text = "--" + s.Name + "=" + s.Value
	case s.Variable:
		text = variableName(s.Name) + "=" + s.Value
	}
	if s.Line > 0 {
		return fmt.Sprintf("line %d: %s", s.Line, text)
	}
	return text
}

func variableName(name string) string {
	return "ETCD_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// spelt is a setting as it is written in this form of configuration.
func (c *checker) spelt(name, value string) string {
	switch c.Form {
	case Unit, Manifest:
		return "--" + name + "=" + value
	case Env:
		return variableName(name) + "=" + value
	}
	return name + ": " + value
}

func (c *checker) add(id string, sev report.Severity, sure report.Confidence, what, why string, do string, evidence ...Setting) {
	f := report.Finding{ID: id, Severity: sev, Confidence: sure, What: what, Why: why}
	if do != "" {
		f.Do = []string{do}
	}
	for _, s := range evidence {
		f.Evidence = append(f.Evidence, s.at())
	}
	c.r.Add(f)
}

// names finds what no server knows.
func (c *checker) names() {
	belays := own()
	for _, s := range c.Settings {
		if c.known[s.Name] && !(c.of == ForEtcd && slices.Contains(belays, s.Name)) {
			continue
		}
		sev, why := report.Warning, "An unknown key of a file, or a variable, is passed over, so that the setting is not in effect."
		if s.Flag {
			sev, why = report.Critical, "A server that is given a flag that it does not know does not start."
		}
		if what := gone(s.Name, c.known); what != "" {
			c.add("config-flag-gone", sev, report.Certain, fmt.Sprintf("%s is no setting any more: %s.", s.Name, what), why, "remove it, or write what took its place", s)
			continue
		}
		do, named := "remove it", s.Name
		if near := nearest(s.Name, c.known); near != "" {
			do = "is " + near + " meant?"
			if s.Variable {
				do = "is " + variableName(near) + " meant?"
			}
		}
		if s.Variable {
			named = variableName(s.Name)
		}
		what := named + " is no setting of a server."
		if c.of == ForEtcd && slices.Contains(belays, s.Name) {
			what, do = s.Name+" is Belay's own, and etcd does not know it.", "remove it, or check it with --for belay"
		}
		c.add("config-flag-unknown", sev, report.Certain, what, why, do, s)
	}
}

// twice finds settings that are given in two ways.
func (c *checker) twice() {
	seen := map[string]Setting{}
	for _, s := range c.Settings {
		before, ok := seen[s.Name]
		seen[s.Name] = s
		switch {
		case !ok:
		case before.Flag != s.Flag:
			c.add("config-twice", report.Critical, report.Certain, s.Name+" is given as a flag and as a variable.", "etcd and Belay refuse to start if a variable is shadowed by a flag.", "keep one", before, s)
		case before.Value != s.Value:
			c.add("config-twice", report.Warning, report.Certain, s.Name+" is given twice, with two values.", "The last one counts; who reads the first is misled.", "keep one", before, s)
		}
	}
	if file, ok := c.get("config-file"); ok && len(c.Settings) > 1 {
		c.add("config-file-and-flags", report.Warning, report.Certain, "There is a --config-file, and all other settings here are passed over.", "With --config-file neither flags nor variables count.", "put all into the file, and check that", file)
	}
}

// timers are the heartbeat interval and the election timeout, in milliseconds.
func (c *checker) timers() {
	ms := func(name string, otherwise int) (int, Setting, bool) {
		s, given := c.get(name)
		if !given {
			return otherwise, s, true
		}
		n, err := strconv.Atoi(s.Value)
		if err != nil {
			c.add("config-timer-units", report.Critical, report.Certain, fmt.Sprintf("%s is a number of milliseconds, without a unit.", name), "The server does not start.", "write the number alone: 100 for a tenth of a second", s)
		}
		return n, s, err == nil
	}
	heartbeat, hs, ok1 := ms("heartbeat-interval", 100)
	election, es, ok2 := ms("election-timeout", 1000)
	if !ok1 || !ok2 {
		return
	}
	var given []Setting
	for _, s := range []Setting{hs, es} {
		if s.Name != "" {
			given = append(given, s)
		}
	}
	switch {
	case heartbeat < 10 || election < 100:
		c.add("config-timer-units", report.Critical, report.Likely, fmt.Sprintf("A heartbeat of %d ms and an election timeout of %d ms: were seconds meant?", heartbeat, election),
			"Timers are in milliseconds. Elections begin at each small delay, and the cluster has no leader most of the time.", "100 and 1000 are the defaults", given...)
	case election < 5*heartbeat:
		c.add("config-election-ratio", report.Critical, report.Certain, fmt.Sprintf("The election timeout (%d ms) is less than five heartbeats (%d ms each).", election, heartbeat),
			"The server does not start.", fmt.Sprintf("an election timeout of %d", 10*heartbeat), given...)
	case election > 50000:
		c.add("config-timer-units", report.Critical, report.Certain, fmt.Sprintf("An election timeout of %d ms is more than 50 s, the most that is allowed.", election), "The server does not start.", "milliseconds are meant", given...)
	case election < 10*heartbeat:
		c.add("config-election-ratio", report.Warning, report.Certain, fmt.Sprintf("The election timeout (%d ms) is less than ten heartbeats (%d ms each).", election, heartbeat),
			"A few heartbeats that are lost or late cost a leader its place.", fmt.Sprintf("an election timeout of %d", 10*heartbeat), given...)
	case heartbeat > 1000 || election > 10000:
		c.add("config-timers-long", report.Warning, report.Likely, fmt.Sprintf("Without a leader the cluster waits for %s.", time.Duration(election)*time.Millisecond),
			"Long timers are for round trips of hundreds of milliseconds; elsewhere they only lengthen each outage.", "measure: belay doctor network; ten round trips are enough", given...)
	}
}

// member is one of initial-cluster.
type member struct {
	name string
	url  *url.URL
}

func (c *checker) cluster() (all []member, s Setting) {
	s, _ = c.get("initial-cluster")
	for _, one := range strings.Split(s.Value, ",") {
		name, address, ok := strings.Cut(strings.TrimSpace(one), "=")
		if u, err := url.Parse(address); ok && err == nil {
			all = append(all, member{name, u})
		}
	}
	return all, s
}

// templated tells whether a value is filled in elsewhere.
func templated(value string) bool { return strings.ContainsAny(value, "$%{") }

func (c *checker) members() {
	all, s := c.cluster()
	if len(all) == 0 || templated(s.Value) {
		return
	}
	names := map[string]bool{}
	hosts := map[string]int{}
	for _, m := range all {
		names[m.name] = true
		hosts[m.url.Hostname()]++
	}
	n := len(names)
	state := c.value("initial-cluster-state", "new")
	switch {
	case n == 1 || state == "existing":
	case n%2 == 0:
		c.add("config-members-even", report.Warning, report.Certain, fmt.Sprintf("%d members bear no more failures than %d do.", n, n-1), "A quorum of an even number is one more than half: the last member adds a machine that can fail, and nothing else.", fmt.Sprintf("%d or %d members", n-1, n+1), s)
	case n > 7:
		c.add("config-members-many", report.Warning, report.Certain, fmt.Sprintf("There are %d members.", n), "Each write waits for a quorum of them; more than seven cost more than they give.", "three or five", s)
	}
	for host, count := range hosts {
		if count > 1 && !loopback(host) {
			c.add("config-members-one-host", report.Warning, report.Certain, fmt.Sprintf("%d members are on %s.", count, host), "They fail together.", "a machine for each", s)
		}
	}
	name, given := c.get("name")
	if c.Form == Kubeadm || templated(name.Value) {
		return
	}
	if !given {
		name = Setting{Name: "name", Value: "default"}
	}
	if !names[name.Value] {
		c.add("config-member-missing", report.Critical, report.Certain, fmt.Sprintf("%s is not among the members of initial-cluster.", name.Value), "The server does not start without data: it does not find itself.", "the name must be one of them, letter by letter", name, s)
		return
	}
	peers, ok := c.get("initial-advertise-peer-urls")
	if !ok || templated(peers.Value) {
		return
	}
	var mine []string
	for _, m := range all {
		if m.name == name.Value {
			mine = append(mine, m.url.String())
		}
	}
	for _, u := range strings.Split(peers.Value, ",") {
		if !slices.Contains(mine, strings.TrimSpace(u)) {
			c.add("config-member-missing", report.Critical, report.Likely, fmt.Sprintf("%s advertises %s, and initial-cluster has %s for it.", name.Value, u, strings.Join(mine, ", ")), "The server does not start without data if the two do not name the same addresses.", "write the same URL in both", peers, s)
		}
	}
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// urlsOf are those of a setting that is given.
func (c *checker) urlsOf(name string) (all []*url.URL, s Setting) {
	s, ok := c.get(name)
	if !ok || templated(s.Value) {
		return nil, s
	}
	for _, text := range strings.Split(s.Value, ",") {
		u, err := url.Parse(strings.TrimSpace(text))
		if err != nil || u.Host == "" && u.Scheme != "unix" && u.Scheme != "unixs" {
			if c.told[name] {
				continue
			}
			c.told[name] = true
			c.add("config-url", report.Critical, report.Certain, fmt.Sprintf("%q is no URL.", text), "The server does not start.", "as in https://10.0.0.1:2379", s)
			continue
		}
		all = append(all, u)
	}
	return all, s
}

// urls finds schemes that do not fit together.
func (c *checker) urls() {
	for _, side := range []struct {
		what  string
		names []string
	}{{"peers", []string{"listen-peer-urls", "initial-advertise-peer-urls"}}, {"clients", []string{"listen-client-urls", "advertise-client-urls"}}} {
		var with []Setting
		schemes := map[string]bool{}
		for _, name := range side.names {
			urls, s := c.urlsOf(name)
			for _, u := range urls {
				if side.what == "clients" && loopback(u.Hostname()) {
					continue // beside TLS for others, plain HTTP for this machine is common
				}
				schemes[u.Scheme] = true
			}
			if len(urls) > 0 {
				with = append(with, s)
			}
		}
		if side.what == "peers" {
			if all, s := c.cluster(); len(all) > 0 && !templated(s.Value) {
				with = append(with, s)
				for _, m := range all {
					schemes[m.url.Scheme] = true
				}
			}
		}
		if schemes["http"] && schemes["https"] {
			c.told[side.names[0]] = true
			c.add("config-urls-mixed", report.Critical, report.Certain, fmt.Sprintf("The URLs of %s are http here and https there.", side.what), "Who is told http and finds TLS, or the other way round, does not get through.", "one scheme for all", with...)
		}
	}
	if urls, s := c.urlsOf("advertise-client-urls"); len(urls) > 0 {
		for _, u := range urls {
			if ip := net.ParseIP(u.Hostname()); ip != nil && ip.IsUnspecified() {
				c.add("config-advertise", report.Warning, report.Certain, "It advertises an address that is nobody's.", "Clients that ask for the members are told to connect to themselves.", "an address by which others reach it", s)
			}
		}
	}
}

// security finds doors that are open.
func (c *checker) security() {
	if c.Form == Kubeadm {
		return // kubeadm sets certificates and URLs itself
	}
	for _, side := range []struct{ what, listen, prefix, auth string }{
		{"clients", "listen-client-urls", "", "client-cert-auth"},
		{"members", "listen-peer-urls", "peer-", "peer-client-cert-auth"},
	} {
		urls, s := c.urlsOf(side.listen)
		open, tls := false, false
		for _, u := range urls {
			tls = tls || u.Scheme == "https"
			open = open || u.Scheme == "http" && !loopback(u.Hostname())
		}
		auto := c.is(side.prefix + "auto-tls")
		_, cert := c.get(side.prefix + "cert-file")
		switch {
		case tls && !cert && !auto:
			c.add("config-no-certificate", report.Critical, report.Certain, fmt.Sprintf("It listens for %s with https, and has no certificate.", side.what), "The server does not start.", fmt.Sprintf("--%scert-file and --%skey-file", side.prefix, side.prefix), s)
		case open && c.told[side.listen]:
		case open && cert:
			c.add("config-urls-mixed", report.Critical, report.Certain, fmt.Sprintf("It has a certificate for %s, and listens with http.", side.what), "The certificate is not used: nothing is encrypted, and nobody is asked who they are.", "https in "+side.listen, s)
		case open:
			c.add("config-open", report.Warning, report.Certain, fmt.Sprintf("Whoever reaches the port for %s is let in, and what is sent can be read on the way.", side.what), "The port for members gives whoever reaches it all data, and the cluster itself; that for clients, all data unless users are on.", "TLS with certificates on both sides: belay doctor config -o yaml --cert-dir ... prints it", s)
		case tls && !c.is(side.auth) && !auto:
			c.add("config-client-auth", report.Warning, report.Certain, fmt.Sprintf("The port for %s is encrypted, and asks nobody for a certificate.", side.what), "Whoever reaches it may use it, unless users are on; members have no users.", fmt.Sprintf("--%s and --%strusted-ca-file", side.auth, side.prefix), s)
		case c.is(side.auth) && c.value(side.prefix+"trusted-ca-file", "") == "" && tls && !auto:
			auth, _ := c.get(side.auth)
			c.add("config-client-auth", report.Critical, report.Certain, fmt.Sprintf("--%s is on, and no authority is named.", side.auth), "Nobody's certificate can be checked.", fmt.Sprintf("--%strusted-ca-file", side.prefix), auth)
		}
	}
	if urls, s := c.urlsOf("listen-metrics-urls"); len(urls) > 0 {
		for _, u := range urls {
			if u.Scheme == "http" && !loopback(u.Hostname()) {
				c.add("config-metrics-open", report.Warning, report.Certain, "Metrics and health are open to all who reach this address.", "They tell names, addresses and load of the cluster, without a certificate.", "a loopback address, or one that only the monitoring reaches", s)
				break
			}
		}
	}
	if s, ok := c.get("enable-pprof"); ok && c.is("enable-pprof") {
		c.add("config-pprof", report.Warning, report.Certain, "Profiles are served to clients.", "A profile costs CPU while it runs, and shows memory's content in part.", "on only while somebody looks", s)
	}
}

// space are quota, compaction and the log.
func (c *checker) space(host Host) {
	const gib = 1 << 30
	quota, given := c.get("quota-backend-bytes")
	bytes, err := strconv.ParseInt(quota.Value, 10, 64)
	kubernetes := c.Form == Manifest || c.Form == Kubeadm
	switch {
	case given && err != nil:
		c.add("config-quota", report.Critical, report.Certain, "quota-backend-bytes is a number of bytes.", "The server does not start.", "8589934592 for 8 GiB", quota)
	case !given || bytes == 0:
		c.add("config-quota", report.Warning, report.Possible, "No quota is set, so it is 2 GiB.", "At the quota all writes are refused until somebody compacts, defragments and disarms the alarm. It should be a number that somebody chose.", c.spelt("quota-backend-bytes", "8589934592")+", if the disk has the room")
	case bytes < 0:
		c.add("config-quota", report.Warning, report.Certain, "The quota is off.", "What fills the disk then stops the member, and not its writes alone.", "a quota below what the disk has free", quota)
	case c.of == ForEtcd && bytes > 8*gib:
		c.add("config-quota", report.Warning, report.Certain, fmt.Sprintf("A quota of %s is more than the 8 GiB that etcd is made for.", show.Bytes(bytes)), "etcd's database is read whole at a start, sent whole to a new member, and defragmented while nothing else goes on.", "8589934592 at most", quota)
	case bytes < 64<<20:
		c.add("config-quota", report.Warning, report.Likely, fmt.Sprintf("A quota of %s: were megabytes meant?", show.Bytes(bytes)), "It is a number of bytes, and will be full at once.", "8589934592 for 8 GiB", quota)
	case c.of == ForEtcd && host.MemoryBytes > 0 && bytes > host.MemoryBytes*3/4:
		c.add("config-quota", report.Warning, report.Likely, fmt.Sprintf("A quota of %s, and %s of memory.", show.Bytes(bytes), show.Bytes(host.MemoryBytes)), "etcd maps its database into memory: what does not fit is read from the disk, while requests wait.", "a quota of half the memory", quota)
	}
	retention, given := c.get("auto-compaction-retention")
	mode := c.value("auto-compaction-mode", "periodic")
	n, numeric := strconv.ParseInt(retention.Value, 10, 64)
	switch {
	case (!given || retention.Value == "" || retention.Value == "0") && !kubernetes:
		var evidence []Setting
		if given {
			evidence = []Setting{retention}
		}
		c.add("config-no-compaction", report.Warning, report.Likely, "Nothing compacts the history.", "Each change of each key is kept until the quota is full. (The API server of Kubernetes compacts by itself.)", c.spelt("auto-compaction-mode", "periodic")+" and "+c.spelt("auto-compaction-retention", "1h"), evidence...)
	case given && mode == "revision" && numeric == nil && n > 0 && n < 1000:
		c.add("config-compaction-short", report.Warning, report.Likely, fmt.Sprintf("Of the history, %d revisions are kept.", n), "A watch that is interrupted for a moment cannot go on.", "10000 or more; or by time: periodic, 1h", retention)
	case given && mode == "periodic" && numeric == nil && n > 0:
		if n >= 60 {
			c.add("config-compaction-units", report.Warning, report.Likely, fmt.Sprintf("A number without a unit is in hours: the history of %d hours is kept.", n), "Were minutes or seconds meant?", "with a unit: 30m, 1h", retention)
		}
	}
	if s, ok := c.get("snapshot-count"); ok {
		n, err := strconv.ParseInt(s.Value, 10, 64)
		switch {
		case err != nil:
		case n < 1000:
			c.add("config-snapshot-count", report.Warning, report.Certain, fmt.Sprintf("The state is written down each %d entries.", n), "That costs the disk more than the writes themselves.", "leave it out", s)
		case n > 200000 && c.of == ForEtcd:
			c.add("config-snapshot-count", report.Warning, report.Certain, fmt.Sprintf("%d entries of the log are held in memory, and read again at a start.", n), "Memory, and minutes of a start.", "leave it out", s)
		}
	}
	if s, ok := c.get("max-request-bytes"); ok {
		if n, err := strconv.ParseInt(s.Value, 10, 64); err == nil && n > 10<<20 {
			c.add("config-request-size", report.Warning, report.Certain, fmt.Sprintf("Requests may have %s.", show.Bytes(n)), "A write that large delays heartbeats and all writes behind it.", "1.5 MiB is the default; 10 MiB the most that etcd recommends", s)
		}
	}
}

// dangers are settings that are for an hour of need, or for tests.
func (c *checker) dangers() {
	if s, ok := c.get("force-new-cluster"); ok && c.is("force-new-cluster") {
		c.add("config-force-new-cluster", report.Critical, report.Certain, "Each start makes a cluster of this member alone.", "With others running, there are two clusters with one name and different data.", "remove it after the one start that it is for", s)
	}
	if s, ok := c.get("unsafe-no-fsync"); ok && c.is("unsafe-no-fsync") {
		c.add("config-no-fsync", report.Critical, report.Certain, "Nothing waits for the disk.", "A power failure loses acknowledged writes, and may leave a member that cannot start.", "remove it", s)
	}
	if s, ok := c.get("log-level"); ok && s.Value == "debug" {
		c.add("config-debug", report.Warning, report.Certain, "The log is at level debug.", "It costs CPU and disk for each message, and holds keys.", "info", s)
	}
	if s, ok := c.get("pre-vote"); ok && !c.is("pre-vote") {
		c.add("config-pre-vote", report.Warning, report.Certain, "A member that comes back disturbs the leader.", "Without pre-vote, each member that was cut off forces an election when it returns.", "remove it: it is on by default", s)
	}
}

// around is what stands around the flags.
func (c *checker) around(host Host) {
	if s, ok := c.get("data-dir"); ok && !templated(s.Value) {
		dir := filepath.ToSlash(s.Value)
		switch {
		case dir == "/tmp" || strings.HasPrefix(dir, "/tmp/") || strings.HasPrefix(dir, "/var/tmp/") || strings.HasPrefix(dir, "/dev/shm"):
			c.add("config-data-dir", report.Critical, report.Certain, "The data is where things are deleted.", "Temporary directories are emptied at a start, or by time. A member that comes back without its data cannot be believed.", "a directory of its own, as /var/lib/etcd", s)
		case !strings.HasPrefix(dir, "/") && !strings.Contains(dir, ":"):
			c.add("config-data-dir", report.Warning, report.Certain, "The data directory depends on where the server is started.", "Started elsewhere it is a new member, without data.", "an absolute path", s)
		}
		for _, other := range host.Shares {
			c.add("config-disk-shared", report.Warning, report.Likely, "The disk of the data is shared: "+other+".", "What others write delays each write of the cluster.", "a disk of its own; belay doctor neighbours says what the sharing costs", s)
		}
	}
	switch c.Form {
	case Unit:
		if limit := c.Unit["LimitNOFILE"]; limit == "" || limit != "infinity" && len(strings.Split(limit, ":")[0]) < 5 {
			c.add("config-unit-files", report.Warning, report.Likely, "The unit does not raise the limit of open files.", "Each client, watch and file takes one; at systemd's default of 1024 new clients are refused.", "LimitNOFILE=65536")
		}
		if r := c.Unit["Restart"]; r == "" || r == "no" {
			c.add("config-unit-restart", report.Warning, report.Certain, "The unit does not start the member again when it ends.", "A member that ended stays away until somebody comes, and the next failure may cost the quorum.", "Restart=always and RestartSec=5")
		}
	case Manifest:
		if c.Probe == "/health" {
			f := Setting{Name: "livenessProbe", Value: c.Probe, Line: c.ProbeLine}
			c.add("config-probe", report.Critical, report.Certain, "The liveness probe asks for a quorum.", "When the quorum is lost, the kubelet kills the members that are left, again and again.", "path /livez, or /health?serializable=true", f)
		}
		if !c.HasCPU {
			c.add("config-no-cpu", report.Warning, report.Certain, "The container asks for no CPU.", "On a busy node it gets what is left over, and its heartbeats are late.", "resources.requests.cpu: 100m at least")
		}
	}
}
