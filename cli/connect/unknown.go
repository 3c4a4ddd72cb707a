package connect

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// RefuseUnknown has cmd, and every command below it, fail for a sub-command that it does not have.
// cobra prints the help for one, and succeeds: a script would take that for what it has asked for. It
// refuses unknown commands of a root by itself. refused makes the program's own error, with its exit
// code, of what is wrong. REQUIRES: the sub-commands have been added.
func RefuseUnknown(cmd *cobra.Command, refused func(error) error) {
	for _, sub := range cmd.Commands() {
		RefuseUnknown(sub, refused)
	}
	if !cmd.HasParent() || !cmd.HasAvailableSubCommands() || cmd.Runnable() {
		return
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		var names []string
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() {
				names = append(names, sub.Name())
			}
		}
		return refused(fmt.Errorf("unknown command %q for %q: one of %s", args[0], cmd.CommandPath(), strings.Join(names, ", ")))
	}
}
