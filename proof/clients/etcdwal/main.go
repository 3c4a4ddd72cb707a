// Command etcdwal writes the raft log of a Belay member in the form of an etcd's: for etcd's robustness
// tests, which read there what was asked of the members, and in which order.
//
//	etcdwal DATA-DIR WAL-DIR
//
// The member may be running: then the end of its log may be missing. WAL-DIR must have no log.
package main

import (
	"fmt"
	"os"

	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/raftlog"
	"github.com/belaydb/belay/walfile"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: etcdwal DATA-DIR WAL-DIR")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(dataDir, walDir string) error {
	log, err := raftlog.Look(datadir.PathsOf(dataDir, "").Log, nil, 0)
	if err != nil {
		return err
	}
	return walfile.Write(walDir, walfile.Start{Member: log.MemberID, Cluster: log.ClusterID, HardState: log.HardState, Tail: log.Entries})
}
