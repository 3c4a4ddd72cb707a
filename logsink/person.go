package logsink

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
)

// personEncoder writes lines for people at a terminal: the time of day, the level, the message,
// then key=value. Callers and stack traces are left out; JSON keeps them for readers who have the
// source open.
type personEncoder struct {
	*zapcore.MapObjectEncoder // what With added
	pool                      buffer.Pool
	colour                    bool
}

func newPersonEncoder(colour bool) zapcore.Encoder {
	return &personEncoder{MapObjectEncoder: zapcore.NewMapObjectEncoder(), pool: buffer.NewPool(), colour: colour}
}

// ANSI's colours of levels, and of what matters less.
const (
	colourOff   = "\x1b[0m"
	colourFaint = "\x1b[2m"
)

func levelColour(l zapcore.Level) string {
	switch {
	case l >= zapcore.ErrorLevel:
		return "\x1b[31m"
	case l == zapcore.WarnLevel:
		return "\x1b[33m"
	case l == zapcore.InfoLevel:
		return "\x1b[32m"
	default:
		return "\x1b[36m"
	}
}

func (e *personEncoder) Clone() zapcore.Encoder {
	clone := newPersonEncoder(e.colour).(*personEncoder)
	maps.Copy(clone.Fields, e.Fields)
	return clone
}

// EncodeEntry makes the line of an entry.
func (e *personEncoder) EncodeEntry(ent zapcore.Entry, fields []zapcore.Field) (*buffer.Buffer, error) {
	line := e.pool.Get()
	in := func(colour, text string) {
		if !e.colour {
			line.AppendString(text)
			return
		}
		line.AppendString(colour)
		line.AppendString(text)
		line.AppendString(colourOff)
	}
	in(colourFaint, ent.Time.Format("15:04:05.000"))
	line.AppendByte(' ')
	in(levelColour(ent.Level), fmt.Sprintf("%-5s", ent.Level.CapitalString()))
	line.AppendByte(' ')
	if ent.LoggerName != "" {
		line.AppendString(ent.LoggerName + ": ")
	}
	if strings.ContainsFunc(ent.Message, func(r rune) bool { return !unicode.IsPrint(r) }) {
		line.AppendString(strconv.Quote(ent.Message))
	} else {
		line.AppendString(ent.Message)
	}
	pairs := func(of map[string]any) {
		for _, key := range slices.Sorted(maps.Keys(of)) {
			line.AppendByte(' ')
			in(colourFaint, key+"=")
			line.AppendString(valueText(of[key]))
		}
	}
	pairs(e.Fields)
	for _, f := range fields {
		one := zapcore.NewMapObjectEncoder()
		f.AddTo(one)
		pairs(one.Fields)
	}
	line.AppendByte('\n')
	return line, nil
}

// valueText is a value as one word, in quotes where it would not be one.
func valueText(v any) string {
	var text string
	switch v := v.(type) {
	case string:
		text = v
	case time.Time:
		text = v.Format(time.RFC3339)
	case fmt.Stringer: // durations
		text = v.String()
	case []any, map[string]any:
		data, err := json.Marshal(v)
		if err != nil {
			data = fmt.Append(nil, v)
		}
		return string(data)
	default:
		text = fmt.Sprint(v)
	}
	if text == "" || strings.ContainsFunc(text, func(r rune) bool { return r == '"' || r == ' ' || r == '=' || !unicode.IsPrint(r) }) {
		return strconv.Quote(text)
	}
	return text
}
