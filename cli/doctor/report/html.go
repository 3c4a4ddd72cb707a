package report

import (
	_ "embed"
	"html/template"
	"io"
	"slices"
	"time"
)

//go:embed page.html
var page string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"svg":  func(text string) template.HTML { return template.HTML(text) }, //nolint:gosec // doctor draws the pictures itself and escapes what it writes into them
	"when": func(t time.Time) string { return t.Format("2006-01-02 15:04:05 MST") },
}).Parse(page))

// HTML writes the report as one page that needs no network: style and pictures are inside.
func (r *Report) HTML(w io.Writer) error {
	r.Sort()
	return pageTemplate.Execute(w, struct {
		*Report
		Verdict string
		Well    bool
	}{r, r.verdict(), slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Severity == Good })})
}
