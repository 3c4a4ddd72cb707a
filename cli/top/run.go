package top

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/belaydb/belay/cli/doctor/live"
)

// Options of Run.
type Options struct {
	Live  live.Options // Between and Certified have no meaning here
	Every time.Duration
	Once  bool // one page, or one JSON object, and no more
	JSON  bool
	Plain bool // no colours
	Width int  // of one page
	In    io.Reader
	Out   io.Writer
}

// Run looks at a cluster until a key or ctx ends it, or once. The error is of the terminal, or says
// that no member answers; ctx's own end is none.
func Run(ctx context.Context, o Options) error {
	a := NewAsker(o.Live)
	defer a.Close()
	if o.Once || o.JSON {
		return once(ctx, a, o)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a look that still waits ends
	s := &screen{ctx: ctx, look: a.Look, now: time.Now, choice: Choice{Every: o.Every}, colour: !o.Plain}
	_, err := tea.NewProgram(s, tea.WithContext(ctx), tea.WithInput(o.In), tea.WithOutput(o.Out), tea.WithoutSignalHandler()).Run()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// once prints what two looks tell.
func once(ctx context.Context, a *Asker, o Options) error {
	var story Story
	story.Add(a.Look(ctx))
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(o.Every):
	}
	p := story.Add(a.Look(ctx))
	if ctx.Err() != nil {
		return nil
	}
	if o.JSON {
		out := json.NewEncoder(o.Out)
		if err := out.Encode(p); err != nil {
			return err
		}
	} else {
		text := render(page(p, Choice{Every: o.Every}, o.Width, 0), o.Width, false)
		if _, err := fmt.Fprintln(o.Out, text); err != nil {
			return err
		}
	}
	if p.Error != "" {
		return fmt.Errorf("%s", p.Error)
	}
	return nil
}
