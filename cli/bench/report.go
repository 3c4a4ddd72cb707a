package bench

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-analyze/charts"

	"github.com/belaydb/belay/cli/bench/load"
	"github.com/belaydb/belay/internal/show"
	"github.com/belaydb/belay/internal/version"
)

//go:embed report.html
var reportPage string

// Sizes of a picture, in its own units, and how many points a line has at most.
const (
	pictureWidth  = 900
	pictureHeight = 380
	maxPoints     = 150
)

// A picture is one chart of a report.
type picture struct {
	Title string
	Note  string
	SVG   template.HTML // made by the plotting library of numbers and of names that it escapes
}

// A line is one of a chart's.
type line struct {
	name   string
	values []float64
}

// writeReport writes the page or the picture that --report names.
func (b *bench) writeReport(command string, began time.Time, all []*measured, verdicts []verdict) error {
	pictures, err := draw(all, verdicts)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if strings.HasSuffix(b.report, ".svg") {
		stack(&text, pictures)
	} else if err := b.page(&text, command, began, all, verdicts, pictures); err != nil {
		return err
	}
	return os.WriteFile(b.report, text.Bytes(), 0o644)
}

// draw makes the charts.
func draw(all []*measured, verdicts []verdict) (pictures []picture, err error) {
	add := func(p picture, failed error) {
		if err == nil && failed == nil {
			pictures = append(pictures, p)
		}
		if err == nil {
			err = failed
		}
	}
	var percentiles []string
	for _, p := range curve {
		percentiles = append(percentiles, "p"+strconv.FormatFloat(p, 'f', -1, 64))
	}
	typical := typicalRuns(all)
	for _, size := range sizesOf(all) {
		of := "" // sizes differ by powers of ten, so each has pictures of its own
		if len(sizesOf(all)) > 1 {
			of = ", values of " + sizeName(size)
		}
		var rates, curves []line
		var one *measured
		for _, m := range typical {
			if m.size == size {
				rates = append(rates, line{runName(m, typical), secondsOf(m, load.Second.Rate)})
				curves = append(curves, line{runName(m, typical), curveOf(m)})
				one = m
			}
		}
		add(lines("Throughput over time"+of, "operations a second; of each side the run with the median rate", labelsOf(rates), rates, perSecondText))
		if len(rates) == 1 {
			over := []line{
				{"p50", secondsOf(one, func(s load.Second) float64 { return ms(s.P50) })},
				{"p99", secondsOf(one, func(s load.Second) float64 { return ms(s.P99) })},
				{"max", secondsOf(one, func(s load.Second) float64 { return ms(s.Max) })},
			}
			add(lines("Latency over time"+of, "of what ended in each second", labelsOf(over), over, msText))
		}
		add(lines("Latency by percentile"+of, "that share of the operations took no longer", percentiles, curves, msText))
	}
	if sizes := sizesOf(all); len(sizes) > 1 {
		for _, figure := range []struct {
			name, title, note string
			scale             float64
			text              func(float64) string
		}{
			{"ops/s", "Throughput by size of values", "operations a second, medians", 1, perSecondText},
			{"p50", "Latency by size of values, p50", "medians", 1e3, msText},
			{"p99", "Latency by size of values, p99", "medians", 1e3, msText},
		} {
			labels, bars := sweep(sizes, verdicts, figure.name, figure.scale)
			add(barsOf(figure.title, figure.note, labels, bars, figure.text))
		}
	}
	return pictures, err
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func perSecondText(v float64) string { return grouped(int64(v + 0.5)) }

func msText(v float64) string {
	if v == 0 {
		return "0"
	}
	return short(time.Duration(v * float64(time.Millisecond)))
}

// typicalRuns are, of each side and size, the one with the median rate.
func typicalRuns(all []*measured) (typical []*measured) {
	for _, size := range sizesOf(all) {
		for _, side := range []string{"A", "B"} {
			var runs []*measured
			for _, m := range all {
				if m.size == size && m.side == side {
					runs = append(runs, m)
				}
			}
			if len(runs) == 0 {
				continue
			}
			slices.SortFunc(runs, func(x, y *measured) int { return int(x.main().rate() - y.main().rate()) })
			typical = append(typical, runs[(len(runs)-1)/2])
		}
	}
	return typical
}

// runName is the side of a run, if there are two, else what it did.
func runName(m *measured, all []*measured) string {
	if slices.ContainsFunc(all, func(o *measured) bool { return o.side != m.side }) {
		return m.side
	}
	return m.main().name
}

// secondsOf is a value of each second of a run, thinned to maxPoints. A last second that is mostly
// missing says nothing.
func secondsOf(m *measured, of func(load.Second) float64) (values []float64) {
	seconds := m.main().class.Seconds
	if n := len(seconds); n > 1 && seconds[n-1].Span < time.Second/2 {
		seconds = seconds[:n-1]
	}
	step := (len(seconds) + maxPoints - 1) / maxPoints
	for i := 0; i < len(seconds); i += step {
		sum := 0.0
		some := seconds[i:min(i+step, len(seconds))]
		for _, s := range some {
			sum += of(s)
		}
		values = append(values, sum/float64(len(some)))
	}
	return values
}

// labelsOf are the seconds below lines over time.
func labelsOf(all []line) (labels []string) {
	longest := 0
	for _, l := range all {
		longest = max(longest, len(l.values))
	}
	for i := range longest {
		labels = append(labels, strconv.Itoa(i+1)+" s")
	}
	return labels
}

func curveOf(m *measured) (values []float64) {
	for _, p := range curve {
		values = append(values, ms(m.main().class.Counts.Quantile(p/100)))
	}
	return values
}

// sweep is a figure's median of each size, a line for each side.
func sweep(sizes []int, verdicts []verdict, name string, scale float64) (labels []string, sides []line) {
	a, b := line{name: "A"}, line{name: "B"}
	two := false
	for _, size := range sizes {
		labels = append(labels, sizeName(size))
		at := slices.IndexFunc(verdicts, func(v verdict) bool { return v.Figure == name && v.Size == max(size, 0) })
		if at < 0 {
			a.values, b.values = append(a.values, 0), append(b.values, 0)
			continue
		}
		a.values = append(a.values, verdicts[at].A.Median*scale)
		other := 0.0
		if verdicts[at].B != nil {
			other, two = verdicts[at].B.Median*scale, true
		}
		b.values = append(b.values, other)
	}
	if !two {
		a.name = name
		return labels, []line{a}
	}
	return labels, []line{a, b}
}

// matrix are the lines' values, filled up to one length.
func matrix(all []line, n int) (values [][]float64, names []string) {
	for _, l := range all {
		row := slices.Clone(l.values)
		for len(row) < n {
			row = append(row, charts.GetNullValue())
		}
		values, names = append(values, row), append(names, l.name)
	}
	return values, names
}

func painter() *charts.Painter {
	return charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG, Width: pictureWidth, Height: pictureHeight})
}

func lines(title, note string, labels []string, all []line, text func(float64) string) (picture, error) {
	if len(labels) == 0 {
		return picture{Title: title, Note: "nothing was measured"}, nil
	}
	values, names := matrix(all, len(labels))
	opt := charts.NewLineChartOptionWithData(values)
	opt.XAxis.Labels, opt.Legend.SeriesNames, opt.ValueFormatter = labels, names, text
	opt.LineStrokeWidth, opt.Symbol.Shape = 2, charts.SymbolCircle
	opt.YAxis[0].Min = charts.Ptr(0.0)
	opt.XAxis.LabelFontStyle.FontSize = 9
	p := painter()
	if err := p.LineChart(opt); err != nil {
		return picture{}, fmt.Errorf("%s: %w", title, err)
	}
	return drawn(p, title, note)
}

func barsOf(title, note string, labels []string, all []line, text func(float64) string) (picture, error) {
	values, names := matrix(all, len(labels))
	opt := charts.NewBarChartOptionWithData(values)
	opt.CategoryAxis.Labels, opt.Legend.SeriesNames, opt.ValueFormatter = labels, names, text
	for i := range opt.SeriesList {
		opt.SeriesList[i].Label.Show = charts.Ptr(true)
		opt.SeriesList[i].Label.ValueFormatter = text
	}
	opt.ValueAxis[0].Min = charts.Ptr(0.0)
	p := painter()
	if err := p.BarChart(opt); err != nil {
		return picture{}, fmt.Errorf("%s: %w", title, err)
	}
	return drawn(p, title, note)
}

func drawn(p *charts.Painter, title, note string) (picture, error) {
	svg, err := p.Bytes()
	if err != nil {
		return picture{}, fmt.Errorf("%s: %w", title, err)
	}
	return picture{Title: title, Note: note, SVG: template.HTML(svg)}, nil
}

// stack writes the charts below each other, as one picture.
func stack(w *bytes.Buffer, pictures []picture) {
	const title = 40
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif">`+"\n", pictureWidth, len(pictures)*(pictureHeight+title))
	fmt.Fprint(w, `<rect width="100%" height="100%" fill="white"/>`+"\n")
	for i, p := range pictures {
		top := i * (pictureHeight + title)
		fmt.Fprintf(w, `<text x="20" y="%d" font-size="17">%s</text><text x="%d" y="%d" font-size="12" fill="#666" text-anchor="end">%s</text>`+"\n", top+27, template.HTMLEscapeString(p.Title), pictureWidth-20, top+27, template.HTMLEscapeString(p.Note))
		fmt.Fprintln(w, strings.Replace(string(p.SVG), "<svg ", fmt.Sprintf(`<svg x="0" y="%d" width="%d" height="%d" `, top+title, pictureWidth, pictureHeight), 1))
	}
	fmt.Fprintln(w, "</svg>")
}

// page writes all as HTML that needs no network.
func (b *bench) page(w *bytes.Buffer, command string, began time.Time, all []*measured, verdicts []verdict, pictures []picture) error {
	t, err := template.New("report").Parse(reportPage)
	if err != nil {
		return err
	}
	type row struct{ Cells []string }
	type errorRow struct {
		Run, Text string
		Count     int64
	}
	data := struct {
		Command, Version, At, Flags string
		Sides                       []string
		Header                      []string
		Runs                        []row
		Verdicts                    []row
		Two                         bool
		Errors                      []errorRow
		Pictures                    []picture
	}{Command: command, Version: version.Belay, At: began.UTC().Format("2006-01-02 15:04:05 MST"), Two: len(b.versus) > 0, Pictures: pictures,
		Header: []string{"val-size", "side", "run", "ops/s", "p50", "p90", "p99", "p99.9", "p99.99", "max", "errors", "server CPU s per 1,000", "largest RSS", "client CPU s per 1,000"}}
	for name, value := range b.changed {
		data.Flags += " --" + name + "=" + strings.Trim(value, "[]")
	}
	words := strings.Fields(data.Flags)
	slices.Sort(words)
	data.Flags = strings.Join(words, " ")
	data.Sides = []string{"A: " + strings.Join(b.endpoints, ", ")}
	if data.Two {
		data.Sides = append(data.Sides, "B: "+strings.Join(b.versus, ", "))
	}
	for _, m := range all {
		s := m.main()
		c := s.class.Counts
		cells := []string{sizeName(m.size), m.side, strconv.Itoa(m.attempt), grouped(int64(s.rate()))}
		for _, p := range highPercentiles {
			cells = append(cells, short(c.Quantile(p/100)))
		}
		cells = append(cells, short(c.Slowest()), grouped(m.failures()))
		if m.costs != nil && c.N() > 0 {
			n := float64(c.N())
			cells = append(cells, fmt.Sprintf("%.4f", m.costs.CPU/n*1000), show.Bytes(int64(m.costs.RSS)), fmt.Sprintf("%.4f", m.costs.Client/n*1000))
		} else {
			cells = append(cells, "-", "-", "-")
		}
		data.Runs = append(data.Runs, row{cells})
		for _, one := range m.sections {
			for _, e := range sortedErrors(one.class.Counts.Errors()) {
				data.Errors = append(data.Errors, errorRow{fmt.Sprintf("%s, %s, run %d", sizeName(m.size), m.side, m.attempt), e.text, e.count})
			}
		}
	}
	for _, v := range verdicts {
		size := "-"
		if len(all) > 0 && all[0].size >= 0 {
			size = sizeText(v.Size)
		}
		cells := []string{size, v.Figure, v.A.words(v.text)}
		if v.B != nil {
			cells = append(cells, v.B.words(v.text), fmt.Sprintf("%.2f", v.Ratio), v.Says)
		} else if data.Two {
			cells = append(cells, "-", "-", "-")
		}
		data.Verdicts = append(data.Verdicts, row{cells})
	}
	return t.Execute(w, data)
}
