// Package config turns the command line and the environment of `belay server` (and of a link called
// etcd) into a Config: etcd's flags, its ETCD_* variables, its order of checks, its texts and its
// exit codes.
//
// Load does all of it: it prints help and version, logs what etcd logs on the way, and returns a
// validated Config with its logger, or the exit code of the process. The parts are there for other
// callers: Default and Validate for `belay dev`, Verify for a member that starts a new cluster.
//
// # Rules
//
//   - A flag may have one dash or two. Wrong syntax, an unknown flag or an invalid value: exit code
//     2 and the error on stderr. An inconsistent configuration: exit code 1 and one log line.
//   - ETCD_ + the flag's name in capitals sets a flag. A flag that is set both ways is fatal, since
//     one of the two would be ignored silently. An empty variable counts as unset.
//   - A flag for a part of etcd that Belay does not have (bbolt, the v2 store) is accepted with a
//     warning. A flag that concerns security is never ignored.
//
// # Files
//
//	config.go  Config, Default, Validate      flags.go  the table of flags
//	parse.go   Load: arguments, environment   values.go the types of flag values
//	cluster.go --initial-cluster, Verify      help.go   the help text, guesses at what was meant
//	file.go    the configuration file         lines.go  where in it something is wrong
//	auth.go    --auth-token                   gates.go  etcd's feature gates
//	bootstrap.go  discovery, --initial-*      inert.go  flags without effect here
//	listeners.go  from URLs to sockets        blame.go  Explain: which flag an error is about
//	complete.go   what a shell may complete    nodeconfig.go  what package node makes of it
//
// Sources: etcd server/embed/config.go, server/etcdmain and pkg/flags (v3.7.3).
package config
