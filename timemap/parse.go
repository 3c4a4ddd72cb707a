package timemap

import (
	"fmt"
	"strings"
	"time"
)

// Parse reads a point in time: a time of day (the last such), a day and a time, RFC 3339, or
// how long ago. Without a zone it is local time.
func Parse(text string, now time.Time) (time.Time, error) {
	ago := strings.TrimPrefix(strings.TrimSpace(strings.TrimSuffix(text, "ago")), "-")
	if d, err := time.ParseDuration(ago); err == nil {
		return now.Add(-d), nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02 15:04:05", "2006-01-02T15:04:05", "2006-01-02 15:04", "2006-01-02T15:04"} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			return t, nil
		}
	}
	for _, layout := range []string{"15:04:05", "15:04"} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			t = time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), t.Second(), 0, now.Location())
			if t.After(now) {
				t = t.AddDate(0, 0, -1)
			}
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time: give one such as 15:04:05, \"2006-01-02 15:04:05\", 2006-01-02T15:04:05Z, or 10m for ten minutes ago", text)
}
