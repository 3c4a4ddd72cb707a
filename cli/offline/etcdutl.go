package offline

import (
	"fmt"
	"io"
	"time"

	"github.com/coreos/go-semver/semver"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/snapshotfile"
)

// etcdutlLog is where etcdutl says what it did: on standard error, line by line, while standard output
// stays empty. `belay util` says it in words on standard output, and logs nothing.
func etcdutlLog(stderr io.Writer) *zap.Logger {
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(zapcore.EncoderConfig{
		TimeKey: "ts", LevelKey: "level", MessageKey: "msg", LineEnding: zapcore.DefaultLineEnding,
		EncodeLevel: zapcore.LowercaseLevelEncoder, EncodeDuration: zapcore.StringDurationEncoder,
		EncodeTime: func(t time.Time, enc zapcore.PrimitiveArrayEncoder) {
			enc.AppendString(t.UTC().Format(time.RFC3339))
		},
	}), zapcore.AddSync(stderr), zap.InfoLevel))
}

// logRestored says what etcdutl says at the end of a restore.
func logRestored(logger *zap.Logger, c datadir.RestoreConfig, r datadir.Restored) {
	for _, m := range r.Members {
		logger.Info("added member", zap.String("cluster-id", fmt.Sprintf("%x", r.Cluster)), zap.String("local-member-id", "0"),
			zap.String("added-peer-id", fmt.Sprintf("%x", m.ID)), zap.Strings("added-peer-peer-urls", m.PeerURLs), zap.Bool("added-peer-is-learner", m.IsLearner))
	}
	logger.Info("restored snapshot", restoreFields(c)...)
}

// logSchema says what etcdutl says of a change of the storage version: each minor version on the way,
// unless it was forced.
func logSchema(logger *zap.Logger, c snapshotfile.SchemaChange) {
	version := func(v semver.Version) zap.Field {
		return zap.String("storage-version", fmt.Sprintf("%d.%d", v.Major, v.Minor))
	}
	switch {
	case c.From == c.To:
		logger.Info("storage version up-to-date", version(c.To))
	case c.Forced != nil:
		logger.Info("normal migrate failed, trying with force", zap.Error(c.Forced))
		if c.Cleared() {
			logger.Warn("forcefully cleared storage version")
		} else {
			logger.Warn("forcefully set storage version", version(c.To))
		}
	default:
		step := int64(1)
		if c.To.LessThan(c.From) {
			step = -1
		}
		for v := c.From; v != c.To; {
			v.Minor += step
			logger.Info("updated storage version", zap.String("new-storage-version", v.String()))
		}
	}
}

func restoreFields(c datadir.RestoreConfig) []zap.Field {
	paths := datadir.PathsOf(c.DataDir, c.WALDir)
	return []zap.Field{zap.String("path", c.Snapshot), zap.String("wal-dir", paths.Log), zap.String("data-dir", c.DataDir), zap.String("snap-dir", paths.Store)}
}
