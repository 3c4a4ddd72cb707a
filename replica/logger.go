package replica

import "go.uber.org/zap"

// raftLogger passes raft's lines to zap under etcd's logger name "raft", with raft's own wording:
// operators search for it.
type raftLogger struct{ *zap.SugaredLogger }

func (l raftLogger) Warning(v ...any)                 { l.Warn(v...) }
func (l raftLogger) Warningf(format string, v ...any) { l.Warnf(format, v...) }
