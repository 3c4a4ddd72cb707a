package logsink

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.uber.org/zap"
)

type shouting struct{ text string }

func (s *shouting) String() string { return s.text }

// TestLinesAreBounded: whatever a line is given, and however it is encoded, it is no longer than
// its bound and still one that programs can read.
func TestLinesAreBounded(t *testing.T) {
	const size = 1 << 20
	for name, unit := range map[string]string{"letters": "a", "control": "\x01", "quotes": "\"", "broken": "\xff", "runes": "\u20ac"} {
		huge := strings.Repeat(unit, size/len(unit))
		list := make([]string, 5000)
		for i := range list {
			list[i] = strings.Repeat(unit, 100)
		}
		for _, format := range []string{"json", "console"} {
			t.Run(name+"/"+format, func(t *testing.T) {
				var out bytes.Buffer
				l, err := New(Config{Format: format, Writer: &out, Sink: Options{BufferBytes: 1 << 30}})
				if err != nil {
					t.Fatal(err)
				}
				lg := l.With(zap.String("with", huge))
				lg.Info("one", zap.String("s", huge), zap.ByteString("b", []byte(huge)), zap.Binary("bin", []byte(huge)))
				lg.Info("two", zap.Error(errors.New(huge)), zap.Stringer("st", &shouting{huge}), zap.Strings("list", []string{huge, huge}))
				lg.Info("three", zap.Strings("many", list), zap.Any("map", map[string]string{huge: huge}), zap.Reflect("r", list))
				lg.Info(huge)
				lg.Sugar().Errorf("%s: %s", huge, huge)
				lg.Error("with a stack", zap.Error(fmt.Errorf("wrapped: %w", errors.New(huge))))
				lg.Info("nil", zap.Stringer("st", (*shouting)(nil)), zap.Error(nil), zap.String("end", huge))
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				starts := 0
				for line := range strings.Lines(out.String()) {
					if len(line) > MaxLineBytes {
						t.Errorf("%d bytes: %.300s", len(line), line)
					}
					if format == "console" {
						continue
					}
					starts++
					var fields map[string]any
					if err := json.Unmarshal([]byte(line), &fields); err != nil {
						t.Errorf("%v: %.300s", err, line)
					} else if with, _ := fields["with"].(string); !strings.HasSuffix(with, fmt.Sprintf("(%d bytes)", len(huge))) {
						t.Errorf("the length is not told: %.300s", with)
					}
				}
				if format == "json" && starts != 7 {
					t.Errorf("%d lines", starts)
				}
			})
		}
	}
}

// TestShortLinesAreWhole: what is not too long is written as it was given.
func TestShortLinesAreWhole(t *testing.T) {
	var out bytes.Buffer
	l, err := New(Config{Writer: &out})
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("x", MaxFieldBytes)
	l.Info("whole", zap.String("s", text), zap.ByteString("b", []byte(text)), zap.Error(errors.New(text)))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(out.Bytes(), &fields); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"s", "b", "error"} {
		if fields[key] != text {
			t.Errorf("%s: %.100v", key, fields[key])
		}
	}
}
