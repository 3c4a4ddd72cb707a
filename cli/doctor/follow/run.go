package follow

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/doctor/live"
)

// Options say what to follow and who is told.
type Options struct {
	Live      live.Options
	Every     time.Duration // between two looks
	Since     time.Time     // report changes from then on, as far as they are recorded; zero: from now on
	JSON      bool          // a line of JSON for each report, not one for people
	Receivers Receivers
	Out       io.Writer // reports
	Err       io.Writer // what is not a report
}

// Run follows until ctx ends, which is no error.
func Run(ctx context.Context, o Options) error {
	asker := NewAsker(o.Live)
	defer asker.Close()
	tracker := NewTracker(o.Since)
	notes := make(chan string, waiting)
	o.Receivers.Trouble = func(text string) {
		select {
		case notes <- text:
		default: // as many wait already
		}
	}
	// What is under way when Run ends is given up.
	delivering, stop := context.WithCancel(ctx)
	defer stop()
	deliverer := NewDeliverer(delivering, o.Receivers)
	defer deliverer.Close()
	defer stop()

	tick := time.NewTicker(o.Every)
	defer tick.Stop()
	greeted := false
	for {
		look := asker.Look(ctx)
		if ctx.Err() != nil {
			return nil
		}
		reports := tracker.Observe(look)
		if kind := asker.Kind(); !greeted && kind != "" {
			greeted = true
			o.note(fmt.Sprintf("following %s: %s; Ctrl-C ends it", kind, strings.Join(asker.Names(), ", ")))
			if !o.Since.IsZero() && strings.Contains(kind, "etcd") {
				o.note("etcd keeps no record: changes before now are in the members' logs (belay doctor logs)")
			}
		}
		for _, r := range reports {
			if err := o.print(r); err != nil {
				return err
			}
			if r.Event == LeaderChange || r.Event == LateVerdict {
				deliverer.Put(r)
			}
		}
		for wait := true; wait; {
			select {
			case <-ctx.Done():
				return nil
			case text := <-notes:
				o.note(text)
			case <-tick.C:
				wait = false
			}
		}
	}
}

func (o *Options) note(text string) { fmt.Fprintf(o.Err, "belay doctor follow: %s\n", text) }

func (o *Options) print(r Report) error {
	if o.JSON {
		return json.NewEncoder(o.Out).Encode(r)
	}
	_, err := fmt.Fprintln(o.Out, r.Line())
	return err
}
