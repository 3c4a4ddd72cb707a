package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/go-analyze/charts"

	"github.com/belaydb/belay/proof/cluster"
)

// A drawing is what was measured of a curve.
type drawing struct {
	curve
	sizes  []int
	kinds  []cluster.Kind
	values map[string]map[string]float64 // by key, the figures
	failed map[string]string             // by key, why there are none
}

func (d *drawing) key(kind cluster.Kind, size int) string {
	return string(kind) + "/" + strconv.Itoa(size)
}

// table writes the figures, a row for each size and kind.
func (d *drawing) table(w io.Writer) {
	fmt.Fprintf(w, "\n### %s\n\n%s.\n\n| %s | server |", d.name, strings.ToUpper(d.about[:1])+d.about[1:], d.name)
	for _, f := range d.figures {
		fmt.Fprintf(w, " %s |", f.name)
	}
	fmt.Fprintf(w, "\n| ---: | --- |%s\n", strings.Repeat(" ---: |", len(d.figures)))
	for _, size := range d.sizes {
		for _, kind := range d.kinds {
			fmt.Fprintf(w, "| %s | %s |", grouped(size), kind)
			v, measured := d.values[d.key(kind, size)]
			for i, f := range d.figures {
				switch {
				case measured:
					fmt.Fprintf(w, " %s |", f.text(v[f.name]))
				case i == 0 && d.failed[d.key(kind, size)] != "":
					fmt.Fprintf(w, " failed: %s |", strings.ReplaceAll(d.failed[d.key(kind, size)], "|", "/"))
				default:
					fmt.Fprint(w, " |")
				}
			}
			fmt.Fprintln(w)
		}
	}
}

// grouped is a number with commas.
func grouped(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Sizes of a picture of one figure, in its own units; two stand side by side.
const (
	pictureWidth  = 460
	pictureHeight = 260
	titleHeight   = 30
)

// picture writes one file with a chart of each figure.
func (d *drawing) picture(path string) error {
	rows := (len(d.figures) + 1) / 2
	var text strings.Builder
	fmt.Fprintf(&text, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif">`+"\n<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n", 2*pictureWidth, rows*(pictureHeight+titleHeight))
	for i, f := range d.figures {
		svg, err := d.chart(f)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		x, y := i%2*pictureWidth, i/2*(pictureHeight+titleHeight)
		fmt.Fprintf(&text, `<text x="%d" y="%d" font-size="15">%s, by %s</text>`+"\n", x+20, y+21, f.name, d.name)
		fmt.Fprintln(&text, strings.Replace(svg, "<svg ", fmt.Sprintf(`<svg x="%d" y="%d" width="%d" height="%d" `, x, y+titleHeight, pictureWidth, pictureHeight), 1))
	}
	text.WriteString("</svg>\n")
	return os.WriteFile(path, []byte(text.String()), 0o644)
}

// chart is one figure over the sizes, a line for each kind.
func (d *drawing) chart(f shown) (string, error) {
	var labels, names []string
	for _, size := range d.sizes {
		labels = append(labels, grouped(size))
	}
	var values [][]float64
	for _, kind := range d.kinds {
		row := make([]float64, len(d.sizes))
		for i, size := range d.sizes {
			v, measured := d.values[d.key(kind, size)]
			if row[i] = v[f.name]; !measured {
				row[i] = charts.GetNullValue()
			}
		}
		if slices.ContainsFunc(row, func(v float64) bool { return v != charts.GetNullValue() }) {
			values, names = append(values, row), append(names, string(kind))
		}
	}
	if len(values) == 0 {
		return "<svg ></svg>", nil // nothing was measured, as the table says
	}
	opt := charts.NewLineChartOptionWithData(values)
	opt.XAxis.Labels, opt.Legend.SeriesNames, opt.ValueFormatter = labels, names, f.text
	opt.LineStrokeWidth, opt.Symbol.Shape = 2, charts.SymbolCircle
	opt.YAxis[0].Min = charts.Ptr(0.0)
	opt.XAxis.LabelFontStyle.FontSize = 9
	p := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG, Width: pictureWidth, Height: pictureHeight})
	if err := p.LineChart(opt); err != nil {
		return "", err
	}
	svg, err := p.Bytes()
	return string(svg), err
}
