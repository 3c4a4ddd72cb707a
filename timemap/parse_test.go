package timemap

import (
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	zone := time.FixedZone("there", 2*3600)
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, zone)
	for text, want := range map[string]time.Time{
		"10m":                       now.Add(-10 * time.Minute),
		"-10m":                      now.Add(-10 * time.Minute),
		"1h30m ago":                 now.Add(-90 * time.Minute),
		"11:59:58":                  now.Add(-2 * time.Second),
		"11:59":                     now.Add(-time.Minute),
		"12:00:01":                  now.Add(time.Second - 24*time.Hour), // yesterday
		"2026-11-29 11:00:00":       now.Add(-time.Hour),
		"2026-11-29T11:00":          now.Add(-time.Hour),
		"2026-11-29T09:00:00Z":      now.Add(-time.Hour),
		"2026-11-29T10:00:00+01:00": now.Add(-time.Hour),
	} {
		if got, err := Parse(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "noon", "25:00", "17", "2026-13-01 00:00:00"} {
		if got, err := Parse(text, now); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}
