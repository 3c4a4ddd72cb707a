package doctor

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/belaydb/belay/cli/doctor/dashboard"
	"github.com/belaydb/belay/cli/doctor/live"
	"github.com/belaydb/belay/cli/doctor/rules"
)

// A watched is what both commands that make files for Prometheus and Grafana are told.
type watched struct {
	kind, selector string
}

func (d *doctor) watches(cmd *cobra.Command, w *watched) {
	fs := cmd.Flags()
	fs.StringVar(&w.kind, "for", "belay", "what the members are: belay or etcd")
	fs.StringVar(&w.selector, "selector", "", "what selects the members' series in Prometheus, as in job=\"etcd\"; empty: a job with the name of --for in it")
	cmd.Args = cobra.NoArgs
}

var (
	selectorForm = regexp.MustCompile(`^\s*[a-zA-Z_]\w*\s*(=|!=|=~|!~)\s*"(\\.|[^"\\])*"(\s*,\s*[a-zA-Z_]\w*\s*(=|!=|=~|!~)\s*"(\\.|[^"\\])*")*\s*$`)
	labelForm    = regexp.MustCompile(`^[a-zA-Z_]\w*$`)
)

// checked are the kind and the selector.
func (d *doctor) checked(w watched) (rules.Kind, string, error) {
	kind := rules.Kind(w.kind)
	if kind != rules.Etcd && kind != rules.Belay {
		return "", "", usagef("--for %q: belay or etcd", w.kind)
	}
	if d.html != "" {
		return "", "", usagef("--html is for findings, of which this command has none")
	}
	if w.selector == "" {
		return kind, rules.DefaultSelector(kind), nil
	}
	selector := strings.TrimSpace(strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(w.selector), "{"), "}"))
	if !selectorForm.MatchString(selector) {
		return "", "", usagef("--selector %s: labels as in job=\"etcd\",cluster=\"a\"; mind the shell, which takes the quotes away unless they are quoted", w.selector)
	}
	return kind, selector, nil
}

func (d *doctor) rulesCommand() *cobra.Command {
	var w watched
	var tune bool
	var by []string
	var runbook string
	timers := rules.DefaultTimers
	o := live.Options{}
	cmd := &cobra.Command{
		Use: "rules", Short: "Prints alerts for Prometheus that watch a cluster, as a rule file",
		Long: `Prints a rule file for Prometheus: alerts, each with a section in docs/runbook.md, and the series that they use. With
--tune the cluster at --endpoints is asked how fast its disks and links are while it is well, so that the alerts are
silent then; that changes nothing in the cluster. -o json prints the same for scripts; Prometheus reads that, too.`,
	}
	d.watches(cmd, &w)
	fs := cmd.Flags()
	fs.StringSliceVar(&by, "by", []string{"job"}, "labels that name one cluster, comma separated")
	fs.StringVar(&runbook, "runbook", rules.Runbook, "address of the page that the alerts link to, a copy of docs/runbook.md")
	fs.DurationVar(&timers.Heartbeat, "heartbeat-interval", timers.Heartbeat, "the members'; --tune asks Belay's for it")
	fs.DurationVar(&timers.Election, "election-timeout", timers.Election, "the members'; --tune asks Belay's for it")
	fs.BoolVar(&tune, "tune", false, "ask the cluster at --endpoints for what is usual there")
	fs.StringSliceVar(&o.Metrics, "metrics-urls", nil, "with --tune: where members answer /metrics, if not on their client URLs")
	fs.DurationVar(&o.Between, "between", 0, "with --tune: look at this much time from now on; 0: since the members started")
	d.asks(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		kind, selector, err := d.checked(w)
		if err != nil {
			return err
		}
		if len(by) == 0 {
			return usagef("--by: at least one label")
		}
		for _, l := range by {
			if !labelForm.MatchString(l) {
				return usagef("--by %s: names of labels, as in job,cluster", strings.Join(by, ","))
			}
		}
		if timers.Heartbeat <= 0 || timers.Election < timers.Heartbeat {
			return usagef("--heartbeat-interval %s, --election-timeout %s: more than 0, and the second is at least the first", timers.Heartbeat, timers.Election)
		}
		if o.Between < 0 {
			return usagef("--between %s: not negative", o.Between)
		}
		notes := []string{fmt.Sprintf("Alerts for %s, made by `belay doctor rules --for %s`.", kind.Program(), kind)}
		var measured rules.Measured
		if tune {
			cfg, err := d.configured(cmd)
			if err != nil {
				return err
			}
			o.Client, o.Timeout = cfg, d.connect.CommandTimeout
			c, err := live.Gather(cmd.Context(), o)
			if err != nil {
				return err
			}
			var answered int
			if measured, answered = c.Measured(rules.Latencies()); answered == 0 {
				return fmt.Errorf("no member of %s answers with its metrics: %s", strings.Join(cfg.Endpoints, ","), strings.Join(c.Silence(), "; "))
			}
			if t, ok := c.Timers(); ok && !fs.Changed("heartbeat-interval") && !fs.Changed("election-timeout") {
				timers = t
			}
			notes = append(notes, fmt.Sprintf("Tuned by %d of %d members at %s, %s.", answered, len(c.Members), strings.Join(cfg.Endpoints, ","), c.At.UTC().Format("2006-01-02 15:04 MST")))
		}
		bounds := rules.NewBounds(kind, timers)
		notes = append(notes, fmt.Sprintf("timers: heartbeat interval %s, election timeout %s.", timers.Heartbeat, timers.Election))
		if tune {
			var more []string
			bounds, more = rules.Tune(kind, bounds, measured)
			notes = append(notes, more...)
		}
		file := rules.Make(rules.Options{Kind: kind, Selector: selector, By: by, Runbook: runbook, Bounds: bounds, Notes: notes})
		if d.output == "json" {
			return file.JSON(d.out)
		}
		return file.YAML(d.out)
	}
	return cmd
}

func (d *doctor) dashboardCommand() *cobra.Command {
	var w watched
	var refresh time.Duration
	cmd := &cobra.Command{
		Use: "dashboard", Short: "Prints a dashboard for Grafana that shows a cluster",
		Long: `Prints a dashboard as Grafana imports it, as JSON. It asks a data source of the type Prometheus, and needs none of
the rules that doctor rules makes.`,
	}
	d.watches(cmd, &w)
	cmd.Flags().DurationVar(&refresh, "refresh", 30*time.Second, "how often Grafana asks again")
	cmd.RunE = func(*cobra.Command, []string) error {
		kind, selector, err := d.checked(w)
		if err != nil {
			return err
		}
		if refresh < time.Second {
			return usagef("--refresh %s: a second or more", refresh)
		}
		text, err := dashboard.Make(dashboard.Options{Kind: kind, Selector: selector, Refresh: refresh})
		if err != nil {
			return err
		}
		_, err = io.WriteString(d.out, text)
		return err
	}
	return cmd
}
