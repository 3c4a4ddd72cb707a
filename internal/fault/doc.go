// Package fault breaks what a member stands on, without root: the files under its data directory and
// its connections to the other members. It is a layer inside the member's process, told what is
// broken by the supervisor of `belay dev`, or by the test whose members package belaytest runs.
//
// # Promises
//
//   - A plain `belay server` does not have it: only `belay dev member`, which the supervisor starts
//     with a pipe as standard input, makes a Layer of that pipe, and refuses to run without it.
//   - The Layer is told a whole State each time, never a change of one, so that the last one told
//     always holds. The first comes before the member opens a file.
//   - A fault does to a member what the real one does as far as a process can tell: a disk that
//     stalls answers no sync and takes writes; a full one refuses what makes a file longer; a link
//     that is cut delivers nothing and closes nothing; a lost packet comes later, and all behind it.
//   - What waits because of a fault goes on when the fault is gone, and never keeps a process from
//     being killed.
//
// The way not taken: a relay between the members' peer ports in the supervisor's process. It sees
// connections and not whose they are, least of all with TLS; members would have to listen elsewhere
// than they advertise; and it could do nothing about disks. A member knows whom it dials, and of any
// two members each connection was dialed by one, so two layers see all that goes between them.
//
// Layer may be used from any goroutine.
//
// Files: state.go (what is broken, and the pipe), files.go (disks), allocated_unix.go and
// allocated_other.go (what a file has of the disk), link.go (connections).
package fault
