package report

import (
	"fmt"
	"os"
	"os/exec"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
)

// walOf is where a member's raft log lies in the form of etcd's: where an etcd has it, or where the
// program BELAY_ETCDWAL writes that of a Belay. A log that cannot be read must not count as one
// without entries.
func walOf(dataDir, walDir string) string {
	if fileutil.Exist(walDir) {
		return walDir
	}
	walDir, err := os.MkdirTemp("", "wal")
	if err != nil {
		panic(err)
	}
	if out, err := exec.Command(os.Getenv("BELAY_ETCDWAL"), dataDir, walDir).CombinedOutput(); err != nil {
		panic(fmt.Sprintf("the log of %s: %v: %s", dataDir, err, out))
	}
	return walDir
}
