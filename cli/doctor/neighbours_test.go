package doctor

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/belaydb/belay/cli/doctor/report"
	"github.com/belaydb/belay/neighbours"
)

func TestMoments(t *testing.T) {
	now := time.Date(2026, 11, 29, 4, 30, 0, 0, time.UTC)
	for _, tc := range []struct{ text, want string }{
		{"yesterday", "2026-11-28T00:00:00Z"}, {"today", "2026-11-29T00:00:00Z"}, {"2h", "2026-11-29T02:30:00Z"},
		{"2026-11-27", "2026-11-27T00:00:00Z"}, {"2026-11-27 12:10", "2026-11-27T12:10:00Z"}, {"2026-11-27T12:10:09+02:00", "2026-11-27T10:10:09Z"},
	} {
		got, err := momentOf(tc.text, now)
		if err != nil || got.UTC().Format(time.RFC3339) != tc.want {
			t.Errorf("%s: %s, %v; want %s", tc.text, got, err, tc.want)
		}
	}
	if at, err := momentOf("the day before", now); err == nil {
		t.Errorf("nonsense is %s", at)
	}
}

// TestNeighboursOfRecord reads what --save writes.
func TestNeighboursOfRecord(t *testing.T) {
	file := filepath.Join(t.TempDir(), "record")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	begin := time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)
	for i := range 600 {
		s := neighbours.Sample{At: begin.Add(time.Duration(i+1) * time.Second), Took: time.Second, Fsync: neighbours.Fsync{Upper: []float64{0.004}, Count: []float64{10}}}
		if i%60 < 5 {
			s.Fsync = neighbours.Fsync{Upper: []float64{0.004, 2.048}, Count: []float64{3, 5}}
			s.Writers = []neighbours.Writer{{Name: "prometheus", PID: 7, Bytes: 40_000_000, From: neighbours.FromSyscalls}}
		}
		if err := (neighbours.Recorder{W: f}).Add(s); err != nil {
			t.Fatal(err)
		}
	}
	var r report.Report
	if code, out, err := run("neighbours", file, "-o", "json"); code != report.CodeCritical || json.Unmarshal([]byte(out), &r) != nil || r.Findings[0].ID != "neighbour-periodic" {
		t.Errorf("code %d: %s%s", code, out, err)
	}
	if code, out, _ := run("neighbours", file, "--until", "2026-11-28"); code != report.CodeUnknown {
		t.Errorf("before the record: code %d\n%s", code, out)
	}
	for _, args := range [][]string{{"--since", "then", file}, {"--every", "1ms"}, {"--for", "0s"}, {"--pid", "1", "--dir", "/"}, {"--since", "1h", "--until", "2h", file}} {
		if code, out, _ := run(append([]string{"neighbours"}, args...)...); code != report.CodeUsage {
			t.Errorf("%v: code %d\n%s", args, code, out)
		}
	}
}
