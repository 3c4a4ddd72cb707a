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
//     process groups of their own, so the terminal's Ctrl-C reaches them through us only. On Linux
//     they also end when we vanish;
//   - a member that ends by itself is reported, with the command that starts it again, and the
//     others go on;
//   - what is typed kills, stops, starts and restarts members;
//   - on a terminal the logs are made short: warnings and errors, a row each, what repeats itself
//     once a minute, and verdicts whole. Files beside the data directories have all of it;
//   - each command that is printed to be tried works when it is pasted, with certificates too.
//
// Files: main.go (flags), layout.go (ports and data directory), cluster.go (processes and
// commands), prefix.go (log lines), view.go (what of them is shown on a terminal), secure.go
// (certificates), terminal_*.go.
package dev
