// Package dev is `belay dev`: a cluster on one machine, started and stopped with one command in one
// terminal.
//
// Each member is a process of its own, `belay server ...`, so that it can be killed, paused and
// restarted like a real one; this package only supervises them. It promises:
//
//   - nothing starts unless all ports are free and the data directory is empty or ours;
//   - --clean removes only what a `belay dev` made: member directories beside our marker file;
//   - each line of a member's log is printed whole, with the member's name before it;
//   - on SIGINT or SIGTERM members stop one after the other, the last first, and are waited for; a
//     second signal, or a member that takes too long, is answered with SIGKILL. Members are in
//     process groups of their own, so the terminal's Ctrl-C reaches them only through us. On Linux
//     they also end when this process dies;
//   - a member that ends by itself is reported, with the command that starts it again, and the
//     others keep running;
//   - typed commands kill, stop, start and restart members, break their links and disks, pause them,
//     and undo that, saying what to watch for; `belay dev fault` gives the same commands over a socket
//     that only the user can open. At the end everything is undone;
//   - on a terminal the logs are shortened: warnings and errors in a row each, repeated lines once
//     a minute, and verdicts in full. Files beside the data directories have the whole logs;
//   - each command that it suggests works when pasted, with certificates too.
//
// Files: main.go (flags), layout.go (ports and data directory), cluster.go (processes and
// commands), faults.go (what is broken), explain.go (what to watch for), control.go (commands from
// another terminal), prefix.go (log lines), view.go (how they are shown on a terminal), secure.go
// (certificates), complete.go (flags for shells), process_linux.go and process_other.go,
// terminal_unix.go and terminal_other.go (what differs between systems).
package dev
