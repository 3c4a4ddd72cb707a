package show

import (
	"slices"
	"testing"
)

func TestCommandLine(t *testing.T) {
	in := []string{"belay", "server", "--discovery-password=secret", "--discovery-password", "secret", "-discovery-password", "secret", "--name=m1", "--discovery-password", "--debug"}
	want := []string{"belay", "server", "--discovery-password=***", "--discovery-password", "***", "-discovery-password", "***", "--name=m1", "--discovery-password", "--debug"}
	if got := CommandLine(in); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if in[2] != "--discovery-password=secret" {
		t.Error("the command line itself was changed")
	}
}
