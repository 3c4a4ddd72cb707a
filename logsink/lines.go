package logsink

import (
	"bytes"
	"io"
	"sync"
)

// Lines lets several writers share one output without mixing their lines.
type Lines struct {
	mu  sync.Mutex
	out io.Writer
}

// NewLines makes Lines on out.
func NewLines(out io.Writer) *Lines { return &Lines{out: out} }

// Prefix is a writer that puts prefix before each line. Each Write to it must consist of whole
// lines, as a Sink's do.
func (l *Lines) Prefix(prefix string) io.Writer { return &prefixed{l: l, prefix: []byte(prefix)} }

type prefixed struct {
	l      *Lines
	prefix []byte
	buf    []byte // guarded by l.mu
}

func (p *prefixed) Write(b []byte) (int, error) {
	p.l.mu.Lock()
	defer p.l.mu.Unlock()
	p.buf = p.buf[:0]
	for line := range bytes.Lines(b) {
		p.buf = append(p.buf, p.prefix...)
		p.buf = append(p.buf, line...)
	}
	if _, err := p.l.out.Write(p.buf); err != nil {
		return 0, err
	}
	return len(b), nil
}
