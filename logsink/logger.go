package logsink

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
	"gopkg.in/natefinch/lumberjack.v2"
)

// Names of outputs that are not files.
const (
	OutputDefault = "default" // stderr
	OutputStderr  = "stderr"
	OutputStdout  = "stdout"
	OutputJournal = "systemd/journal"
)

// DefaultRotation is etcd's default of --log-rotation-config-json.
const DefaultRotation = `{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}`

// Config describes a logger. Zero values mean the default in brackets.
type Config struct {
	Logger  string   // ["zap"] etcd's --logger, which has no other value
	Level   string   // ["info"] debug, info, warn, error, dpanic, panic, fatal
	Format  string   // ["json"] json or console
	Outputs []string // ["default"]
	// Person replaces Format by lines for people at a terminal, in colour if Colour is set.
	Person, Colour bool
	Rotate         bool   // rotate the one file among Outputs
	Rotation       string // [DefaultRotation] lumberjack's settings as JSON

	// Writer takes the log instead of Outputs, if not nil; `belay dev` gives Lines.Prefix.
	Writer io.Writer

	Sink Options
}

// Logger is a zap logger with the sinks and files that must be flushed and closed after it.
type Logger struct {
	*zap.Logger
	Level zap.AtomicLevel // may be changed while the logger is used

	sinks []*Sink
	files []io.Closer
}

// ErrLevel wraps the error of a level that does not exist. etcd panics on it, so its exit code is
// 2.
var ErrLevel = errors.New("unrecognized level")

type levelError string

func (e levelError) Error() string        { return fmt.Sprintf("unrecognized level: %q", string(e)) }
func (e levelError) Is(target error) bool { return target == ErrLevel }

// New builds the logger. Its errors have etcd's texts, in etcd's order.
func New(cfg Config) (*Logger, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	level := zap.NewAtomicLevel()
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		return nil, levelError(cfg.Level)
	}
	encoder := zapcore.NewJSONEncoder(encoderConfig())
	switch {
	case cfg.Person:
		encoder = newPersonEncoder(cfg.Colour)
	case cfg.Format == "console":
		encoder = zapcore.NewConsoleEncoder(encoderConfig())
	}
	if cfg.Sink.Notice == nil {
		cfg.Sink.Notice = notice(encoder)
	}
	l := &Logger{Level: level}
	writers, err := l.open(cfg)
	if err != nil {
		_ = l.Close() // the error of opening is the one to report
		return nil, err
	}
	for _, w := range writers {
		l.sinks = append(l.sinks, NewSink(w, cfg.Sink))
	}
	var zapCore zapcore.Core = &core{LevelEnabler: level, enc: encoder, sinks: l.sinks, fold: &folder{}}
	zapCore = zapcore.NewSamplerWithOptions(zapCore, time.Second, 100, 100)
	l.Logger = zap.New(zapCore, zap.AddCaller(), zap.AddStacktrace(zap.ErrorLevel), zap.ErrorOutput(syncers(l.sinks)))
	return l, nil
}

// validate fills in defaults and checks everything that needs no file.
func (c *Config) validate() error {
	switch c.Logger {
	case "", "zap":
	case "capnslog":
		return errors.New("--logger=capnslog is removed in v3.5")
	default:
		return fmt.Errorf("unknown logger option %q", c.Logger)
	}
	if len(c.Outputs) == 0 {
		c.Outputs = []string{OutputDefault}
	}
	if len(c.Outputs) > 1 && slices.Contains(c.Outputs, OutputDefault) {
		return fmt.Errorf("multi logoutput for %q is not supported yet", OutputDefault)
	}
	if c.Rotation == "" {
		c.Rotation = DefaultRotation
	}
	if c.Rotate {
		files := 0
		for _, o := range c.Outputs {
			if o != OutputDefault && o != OutputStderr && o != OutputStdout {
				files++
			}
		}
		if files > 1 || (len(c.Outputs) == 1 && files == 0) {
			return errors.New("--log-outputs requires a single file path when --log-rotate-config-json is defined")
		}
		if _, err := rotation(c.Rotation); err != nil {
			return err
		}
	}
	if c.Level == "" {
		c.Level = "info"
	}
	switch c.Format {
	case "":
		c.Format = "json"
	case "json", "console":
	default:
		// etcd looks at the level first, and panics there.
		if _, err := zapcore.ParseLevel(c.Level); err != nil {
			return levelError(c.Level)
		}
		return fmt.Errorf("unknown log format: %s, supported values json, console", c.Format)
	}
	return nil
}

// logRotationConfig has the name of etcd's: it is in the texts of encoding/json.
type logRotationConfig struct{ *lumberjack.Logger }

func rotation(text string) (*lumberjack.Logger, error) {
	r := logRotationConfig{&lumberjack.Logger{}}
	err := json.Unmarshal([]byte(text), &r)
	var syntax *json.SyntaxError
	var wrongType *json.UnmarshalTypeError
	switch {
	case err == nil:
		return r.Logger, nil
	case errors.As(err, &syntax):
		return nil, fmt.Errorf("improperly formatted log rotation config: %w", err)
	case errors.As(err, &wrongType):
		return nil, fmt.Errorf("invalid log rotation config: %w", err)
	default:
		return nil, fmt.Errorf("fail to unmarshal log rotation config: %w", err)
	}
}

// open opens the outputs, each once.
func (l *Logger) open(cfg Config) ([]io.Writer, error) {
	if cfg.Writer != nil {
		return []io.Writer{cfg.Writer}, nil
	}
	outputs := slices.Clone(cfg.Outputs)
	if len(outputs) > 1 && slices.Contains(outputs, OutputJournal) {
		slices.Sort(outputs)
		return nil, fmt.Errorf("running with systemd/journal but other '--log-outputs' values (%q) are configured with 'default'; override 'default' value with something else", outputs)
	}
	if slices.Contains(outputs, "/dev/null") { // as in etcd: discard everything
		return []io.Writer{io.Discard}, nil
	}
	slices.Sort(outputs)
	var writers []io.Writer
	for _, o := range slices.Compact(outputs) {
		switch o {
		case OutputDefault, OutputStderr:
			writers = append(writers, os.Stderr)
		case OutputStdout:
			writers = append(writers, os.Stdout)
		case OutputJournal:
			w, err := newJournalWriter(os.Stderr)
			if err != nil {
				return nil, err
			}
			writers = append(writers, w)
		default:
			path := o
			if rest, ok := strings.CutPrefix(o, "file://"); ok {
				unescaped, err := url.PathUnescape(rest)
				if err != nil {
					return nil, fmt.Errorf("couldn't open sink %q: %w", o, err)
				}
				path = strings.TrimPrefix(unescaped, "localhost")
			}
			if cfg.Rotate {
				r, err := rotation(cfg.Rotation)
				if err != nil {
					return nil, err
				}
				r.Filename = path
				writers = append(writers, r)
				l.files = append(l.files, r)
				continue
			}
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o666)
			if err != nil {
				return nil, fmt.Errorf("open sink %q: %w", o, err)
			}
			writers = append(writers, f)
			l.files = append(l.files, f)
		}
	}
	return writers, nil
}

// Dropped is how many lines were dropped since the start, by all outputs together: the metric
// belay_log_dropped_total for a registry that is made after the logger.
func (l *Logger) Dropped() (n uint64) {
	for _, s := range l.sinks {
		n += s.Dropped()
	}
	return n
}

// Stalled is the longest time that an output has been taking for its present write.
func (l *Logger) Stalled() (worst time.Duration) {
	for _, s := range l.sinks {
		worst = max(worst, s.Stalled())
	}
	return worst
}

// Close writes what waits, for a bounded time, and closes the files.
func (l *Logger) Close() error {
	var errs []error
	for _, s := range l.sinks {
		errs = append(errs, s.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return err // a file may still be in the hands of a sink
	}
	for _, f := range l.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// encoderConfig is etcd's: its keys, its time with microseconds, durations as text.
func encoderConfig() zapcore.EncoderConfig {
	return zapcore.EncoderConfig{
		TimeKey:        "ts",
		LevelKey:       "level",
		NameKey:        "logger",
		CallerKey:      "caller",
		MessageKey:     "msg",
		StacktraceKey:  "stacktrace",
		LineEnding:     zapcore.DefaultLineEnding,
		EncodeLevel:    zapcore.LowercaseLevelEncoder,
		EncodeTime:     zapcore.TimeEncoderOfLayout("2006-01-02T15:04:05.000000Z0700"),
		EncodeDuration: zapcore.StringDurationEncoder,
		EncodeCaller:   zapcore.ShortCallerEncoder,
	}
}

// notice makes the line about dropped lines in the log's own format.
func notice(enc zapcore.Encoder) func(uint64) []byte {
	return func(dropped uint64) []byte {
		ent := zapcore.Entry{Level: zapcore.WarnLevel, Time: time.Now(), Message: "dropped log lines since the log output was too slow"}
		buf, err := enc.Clone().EncodeEntry(ent, []zapcore.Field{zap.Uint64("dropped-lines", dropped)})
		if err != nil {
			return plainNotice(dropped)
		}
		defer buf.Free()
		return slices.Clone(buf.Bytes())
	}
}

func plainNotice(dropped uint64) []byte {
	return fmt.Appendf(nil, "logsink: dropped %d log lines since the log output was too slow\n", dropped)
}

// core is like zapcore's own core, but tells the sinks which lines are urgent.
type core struct {
	zapcore.LevelEnabler
	enc   zapcore.Encoder
	sinks []*Sink
	fold  *folder // shared by all clones
}

func (c *core) With(fields []zapcore.Field) zapcore.Core {
	clone := *c
	clone.enc = c.enc.Clone()
	for _, f := range bounded(fields, MaxFieldBytes, cutBytes) {
		f.AddTo(clone.enc)
	}
	return &clone
}

func (c *core) Check(ent zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(ent.Level) {
		return ce.AddCore(ent, c)
	}
	return ce
}

// Write writes an entry unless it is folded, which at level debug none is.
func (c *core) Write(ent zapcore.Entry, fields []zapcore.Field) error {
	if c.Enabled(zapcore.DebugLevel) {
		return c.write(ent, fields)
	}
	fields, whole, before := c.fold.pass(c, ent, fields)
	for _, t := range before {
		if err := t.core.write(t.entry, t.fields); err != nil {
			return err
		}
	}
	if !whole {
		return nil
	}
	return c.write(ent, fields)
}

func (c *core) write(ent zapcore.Entry, fields []zapcore.Field) error {
	urgent := ent.Level > zapcore.ErrorLevel
	buf, err := c.encode(ent, fields, urgent)
	if err != nil {
		return err
	}
	defer buf.Free()
	for _, s := range c.sinks {
		if urgent {
			_, err = s.WriteUrgent(buf.Bytes())
		} else {
			_, err = s.Write(buf.Bytes())
		}
		if err != nil {
			return err
		}
	}
	if urgent {
		_ = c.Sync() // the process is about to end; there is nobody to tell
	}
	return nil
}

// encode returns a line that is no longer than its bound; see bound.go.
func (c *core) encode(ent zapcore.Entry, fields []zapcore.Field, urgent bool) (*buffer.Buffer, error) {
	most := MaxLineBytes
	if urgent {
		most = MaxUrgentBytes
	} else {
		fields = bounded(fields, MaxFieldBytes, cutBytes)
		ent.Message = Cut(ent.Message, MaxFieldBytes)
	}
	buf, err := c.enc.EncodeEntry(ent, fields)
	for keep := most / 16; err == nil && buf.Len() > most && keep > 0; keep /= 4 {
		buf.Free()
		ent.Message, ent.Stack = Cut(ent.Message, keep), Cut(ent.Stack, 4*keep)
		buf, err = c.enc.EncodeEntry(ent, shortened(fields, keep))
	}
	return buf, err
}

func (c *core) Sync() error { return syncers(c.sinks).Sync() }

// syncers makes one WriteSyncer of several sinks. Sync waits for all of them at the same time.
type syncers []*Sink

func (s syncers) Write(b []byte) (int, error) {
	for _, k := range s {
		_, _ = k.Write(b) // never fails
	}
	return len(b), nil
}

func (s syncers) Sync() error {
	errs := make(chan error, len(s))
	for _, k := range s {
		go func() { errs <- k.Sync() }()
	}
	var all []error
	for range s {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}
