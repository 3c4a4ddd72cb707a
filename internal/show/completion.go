package show

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// Completion prints the script by which a shell completes a program's commands and flags: it calls
// the program back, as `PROGRAM __complete ...`, so it stays valid when they change. shell is bash,
// zsh, fish or powershell.
func Completion(w io.Writer, shell, program string) error {
	root := &cobra.Command{Use: program}
	switch shell {
	case "bash":
		return root.GenBashCompletionV2(w, true)
	case "zsh":
		return root.GenZshCompletion(w)
	case "fish":
		return root.GenFishCompletion(w, true)
	case "powershell":
		return root.GenPowerShellCompletionWithDesc(w)
	}
	return fmt.Errorf("no completion for the shell %q: bash, zsh, fish or powershell", shell)
}
