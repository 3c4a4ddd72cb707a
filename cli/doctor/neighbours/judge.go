package neighbours

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/doctor/metrics"
	"github.com/belaydb/belay/cli/doctor/report"
	"github.com/belaydb/belay/internal/show"
	"github.com/belaydb/belay/neighbours"
)

const (
	// fewSamples is how many a verdict needs at least.
	fewSamples = 10
	// slowBursts is the share of a writer's bursts in which fsyncs are slow, for a blame.
	slowBursts = 0.6
	// byChance is up to which probability an agreement is not taken for chance.
	byChance = 0.01
	// noMore is from which probability on fsyncs are no slower in a writer's bursts than at other
	// times.
	noMore = 0.2
)

// About is what samples are of.
type About struct {
	Subject string    // for the report's title
	At      time.Time // of the report
	Member  string    // whose disk it is: "etcd, process 4211, /var/lib/etcd/member/wal"
	Disk    string    // names of disks
	Missing string    // why there are no fsyncs of the member; empty: there are
	Skipped int       // lines of a record that were not whole
}

// An agreement is how a writer's bursts and slow fsyncs fit together.
type agreement struct {
	*series
	windows []window // its bursts, each with the margin behind it
	slow    int      // of these, with a slow fsync
	alone   int      // windows in which no other one that is blamed was at work
	aloneAt int      // of these, with a slow fsync
	chance  float64  // the probability of so many, if bursts and fsyncs had nothing to do with each other
	before  float64  // the median of the latency outside of them and of those of others that may be to blame, seconds
	inside  []bool   // by sample: within a window
	in      float64  // the median of the windows' worst
	covered int      // slow samples within windows
}

type window struct{ from, to int } // samples, both included

func (w window) overlaps(o window) bool { return w.from <= o.to && o.from <= w.to }

// Judge makes the report of samples, which follow each other in time.
func Judge(samples []neighbours.Sample, about About) *report.Report {
	r := &report.Report{Command: "doctor neighbours", Subject: about.Subject, At: about.At}
	if len(samples) < fewSamples {
		r.Blind = true
		r.Add(report.Finding{ID: "neighbours-few", Severity: report.Unknown, Confidence: report.Certain, What: "There is too little to say anything.",
			Evidence: []string{fmt.Sprintf("%d samples; %d are needed at least", len(samples), fewSamples)}, Do: []string{"look for longer: --for"}})
		return r
	}
	l := latencyOf(samples)
	all := seriesOf(samples)
	r.Summary = summary(samples, about, l)

	slow := 0
	for _, s := range l.slow {
		if s {
			slow++
		}
	}
	var candidates []*agreement
	var own *agreement
	for _, s := range all {
		switch {
		case s.key.Own && len(s.bursts) > 0:
			own = agree(s, samples, l)
		case !s.key.Own && !s.key.Elsewhere && len(s.bursts) > 0:
			candidates = append(candidates, agree(s, samples, l))
		}
	}
	blamed := tellApart(candidates, samples, l)
	for _, a := range blamed {
		r.Add(a.finding(samples, l, slow, blamed))
	}
	if len(blamed) == 0 {
		for _, s := range all {
			if f, ok := s.steady(samples, l, all); ok {
				r.Add(f)
			}
		}
	}
	if len(r.Findings) == 0 && l.known() && l.usual > slowFsync.Seconds() {
		r.Add(report.Finding{ID: "slow-always", Severity: report.Warning, Confidence: report.Certain, What: fmt.Sprintf("%s is %s as a rule, and nobody is seen who writes that much.", capital(l.short()), seconds(l.usual)),
			Evidence: []string{l.source}, Why: "It is the disk itself, or who shares it from outside: a storage network, other virtual machines.", Do: []string{"belay doctor disk DIR, while the member is stopped", "see the provider's figures of the volume"}})
	}
	if len(r.Findings) == 0 && slow > 0 {
		r.Add(unexplained(samples, l, slow, own))
	}
	for _, a := range candidates {
		if a.period == 0 || slices.Contains(blamed, a) || !l.known() {
			continue
		}
		f := report.Finding{ID: "neighbour-harmless", Severity: report.Good, Confidence: report.Likely,
			Evidence: []string{fmt.Sprintf("slow in %d of %d times, %s then, %s otherwise", a.slow, len(a.windows), seconds(a.in), seconds(a.before))}}
		switch {
		case 2*a.slow < len(a.windows):
			f.What = a.rhythm() + ", and fsyncs do not mind"
		case a.chance >= noMore:
			f.What = a.rhythm() + ", and fsyncs are slow as often at other times"
			f.Evidence = []string{fmt.Sprintf("slow in %d of %d times; by chance there would be so many with a probability of %s", a.slow, len(a.windows), probability(a.chance))}
		default:
			continue
		}
		r.Add(f)
	}
	missing(r, samples, about, l)
	if l.known() && slow == 0 && l.usual <= slowFsync.Seconds() {
		r.Add(report.Finding{ID: "fsync-fast", Severity: report.Good, Confidence: report.Certain, What: "what is made durable is not slow at any time", Evidence: []string{fmt.Sprintf("%s: %s as a rule, %s at most", l.source, seconds(l.usual), seconds(most(l.by)))}})
	}
	r.Tables = []report.Table{writersTable(samples, all, about)}
	for _, a := range blamed {
		r.Tables = append(r.Tables, a.table(samples, l))
	}
	if p, ok := picture(samples, l, all); ok {
		r.Pictures = append(r.Pictures, p)
	}
	r.Data = dataOf(samples, all, l, blamed)
	return r
}

// agree compares a writer's bursts with slow fsyncs.
func agree(s *series, samples []neighbours.Sample, l latency) *agreement {
	a := &agreement{series: s}
	margin := s.margin(samples)
	inside := make([]bool, len(samples))
	total := 0
	for _, b := range s.bursts {
		w := window{b.from, b.to}
		for w.to+1 < len(samples) && samples[w.to+1].Begin().Sub(samples[b.to].At) < margin {
			w.to++
		}
		a.windows = append(a.windows, w)
		total += w.to - w.from + 1
		if l.slowIn(w) {
			a.slow++
		}
		for i := w.from; i <= w.to; i++ {
			inside[i] = true
		}
	}
	for i, slow := range l.slow {
		if slow && inside[i] {
			a.covered++
		}
	}
	// How many windows of this length, at any time, have a slow fsync in them.
	length := max(1, total/max(1, len(a.windows)))
	some := 0
	for i := range samples {
		if l.slowIn(window{i, min(i+length, len(samples)) - 1}) {
			some++
		}
	}
	a.chance = atLeast(a.slow, len(a.windows), float64(some)/float64(len(samples)))
	var worst []float64
	for _, w := range a.windows {
		worst = append(worst, most(l.by[w.from:w.to+1]))
	}
	a.in = median(worst)
	a.inside = inside
	return a
}

func (l latency) slowIn(w window) bool { return slices.Contains(l.slow[w.from:w.to+1], true) }

// atLeast is the probability of k or more of n, each of probability p.
func atLeast(k, n int, p float64) (sum float64) {
	if k <= 0 {
		return 1
	}
	term := math.Pow(1-p, float64(n)) // of none
	if p >= 1 {
		return 1
	}
	for i := range n + 1 {
		if i >= k {
			sum += term
		}
		term *= float64(n-i) / float64(i+1) * p / (1 - p)
	}
	return min(sum, 1)
}

// tellApart keeps those whose bursts make fsyncs slow. Where two burst at the same times, each is
// judged by the times when it was alone.
func tellApart(all []*agreement, samples []neighbours.Sample, l latency) []*agreement {
	if !l.known() {
		return nil
	}
	suspected := func(a *agreement) bool {
		// Once may be an accident; most of several times are not, if slow fsyncs are rare.
		return a.slow >= 2 && float64(a.slow) >= slowBursts*float64(len(a.windows)) && a.chance <= byChance && a.in >= slowFsync.Seconds()
	}
	for _, a := range all {
		var quiet []float64
		for i, v := range l.by {
			if !math.IsNaN(v) && !a.inside[i] && !slices.ContainsFunc(all, func(o *agreement) bool { return suspected(o) && o.inside[i] }) {
				quiet = append(quiet, v)
			}
		}
		a.before = median(quiet)
	}
	blamed := slices.DeleteFunc(slices.Clone(all), func(a *agreement) bool { return !suspected(a) || !(a.in >= slowFactor*a.before) })
	for _, a := range blamed {
		for _, w := range a.windows {
			if slices.ContainsFunc(blamed, func(o *agreement) bool {
				return o != a && slices.ContainsFunc(o.windows, w.overlaps)
			}) {
				continue
			}
			a.alone++
			if l.slowIn(w) {
				a.aloneAt++
			}
		}
	}
	proved := func(a *agreement) bool { return a.alone >= 2 && float64(a.aloneAt) >= slowBursts*float64(a.alone) }
	refuted := func(a *agreement) bool { return a.alone >= 2 && float64(a.aloneAt) < 0.5*float64(a.alone) }
	someProved := slices.ContainsFunc(blamed, proved)
	return slices.DeleteFunc(blamed, func(a *agreement) bool {
		if refuted(a) {
			return true
		}
		// Who never bursts without another, and writes little beside it, is its companion.
		return !proved(a) && slices.ContainsFunc(blamed, func(o *agreement) bool {
			return o != a && (someProved && proved(o) || o.typical.bytes > 2*a.typical.bytes) && !refuted(o) && overlapping(a, o) >= slowBursts*float64(len(a.windows))
		})
	})
}

// overlapping is how many of a's windows have one of o's in them.
func overlapping(a, o *agreement) (n float64) {
	for _, w := range a.windows {
		if slices.ContainsFunc(o.windows, w.overlaps) {
			n++
		}
	}
	return n
}

// rhythm is "prometheus (prometheus.service) writes 1.2 GB in 40 s, every 2 h 00 min".
func (a *agreement) rhythm() string {
	text := fmt.Sprintf("%s writes %s in %s", a.key, show.Bytes(a.typical.bytes), span(a.typical.took))
	if a.period > 0 {
		return text + ", every " + span(a.period)
	}
	return text + fmt.Sprintf(", %d times", len(a.bursts))
}

func (a *agreement) finding(samples []neighbours.Sample, l latency, slow int, blamed []*agreement) report.Finding {
	f := report.Finding{ID: "neighbour-bursts", Severity: report.Warning, Confidence: report.Possible}
	if a.period > 0 {
		f.ID = "neighbour-periodic"
	}
	each := fmt.Sprintf("in %d of %d times", a.slow, len(a.windows))
	if a.slow == len(a.windows) {
		each = "each time"
	}
	f.What = fmt.Sprintf("%s; %s %s went from %s to %s.", a.rhythm(), each, l.short(), seconds(a.before), seconds(a.in))
	if a.in >= badFsync.Seconds() {
		f.Severity = report.Critical
	}
	if a.chance <= byChance && len(a.windows) >= 3 {
		f.Confidence = report.Likely
	}
	disk := int64(0)
	for _, b := range a.bursts {
		for _, s := range samples[b.from : b.to+1] {
			disk += s.Disk.Bytes
		}
	}
	sum := int64(0)
	for _, b := range a.bursts {
		sum += b.bytes
	}
	f.Evidence = append(f.Evidence, fmt.Sprintf("%d bursts, of %s in all (%s); the disk wrote %s in these times (/proc/diskstats)", len(a.bursts), show.Bytes(sum), a.last.From, show.Bytes(disk)))
	if a.period > 0 {
		f.Evidence = append(f.Evidence, fmt.Sprintf("a period of %s by %d spacings; the last began at %s", span(a.period), a.spacings, a.bursts[len(a.bursts)-1].begin.UTC().Format("15:04:05 MST")))
	}
	f.Evidence = append(f.Evidence,
		fmt.Sprintf("%s: slow in %d of %d samples, %d of them in or right after its bursts", l.source, slow, len(samples), a.covered),
		fmt.Sprintf("by chance so many bursts would have a slow fsync with a probability of %s", probability(a.chance)))
	if a.last.Syncs > 0 {
		f.Evidence = append(f.Evidence, fmt.Sprintf("a thread of it stood in fsync or the like in %d of %d looks", a.last.Syncs, a.last.Looks))
	}
	if a.last.Unplaced {
		f.Confidence = report.Possible
		f.Evidence = append(f.Evidence, "that its files are on this disk could not be seen")
	}
	for _, o := range blamed {
		if o != a && a.alone < 2 {
			f.Confidence = report.Possible
			f.Evidence = append(f.Evidence, fmt.Sprintf("%s wrote at the same times: it may be either, or both", o.key))
		}
	}
	f.Why = "A write waits until a quorum has made it durable; on etcd, heartbeats wait as well, and a leader that is late with them loses its place."
	f.Do = []string{
		"put it and the member on different disks; another partition or directory of one disk does not help",
		limitAdvice(a.key.Group),
	}
	if strings.Contains(a.key.Name, "prometheus") {
		f.Do = append(f.Do, "Prometheus writes a block every two hours from midnight UTC on: every server that you run does so at the same time, beside each of your members")
	}
	return f
}

// limitAdvice is how what a group writes can be bounded.
func limitAdvice(g neighbours.Group) string {
	switch g.Kind {
	case "unit":
		return fmt.Sprintf("or bound what it writes: systemctl set-property %s IOWriteBandwidthMax='DEVICE 20M' (cgroup version 2), or a lower IOWeight=", g.Name)
	case "container":
		return "or bound what it writes: docker's --device-write-bps, or a lower --blkio-weight"
	case "pod":
		return "or keep it off the members' nodes: a taint on them, or anti-affinity; Kubernetes does not bound what a pod writes"
	}
	return "or bound what it writes: run it as a systemd unit with IOWriteBandwidthMax=, or by ionice where the scheduler is bfq"
}

// steady is a finding for who writes much all the time, on a disk that is slow all the time.
func (s *series) steady(samples []neighbours.Sample, l latency, all []*series) (f report.Finding, ok bool) {
	var sum int64
	for _, o := range all {
		if !o.key.Elsewhere {
			sum += o.last.Bytes
		}
	}
	if s.key.Own || s.key.Elsewhere || !l.known() || l.usual <= slowFsync.Seconds() || s.usual < 1<<20 || float64(s.last.Bytes) < 0.4*float64(sum) {
		return f, false
	}
	over := samples[len(samples)-1].At.Sub(samples[0].Begin())
	f = report.Finding{
		ID: "neighbour-steady", Severity: report.Warning, Confidence: report.Possible,
		What:     fmt.Sprintf("%s writes all the time, %s a second, and %s is %s as a rule.", s.key, show.Bytes(int64(float64(s.last.Bytes)/over.Seconds())), l.short(), seconds(l.usual)),
		Evidence: []string{fmt.Sprintf("%s of the %s that all wrote in %s (%s)", show.Bytes(s.last.Bytes), show.Bytes(sum), span(over), s.last.From), l.source},
		Why:      "A write waits until a quorum has made it durable.",
		Do:       []string{"stop it for a minute and look at the fsyncs again: that proves it or clears it", "then put it and the member on different disks", limitAdvice(s.key.Group)},
	}
	return f, true
}

// unexplained is a finding for slow fsyncs that nobody's writes explain.
func unexplained(samples []neighbours.Sample, l latency, slow int, own *agreement) report.Finding {
	f := report.Finding{
		ID: "slow-unexplained", Severity: report.Warning, Confidence: report.Possible,
		What:     fmt.Sprintf("%s was slow at times, and no neighbour that can be seen explains it.", capital(l.short())),
		Evidence: []string{fmt.Sprintf("%s: slow in %d of %d samples, %s at most, %s as a rule", l.source, slow, len(samples), seconds(most(l.by)), seconds(l.usual))},
		Why:      "It is the disk itself, or who shares it from outside: a storage network, other virtual machines, a volume's limit of operations or its burst credit.",
		Do:       []string{"see the provider's figures of the volume: throttled operations, queue", "see the kernel's log for errors of the device", "belay doctor disk DIR, while the member is stopped"},
	}
	if slow*100 < len(samples) {
		f.Severity, f.What = report.Good, fmt.Sprintf("%s was slow in few samples only, and no neighbour explains these", l.short())
	}
	if own != nil && own.slow >= 2 && float64(own.slow) >= slowBursts*float64(len(own.windows)) && own.chance <= 0.05 {
		f.ID = "own-writes"
		f.What = fmt.Sprintf("%s was slow when the member itself wrote much: %s.", capital(l.short()), own.rhythm())
		f.Why = "These are its own: on etcd a defragmentation or a snapshot, on Belay flushes and compactions of the store, or many large values at once."
		f.Do = []string{"see what its clients write at these times", "a faster disk; or another one for the log (--wal-dir)"}
	}
	return f
}

// missing adds what could not be looked at.
func missing(r *report.Report, samples []neighbours.Sample, about About, l latency) {
	if !l.known() {
		r.Add(report.Finding{ID: "fsync-unknown", Severity: report.Unknown, Confidence: report.Certain, What: "How long fsyncs took is not known, so nobody can be blamed.",
			Evidence: nonEmpty(about.Missing, "neither the member nor the disk made anything durable"), Do: []string{"name the member's metrics: --metrics-url http://127.0.0.1:2379/metrics, with --cacert, --cert and --key where it asks for them"}})
	} else if !l.fsyncs {
		r.Add(report.Finding{ID: "fsync-unknown", Severity: report.Unknown, Confidence: report.Certain, What: "The member's own fsyncs are not known; the disk's latency stands for them.",
			Evidence: nonEmpty(about.Missing, "the member synced hardly at all"), Do: []string{"name the member's metrics: --metrics-url http://127.0.0.1:2379/metrics, with --cacert, --cert and --key where it asks for them"}})
	}
	hidden, cgroups := 0, false
	for _, s := range samples {
		hidden = max(hidden, s.Hidden)
		cgroups = cgroups || slices.ContainsFunc(s.Writers, func(w neighbours.Writer) bool { return w.From == neighbours.FromCgroup })
	}
	if hidden > 0 {
		f := report.Finding{ID: "processes-hidden", Severity: report.Unknown, Confidence: report.Certain, What: "Not all processes could be looked at.",
			Evidence: []string{fmt.Sprintf("%d are of other users, whose /proc/PID/io may not be read", hidden)}, Do: []string{"run it as root, or with CAP_SYS_PTRACE"}}
		if cgroups {
			f.Severity, f.What = report.Good, "what the units of the processes that may not be looked at wrote is known, from io.stat"
		}
		r.Add(f)
	}
	if about.Skipped > 0 {
		r.Add(report.Finding{ID: "record-torn", Severity: report.Good, Confidence: report.Certain, What: fmt.Sprintf("%d lines of the record are not whole and were left out", about.Skipped)})
	}
}

func nonEmpty(first, other string) []string {
	if first != "" {
		return []string{first}
	}
	return []string{other}
}

// short is what was measured, in a sentence.
func (l latency) short() string {
	if l.fsyncs {
		return "fsync p99"
	}
	return "the disk's latency"
}

// median is NaN if there are none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func most(values []float64) (m float64) {
	for _, v := range values {
		if v > m {
			m = v
		}
	}
	return m
}

func seconds(s float64) string { return metrics.Seconds(s) }

func capital(text string) string { return strings.ToUpper(text[:1]) + text[1:] }

func probability(p float64) string {
	if p < 0.001 {
		return "less than 0.1 %"
	}
	return fmt.Sprintf("%.1f %%", 100*p)
}

// span is a duration as a person would say it: 2 h 00 min, 4 min 10 s, 40 s.
func span(d time.Duration) string {
	switch d = max(d, 0); {
	case d >= time.Hour:
		d = d.Round(time.Minute)
		return fmt.Sprintf("%d h %02d min", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		d = d.Round(time.Second)
		if d%time.Minute == 0 {
			return fmt.Sprintf("%d min", d/time.Minute)
		}
		return fmt.Sprintf("%d min %02d s", d/time.Minute, d%time.Minute/time.Second)
	case d >= 10*time.Second:
		return fmt.Sprintf("%d s", d.Round(time.Second)/time.Second)
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
