package report

import (
	"encoding/json"
	"io"
)

// JSON writes the report for scripts. Field names are stable; new ones may come.
func (r *Report) JSON(w io.Writer) error {
	r.Sort()
	if r.Findings == nil {
		r.Findings = []Finding{}
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}
