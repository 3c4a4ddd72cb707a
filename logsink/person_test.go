package logsink

import (
	"bytes"
	"errors"
	"regexp"
	"testing"
	"time"

	"go.uber.org/zap"
)

// TestPersonLines: what a terminal shows; nothing in a field can move the cursor or begin a line of
// its own.
func TestPersonLines(t *testing.T) {
	var b bytes.Buffer
	l, err := New(Config{Person: true, Writer: &b})
	if err != nil {
		t.Fatal(err)
	}
	l.Info("ready", zap.Duration("took", 1500*time.Microsecond), zap.Strings("urls", []string{"a", "b"}), zap.Bool("on", true), zap.Int64("n", -1))
	l.Named("raft").With(zap.Int("n", 1)).Warn("lost", zap.Error(errors.New("two words")), zap.String("path", "/a/b"), zap.String("none", ""))
	l.Error("bad\nline", zap.String("key", "\x1b[2J\r\nx"))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	have := regexp.MustCompile(`\d\d:\d\d:\d\d\.\d{3}`).ReplaceAllString(b.String(), "TIME")
	want := "TIME INFO  ready took=1.5ms urls=[\"a\",\"b\"] on=true n=-1\n" +
		"TIME WARN  raft: lost n=1 error=\"two words\" path=/a/b none=\"\"\n" +
		"TIME ERROR \"bad\\nline\" key=\"\\x1b[2J\\r\\nx\"\n"
	if have != want {
		t.Errorf("have\n%s\nwant\n%s", have, want)
	}
}
