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

// HTML writes the report as one page that needs no network: style and pictures are inside.
func (r *Report) HTML(w io.Writer) error {
	r.Sort()
	t, err := template.New("page").Funcs(template.FuncMap{
		// Pictures are drawn by doctor, which escapes what it writes into them.
		"svg":  func(text string) template.HTML { return template.HTML(text) },
		"when": func(t time.Time) string { return t.Format("2006-01-02 15:04:05 MST") },
	}).Parse(page)
	if err != nil {
		return err
	}
	pictures := slices.Clone(r.Pictures)
	people := *r
	people.Findings = together(r.Findings)
	for _, c := range r.Charts {
		pictures = append(pictures, Picture{Title: c.Title, SVG: c.SVG()})
	}
	return t.Execute(w, struct {
		*Report
		Verdict string
		Drawn   []Picture
		Well    bool
	}{&people, r.verdict(), pictures, slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Severity == Good })})
}
