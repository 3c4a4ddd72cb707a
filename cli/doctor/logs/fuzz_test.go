package logs

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/belaydb/belay/cli/doctor/report"
)

// FuzzRead reads what may come from anywhere: it ends, keeps its bounds, and what it shows is safe
// for a terminal.
func FuzzRead(f *testing.F) {
	for _, text := range []string{
		`{"level":"warn","ts":"2026-11-29T00:43:15.710387Z","msg":"slow fdatasync","took":"1.2s","local-member-id":"8e9e05c52164694d"}`,
		"2019-05-14 08:12:01.123456 W | etcdserver: failed to send out heartbeat on time (exceeded the 100ms timeout for 1.2s, to 91bc3c398fb3c146)",
		"2026-11-29T00:43:15.710Z\tWARN\traft\traft/raft.go:970\tx\t{\"a\":1}",
		"Feb 29 23:12:01 node1 etcd[812]: raft.node: 8e9e05c52164694d elected leader 8e9e05c52164694d at term 2",
		`{"log":"{\"msg\":\"a\"}\n","stream":"stderr","time":"2026-11-29T00:43:15.5Z"}`,
		"2026-11-29T00:43:15.123456789Z stderr P {\n2026-11-29T00:43:15.123456789Z stderr F }",
		"m1 | \x1b[2m00:43:15.710\x1b[0m WARN  x took=1.2s\nm1 | 00:00:01.000 INFO  y",
		"__CURSOR=a\n__REALTIME_TIMESTAMP=1796000000123456\nMESSAGE\n\x05\x00\x00\x00\x00\x00\x00\x00hello\n\n",
		"__CURSOR=a\nMESSAGE\n\xff\xff\xff\xff\xff\xff\xff\xffhello",
		"\x1f\x8b\x08\x00\x00", "panic: x\n", "1e400", strings.Repeat("a | ", 50),
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c := NewCollector(Options{})
		c.Read(bytes.NewReader(data), "m1.log", time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC))
		if len(c.events) > 2*maxEvents || len(c.streams) > 2*maxStreams+1 {
			t.Fatalf("%d events, %d streams", len(c.events), len(c.streams))
		}
		for _, e := range c.events {
			if len(e.Lines) > maxQuoted || len(e.Lines) == 0 || len(e.Lines[0]) > maxShown {
				t.Fatalf("an event keeps %d lines", len(e.Lines))
			}
		}
		r, err := c.Judge(Ask{Subject: "x", At: time.Unix(0, 0)})
		if err != nil {
			t.Fatal(err)
		}
		var text, page, object bytes.Buffer
		if r.Text(&text, report.Style{}) != nil || r.HTML(&page) != nil || r.JSON(&object) != nil {
			t.Fatal("cannot be written")
		}
		if strings.ContainsFunc(text.String(), func(r rune) bool { return r < ' ' && r != '\n' || r == 0x7f }) || !utf8.Valid(text.Bytes()) {
			t.Fatalf("what a terminal would obey: %q", text.String())
		}
	})
}
