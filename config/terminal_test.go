package config

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/belaydb/belay/logsink"
)

// TestLogForPerson: lines made for people only on a terminal, unless a format was given, and never
// under the name etcd.
func TestLogForPerson(t *testing.T) {
	file := filepath.Join(t.TempDir(), "belay.yaml")
	if err := os.WriteFile(file, []byte("name: m\nlog-format: json\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		program  Program
		terminal bool
		args     string
		environ  string
		want     string // "" JSON, else how a line ends
	}{
		{program: Belay, terminal: true, want: "\x1b[32mINFO \x1b[0m hello \x1b[2mn=\x1b[0m1\n"},
		{program: Belay, terminal: true, args: "--log-outputs=stdout", want: "\x1b[32mINFO \x1b[0m hello \x1b[2mn=\x1b[0m1\n"},
		{program: Belay, terminal: true, environ: "NO_COLOR=1", want: "INFO  hello n=1\n"},
		{program: Belay, terminal: true, environ: "TERM=dumb", want: "INFO  hello n=1\n"},
		{program: Belay, terminal: false},
		{program: Etcd, terminal: true},
		{program: Belay, terminal: true, args: "--log-format=json"},
		{program: Belay, terminal: true, environ: "ETCD_LOG_FORMAT=json"},
		{program: Belay, terminal: true, args: "--config-file=" + file},
	} {
		var out bytes.Buffer
		o := Options{Program: c.program, Args: append(strings.Fields(c.args), "--data-dir="+t.TempDir()), Environ: []string{c.environ},
			Stdout: &out, Stderr: &out, terminal: func(io.Writer) bool { return c.terminal }}
		p := &parser{o: o, cfg: Default()}
		if code, ok := p.load(); !ok {
			t.Fatalf("%+v: code %d, %s", c, code, &out)
		}
		// The configured logger writes to the process's own streams; one like it writes here.
		l := p.forPerson(p.cfg.Log())
		if l.Person != (c.want != "") || p.cfg.LogForPerson != l.Person {
			t.Errorf("%+v: for a person: %v", c, l.Person)
		}
		_ = p.logger.Close()
		if l.Person {
			if have := lineOfLogger(t, l); !strings.HasSuffix(have, c.want) {
				t.Errorf("%+v: %q", c, have)
			}
		}
	}
}

func lineOfLogger(t *testing.T, l logsink.Config) string {
	t.Helper()
	var out bytes.Buffer
	l.Writer = &out
	logger, err := logsink.New(l)
	if err != nil {
		t.Fatal(err)
	}
	logger.Info("hello", zap.Int("n", 1))
	if err := logger.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}
