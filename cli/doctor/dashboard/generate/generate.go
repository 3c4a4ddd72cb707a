// Command generate writes the dashboards of `belay doctor dashboard` into the folder it is run in:
// go generate ./cli/doctor/dashboard. It uses Grafana's own types, so that what it writes is what
// Grafana reads. These would make belay larger by 1.2 MB, so belay has what they made.
//
// Files: generate.go (a dashboard), panels.go (what is on it).
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"

	dashboards "github.com/belaydb/belay/cli/doctor/dashboard"
	"github.com/belaydb/belay/cli/doctor/rules"
)

// A panel is a row of the table. SEL in its queries is what selects the members that are chosen.
type panel struct {
	title   string
	says    string     // what it shows, and when to mind
	only    rules.Kind // empty: both
	big     bool       // one figure, not a graph
	unit    string     // Grafana's name of it
	queries []query
	lines   []float64 // bounds: warning, then critical
	max     float64   // of the axis; 0: what comes
}

// A query is one of a panel's, with what its series are called.
type query struct{ expr, legend string }

// A row is a group of panels.
type row struct {
	title  string
	panels []panel
}

// chosen selects the members that the variables name.
const chosen = `job="$job",instance=~"$instance"`

const (
	wide, bigWide = 8, 4 // of 24
	high, bigHigh = 7, 4
)

func main() {
	log.SetFlags(0)
	for _, kind := range []rules.Kind{rules.Etcd, rules.Belay} {
		text, err := generate(kind)
		if err == nil {
			err = os.WriteFile(string(kind)+".json", text, 0o644)
		}
		if err != nil {
			log.Fatal(err)
		}
	}
}

// generate makes the dashboard of a kind, as JSON, with dashboard's placeholders in it.
func generate(kind rules.Kind) ([]byte, error) {
	title, uid := kind.Program(), "belay-doctor-"+string(kind)
	source := common.DataSourceRef{Type: text("prometheus"), Uid: text("${datasource}")}
	asks := func(q string) dashboard.StringOrMap { return dashboard.StringOrMap{String: &q} }
	has := "etcd_server_has_leader{" + dashboards.Selector
	//lint:ignore SA1019 dashboards of version 2 need Grafana 12
	b := dashboard.NewDashboardBuilder(title).Uid(uid).Tags([]string{"etcd", "belay-doctor"}).
		Description(fmt.Sprintf("Members, latency, disk, network, size, watches and process of a cluster of %s. Made by belay doctor dashboard.", title)).
		Refresh(dashboards.Refresh).Time("now-1h", "now").Timezone("browser").Tooltip(dashboard.DashboardCursorSyncCrosshair).
		WithVariable(dashboard.NewDatasourceVariableBuilder("datasource").Label("Data source").Type("prometheus")).
		WithVariable(dashboard.NewQueryVariableBuilder("job").Label("Cluster").Datasource(source).Query(asks("label_values(" + has + "}, job)")).
			Refresh(dashboard.VariableRefreshOnDashboardLoad).Sort(dashboard.VariableSortNaturalAsc)).
		WithVariable(dashboard.NewQueryVariableBuilder("instance").Label("Member").Datasource(source).Query(asks("label_values(" + has + `,job="$job"}, instance)`)).
			Refresh(dashboard.VariableRefreshOnTimeRangeChanged).Sort(dashboard.VariableSortNaturalAsc).Multi(true).IncludeAll(true).AllValue(".*").
			Current(dashboard.VariableOption{Text: list("All"), Value: list("$__all")}))
	id := uint32(0)
	for _, r := range rows(kind) {
		id++
		b.WithRow(dashboard.NewRowBuilder(r.title).Id(id))
		for _, p := range r.panels {
			if p.only != "" && p.only != kind {
				continue
			}
			id++
			if p.big {
				b.WithPanel(p.stat(id, source))
			} else {
				b.WithPanel(p.graph(id, source))
			}
		}
	}
	made, err := b.Build()
	if err != nil {
		return nil, fmt.Errorf("dashboard: %w", err)
	}
	out, err := json.MarshalIndent(made, "", "  ")
	return append(out, '\n'), err
}

func text(s string) *string { return &s }

func list(s string) dashboard.StringOrArrayOfString {
	return dashboard.StringOrArrayOfString{ArrayOfString: []string{s}}
}

// targets are a panel's queries.
func (p panel) targets(source common.DataSourceRef) (all []*prometheus.DataqueryBuilder) {
	for i, q := range p.queries {
		t := prometheus.NewDataqueryBuilder().Datasource(source).RefId(string(rune('A' + i))).
			Expr(strings.ReplaceAll(q.expr, "SEL", chosen)).LegendFormat(q.legend)
		if p.big {
			t.Instant()
		} else {
			t.Range()
		}
		all = append(all, t)
	}
	return all
}

func (p panel) thresholds() *dashboard.ThresholdsConfigBuilder {
	steps := []dashboard.Threshold{{Color: "green"}}
	for i, at := range p.lines {
		steps = append(steps, dashboard.Threshold{Value: &at, Color: []string{"orange", "red"}[min(i, 1)]})
	}
	return dashboard.NewThresholdsConfigBuilder().Mode(dashboard.ThresholdsModeAbsolute).Steps(steps)
}

func (p panel) graph(id uint32, source common.DataSourceRef) *timeseries.PanelBuilder {
	b := timeseries.NewPanelBuilder().Id(id).Title(p.title).Description(p.says).Datasource(source).Unit(p.unit).Span(wide).Height(high).Min(0).
		LineWidth(1).FillOpacity(5).ShowPoints(common.VisibilityModeNever).Thresholds(p.thresholds()).
		Tooltip(common.NewVizTooltipOptionsBuilder().Mode(common.TooltipDisplayModeMulti).Sort(common.SortOrderDescending)).
		Legend(common.NewVizLegendOptionsBuilder().DisplayMode(common.LegendDisplayModeList).Placement(common.LegendPlacementBottom).ShowLegend(true))
	if len(p.lines) > 0 {
		b.ThresholdsStyle(common.NewGraphThresholdsStyleConfigBuilder().Mode(common.GraphThresholdsStyleModeDashed))
	}
	if p.max > 0 {
		b.Max(p.max)
	}
	for _, t := range p.targets(source) {
		b.WithTarget(t)
	}
	return b
}

func (p panel) stat(id uint32, source common.DataSourceRef) *stat.PanelBuilder {
	b := stat.NewPanelBuilder().Id(id).Title(p.title).Description(p.says).Datasource(source).Unit(p.unit).Span(bigWide).Height(bigHigh).
		Thresholds(p.thresholds()).GraphMode(common.BigValueGraphModeNone).
		ReduceOptions(common.NewReduceDataOptionsBuilder().Calcs([]string{"lastNotNull"}))
	for _, t := range p.targets(source) {
		b.WithTarget(t)
	}
	return b
}
