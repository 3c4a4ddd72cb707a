package datadir

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"go.uber.org/zap"
)

// A Misfit is the reason why a directory cannot hold a member's data.
type Misfit struct {
	Says   string // etcd's text
	Fields []zap.Field
	Err    error // for a person
	Code   int   // what etcd exits with
}

// CheckRoot warns about files that do not belong in a data directory; nil: it can be one, or does
// not exist yet. logger may be nil.
func CheckRoot(dir string, logger *zap.Logger) *Misfit {
	if logger == nil {
		logger = zap.NewNop()
	}
	d, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var names []string
	if err == nil {
		defer d.Close()
		names, err = d.Readdirnames(-1)
	}
	if err != nil {
		return &Misfit{"failed to list data directory", []zap.Field{zap.String("dir", dir), zap.Error(err)},
			fmt.Errorf("cannot access data directory: %w", err), 1}
	}
	slices.Sort(names)
	for _, name := range names {
		if name != "member" && name != "proxy" && name != healingFile && !strings.HasPrefix(name, damagedPrefix) {
			logger.Warn("found invalid file under data directory", zap.String("filename", name), zap.String("data-dir", dir))
		}
	}
	member, proxy := slices.Contains(names, "member"), slices.Contains(names, "proxy")
	switch {
	case proxy && member:
		return &Misfit{"invalid datadir; both member and proxy directories exist", nil,
			fmt.Errorf("%s is not a data directory: both member and proxy are in it, proxy is of etcd 2", dir), 1}
	case proxy:
		return &Misfit{"v2 http proxy has already been deprecated in 3.6", []zap.Field{zap.String("dir-type", "proxy")},
			fmt.Errorf("%s is not a data directory: proxy in it is of etcd 2; choose another --data-dir", dir), 2}
	}
	return nil
}
