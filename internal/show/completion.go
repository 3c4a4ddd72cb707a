package show

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// Completion prints the script by which a shell completes a program's commands and flags: it calls
// the program back, as `PROGRAM __complete ...`, so it stays valid when they change. shell is bash,
// zsh, fish or powershell.
func Completion(w io.Writer, shell, program string) error {
	root := &cobra.Command{Use: program}
	switch shell {
	case "bash":
		return bash(w, root)
	case "zsh":
		return root.GenZshCompletion(w)
	case "fish":
		return root.GenFishCompletion(w, true)
	case "powershell":
		return root.GenPowerShellCompletionWithDesc(w)
	}
	return fmt.Errorf("no completion for the shell %q: bash, zsh, fish or powershell", shell)
}

// bash prints cobra's script, which asks the package bash-completion for the words of the line. A
// server often lacks that package, and then each press of the key would print that the function is
// not there.
func bash(w io.Writer, root *cobra.Command) error {
	var script strings.Builder
	if err := root.GenBashCompletionV2(&script, true); err != nil {
		return err
	}
	const asks = `    _get_comp_words_by_ref "$@" cur prev words cword
`
	const own = `    if declare -F _get_comp_words_by_ref >/dev/null 2>&1; then
        _get_comp_words_by_ref "$@" cur prev words cword
        return
    fi
    # The package bash-completion is not there: words are what spaces part.
    local line="${COMP_LINE:0:COMP_POINT}"
    read -ra words <<< "$line"
    if [[ $line == *[[:space:]] ]]; then
        words+=("")
    fi
    cword=$((${#words[@]} - 1))
    cur=${words[cword]}
    prev=
    if ((cword > 0)); then
        prev=${words[cword-1]}
    fi
`
	if strings.Count(script.String(), asks) != 1 {
		return errors.New("cobra's script for bash has changed: see internal/show")
	}
	_, err := io.WriteString(w, strings.Replace(script.String(), asks, own, 1))
	return err
}
