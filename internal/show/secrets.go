package show

import (
	"slices"
	"strings"
)

// Secret is the value of a flag as it may appear in a log or on a page: hidden if it is a password.
// etcd's log shows even the value of --discovery-password.
func Secret(name, value string) string {
	if strings.HasSuffix(name, "password") && value != "" {
		return "***"
	}
	return value
}

// CommandLine is a command line as it may appear in a log or on a page.
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
