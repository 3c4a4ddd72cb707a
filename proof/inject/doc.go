// Package inject breaks what real members stand on: their disks, the network between them, their
// CPU. proof/faults and proof/labelled do so.
//
//	disk     slowfs (a module of its own, in its own folder), mounted under a data directory, delays,
//	         hangs or fails what a member does to its files. It needs Linux, root and /dev/fuse.
//	network  a TCP relay between each two members: delay, loss as the wait for a retransmission, and
//	         cuts in one direction or both. Clients speak to the members directly.
//	CPU      busy shells beside the members, and the priority of a member's threads.
//
// Nothing here outlives the process that called it: slowfs unmounts itself, and the shells are
// killed. Disk and Network may be used from any goroutine.
//
// Files: disk.go, relay.go, burn.go.
package inject
