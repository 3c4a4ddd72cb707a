package offline

import (
	"fmt"
	"io"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/belaydb/belay/datadir"
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

func restoreFields(c datadir.RestoreConfig) []zap.Field {
	paths := datadir.PathsOf(c.DataDir, c.WALDir)
	return []zap.Field{zap.String("path", c.Snapshot), zap.String("wal-dir", paths.Log), zap.String("data-dir", c.DataDir), zap.String("snap-dir", paths.Store)}
}
