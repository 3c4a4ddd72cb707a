package doctor

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/belaydb/belay/cli/doctor/report"
)

// TestLogs has the command line: files, a directory, standard input, all three forms, exit codes.
func TestLogs(t *testing.T) {
	dir := filepath.Join("logs", "testdata", "etcd373", "pause")
	code, out, stderr := run("logs", dir)
	if code != report.CodeWarning || !strings.Contains(out, "[process-paused]") || !strings.Contains(out, "Timeline") || stderr != "" {
		t.Errorf("code %d: %s%s", code, out, stderr)
	}

	page := filepath.Join(t.TempDir(), "page.html")
	code, out, stderr = run("logs", "-o", "json", "--html", page, filepath.Join(dir, "m1.log"), filepath.Join(dir, "m2.log"), filepath.Join(dir, "m3.log"))
	var r struct {
		Findings []report.Finding
		Data     struct {
			Incidents []struct {
				Cause, Member string
				Before        string `json:"leader_before"`
				After         string `json:"leader_after"`
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &r); code != report.CodeWarning || err != nil || len(r.Data.Incidents) != 1 {
		t.Fatalf("code %d, %v: %s%s", code, err, out, stderr)
	}
	if i := r.Data.Incidents[0]; i.Cause != "process-paused" || i.Member != "m1" || i.Before != "m1" || i.After != "m2" {
		t.Errorf("%+v", i)
	}
	html, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := bytes.Index(html, []byte("<svg")), bytes.LastIndex(html, []byte("</svg>"))
	if begin < 0 || end < begin {
		t.Fatal("no picture")
	}
	for dec := xml.NewDecoder(bytes.NewReader(html[begin : end+len("</svg>")])); ; {
		if _, err := dec.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the picture: %v", err)
		}
	}

	file, err := os.ReadFile(filepath.Join(dir, "m1.log"))
	if err != nil {
		t.Fatal(err)
	}
	var stdout, errs bytes.Buffer
	if code := Main([]string{"logs", "-", "--incident", "1"}, bytes.NewReader(file), &stdout, &errs); code != report.CodeWarning || !strings.Contains(stdout.String(), "Its lines") {
		t.Errorf("code %d: %s%s", code, &stdout, &errs)
	}
	for _, c := range []struct {
		args []string
		code int
	}{
		{[]string{"logs"}, report.CodeUsage},
		{[]string{"logs", "--since", "yesterday", dir}, report.CodeUsage},
		{[]string{"logs", "--zone", "Nowhere/At_all", dir}, report.CodeUsage},
		{[]string{"logs", "--incident", "7", dir}, report.CodeUsage},
		{[]string{"logs", "--incident", "-1", dir}, report.CodeUsage},
		{[]string{"logs", filepath.Join(dir, "nothing")}, report.CodeUnknown},
		{[]string{"logs", t.TempDir()}, report.CodeUnknown},
		{[]string{"logs", "main.go"}, report.CodeUnknown},
		{[]string{"logs", "--until", "2026-11-29T00:43:05Z", dir}, report.CodeGood},
	} {
		if code, out, _ := run(c.args...); code != c.code {
			t.Errorf("%v: code %d\n%s", c.args, code, out)
		}
	}
}

func TestMoment(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	zone := time.FixedZone("x", 3600)
	for text, want := range map[string]time.Time{
		"":                     {},
		"2h":                   now.Add(-2 * time.Hour),
		"2026-11-28T01:02:03Z": time.Date(2026, 11, 28, 1, 2, 3, 0, time.UTC),
		"2026-11-28 01:02":     time.Date(2026, 11, 28, 0, 2, 0, 0, time.UTC),
		"08:00":                time.Date(2026, 11, 29, 7, 0, 0, 0, time.UTC),
	} {
		if got, err := moment(text, now, zone); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"-2h", "x", "25:00"} {
		if got, err := moment(text, now, zone); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}
