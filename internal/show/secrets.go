package show

import (
	"slices"
	"strings"
)

// Secret is the value of a flag as a log or a page may have it: all but a password.
// etcd's log has the password of --discovery-password, too.
func Secret(name, value string) string {
	if strings.HasSuffix(name, "password") && value != "" {
		return "***"
	}
	return value
}

// CommandLine is a command line as a log or a page may have it.
func CommandLine(args []string) []string {
	args = slices.Clone(args)
	for i, arg := range args {
		name, value, ok := strings.Cut(arg, "=")
		switch {
		case !strings.HasPrefix(arg, "-"):
		case ok:
			args[i] = name + "=" + Secret(name, value)
		case i+1 < len(args) && !strings.HasPrefix(args[i+1], "-"):
			args[i+1] = Secret(name, args[i+1])
		}
	}
	return args
}
