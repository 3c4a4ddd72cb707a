// Package logsink writes the log without ever making the server wait for it, and builds the zap
// logger that looks like etcd's.
//
// etcd writes log lines from the goroutines that serve requests: when the disk or the pipe behind
// its log stalls, so do reads, writes and ticks. Here a Sink stands in front of each output.
//
//   - Write copies a line into a bounded buffer and returns. It takes a mutex that is never held
//     across I/O.
//   - One goroutine writes what is there, many lines at once.
//   - When the buffer is full, whole lines are dropped and counted (belay_log_dropped_total), and
//     once the output moves again one line says how many. A panic or fatal line may use a reserve
//     beyond the bound.
//   - Sync waits until everything written so far is out, but no longer than Options.SyncTimeout:
//     zap calls it for panic and fatal lines, and Close at exit. Nothing is fsynced.
//
// A Sink whose output never returns cannot be stopped: its goroutine stays in that write, and Close
// returns after the timeout. That is meant for the end of a process.
//
// Write, Sync and Close may be called from any goroutine.
//
// Lines are bounded: of a long text the beginning is written and how long it was (bound.go).
//
// What members repeat while others are lost is folded, except at level debug (fold.go).
//
// Files: sink.go the buffer; fold.go lines that repeat themselves; bound.go how long a line may be;
// logger.go the zap logger (etcd's keys, formats, sampling, outputs); person.go the lines on a
// terminal; lines.go prefixes for several members in one terminal; journal.go systemd's journal.
//
// Sources: etcd server/embed/config_logging.go and client/pkg/logutil (v3.7.3) for outputs, formats
// and texts of errors; DESIGN.md section 8.
package logsink
