package doctor

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/belaydb/belay/cli/doctor/live"
)

// live makes the root's own command: a look at a cluster that runs.
func (d *doctor) live(cmd *cobra.Command) {
	o := live.Options{Certified: true}
	fs := cmd.Flags()
	fs.StringSliceVar(&o.Metrics, "metrics-urls", nil, "where members answer /metrics, if not on their client URLs (--listen-metrics-urls), comma separated")
	fs.DurationVar(&o.Between, "between", 5*time.Second, "time between the two scrapes of each member")
	d.asks(cmd)
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := d.configured(cmd)
		if err != nil {
			return err
		}
		if o.Between < 0 || o.Between > time.Hour {
			return usagef("--between %s: 0 to 1h", o.Between)
		}
		o.Client, o.Timeout = cfg, d.connect.CommandTimeout
		c, err := live.Gather(cmd.Context(), o)
		if err != nil {
			return err
		}
		return d.print(live.Judge(c))
	}
}
