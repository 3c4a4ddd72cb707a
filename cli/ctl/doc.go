// Package ctl is `belay ctl`: the command line client. It takes etcdctl 3.7's commands, flags,
// environment and exit codes, and prints what etcdctl prints, byte for byte on standard output, so
// that scripts and habits carry over. Called through a link named etcdctl it is etcdctl.
//
// # Promises
//
//   - Standard output, the line "Error: ..." and the exit code are etcdctl's, for every command
//     that exists here, with the few differences listed below. A test runs a script of commands
//     through both and compares.
//   - Nothing here ends the process: Main returns the exit code. There is no state in package
//     variables: each call of Main or Command builds its own flags, so tests run several at once in
//     one process.
//
// # Where it differs from etcdctl, on purpose
//
//   - clientv3's JSON warnings about retries and the snapshot's progress lines do not appear on
//     standard error unless --debug is given.
//   - When no server answers, lines after "Error:" say which endpoint could not be reached, why,
//     and how to start one.
//   - ETCDCTL_COMMAND_TIMEOUT is obeyed by every command, and the timeout covers txn and the lease
//     commands too; etcdctl reads it too late for some and waits for ever in others.
//   - Input that makes etcdctl panic or hang is refused or works: lease("k") compares (lease IDs
//     are hexadecimal, as elsewhere), unknown compare operators, `help` inside txn, a status with a
//     database size of 0.
//   - `snapshot save` verifies the SHA-256 that ends the stream, not only that one is present.
//   - endpoint health lists endpoints in the order given.
//   - check shows its progress as a percentage on standard error, not as a bar, and verifies the
//     certificate of the server whose metrics it reads.
//
// # Files
//
//	main.go       Main, Command, exit codes, abbreviated command names
//	config.go     global flags (those of cli/connect and the output's), the client made from them
//	hint.go       explanations when no server answers
//	output.go     the five output formats
//	print_*.go    how each response looks in each format
//	the rest      one file for each command or family of commands
//
// Sources: etcd's etcdctl/ctlv3 and pkg/cobrautl, read for facts and compared live.
package ctl
