package replica

import (
	"time"

	"go.etcd.io/raft/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
)

// countLateHeartbeats is called at each tick, before raft hears of it: the heartbeats of a leader
// leave with its ticks. As in etcd, one that leaves more than two intervals after the last is
// counted, for each peer. etcd's message continues "leader is overloaded likely from slow disk";
// this loop waits for no disk, so the cause was the CPU, or the process was stopped.
func (l *loop) countLateHeartbeats(now time.Time) {
	if l.state != raft.StateLeader || l.lastTick.IsZero() {
		return
	}
	expected := 2 * l.cfg.TickInterval
	exceeded := now.Sub(l.lastTick) - expected
	if exceeded <= 0 {
		return
	}
	for id := range l.node.Status().Progress {
		if id == l.cfg.ID {
			continue
		}
		l.metrics.HeartbeatsLate.Inc()
		l.logger.Warn("leader failed to send out heartbeat on time; took too long, the process got no CPU or was stopped",
			zap.String("to", command.IDText(id)), zap.Duration("heartbeat-interval", l.cfg.TickInterval),
			zap.Duration("expected-duration", expected), zap.Duration("exceeded-duration", exceeded))
	}
}
