package logsink

import (
	"fmt"
	"unicode/utf8"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// What a client says gets into many lines: keys, names, addresses, metadata, errors that quote
// them. A line may cost no more than its bound whatever they are, so the bound is here, where every
// line passes, rather than where lines are made. Only text that has to be made first needs care
// there: it must be made small, and only for a line that is written (zap's Check).
const (
	// MaxFieldBytes is how long a text may be. Of a longer one the first cutBytes are written, and
	// how long it was.
	MaxFieldBytes = 2 << 10
	// MaxLineBytes is how long a line may be as it is written; control characters take six bytes of
	// JSON each. Panic and fatal lines, which are the last ones and bring stacks of goroutines, may
	// have MaxUrgentBytes.
	MaxLineBytes   = 16 << 10
	MaxUrgentBytes = 256 << 10

	cutBytes = 256
)

// Cut returns a text of little more than keep bytes: its beginning, and how many bytes there were.
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

// bounded cuts texts of more than most bytes among fields, to keep bytes. What it is given stays as
// it is.
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
// Kinds that have to be encoded to know are left to whoever sees how long the line became.
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

// textOf is "" where making the text panics, as that of a nil pointer does: zap has its own words
// for that.
func textOf(text func() string) (s string) {
	defer func() {
		if recover() != nil {
			s = ""
		}
	}()
	return text()
}

// shortened makes whatever is left of a line that became too long small: each field as it was
// written, cut.
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
