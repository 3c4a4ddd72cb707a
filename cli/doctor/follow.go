package doctor

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/belaydb/belay/cli/doctor/follow"
	"github.com/belaydb/belay/cli/doctor/live"
)

// followCommand makes `doctor follow`.
func (d *doctor) followCommand() *cobra.Command {
	o := follow.Options{Live: live.Options{}}
	var since, command, atMost string
	var labels map[string]string
	cmd := &cobra.Command{
		Use: "follow", Short: "Reports each change of leader with its cause as it happens, until Ctrl-C",
		Long: `Looks at the cluster again and again, and prints a line for each change of leader: when, who led and who leads, the
term, how long nobody led, which member was at fault, why, and how sure that is. On Belay the cause is the verdict of the
cluster; on etcd it is told as far as metrics do. A program (--exec) or a URL (--webhook) can be told, too.

--exec runs a program without a shell; the words behind it are its arguments. It gets the report as JSON on standard
input, and in variables: BELAY_EVENT, BELAY_TIME, BELAY_OLD_LEADER, BELAY_NEW_LEADER, BELAY_TERM, BELAY_MEMBER, BELAY_CAUSE,
BELAY_SURE, BELAY_EVIDENCE, BELAY_ADVICE, BELAY_LINE and more, and has 10 s.`,
		Args: cobra.NoArgs,
	}
	fs := cmd.Flags()
	fs.DurationVar(&o.Every, "every", time.Second, "time between two looks")
	fs.StringVar(&since, "since", "", "report changes from then on, as far as Belay's members remember: a time, or how long ago (2h)")
	fs.StringVar(&command, "exec", "", "a program to run for each change of leader, with its arguments; no shell reads it")
	fs.StringVar(&o.Receivers.Webhook, "webhook", "", "a URL to post each change of leader to")
	fs.StringVar(&o.Receivers.Form, "webhook-form", follow.FormJSON, "what is posted: "+strings.Join(follow.Forms[:], ", "))
	fs.StringToStringVar(&labels, "webhook-label", nil, "a label of Alertmanager's alerts, as in cluster=prod; may be given several times")
	fs.StringVar(&atMost, "at-most", "30/1h", "how many reports are sent to --exec and --webhook within a time; all are printed")
	fs.StringSliceVar(&o.Live.Metrics, "metrics-urls", nil, "where members answer /metrics, if not on their client URLs")
	d.asks(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var err error
		if o.Every < 100*time.Millisecond || o.Every > time.Hour {
			return usagef("--every %s: 100ms to 1h", o.Every)
		}
		if d.html != "" {
			return usagef("--html is for what ends: follow prints lines")
		}
		if o.Since, err = moment(since, time.Now(), time.Local); err != nil {
			return usagef("--since: %v", err)
		}
		if o.Receivers.AtMost, err = follow.ParseRate(atMost); err != nil {
			return usagef("--at-most %v", err)
		}
		if fs.Changed("exec") {
			if o.Receivers.Exec = strings.Fields(command); len(o.Receivers.Exec) == 0 {
				return usagef("--exec names no program")
			}
		}
		if o.Receivers.Webhook != "" || fs.Changed("webhook") || fs.Changed("webhook-form") {
			if o.Receivers.Webhook, err = follow.CheckWebhook(o.Receivers.Webhook, o.Receivers.Form); err != nil {
				return usagef("--webhook: %v", err)
			}
		}
		if o.Live.Client, err = d.configured(cmd); err != nil {
			return err
		}
		o.Live.Timeout = min(d.connect.CommandTimeout, max(o.Every, 2*time.Second))
		o.Receivers.Labels = labels
		o.JSON, o.Out, o.Err = d.output == "json", d.out, d.err
		return follow.Run(cmd.Context(), o)
	}
	return cmd
}
