package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	judge "github.com/belaydb/belay/cli/doctor/neighbours"
	"github.com/belaydb/belay/cli/doctor/report"
	"github.com/belaydb/belay/neighbours"
)

// maxRecorded bounds the memory of a record that is read, in samples.
const maxRecorded = 16384

type neighboursFlags struct {
	pid          int
	dir          string
	metrics      string
	every, over  time.Duration
	save         string
	since, until string
}

func (d *doctor) neighboursCommand() *cobra.Command {
	var o neighboursFlags
	cmd := &cobra.Command{
		Use: "neighbours [RECORD...]", Short: "Says who fills the disk that a member's log is on, and whether its fsyncs are slow because of it",
		Aliases: []string{"neighbors"},
		Long: `Looks, for a time, at who writes to the disk of a member of this machine, of etcd or of Belay: processes with their
systemd units, containers or pods. It finds bursts and their period, and compares them with when the member's
fsyncs were slow. The member is found by itself if there is one. Run it as root, or what other users' processes
write is not to be seen. With --since it asks the members at --endpoints for the records that they keep
(--neighbours-record-bytes) instead, and with files or data directories it reads such records, or what --save wrote.`,
	}
	fs := cmd.Flags()
	fs.IntVar(&o.pid, "pid", 0, "the member's process, if there are several members")
	fs.StringVar(&o.dir, "dir", "", "the member's data directory, instead of its process; any directory whose disk is of interest")
	fs.StringVar(&o.metrics, "metrics-url", "", "where the member answers /metrics; default: the port of its process that does")
	fs.DurationVar(&o.over, "for", time.Minute, "how long to look; Ctrl-C ends it earlier, with what was seen")
	fs.DurationVar(&o.every, "every", time.Second, "time between two samples")
	fs.StringVar(&o.save, "save", "", "also write all samples to this file, to be read again")
	fs.StringVar(&o.since, "since", "", "of a record: from when on, as in 2h, yesterday, \"2026-11-28 12:00\" (UTC)")
	fs.StringVar(&o.until, "until", "", "of a record: until when")
	d.asks(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if o.every < 100*time.Millisecond || o.over < o.every {
			return usagef("--every is at least 100ms, and --for not less than --every")
		}
		since, until, err := o.span(time.Now())
		if err != nil {
			return err
		}
		if len(args) > 0 {
			return d.recordedNeighbours(args, since, until)
		}
		if !since.IsZero() || !until.IsZero() {
			return d.keptNeighbours(cmd, since, until)
		}
		return d.watchNeighbours(cmd, o)
	}
	return cmd
}

// span is what --since and --until ask for; zero: no bound.
func (o neighboursFlags) span(now time.Time) (since, until time.Time, err error) {
	if since, err = momentOf(o.since, now); err != nil {
		return since, until, usagef("--since %v", err)
	}
	if until, err = momentOf(o.until, now); err != nil {
		return since, until, usagef("--until %v", err)
	}
	if !until.IsZero() && until.Before(since) {
		return since, until, usagef("--until is before --since")
	}
	return since, until, nil
}

// momentOf reads a time: a duration before now, today, yesterday, or a date and a time in UTC.
func momentOf(text string, now time.Time) (time.Time, error) {
	midnight := now.UTC().Truncate(24 * time.Hour)
	switch text {
	case "":
		return time.Time{}, nil
	case "today":
		return midnight, nil
	case "yesterday":
		return midnight.Add(-24 * time.Hour), nil
	}
	if before, err := time.ParseDuration(text); err == nil {
		return now.Add(-before.Abs()), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q: 2h, today, yesterday, or a time as in 2026-11-28 12:00", text)
}

// recordedNeighbours judges records in files.
func (d *doctor) recordedNeighbours(files []string, since, until time.Time) error {
	files, err := recordsIn(files)
	if err != nil {
		return err
	}
	log := neighbours.Log{Limit: maxRecorded}
	skipped, err := neighbours.ReadFiles(files, since, &log)
	if err != nil {
		return err
	}
	return d.print(judge.Judge(before(log.Samples(), until), judge.About{
		Subject: strings.Join(files, ", "), At: time.Now(), Skipped: skipped, Missing: "the record has none",
	}))
}

// recordsIn are the files of records among paths, which may be directories of members.
func recordsIn(paths []string) (files []string, err error) {
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			files = append(files, path)
			continue
		}
		found := 0
		for _, dir := range []string{path, filepath.Join(path, "member")} {
			of, err := neighbours.RecordFiles(dir)
			if err != nil {
				return nil, err
			}
			files, found = append(files, of...), found+len(of)
		}
		if found == 0 {
			return nil, fmt.Errorf("%s has no record of neighbours: a member keeps one if started with --neighbours-record-bytes", path)
		}
	}
	return files, nil
}

// maxRecordAnswer is how much of a member's record is read, bytes.
const maxRecordAnswer = 1 << 30

// recordWithin is how long a member may take until it begins to answer with its record.
const recordWithin = 15 * time.Second

// keptNeighbours asks members for their records.
func (d *doctor) keptNeighbours(cmd *cobra.Command, since, until time.Time) error {
	cfg, err := d.configured(cmd)
	if err != nil {
		return err
	}
	// A process that is stopped takes a connection and says nothing. The record itself may be long.
	transport := &http.Transport{TLSClientConfig: cfg.TLS, ResponseHeaderTimeout: recordWithin}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	all := &report.Report{Command: "doctor neighbours", Subject: strings.Join(cfg.Endpoints, ","), At: time.Now()}
	for _, endpoint := range cfg.Endpoints {
		base := endpoint
		if !strings.Contains(base, "://") {
			base = map[bool]string{true: "https://", false: "http://"}[cfg.TLS != nil] + base
		}
		log := neighbours.Log{Limit: maxRecorded}
		skipped, err := askNeighbours(cmd.Context(), client, strings.TrimSuffix(base, "/")+"/debug/belay/neighbours?since="+url.QueryEscape(since.UTC().Format(time.RFC3339)), &log)
		if err != nil {
			return fmt.Errorf("%s: %w", endpoint, err)
		}
		samples := before(log.Samples(), until)
		if len(samples) == 0 {
			return fmt.Errorf("%s has no record of that time: a member keeps one if started with --neighbours-record-bytes", endpoint)
		}
		r := judge.Judge(samples, judge.About{Subject: endpoint, At: all.At, Skipped: skipped})
		if len(cfg.Endpoints) == 1 {
			return d.print(r)
		}
		for _, f := range r.Findings {
			f.Member = endpoint
			all.Add(f)
		}
		for _, p := range r.Summary {
			all.Summary = append(all.Summary, endpoint+": "+p)
		}
		for _, t := range r.Tables {
			t.Title = endpoint + ": " + t.Title
			all.Tables = append(all.Tables, t)
		}
		for _, p := range r.Pictures {
			p.Title = endpoint + ": " + p.Title
			all.Pictures = append(all.Pictures, p)
		}
	}
	return d.print(all)
}

func askNeighbours(ctx context.Context, client *http.Client, address string, log *neighbours.Log) (skipped int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return 0, errors.New("it keeps no such record: it is no Belay, or an older one; look on its machine, without --since")
	}
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s answers %s", address, resp.Status)
	}
	return neighbours.Read(io.LimitReader(resp.Body, maxRecordAnswer), time.Time{}, log.Add)
}

// before are the samples up to a time; zero: all.
func before(samples []neighbours.Sample, until time.Time) []neighbours.Sample {
	for !until.IsZero() && len(samples) > 0 && samples[len(samples)-1].At.After(until) {
		samples = samples[:len(samples)-1]
	}
	return samples
}

// memberAt is the member that the flags mean, or the only one on this machine.
func (o neighboursFlags) memberAt() (neighbours.Target, error) {
	switch {
	case o.pid != 0 && o.dir != "":
		return neighbours.Target{}, usagef("--pid and --dir exclude each other")
	case o.pid != 0:
		return neighbours.Member(o.pid)
	case o.dir != "":
		return neighbours.MemberIn(o.dir)
	}
	all, err := neighbours.FindMembers()
	if err != nil {
		return neighbours.Target{}, err
	}
	switch len(all) {
	case 0:
		return neighbours.Target{}, errors.New("no member of etcd or Belay runs on this machine; name a directory on the disk: --dir")
	case 1:
		return all[0], nil
	}
	var names []string
	for _, t := range all {
		names = append(names, fmt.Sprintf("--pid %d (%s, %s)", t.PID, t.Program, t.Dir))
	}
	return neighbours.Target{}, usagef("several members run on this machine: %s", strings.Join(names, "; "))
}

// watchNeighbours looks at this machine.
func (d *doctor) watchNeighbours(cmd *cobra.Command, o neighboursFlags) (err error) {
	target, err := o.memberAt()
	if err != nil {
		return err
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 1}
	cfg, err := d.configured(cmd)
	if err != nil {
		return err
	}
	transport.TLSClientConfig = cfg.TLS
	defer transport.CloseIdleConnections()
	options := judge.Options{Target: target, Metrics: o.metrics, HTTP: &http.Client{Transport: transport}, Every: o.every, For: o.over}
	if o.metrics != "" && !strings.Contains(o.metrics, "://") {
		options.Metrics = "http://" + o.metrics
	}
	if options.Metrics != "" {
		options.Metrics = strings.TrimSuffix(strings.TrimSuffix(options.Metrics, "/"), "/metrics") + "/metrics"
	}
	if o.save != "" {
		f, err := os.OpenFile(o.save, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		options.Save = f
	}
	about := judge.About{Subject: target.Dir, Disk: strings.Join(target.Disks, ", "), Member: memberText(target)}
	fmt.Fprintf(d.err, "Looking at %s for %s; Ctrl-C ends it with what was seen.\n", about.Disk, o.over)
	samples, missing, err := judge.Watch(cmd.Context(), options)
	if err != nil {
		return err
	}
	about.At, about.Missing = time.Now(), missing
	return d.print(judge.Judge(samples, about))
}

func memberText(t neighbours.Target) string {
	if t.PID == 0 {
		return "No member that could be seen has a log in " + t.Dir
	}
	return fmt.Sprintf("The member is process %d, %s, with its log in %s", t.PID, filepath.Base(t.Program), t.Dir)
}
