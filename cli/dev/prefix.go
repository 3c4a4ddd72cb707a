package dev

import (
	"bytes"
	"io"
	"sync"
)

// maxLineBytes is how much of an unfinished line is held back before it is printed anyway.
const maxLineBytes = 64 << 10

// A prefixer copies whole lines, each after a prefix. Several share one lock and one writer, so
// that lines of different members do not mix. Each belongs to one stream and is written to by one
// goroutine.
type prefixer struct {
	mu      *sync.Mutex // held for each write to w
	w       io.Writer
	prefix  string
	pending []byte // the beginning of a line

	view    *view     // nil: lines are shown as they are
	columns int       // of the prefix on a terminal
	full    io.Writer // with a view: gets the lines as they are; nil: nothing does

	// For an orderly stop, during which lines are held back. Guarded by mu.
	quiet bool   // log lines below error are held back
	held  []byte // the last of them, with their prefixes
}

// maxHeldBytes is how much of what was held back is kept.
const maxHeldBytes = 64 << 10

// hush starts to hold back the lines of an orderly stop.
func (p *prefixer) hush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.quiet = true
}

// reveal prints what was held back, and stops holding back: the stop is not orderly.
func (p *prefixer) reveal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = p.w.Write(p.held) // as with flush
	p.quiet, p.held = false, nil
}

// chatter reports whether a log line is below level error.
func chatter(line []byte) bool {
	for _, level := range []string{"info", "warn", "debug"} {
		if bytes.Contains(line, []byte("\t"+level+"\t")) || bytes.HasPrefix(line, []byte(`{"level":"`+level+`"`)) {
			return true
		}
	}
	return false
}

func (p *prefixer) Write(b []byte) (int, error) {
	p.pending = append(p.pending, b...)
	end := bytes.LastIndexByte(p.pending, '\n') + 1
	if end == 0 && len(p.pending) < maxLineBytes {
		return len(b), nil
	}
	if end == 0 {
		p.pending = append(p.pending, '\n')
		end = len(p.pending)
	}
	if err := p.print(p.pending[:end]); err != nil {
		return 0, err
	}
	p.pending = append(p.pending[:0], p.pending[end:]...)
	return len(b), nil
}

// flush prints a last line without a line break.
func (p *prefixer) flush() {
	if len(p.pending) > 0 {
		// Nobody is left to hear of an error.
		_ = p.print(append(p.pending, '\n'))
		p.pending = nil
	}
}

func (p *prefixer) print(lines []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.full != nil {
		_, _ = p.full.Write(lines) // what is shown matters more
	}
	var out bytes.Buffer
	for line := range bytes.Lines(lines) {
		if p.quiet && chatter(line) {
			p.held = append(append(p.held, p.prefix...), line...)
			if extra := len(p.held) - maxHeldBytes; extra > 0 {
				p.held = append(p.held[:0], p.held[extra:]...)
			}
			continue
		}
		if p.view != nil {
			for _, row := range p.view.rows(string(line), p.columns) {
				out.WriteString(p.prefix + row + "\n")
			}
			continue
		}
		out.WriteString(p.prefix)
		out.Write(line)
	}
	if out.Len() == 0 {
		return nil
	}
	_, err := p.w.Write(out.Bytes())
	return err
}

// memberPrefix is "m1 | ", in a colour of its own for each of the first members.
func memberPrefix(i int, name string, width int, colour bool) string {
	for len(name) < width {
		name += " "
	}
	if !colour {
		return name + " | "
	}
	colours := []string{"36", "33", "35", "32", "34", "31"} // of ANSI; cyan, yellow, magenta, green, blue, red
	return "\x1b[" + colours[i%len(colours)] + "m" + name + " |\x1b[0m "
}
