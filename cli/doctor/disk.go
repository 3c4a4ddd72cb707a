package doctor

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/belaydb/belay/cli/doctor/disk"
	"github.com/belaydb/belay/cli/doctor/live"
	"github.com/belaydb/belay/cli/doctor/report"
)

// Beside a member's data a measurement is careful: it takes so many writes a second, and so many
// bytes in all.
const (
	carefulRate  = 50
	carefulBytes = 4 << 20
)

func (d *doctor) diskCommand() *cobra.Command {
	var o disk.Options
	cmd := &cobra.Command{
		Use: "disk DIR", Short: "Measures how fast the disk of a directory makes small writes durable",
		Long: fmt.Sprintf(`Writes a file without a name in DIR, block by block, an fdatasync after each, and removes it: what the log of
etcd or Belay needs of a disk. In a member's data directory no more than %d writes a second and %d MiB are
written, unless --rate or --size say otherwise.`, carefulRate, carefulBytes>>20),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("doctor disk takes one directory on the disk to measure, as in: belay doctor disk /var/lib/etcd")
			}
			return nil
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&o.Block, "block", 8000, "bytes of each write")
	fs.Int64Var(&o.Bytes, "size", 22<<20, "bytes to write in all, at most")
	fs.DurationVar(&o.For, "for", 30*time.Second, "how long to write, at most")
	fs.IntVar(&o.Rate, "rate", 0, "writes a second, at most; 0: as many as the disk takes")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o.Dir = args[0]
		member := disk.Member(o.Dir)
		if member != "" {
			if !fs.Changed("rate") {
				o.Rate = carefulRate
			}
			if !fs.Changed("size") {
				o.Bytes = carefulBytes
			}
		}
		if o.Rate < 0 {
			return usagef("--rate %d: 0 or more", o.Rate)
		}
		begin := time.Now()
		r, err := disk.Measure(cmd.Context(), o)
		if err != nil {
			return err
		}
		if o.Rate == 0 {
			member = ""
		}
		judged := disk.Judge(r, begin, member)
		if short := live.Short(); short != "" {
			for i := range judged.Findings {
				if f := &judged.Findings[i]; f.Severity != report.Good && f.Severity != report.Unknown {
					f.Evidence, f.Confidence = append(f.Evidence, short), report.Possible
				}
			}
		}
		return d.print(judged)
	}
	return cmd
}
