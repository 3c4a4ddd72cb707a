package show

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// A Meter shows on a terminal how far something long is: done of how much, rate, time left. A nil
// Meter shows nothing. It belongs to one goroutine.
type Meter struct {
	w     io.Writer
	what  string
	unit  func(int64) string
	now   func() time.Time
	start time.Time
	last  time.Time // when a line was shown; zero: never
}

// meterStep is how often the line changes.
const meterStep = 200 * time.Millisecond

// NewMeter returns a meter that writes to w, or nil if file, where w's bytes go, is no terminal: what
// scripts read has no meters in it. unit makes a text of an amount, and of an amount a second.
func NewMeter(w io.Writer, file any, what string, unit func(int64) string) *Meter {
	f, ok := file.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return newMeter(w, what, unit, time.Now)
}

func newMeter(w io.Writer, what string, unit func(int64) string, now func() time.Time) *Meter {
	return &Meter{w: w, what: what, unit: unit, now: now, start: now()}
}

// Show tells that done of total is there; total is 0 while it is not known.
func (m *Meter) Show(done, total int64) {
	if m == nil {
		return
	}
	now := m.now()
	passed := now.Sub(m.start)
	if passed < meterStep || now.Sub(m.last) < meterStep {
		return // what is short needs no meter
	}
	m.last = now
	rate := float64(done) / passed.Seconds()
	line := fmt.Sprintf("%s: %s", m.what, m.unit(done))
	if total > 0 {
		line += fmt.Sprintf(" of %s (%d %%)", m.unit(total), min(100*done/total, 100))
	}
	line += fmt.Sprintf(", %s/s", m.unit(int64(rate)))
	if total > done && rate > 0 {
		left := time.Duration(float64(total-done) / rate * float64(time.Second))
		line += fmt.Sprintf(", %v left", left.Round(time.Second))
	}
	fmt.Fprintf(m.w, "\r%s\x1b[K", line) // to the end of the line: an older text may be longer
}

// End takes the line away.
func (m *Meter) End() {
	if m != nil && !m.last.IsZero() {
		fmt.Fprint(m.w, "\r\x1b[K")
	}
}
