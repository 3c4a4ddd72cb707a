package doctor

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/belaydb/belay/cli/doctor/live"
)

func (d *doctor) networkCommand() *cobra.Command {
	o := live.Options{}
	var count int
	var every time.Duration
	cmd := &cobra.Command{Use: "network", Short: "Measures round trips and losses between the members, and from here", Args: cobra.NoArgs}
	fs := cmd.Flags()
	fs.StringSliceVar(&o.Metrics, "metrics-urls", nil, "where members answer /metrics, if not on their client URLs")
	fs.DurationVar(&o.Between, "between", 5*time.Second, "time between the two scrapes of each member")
	fs.IntVar(&count, "count", 100, "requests to each member from here")
	fs.DurationVar(&every, "every", 20*time.Millisecond, "time between them")
	d.asks(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if count < 1 || every < 0 || o.Between < 0 {
			return usagef("--count is at least 1, --every and --between are not negative")
		}
		cfg, err := d.configured(cmd)
		if err != nil {
			return err
		}
		o.Client, o.Timeout = cfg, d.connect.CommandTimeout
		c, trips, err := live.GatherNetwork(cmd.Context(), o, count, every)
		if err != nil {
			return err
		}
		return d.print(live.JudgeNetwork(c, trips))
	}
	return cmd
}

func (d *doctor) clockCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "clock", Short: "Compares the members' clocks with each other and with the one here", Args: cobra.NoArgs}
	d.asks(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := d.configured(cmd)
		if err != nil {
			return err
		}
		c, err := live.Gather(cmd.Context(), live.Options{Client: cfg, Timeout: d.connect.CommandTimeout})
		if err != nil {
			return err
		}
		return d.print(live.JudgeClock(c))
	}
	return cmd
}
