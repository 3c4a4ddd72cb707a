// Package logsink writes the log without ever making the server wait for it, and builds a zap
// logger whose lines look like etcd's.
//
// etcd writes log lines from the goroutines that serve requests: when the disk or the pipe behind
// its log stalls, so do reads, writes and ticks. Here each output has a Sink in front of it.
//
//   - Write copies a line into a bounded buffer and returns. It takes a mutex that is never held
//     across I/O.
//   - One goroutine writes what waits, many lines at once.
//   - When the buffer is full, or the output fails, whole lines are dropped and counted
//     (belay_log_dropped_total), and once the output moves again one line says how many. A panic or
//     fatal line may use a reserve beyond the bound.
//   - Sync waits until everything written so far is out, but no longer than Options.SyncTimeout:
//     zap calls it for panic and fatal lines, and Close at exit. Nothing is fsynced.
//
// A Sink whose output never returns cannot be stopped: its goroutine stays in that write, and Close
// returns after the timeout. That is acceptable at the end of a process.
//
// Write, Sync and Close may be called from any goroutine.
//
// Lines are bounded: a long text is cut to its beginning and its length (bound.go).
//
// Lines that members repeat while others are lost are folded, except at level debug (fold.go).
//
// Files: sink.go the buffer; fold.go lines that repeat themselves; bound.go how long a line may be;
// seldom.go lines that are written once in a while; logger.go the zap logger (etcd's keys, formats,
// sampling, outputs); person.go the lines for people at a terminal; journal.go systemd's journal.
//
// Sources: etcd server/embed/config_logging.go and client/pkg/logutil (v3.7.3) for outputs, formats
// and texts of errors.
package logsink
