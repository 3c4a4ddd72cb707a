package logs

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/cockroachdb/datadriven"

	"github.com/belaydb/belay/cli/doctor/report"
)

var written = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// TestScenarios runs the texts in testdata. Commands:
//
//	zone NAME                   of times that name none, for the commands behind it
//	parse                       prints what each line of the input is read as
//	read [name=F] [gzip] [export]  takes the input as a file's; "export" makes journalctl's binary form of its "\binary" lines
//	file path=P                 takes a file of testdata, or all files of a directory
//	judge [incident=N] [since=T] [until=T] [brief]  prints the report of what was read; brief: of each incident, one line
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata/scenarios", func(t *testing.T, path string) {
		var o Options
		var c *Collector
		collector := func() *Collector {
			if c == nil {
				c = NewCollector(o)
			}
			return c
		}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			arg := func(key string) string {
				var v string
				if d.HasArg(key) {
					d.ScanArgs(t, key, &v)
				}
				return v
			}
			at := func(key string) time.Time {
				if v := arg(key); v != "" {
					when, err := time.Parse(time.RFC3339, v)
					if err != nil {
						d.Fatalf(t, "%v", err)
					}
					return when
				}
				return time.Time{}
			}
			switch d.Cmd {
			case "zone":
				zone, err := time.LoadLocation(arg("name"))
				if err != nil {
					d.Fatalf(t, "%v", err)
				}
				o.Zone = zone
				return ""
			case "parse":
				zone := o.Zone
				if zone == nil {
					zone = time.UTC
				}
				p := newParser(written, zone)
				var b strings.Builder
				for text := range strings.SplitSeq(d.Input, "\n") {
					l, ok := p.parse(strings.ReplaceAll(strings.ReplaceAll(text, `\t`, "\t"), `\e`, "\x1b"))
					if !ok {
						b.WriteString("not understood\n")
						continue
					}
					fmt.Fprintf(&b, "%s [%s] from=%q msg=%q", l.At.Format("2006-01-02T15:04:05.000000Z07:00"), l.Level, l.From, l.Msg)
					for _, k := range sortedKeys(l.Fields) {
						fmt.Fprintf(&b, " %s=%s", k, l.Fields[k])
					}
					b.WriteString("\n")
				}
				return b.String()
			case "read":
				name := arg("name")
				if name == "" {
					name = "-"
				}
				input := []byte(d.Input + "\n")
				if d.HasArg("export") {
					input = exportForm(d.Input)
				}
				if d.HasArg("gzip") {
					input = zipped(t, input)
				}
				collector().Read(bytes.NewReader(input), name, written)
				return ""
			case "file":
				for _, f := range files(t, filepath.Join("testdata", arg("path"))) {
					data, err := os.ReadFile(f)
					if err != nil {
						t.Fatal(err)
					}
					name, _ := filepath.Rel("testdata", f)
					collector().Read(bytes.NewReader(data), filepath.ToSlash(name), written)
				}
				return ""
			case "judge":
				incident := 0
				if d.HasArg("incident") {
					d.ScanArgs(t, "incident", &incident)
				}
				collector().o.Since, collector().o.Until = at("since"), at("until")
				r, err := collector().Judge(Ask{Subject: "test", At: written, Incident: incident})
				c = nil
				if err != nil {
					return err.Error() + "\n"
				}
				if d.HasArg("brief") {
					var b strings.Builder
					for _, f := range r.Findings {
						fmt.Fprintf(&b, "%s %s %s %s: %s\n", f.Severity, f.Confidence, f.ID, or(f.Member, "-"), f.What)
					}
					return b.String()
				}
				var b bytes.Buffer
				if err := r.Text(&b, report.Style{}); err != nil {
					t.Fatal(err)
				}
				// An empty line would end the expectation.
				return strings.ReplaceAll(b.String(), "\n\n", "\n.\n")
			}
			d.Fatalf(t, "no such command")
			return ""
		})
	})
}

func files(t *testing.T, path string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(path, "*.log"))
	if err != nil || len(found) == 0 {
		found = []string{path}
	}
	slices.Sort(found)
	return found
}

func zipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// exportForm makes the binary form of fields that are written as KEY:binary=value.
func exportForm(text string) []byte {
	var b bytes.Buffer
	for line := range strings.SplitSeq(text, "\n") {
		if key, value, ok := strings.Cut(line, ":binary="); ok {
			b.WriteString(key + "\n")
			if err := binary.Write(&b, binary.LittleEndian, uint64(len(value))); err != nil {
				panic(err) // a buffer takes all
			}
			b.WriteString(value + "\n")
			continue
		}
		if line == "-" {
			line = ""
		}
		b.WriteString(line + "\n")
	}
	return b.Bytes()
}

// TestBounds reads more than is kept: many members, many kinds of lines that never repeat in time,
// and lines without end.
func TestBounds(t *testing.T) {
	c := NewCollector(Options{})
	var b bytes.Buffer
	start := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	const n = maxEvents + 5000
	for i := range n {
		fmt.Fprintf(&b, `{"level":"warn","ts":"%s","msg":"apply request took too long","took":"150ms","local-member-id":"aaaa00000000000%d"}`+"\n", start.Add(time.Duration(i)*10*time.Second).Format(time.RFC3339), i%3)
	}
	c.Read(&b, "all.log", written)
	c.Read(strings.NewReader("hello\n[pod/a/b] x\n"+strings.Repeat("y", 20*maxLine)+"\n"), "long", written)
	for i := range maxStreams + 50 {
		c.Read(strings.NewReader(`{"level":"warn","ts":"2026-11-01T00:00:00Z","msg":"slow fdatasync"}`), fmt.Sprint(i), written)
	}
	if len(c.events) > 2*maxEvents || c.leftOut == 0 || len(c.streams) > 2*maxStreams+1 {
		t.Errorf("%d events, %d left out, %d streams", len(c.events), c.leftOut, len(c.streams))
	}
	r, err := c.Judge(Ask{At: written})
	if err != nil {
		t.Fatal(err)
	}
	if rows := len(r.Tables[0].Rows); rows > maxRows || len(r.Findings) > maxIncidents+1 {
		t.Errorf("%d rows, %d findings", rows, len(r.Findings))
	}
}

// TestMidnight has times of day alone, over midnight: the last is of when the input was written.
func TestMidnight(t *testing.T) {
	c := NewCollector(Options{})
	at := time.Date(2026, 11, 29, 0, 0, 30, 0, time.UTC)
	c.Read(strings.NewReader("23:59:58.000 WARN  slow fdatasync took=1.2s\n00:00:10.000 WARN  slow fdatasync took=1.2s\n"), "m1.log", at)
	if len(c.events) != 2 || !c.events[0].At.Equal(time.Date(2026, 11, 28, 23, 59, 58, 0, time.UTC)) || !c.events[1].At.Equal(at.Add(-20*time.Second)) {
		t.Errorf("%v", c.events)
	}
}

// TestWrappings tells the real incidents of testdata in every wrapping, each log by itself and all
// mixed: cause, member and change of leader have to be those of the plain logs.
func TestWrappings(t *testing.T) {
	stampOf := func(line string) (time.Time, bool) {
		_, rest, ok := strings.Cut(line, `"ts":"`)
		if !ok {
			return time.Time{}, false
		}
		at, err := time.Parse(time.RFC3339Nano, rest[:strings.IndexByte(rest, '"')])
		return at, err == nil
	}
	wrappings := map[string]func(member, line string, at time.Time) string{
		"docker": func(_, line string, at time.Time) string {
			return fmt.Sprintf(`{"log":%q,"stream":"stderr","time":%q}`, line+"\n", at.Add(time.Millisecond).Format(time.RFC3339Nano))
		},
		"cri": func(_, line string, at time.Time) string {
			half := len(line) / 2
			stamp := at.Add(time.Millisecond).In(time.FixedZone("", 3600)).Format(time.RFC3339Nano)
			return stamp + " stderr P " + line[:half] + "\n" + stamp + " stderr F " + line[half:]
		},
		"kubectl": func(member, line string, at time.Time) string {
			return "[pod/etcd-" + member + "/etcd] " + at.Format(time.RFC3339Nano) + " " + line
		},
		"compose": func(member, line string, _ time.Time) string { return member + "  | " + line },
		"journal": func(member, line string, at time.Time) string {
			return at.Format("Jan _2 15:04:05") + " " + member + " etcd[7]: " + line
		},
		"console": func(_, line string, at time.Time) string {
			var f map[string]any
			if err := json.Unmarshal([]byte(line), &f); err != nil {
				t.Fatal(err)
			}
			head := fmt.Sprintf("%s\t%s\t", at.Format(time.RFC3339Nano), f["level"])
			if f["logger"] != nil {
				head += fmt.Sprint(f["logger"]) + "\t"
			}
			head += fmt.Sprintf("%s\t%s", f["caller"], f["msg"])
			for _, k := range []string{"level", "ts", "logger", "caller", "msg"} {
				delete(f, k)
			}
			rest, err := json.Marshal(f)
			if err != nil {
				t.Fatal(err)
			}
			return head + "\t" + string(rest)
		},
	}
	type answer struct {
		Cause, Member, Before, After string
	}
	ask := func(c *Collector) []answer {
		r, err := c.Judge(Ask{At: written})
		if err != nil {
			t.Fatal(err)
		}
		var all []answer
		for _, i := range r.Data.(Result).Incidents {
			all = append(all, answer{i.Cause, i.Member, i.Before, i.After})
		}
		return all
	}
	for _, incident := range []string{"pause", "kill", "move", "term", "cutleader", "cutlink", "cutfollower"} {
		lines := map[string][]string{}
		plain := NewCollector(Options{})
		for _, f := range files(t, filepath.Join("testdata", "etcd373", incident)) {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			plain.Read(bytes.NewReader(data), f, written)
			lines[strings.TrimSuffix(filepath.Base(f), ".log")] = strings.Split(strings.TrimSpace(string(data)), "\n")
		}
		want := ask(plain)
		if len(want) != 1 {
			t.Fatalf("%s: %v", incident, want)
		}
		for name, wrap := range wrappings {
			single, mixed := NewCollector(Options{}), NewCollector(Options{})
			type entry struct {
				at   time.Time
				text string
			}
			var all []entry
			for _, member := range sortedKeys(lines) {
				var b strings.Builder
				for _, line := range lines[member] {
					at, ok := stampOf(line)
					if !ok {
						t.Fatalf("no time: %s", line)
					}
					text := wrap(member, line, at)
					b.WriteString(text + "\n")
					all = append(all, entry{at, text})
				}
				single.Read(strings.NewReader(b.String()), member+".txt", written)
			}
			if got := ask(single); !slices.Equal(got, want) {
				t.Errorf("%s, %s: %v, want %v", incident, name, got, want)
			}
			if name != "kubectl" && name != "compose" && name != "journal" {
				continue // nothing tells whose a line is when these are mixed
			}
			slices.SortStableFunc(all, func(a, b entry) int { return a.at.Compare(b.at) })
			var b strings.Builder
			for _, e := range all {
				b.WriteString(e.text + "\n")
			}
			mixed.Read(strings.NewReader(b.String()), "-", written)
			if got := ask(mixed); !slices.Equal(got, want) {
				t.Errorf("%s, %s, mixed: %v, want %v", incident, name, got, want)
			}
		}
	}
}

// TestPeriods: what comes back by the clock, now and then without one, and what does not.
func TestPeriods(t *testing.T) {
	start := time.Date(2026, 11, 1, 2, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		minutes []float64 // of the incidents
		period  string    // "": none
	}{
		{[]float64{0, 120, 240}, "2 h 00 min"},
		{[]float64{0, 120.5, 240, 480.2, 599.8}, "2 h 00 min"},
		{[]float64{0, 10, 20.1, 29.9}, "10 min"},
		{[]float64{0, 120}, ""},
		{[]float64{0, 100, 240}, ""},
		{[]float64{0, 60, 240, 480}, ""},
		{[]float64{0, 1, 2, 3}, ""},
		{[]float64{0, 120, 240, 365, 372}, ""},
	} {
		var them []*incident
		for _, m := range c.minutes {
			them = append(them, &incident{from: start.Add(time.Duration(m * float64(time.Minute)))})
		}
		got := ""
		if p, ok := periodOf(them); ok {
			got = roughly(p)
		}
		if got != c.period {
			t.Errorf("%v: %q, want %q", c.minutes, got, c.period)
		}
	}
}

// TestEncodings: PowerShell writes UTF-16, editors a mark before UTF-8.
func TestEncodings(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("testdata", "etcd373", "pause", "m1.log"))
	if err != nil {
		t.Fatal(err)
	}
	crlf := bytes.ReplaceAll(data, []byte("\n"), []byte("\r\n"))
	wide := func(order binary.AppendByteOrder) (out []byte) {
		for _, unit := range utf16.Encode([]rune("\ufeff" + string(crlf))) {
			out = order.AppendUint16(out, unit)
		}
		return out
	}
	for name, input := range map[string][]byte{
		"plain": data, "mark": append([]byte("\ufeff"), crlf...), "little": wide(binary.LittleEndian), "big": wide(binary.BigEndian), "zipped": zipped(t, wide(binary.LittleEndian)),
	} {
		c := NewCollector(Options{})
		c.Read(bytes.NewReader(input), name, written)
		r, err := c.Judge(Ask{Subject: name, At: written})
		if err != nil {
			t.Fatal(err)
		}
		if c.unknown != 0 || len(r.Findings) != 1 || r.Findings[0].ID != "process-paused" {
			t.Errorf("%s: %d lines not understood, %+v", name, c.unknown, r.Findings)
		}
	}
}
