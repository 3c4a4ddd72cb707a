package node

import (
	"net/url"

	"go.uber.org/zap"

	"github.com/belaydb/belay/timemap"
)

// startTimes begins to keep when which revision was the newest. The file is on a real file system
// only, as the record of events is.
func (n *Node) startTimes() {
	dir := ""
	if n.cfg.onDisk() {
		dir = n.cfg.paths().Member
	}
	n.times.Store(timemap.Keep(dir, n.kv.Revision, n.logger))
}

func (n *Node) stopTimes() {
	if k := n.times.Load(); k != nil {
		if err := k.Close(flushTimeout); err != nil {
			n.logger.Warn("when the last revisions were written is not on disk", zap.Error(err))
		}
	}
}

// revisionsAt answers from the map; a member that has not begun to serve knows nothing yet.
func (n *Node) revisionsAt(query url.Values) (timemap.Answer, error) {
	if k := n.times.Load(); k != nil {
		return k.Answer(n.cfg.Name, query)
	}
	return new(timemap.Map).Answer(n.cfg.Name, query)
}
