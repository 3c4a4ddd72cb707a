package connect

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// TestBadEnvironment: a variable that makes no sense is told, and leaves the default.
func TestBadEnvironment(t *testing.T) {
	for name, value := range map[string]string{"COMMAND_TIMEOUT": "x", "DIAL_TIMEOUT": "5", "DEBUG": "maybe", "MAX_RECV_BYTES": "many"} {
		t.Setenv(envPrefix+name, value)
	}
	var f Flags
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.Register(fs)
	var warnings bytes.Buffer
	if err := FromEnvironment(fs, &warnings); err != nil {
		t.Fatal(err)
	}
	if f.CommandTimeout != 5*time.Second || f.DialTimeout != 2*time.Second || f.Debug || f.MaxRecvBytes != 0 {
		t.Errorf("%+v", f)
	}
	if n := strings.Count(warnings.String(), "ignoring environment variable"); n != 4 {
		t.Errorf("%d warnings:\n%s", n, &warnings)
	}
}
