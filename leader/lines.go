package leader

import (
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// line is a log line of a decider.
type line struct {
	level  zapcore.Level
	text   string
	fields []zap.Field
	once   string // if not empty: its subject, so that it can be logged once as long as that lasts
}

func warn(text string, fields ...zap.Field) line {
	return line{level: zapcore.WarnLevel, text: text, fields: fields}
}
func info(text string, fields ...zap.Field) line {
	return line{level: zapcore.InfoLevel, text: text, fields: fields}
}
func fault(text string, fields ...zap.Field) line {
	return line{level: zapcore.ErrorLevel, text: text, fields: fields}
}

// say logs lines as if the caller did.
func say(logger *zap.Logger, lines []line) {
	logger = logger.WithOptions(zap.AddCallerSkip(1))
	for _, l := range lines {
		logger.Log(l.level, l.text, l.fields...)
	}
}
