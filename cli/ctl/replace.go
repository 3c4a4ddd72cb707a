package ctl

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/cli/rolling"
	"github.com/belaydb/belay/internal/interrupt"
	"github.com/belaydb/belay/internal/show"
)

func memberReplaceCommand(c *ctl) *cobra.Command {
	var r rolling.Replace
	var peerURLs string
	cmd := &cobra.Command{
		Use:   "replace [options] <memberID|name>",
		Short: "Puts a new member in the place of another one",
		Long: `Puts a new member in the place of one whose data or machine is lost, or (with peer URLs and a name of its own) of one that
runs: adds it as a learner, prints what to start there, waits until it has started and caught up, promotes it, compares its
data with that of the others, and removes the old one. One that does not answer is removed first, since it only counts
against the quorum. It refuses what could lose the quorum or the last healthy copy. Each step is said on standard error; it may
be interrupted at any point, and goes on when it is started again.`,
		Example: "  " + c.name + " member replace m3                # m3 is dead: the new one comes to its peer URLs\n" +
			"  " + c.name + " member replace m3 --name m4 --peer-urls http://10.0.0.4:2380",
	}
	fs := cmd.Flags()
	fs.StringVar(&r.Name, "name", "", "the new member's name (default: that of the old one, which must not run then)")
	fs.StringVar(&peerURLs, "peer-urls", "", "the new member's peer URLs, comma separated (default: those of the old one, which must not run then)")
	fs.BoolVar(&r.Learner, "learner", false, "leave the new member a learner")
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 || args[0] == "" {
			return failf(codeBadArgs, "member replace needs one argument: the ID or the name of the member to replace")
		}
		spec, out, err := c.configure(cmd)
		if err != nil {
			return err
		}
		cfg, err := clientv3.NewClientConfig(spec, zap.NewNop())
		if err != nil {
			return fail(codeBadArgs, err)
		}
		cfg.Logger = zap.NewNop()
		ctx, stop := interrupt.Context(cmd.Context())
		defer stop()
		r.Client, r.Who, r.Timeout = cfg, args[0], c.global.CommandTimeout
		if peerURLs != "" {
			r.PeerURLs = strings.Split(peerURLs, ",")
		}
		r.Say = func(format string, args ...any) {
			r.Meter.End() // its line would be in the way
			fmt.Fprintf(c.err, format+"\n", args...)
		}
		file, _ := terminal(c.err)
		r.Meter = show.NewMeter(c.err, file, "catching up", func(n int64) string { return fmt.Sprintf("%d entries", n) })
		done, err := r.Run(ctx)
		if err != nil {
			var why interface{ Hint() string }
			switch {
			case ctx.Err() != nil:
				return &exitError{code: codeInterrupted, err: errors.New("interrupted; nothing is undone"), hint: "To go on: " + c.name + " member replace " + r.GoOn()}
			case errors.As(err, &why):
				return &exitError{code: codeError, err: err, hint: why.Hint()}
			}
			return err
		}
		for _, a := range done.Alarms() {
			fmt.Fprintf(c.err, "The alarm %s of the old member stays, and writes are refused, until it is disarmed: %s alarm disarm\n", a.GetAlarm(), c.name)
		}
		list := done.List()
		return out.show(reply{
			raw:  list,
			json: out.memberJSON(list.GetHeader(), nil, list.GetMembers()),
			simple: func(p *page) {
				what := "a voter"
				if r.Learner || done.Revision == 0 {
					what = "a learner"
				}
				p.printf("Member %16x is %s in cluster %16x", done.New, what, list.GetHeader().GetClusterId())
				if done.Old != 0 {
					p.printf(", and %16x is no member any more", done.Old)
				}
				p.line()
			},
		})
	})
	return cmd
}
