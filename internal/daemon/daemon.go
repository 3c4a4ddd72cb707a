// Package daemon is what a command of Belay that runs until it is stopped, a server or a proxy, sets
// up in its process and tells its init system.
package daemon

import (
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zapgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/grpclog"
)

// LogGRPC sends the log lines of grpc and the gateway to logger: warnings, and at level debug all. By
// default they write to stderr, and wait for its reader. nil: nobody gets them.
//
// REQUIRES: grpc is not used yet, as with all of grpc's process-wide settings.
func LogGRPC(logger *zap.Logger) {
	if logger == nil {
		logger = zap.NewNop()
	}
	switch {
	case logger.Core().Enabled(zapcore.DebugLevel):
		grpc.EnableTracing = true // for /debug/requests
	case logger.Core().Enabled(zapcore.InfoLevel): // of a logger that is quieter already zap would complain itself
		logger = logger.WithOptions(zap.IncreaseLevel(zapcore.WarnLevel))
	}
	grpclog.SetLoggerV2(ofClients{zapgrpc.NewLogger(logger)})
}

// ofClients says at level debug what the gateway would have operators know as an error, and is none
// of the process: a client of JSON has gone before it was answered, or sends odd headers.
type ofClients struct{ *zapgrpc.Logger }

// clientsDoing is how the gateway's formats of such lines begin.
var clientsDoing = []string{
	"Failed to write response", "Failed to send response chunk", "Failed to send delimiter chunk",
	"Failed to flush response to client", "Failed to notify error to client",
	"HTTP header name %q is not valid", "Value of HTTP header %q contains non-ASCII value",
}

func (l ofClients) Errorf(format string, args ...any) {
	if slices.ContainsFunc(clientsDoing, func(s string) bool { return strings.HasPrefix(format, s) }) {
		l.Infof(format, args...) // which is heard at level debug only
		return
	}
	l.Logger.Errorf(format, args...)
}

// OutliveLog has the process go on when what reads its standard output or error has gone: a Go program
// ends by SIGPIPE then, at the next line of its log, as etcd does. A write fails instead.
func OutliveLog() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// NotifyReady tells systemd, if NOTIFY_SOCKET asks for it, that the process serves (a unit of
// Type=notify waits for it). It logs the same without systemd, as etcd does.
func NotifyReady(logger *zap.Logger) {
	if logger == nil {
		logger = zap.NewNop()
	}
	logger.Info("notifying init daemon")
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		logger.Error("failed to notify systemd for readiness", zap.Error(err))
		return
	}
	logger.Info("successfully notified init daemon")
}
