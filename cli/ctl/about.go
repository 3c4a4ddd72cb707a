package ctl

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.etcd.io/etcd/api/v3/version"

	"github.com/belaydb/belay/internal/show"
)

// versionCommand prints the etcd release whose behaviour this client has: scripts compare it.
func (c *ctl) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Prints the version",
		GroupID: groupUtility,
		RunE: c.run(func(cmd *cobra.Command, args []string) error {
			fmt.Fprintln(c.out, "etcdctl version:", version.Version)
			fmt.Fprintln(c.out, "API version:", version.APIVersion)
			return nil
		}),
	}
}

func (c *ctl) optionsCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "options",
		Short:   "Prints the flags that all commands take",
		GroupID: groupUtility,
		RunE: c.run(func(cmd *cobra.Command, args []string) error {
			visible := pflag.NewFlagSet("global", pflag.ContinueOnError)
			cmd.Root().PersistentFlags().VisitAll(func(f *pflag.Flag) {
				shown := *f
				shown.Hidden = false
				visible.AddFlag(&shown)
			})
			fmt.Fprintf(c.out, "The following options can be passed to any command:\n\n%s", visible.FlagUsages())
			return nil
		}),
	}
}

// completionCommand prints a script for a shell. The script calls this program back, as `<program>
// __complete ...`, so it stays valid when commands change. For "belay ctl" it is the script of
// belay, which must pass `belay __complete ctl ...` on to Main as `__complete ...`.
func (c *ctl) completionCommand() *cobra.Command {
	program, _, _ := strings.Cut(c.name, " ")
	return &cobra.Command{
		Use:   "completion [bash|zsh|fish|powershell]",
		Short: "Prints a completion script for a shell",
		Long: strings.NewReplacer("NAME", c.name, "PROGRAM", program).Replace(`Prints a completion script for a shell.

Bash, now and for each session:
  $ source <(NAME completion bash)
  $ NAME completion bash > /etc/bash_completion.d/PROGRAM

Zsh:
  $ NAME completion zsh > "${fpath[1]}/_PROGRAM"

fish:
  $ NAME completion fish > ~/.config/fish/completions/PROGRAM.fish

PowerShell:
  PS> NAME completion powershell | Out-String | Invoke-Expression
`),
		DisableFlagsInUseLine: true,
		ValidArgs:             []string{"bash", "zsh", "fish", "powershell"},
		Args:                  cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		GroupID:               groupUtility,
		RunE: c.run(func(cmd *cobra.Command, args []string) error {
			return show.Completion(c.out, args[0], program)
		}),
	}
}
