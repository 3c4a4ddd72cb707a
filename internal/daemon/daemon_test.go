package daemon

import (
	"bytes"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
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
