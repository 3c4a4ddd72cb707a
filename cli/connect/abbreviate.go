package connect

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Unabbreviate spells out command names given by a unique prefix (`mem li`), and changes nothing
// else: cobra's own switch for them is a global variable. REQUIRES: the help command has been added.
func Unabbreviate(root *cobra.Command, args []string) []string {
	args = slices.Clone(args)
	at := root
	for i := 0; i < len(args) && at.HasSubCommands(); i++ {
		arg := args[i]
		switch {
		case arg == "--":
			return args
		case strings.HasPrefix(arg, "-") && arg != "-":
			if takesNext(root, at, arg) {
				i++
			}
		default:
			next := findCommand(at, arg)
			if next == nil {
				return args
			}
			args[i] = next.Name()
			if next.Name() != "help" { // what follows that is a command of root, too
				at = next
			}
		}
	}
	return args
}

// takesNext reports whether the flag in arg has its value in the next argument.
func takesNext(root, at *cobra.Command, arg string) bool {
	if strings.Contains(arg, "=") {
		return false
	}
	for _, flags := range []*pflag.FlagSet{root.PersistentFlags(), at.Flags(), at.PersistentFlags()} {
		var f *pflag.Flag
		if name, long := strings.CutPrefix(arg, "--"); long {
			f = flags.Lookup(name)
		} else if len(arg) == 2 {
			f = flags.ShorthandLookup(arg[1:])
		}
		if f != nil {
			return f.NoOptDefVal == ""
		}
	}
	// It is of a command that comes later, as in `--consistency s get a`; cobra takes the next argument
	// for its value, too.
	return strings.HasPrefix(arg, "--") || len(arg) == 2
}

// findCommand is the sub-command of a name, or of a prefix that no other one has. What is unique in
// etcd's program means the same here: commands that it has not are found by a prefix that none of
// its has.
func findCommand(at *cobra.Command, name string) *cobra.Command {
	var etcds, others []*cobra.Command // by prefix
	for _, sub := range at.Commands() {
		_, beyond := sub.Annotations[beyond]
		switch {
		case sub.Name() == name:
			return sub
		case !strings.HasPrefix(sub.Name(), name):
		case beyond:
			others = append(others, sub)
		default:
			etcds = append(etcds, sub)
		}
	}
	if len(etcds) == 0 {
		etcds = others
	}
	if name == "" || len(etcds) != 1 {
		return nil
	}
	return etcds[0]
}

// beyond is the annotation of BeyondEtcd.
const beyond = "beyond-etcd"

// BeyondEtcd marks a command that etcd's program of the same name has not.
func BeyondEtcd(cmd *cobra.Command) *cobra.Command {
	if cmd.Annotations == nil {
		cmd.Annotations = map[string]string{}
	}
	cmd.Annotations[beyond] = ""
	return cmd
}
