package ctl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/internal/show"
)

// outputFormats lists the values of --write-out.
func outputFormats() []string { return []string{"fields", "json", "protobuf", "simple", "table"} }

// An output prints replies in the format of --write-out.
type output struct {
	out, err  io.Writer
	format    string // one of outputFormats
	hex       bool   // --hex
	valueOnly bool   // get --print-value-only; simple format only
}

// A reply describes one response in each format. Not every format can show every response, and
// etcdctl's gaps are kept: "fields", for example, does not show the answer of member add.
type reply struct {
	simple func(p *page)            // never nil
	fields func(p *page)            // nil: the format is refused
	table  func() (rows [][]string) // nil: refused; the first row is the header
	json   any                      // nil: raw is encoded instead
	raw    any                      // for protobuf must be a proto.Message; nil: refused
}

// show prints r. Each reply is one write, so that replies of concurrent watches do not mix.
func (o *output) show(r reply) error {
	p := &page{hex: o.hex, valueOnly: o.valueOnly}
	refused := false
	switch o.format {
	case "simple":
		r.simple(p)
	case "fields":
		if refused = r.fields == nil; !refused {
			r.fields(p)
		}
	case "table":
		if refused = r.table == nil; !refused {
			show.Table(&p.out, r.table())
		}
	case "json":
		v := r.json
		if v == nil {
			v = r.raw
		}
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		p.line(string(b))
	case "protobuf":
		if refused = r.raw == nil; refused {
			break
		}
		m, ok := r.raw.(proto.Message)
		if !ok {
			return failf(codeBadFeature, "marshal unsupported for type %T (%v)", r.raw, r.raw)
		}
		b, err := proto.Marshal(m)
		if err != nil {
			return err
		}
		p.out.Write(b)
	}
	if refused {
		return failf(codeBadFeature, "%s not supported as output format", o.format)
	}
	if p.err.Len() > 0 {
		if _, err := o.err.Write(p.err.Bytes()); err != nil {
			return err
		}
	}
	if p.out.Len() == 0 {
		return nil
	}
	_, err := o.out.Write(p.out.Bytes())
	return err
}

// A page collects one reply's text.
type page struct {
	out       bytes.Buffer
	err       bytes.Buffer // for standard error
	hex       bool
	valueOnly bool
}

func (p *page) line(args ...any)                  { fmt.Fprintln(&p.out, args...) }
func (p *page) printf(format string, args ...any) { fmt.Fprintf(&p.out, format, args...) }

// field prints `"Name" : value`, the line of the fields format.
func (p *page) field(name string, value any) { p.printf("%q : %v\n", name, value) }

// quoted is field for text.
func (p *page) quoted(name, value string) { p.printf("%q : %q\n", name, value) }
