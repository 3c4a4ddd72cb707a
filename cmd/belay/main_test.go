package main

import (
	"bytes"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// TestLogGRPCIsSilent: at no level does zap complain that the logger is quieter than what grpc is to be.
func TestLogGRPCIsSilent(t *testing.T) {
	for level := zapcore.DebugLevel; level <= zapcore.FatalLevel; level++ {
		var out bytes.Buffer
		core := zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{}), zapcore.AddSync(&out), level)
		logGRPC(zap.New(core, zap.ErrorOutput(zapcore.AddSync(&out))))
		if out.Len() > 0 {
			t.Errorf("at level %v: %s", level, &out)
		}
	}
	logGRPC(zap.NewNop())
}

func TestComplete(t *testing.T) {
	for line, want := range map[string]string{
		"__complete ":                       "ctl\ndev\nhelp\nserver\nutil\nversion\n:4\n",
		"__complete ct":                     "ctl\n:4\n",
		"__complete server --na":            ":4\n",
		"__completeNoDesc ctl member pro":   "promote\n:4\n",
		"__completeNoDesc ctl get --consis": "--consistency\n:4\n",
		"__completeNoDesc ctl --write-out ": "fields\njson\n",
	} {
		var out, errs bytes.Buffer
		if code := run(append([]string{"belay"}, strings.Split(line, " ")...), nil, &out, &errs); code != 0 || !strings.HasPrefix(out.String(), want) {
			t.Errorf("%s: code %d, %q, want %q", line, code, out.String(), want)
		}
	}
}
