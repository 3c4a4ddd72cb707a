package logs

import (
	"strconv"
	"strings"
	"time"
)

// layouts that times come in; those with a zone first.
var (
	zoned = []string{
		"2006-01-02T15:04:05.999999999Z07:00", "2006-01-02T15:04:05.999999999Z0700", "2006-01-02T15:04:05.999999999Z07",
		"2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999Z0700", "2006-01-02 15:04:05.999999999Z07",
		"2006-01-02T15:04:05,999999999Z07:00", "2006-01-02T15:04:05,999999999Z0700",
	}
	local = []string{"2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999"}
)

// earliest and latest are the years that a log can be of.
const earliest, latest = 2000, 2200

// stamp reads a time of any form.
func (p *parser) stamp(text string) stamp {
	if len(text) < 8 || len(text) > 48 {
		return stamp{}
	}
	sane := func(t time.Time) bool { return t.Year() >= earliest && t.Year() < latest }
	if text[0] >= '0' && text[0] <= '9' {
		if len(text) > 10 && text[4] == '-' {
			for _, layout := range zoned {
				if t, err := time.Parse(layout, text); err == nil && sane(t) {
					return stamp{at: t.UTC(), zone: true, set: true}
				}
			}
			for _, layout := range local {
				if t, err := time.ParseInLocation(layout, text, p.zone); err == nil && sane(t) {
					return stamp{at: t.UTC(), set: true}
				}
			}
			return stamp{}
		}
		if t, err := time.Parse("15:04:05.000", text); err == nil {
			return stamp{at: t, undated: true, set: true}
		}
		// zap's epoch form: seconds with a fraction, or nanoseconds.
		if f, err := strconv.ParseFloat(text, 64); err == nil {
			for f > 1e11 {
				f /= 1000
			}
			whole := int64(f)
			if t := time.Unix(whole, int64((f-float64(whole))*1e6)*1000).UTC(); sane(t) {
				return stamp{at: t, zone: true, set: true}
			}
		}
		return stamp{}
	}
	if t, err := time.ParseInLocation("Jan _2 15:04:05.999999999", strings.TrimSpace(text), p.zone); err == nil {
		p.noYear = true
		return stamp{at: p.year(t), set: true}
	}
	return stamp{}
}

// year gives t the last year in which it is not later than the input (by more than a day: zones and
// clocks differ).
func (p *parser) year(t time.Time) time.Time {
	limit := p.ref.Add(24 * time.Hour)
	for y := limit.In(p.zone).Year(); ; y-- {
		// 29 February is no day of most years: it is not moved to 1 March.
		at := time.Date(y, t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), p.zone)
		if (at.Month() == t.Month() || y < earliest) && !at.After(limit) {
			return at.UTC()
		}
	}
}
