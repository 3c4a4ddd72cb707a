// Package neighbours sees who writes to the disk that a member's log is on: processes, with the
// systemd unit, container or pod that each belongs to, interval by interval, beside the disk's own
// counters and the member's fsyncs. What it means is for others to say (cli/doctor/neighbours).
//
// # Where the numbers are from
//
// No counter of the kernel tells exactly how many bytes of a process a device wrote, so each number
// carries its source (From):
//
//   - io.stat of the cgroup (version 2, with its io controller): what the device was given for this
//     cgroup, write-back included. The truth, for a cgroup; it is shared out among its processes.
//   - the process's system calls: the lesser of wchar and write_bytes of /proc/PID/io. wchar counts
//     sockets and pipes, too; write_bytes counts the page cache that was dirtied, in whole folios,
//     which is many times more for a process that appends little pieces (5 to 15 times for a raft
//     log). Each is too much in its own way.
//   - dirtied pages alone, write_bytes, for a process that makes no write calls: it writes through
//     mappings or io_uring. It may be many times too much.
//   - /proc/diskstats for the whole disk: bytes, requests and flushes. A flush is a sync that reached
//     the device. The kernel counts no syncs of processes, so these are only sampled: in how many
//     looks a thread of the process stood in fsync or the like (/proc/PID/task/TID/syscall).
//
// The counters of cgroup version 1 (blkio) leave out what is written back later, and are not used.
// The bytes of processes that came and went within one interval are their parents': Linux gives a
// parent the counters of the children that it waited for.
//
// Without root, or CAP_SYS_PTRACE, /proc/PID/io of other users' processes cannot be read. They are
// counted in Sample.Hidden, and io.stat, which everybody may read, still tells their units.
//
// # Goroutines
//
// A Collector is one goroutine's. Keeper has a goroutine of its own, for which nobody waits beyond a
// stated time.
//
// # Files
//
//	sample.go         what is known of an interval; many intervals in bounded memory
//	target.go         the member whose disk it is
//	group.go          units, containers and pods from the paths of cgroups
//	record.go         samples in files
//	keeper.go         the record that a member keeps
//	collect_linux.go  reading /proc
//	device_linux.go   which disk a file is on
//	member_linux.go   which process is a member
//	collect_other.go  other systems, where none of it can be had
package neighbours
