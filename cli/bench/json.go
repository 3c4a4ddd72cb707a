package bench

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/belaydb/belay/internal/version"
)

// document is what -o json prints. Times are in seconds.
type document struct {
	Command  string            `json:"command"`
	Flags    map[string]string `json:"flags"` // that were given, without secrets
	Version  string            `json:"belay"`
	At       time.Time         `json:"at"`
	Runs     []runDocument     `json:"runs"`
	Verdicts []verdict         `json:"verdicts"`
}

type runDocument struct {
	Side        string            `json:"side"`
	Endpoints   []string          `json:"endpoints"`
	ValSize     *int              `json:"val_size,omitempty"`
	Attempt     int               `json:"attempt"`
	Interrupted bool              `json:"interrupted"`
	Unanswered  int64             `json:"unanswered"`
	Oldest      float64           `json:"oldest_unanswered_seconds"`
	GaveUp      string            `json:"gave_up,omitempty"`
	Sections    []sectionDocument `json:"sections"`
	Costs       *costs            `json:"costs,omitempty"`
}

type sectionDocument struct {
	Name        string             `json:"name"`
	Operations  int64              `json:"operations"`
	Errors      map[string]int64   `json:"errors"`
	Elapsed     float64            `json:"elapsed_seconds"`
	Rate        float64            `json:"operations_per_second"`
	Fastest     float64            `json:"fastest_seconds"`
	Slowest     float64            `json:"slowest_seconds"`
	Mean        float64            `json:"mean_seconds"`
	Deviation   float64            `json:"standard_deviation_seconds"`
	Percentiles map[string]float64 `json:"percentiles_seconds"`
	Seconds     []secondDocument   `json:"seconds"`
}

type secondDocument struct {
	At     time.Time `json:"at"`
	Span   float64   `json:"span_seconds"`
	Ops    int64     `json:"operations"`
	Failed int64     `json:"errors"`
	P50    float64   `json:"p50_seconds"`
	P99    float64   `json:"p99_seconds"`
	Max    float64   `json:"max_seconds"`
}

// flagsOf are the flags that were given. --user may hold a password.
func flagsOf(cmd *cobra.Command) map[string]string {
	given := map[string]string{}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if given[f.Name] = f.Value.String(); f.Name == "user" {
			given[f.Name] = "***"
		}
	})
	return given
}

func (b *bench) printJSON(command string, began time.Time, all []*measured, verdicts []verdict) error {
	d := document{Command: command, Flags: b.changed, Version: version.Belay, At: began.UTC(), Runs: []runDocument{}, Verdicts: verdicts}
	for _, m := range all {
		r := runDocument{Side: m.side, Endpoints: m.of, Attempt: m.attempt, Interrupted: m.interrupted, Unanswered: m.unanswered, Oldest: m.oldest.Seconds(), Costs: m.costs}
		if m.size >= 0 {
			r.ValSize = &m.size
		}
		if m.gaveUp != nil {
			r.GaveUp = describe(m.gaveUp)
		}
		for _, list := range [][]section{m.sections, m.more} {
			for _, s := range list {
				r.Sections = append(r.Sections, sectionOf(s))
			}
		}
		d.Runs = append(d.Runs, r)
	}
	enc := json.NewEncoder(b.out)
	enc.SetIndent("", "  ")
	return enc.Encode(d)
}

func sectionOf(s section) sectionDocument {
	c := s.class.Counts
	d := sectionDocument{
		Name: s.name, Operations: c.N(), Errors: c.Errors(), Elapsed: s.elapsed.Seconds(), Rate: s.rate(), Fastest: c.Fastest().Seconds(), Slowest: c.Slowest().Seconds(),
		Mean: c.Mean().Seconds(), Deviation: c.Deviation().Seconds(), Percentiles: map[string]float64{}, Seconds: []secondDocument{},
	}
	for _, p := range curve {
		d.Percentiles[strconv.FormatFloat(p, 'f', -1, 64)] = c.Quantile(p / 100).Seconds()
	}
	for _, one := range s.class.Seconds {
		d.Seconds = append(d.Seconds, secondDocument{At: one.At.UTC(), Span: one.Span.Seconds(), Ops: one.Ops, Failed: one.Failed, P50: one.P50.Seconds(), P99: one.P99.Seconds(), Max: one.Max.Seconds()})
	}
	return d
}

// curve are the percentiles of a latency curve.
var curve = [...]float64{1, 5, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99}
