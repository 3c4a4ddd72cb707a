package node

import (
	"net/url"

	"go.uber.org/zap"

	"github.com/belaydb/belay/timemap"
	"github.com/belaydb/belay/usage"
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

// usage makes what counts who uses the member; nil: nobody does.
func (n *Node) usage() *usage.Tracker {
	if !n.cfg.Usage {
		return nil
	}
	t := usage.New(nil)
	n.registry.MustRegister(usage.NewCollector(t, func() bool { return !n.state.Policy().Enabled() }))
	return t
}

// revisionsAt answers from the map; a member that has not begun to serve knows nothing yet.
func (n *Node) revisionsAt(query url.Values) (timemap.Answer, error) {
	if k := n.times.Load(); k != nil {
		return k.Answer(n.cfg.Name, query)
	}
	return new(timemap.Map).Answer(n.cfg.Name, query)
}
