package doctor

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/belaydb/belay/cli/doctor/histogram"
	"github.com/belaydb/belay/cli/doctor/live"
	"github.com/belaydb/belay/cli/doctor/metrics"
	"github.com/belaydb/belay/cli/doctor/report"
)

func (d *doctor) histogramCommand() *cobra.Command {
	o := live.Options{}
	var names []string
	var prometheus, at, picture, bitmap string
	var over time.Duration
	cmd := &cobra.Command{
		Use: "histogram [FILE [LATER-FILE]]", Short: "Reads latency histograms: percentiles, one mode or two, a verdict",
		Long: `Reads the histograms of fsyncs, commits and round trips: of the members at --endpoints, of a file with what
/metrics answered (- is standard input), of two such files for the time between them, or of a Prometheus server.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 2 {
				return usagef("doctor histogram takes two files at most, an earlier and a later answer of one member's /metrics")
			}
			return nil
		},
	}
	fs := cmd.Flags()
	fs.StringSliceVar(&names, "metric", nil, "histograms to read, by name; default: fsync, commit and round trip")
	fs.StringVar(&prometheus, "prometheus", "", "a Prometheus server to ask, as in http://127.0.0.1:9090")
	fs.DurationVar(&over, "for", time.Hour, "with --prometheus: the time before --at to look at")
	fs.StringVar(&at, "at", "", "with --prometheus: until when, as in 2026-11-28T12:00:00Z; default: now")
	fs.StringSliceVar(&o.Metrics, "metrics-urls", nil, "where members answer /metrics, if not on their client URLs")
	fs.DurationVar(&o.Between, "between", 0, "two scrapes this far apart, for the time between them; 0: since the members started")
	fs.StringVar(&picture, "svg", "", "also draw the first histogram into this file, as SVG")
	fs.StringVar(&bitmap, "png", "", "the same as PNG")
	d.asks(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(names) == 0 {
			for _, k := range histogram.Kinds {
				names = append(names, k.Metric)
			}
		}
		var r *report.Report
		switch {
		case prometheus != "" && len(args) > 0:
			return usagef("--prometheus and files exclude each other")
		case prometheus != "":
			until := time.Now()
			if at != "" {
				var err error
				if until, err = time.Parse(time.RFC3339, at); err != nil {
					return usagef("--at %s: a time as in 2026-11-28T12:00:00Z", at)
				}
			}
			all, err := histogram.FromPrometheus(cmd.Context(), prometheus, over, until, names)
			if err != nil {
				return err
			}
			r = histogram.Judge(prometheus, until, all)
		case len(args) > 0:
			all, err := d.histogramsOf(args, names)
			if err != nil {
				return err
			}
			r = histogram.Judge(strings.Join(args, ", "), time.Now(), all)
		default:
			cfg, err := d.configured(cmd)
			if err != nil {
				return err
			}
			o.Client, o.Timeout = cfg, d.connect.CommandTimeout
			c, err := live.Gather(cmd.Context(), o)
			if err != nil {
				return err
			}
			if r = c.Nobody("doctor histogram"); r == nil {
				all := c.Histograms(names)
				if silent := c.Silence(); len(all) == 0 && len(silent) == 0 {
					return fmt.Errorf("no member has any of these histograms: %s", strings.Join(names, ", "))
				}
				r = histogram.Judge(strings.Join(cfg.Endpoints, ","), c.At, all)
				if silent := c.Silence(); len(silent) > 0 && !r.Blind {
					r.Add(report.Finding{ID: "histogram-missing", Severity: report.Unknown, Confidence: report.Certain, What: "Not all members are in it.", Evidence: silent,
						Do: []string{"`belay doctor` says more of a member that does not answer; --metrics-urls names the URLs of --listen-metrics-urls"}})
				}
			}
		}
		if err := d.print(r); err != nil {
			return err
		}
		for file, draw := range map[string]func(report.Chart) []byte{picture: func(c report.Chart) []byte { return []byte(c.SVG()) }, bitmap: report.Chart.PNG} {
			if file == "" {
				continue
			}
			if len(r.Charts) == 0 {
				return fmt.Errorf("%s is not drawn: no histogram holds enough", file)
			}
			if err := os.WriteFile(file, draw(r.Charts[0]), 0o600); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

// histogramsOf reads one file, or two of the same member.
func (d *doctor) histogramsOf(files, names []string) ([]histogram.Series, error) {
	var scrapes []*metrics.Scrape
	for _, file := range files {
		in, when := d.in, time.Now()
		if file != "-" {
			f, err := os.Open(file)
			if err != nil {
				return nil, err
			}
			defer f.Close()
			if info, err := f.Stat(); err == nil {
				when = info.ModTime()
			}
			in = f
		}
		s, err := metrics.Parse(io.LimitReader(in, 256<<20), when)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		scrapes = append(scrapes, s)
	}
	last := scrapes[len(scrapes)-1]
	var before *metrics.Scrape
	if len(scrapes) == 2 {
		before = scrapes[0]
	}
	for _, name := range names {
		for _, h := range last.Histograms(name) {
			if b, ok := h.Among(before.Histograms(name)); ok && h.Count < b.Count {
				return nil, fmt.Errorf("%s has fewer observations than %s: the earlier answer comes first, and both are of one process (%s: %.0f, then %.0f)", files[1], files[0], name, b.Count, h.Count)
			}
		}
	}
	all := histogram.Of(filepath.Base(files[len(files)-1]), before, last, names, func(id string) string { return id })
	if len(all) == 0 {
		return nil, fmt.Errorf("%s has none of these histograms: %s", files[len(files)-1], strings.Join(names, ", "))
	}
	return all, nil
}
