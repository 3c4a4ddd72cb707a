package show

import (
	"os/exec"
	"strings"
	"testing"
)

// TestBashWithoutItsPackage: a shell on a server without the package bash-completion is offered the
// same.
func TestBashWithoutItsPackage(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("there is no bash")
	}
	var script strings.Builder
	if err := Completion(&script, "bash", "belay"); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"belay ctl member remove ": "asked: ctl member remove ''",
		"belay ctl get --pre":      "asked: ctl get --pre",
		"belay ctl --endpoints=ht": "asked: ctl --endpoints=ht",
	} {
		// What it completes is what the program is called with; the program is a function here. compopt
		// has nothing to do outside of a completion.
		ask := script.String() + "\nbelay() { echo \"asked: ${*:2}\" >&3; echo candidate; echo :4; }\ncompopt() { :; }\n" +
			"COMP_LINE='" + line + "'; COMP_POINT=${#COMP_LINE}; read -ra COMP_WORDS <<< \"$COMP_LINE\"; COMP_CWORD=9; exec 3>&1\n__start_belay belay\n"
		cmd := exec.CommandContext(t.Context(), "bash", "--norc", "--noprofile")
		cmd.Stdin = strings.NewReader(ask)
		out, err := cmd.CombinedOutput()
		if want = strings.ReplaceAll(want, "''", ""); err != nil || strings.TrimSpace(string(out)) != strings.TrimSpace(want) {
			t.Errorf("%q: %v: %q, want %q", line, err, out, want)
		}
	}
}
