package datadir

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/coreos/go-semver/semver"

	"github.com/belaydb/belay/snapshotfile"
	"github.com/belaydb/belay/walfile"
)

// ChangeSchema makes the data directory of a stopped etcd member one of another storage version, as
// `etcdutl migrate` does. wait is how long the database may be locked by another process; 0: for
// ever. force writes the version whatever the rules say.
//
// Errors: those of snapshotfile.ChangeSchema; the log has no snapshot yet; the data is Belay's, which
// has no storage version.
func ChangeSchema(dataDir string, target semver.Version, wait time.Duration, force bool) (c snapshotfile.SchemaChange, err error) {
	paths := PathsOf(dataDir, "")
	if isBelay(paths.Member) {
		return c, fmt.Errorf("%s is data of Belay, which has no storage version: every version of Belay reads it. "+
			"To make it etcd's: belay util migrate --data-dir %s --to-etcd=%d.%d", dataDir, dataDir, target.Major, target.Minor)
	}
	db, wal := filepath.Join(paths.Member, etcdsFolder, "db"), filepath.Join(paths.Member, "wal")
	if _, err := os.Stat(db); err != nil { // etcdutl names this one first
		return c, err
	}
	log, err := walfile.Read(wal, math.MaxUint64)
	if err != nil {
		return c, err
	}
	if log.Snapshot.Index == 0 && log.First > 1 {
		return c, errors.New("the log has no snapshot that it could be read from")
	}
	least := func() (semver.Version, error) {
		since, err := walfile.Read(wal, log.Snapshot.Index)
		if err != nil {
			return semver.Version{}, err
		}
		return walfile.LeastVersion(since.Tail)
	}
	return snapshotfile.ChangeSchema(db, wait, target, force, least)
}
