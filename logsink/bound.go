package logsink

import (
	"fmt"
	"unicode/utf8"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Text from clients gets into many lines: keys, names, addresses, metadata, errors that quote them.
// No line may cost more than its bound whatever they are, so the bound is here, where every line
// passes, rather than where lines are made. Only text that must be built first needs care there: it
// must be built small, and only for a line that is written (zap's Check).
const (
	// MaxFieldBytes is how long a text may be. A longer one is cut to its first cutBytes and its
	// length.
	MaxFieldBytes = 2 << 10
	// MaxLineBytes is how long a line may be as written; a control character takes six bytes of
	// JSON. Panic and fatal lines, which are the last ones and carry the stacks of goroutines, may
	// have MaxUrgentBytes.
	MaxLineBytes   = 16 << 10
	MaxUrgentBytes = 256 << 10

	cutBytes = 256
)

// Cut shortens a text to little more than keep bytes: its beginning, and how many bytes it had.
func Cut[Text ~string | ~[]byte](s Text, keep int) string {
	if len(s) <= keep {
		return string(s)
	}
	n := keep
	for n > 0 && n > keep-utf8.UTFMax && !utf8.RuneStart(s[n]) {
		n--
	}
	return fmt.Sprintf("%s...(%d bytes)", string(s[:n]), len(s))
}

// bounded cuts texts of more than most bytes among fields to keep bytes. It does not change its
// argument.
func bounded(fields []zapcore.Field, most, keep int) []zapcore.Field {
	copied := false
	for i, f := range fields {
		cut, ok := boundedField(f, most, keep)
		if !ok {
			continue
		}
		if !copied {
			fields, copied = append([]zapcore.Field(nil), fields...), true
		}
		fields[i] = cut
	}
	return fields
}

// boundedField returns what to write in place of a field that holds a text of more than most bytes.
// Kinds that must be encoded first are left to the caller, which sees how long the line became.
func boundedField(f zapcore.Field, most, keep int) (zapcore.Field, bool) {
	switch f.Type {
	case zapcore.StringType:
		if len(f.String) > most {
			return zap.String(f.Key, Cut(f.String, keep)), true
		}
	case zapcore.ByteStringType, zapcore.BinaryType:
		if b, ok := f.Interface.([]byte); ok && len(b) > most {
			return zap.String(f.Key, Cut(b, keep)), true
		}
	case zapcore.ErrorType:
		if err, ok := f.Interface.(error); ok {
			if text := textOf(err.Error); len(text) > most {
				return zap.String(f.Key, Cut(text, keep)), true
			}
		}
	case zapcore.StringerType:
		if s, ok := f.Interface.(fmt.Stringer); ok {
			if text := textOf(s.String); len(text) > most {
				return zap.String(f.Key, Cut(text, keep)), true
			}
		}
	}
	return f, false
}

// textOf is "" where making the text panics, as with a nil pointer: zap has its own text for that.
func textOf(text func() string) (s string) {
	defer func() {
		if recover() != nil {
			s = ""
		}
	}()
	return text()
}

// shortened makes a line fit that is still too long: it cuts each field as written.
func shortened(fields []zapcore.Field, keep int) []zapcore.Field {
	out := make([]zapcore.Field, 0, len(fields))
	for _, f := range bounded(fields, keep, keep) {
		switch f.Type {
		case zapcore.ArrayMarshalerType, zapcore.ObjectMarshalerType, zapcore.InlineMarshalerType, zapcore.ReflectType,
			zapcore.ErrorType, zapcore.StringerType:
			enc := zapcore.NewMapObjectEncoder()
			f.AddTo(enc)
			for key, value := range enc.Fields {
				out = append(out, zap.String(key, Cut(fmt.Sprint(value), keep)))
			}
		default:
			out = append(out, f)
		}
	}
	return out
}
