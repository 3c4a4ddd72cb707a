package daemon

import (
	"bytes"
	"syscall"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc/grpclog"
)

// TestLogGRPCIsSilent: at no level does zap complain that the logger is quieter than what grpc is
// to be.
func TestLogGRPCIsSilent(t *testing.T) {
	for level := zapcore.DebugLevel; level <= zapcore.FatalLevel; level++ {
		var out bytes.Buffer
		core := zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{}), zapcore.AddSync(&out), level)
		LogGRPC(zap.New(core, zap.ErrorOutput(zapcore.AddSync(&out))))
		if out.Len() > 0 {
			t.Errorf("at level %v: %s", level, &out)
		}
	}
	LogGRPC(zap.NewNop())
}

// A client of the JSON gateway that leaves, or sends a header that is none, is no error of the
// process: the gateway's words for it are heard at level debug alone, and its others as they were.
func TestLogGRPCOfClients(t *testing.T) {
	defer LogGRPC(nil)
	for level, want := range map[zapcore.Level]int{zapcore.DebugLevel: 4, zapcore.InfoLevel: 1, zapcore.ErrorLevel: 1} {
		core, logs := observer.New(level)
		LogGRPC(zap.New(core))
		grpclog.Errorf("Failed to write response: %v", syscall.EPIPE)
		grpclog.Errorf("Value of HTTP header %q contains non-ASCII value (not valid as gRPC metadata): skipping", "Grpc-Metadata-X")
		grpclog.Errorf("Failed to send response chunk: %v", syscall.EPIPE)
		grpclog.Errorf("Failed to marshal an error: %v", syscall.EINVAL)
		if logs.Len() != want || logs.FilterLevelExact(zapcore.ErrorLevel).Len() != 1 {
			t.Errorf("at level %v: %+v", level, logs.All())
		}
	}
}
