package replica

import (
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// env is what all goroutines of a replica share: the configuration with logger and metrics, what
// the goroutines publish for each other, and the signal to stop. The only other shared things are
// the queues, and each part holds those that it uses.
type env struct {
	cfg     Config // does not change
	logger  *zap.Logger
	metrics *Metrics
	pub     published

	stopped chan struct{} // closed by Stop; every wait watches it
	running sync.WaitGroup
}

// published is what goroutines publish for all others. Each field has one writer, which is named;
// any goroutine may read, and two fields read one after the other may be from different moments.
type published struct {
	// By the loop.

	status    atomic.Pointer[Status]   // but Applied and Committed; never nil
	voters    atomic.Pointer[[]uint64] // of the configuration in force; never nil, and what it points to does not change
	committed atomic.Uint64            // does not fall; may be behind applied for a moment
	// overload: MaxUnsyncedBytes is reached, new proposals are refused.
	overload atomic.Bool
	// electionNow is the election timeout as tuned, in nanoseconds; 0: not tuned.
	electionNow atomic.Int64
	// diskReport is how the disk did at the last tick.
	diskReport atomic.Pointer[DiskReport]
	// raftApplied is the applied index as raft knows it: raftApplied <= applied.
	raftApplied atomic.Uint64
	lead        leadChange
	// passed is how many of forwarded the loop has given to raft, or holds for a leader.
	passed atomic.Uint64

	// By who takes messages.

	// forwarded is how many messages with other members' proposals have come.
	forwarded atomic.Uint64

	// By the applier.

	applied atomic.Uint64 // index of the last applied entry, visible to readers; does not fall

	// By the log's writer.

	durable     atomic.Pointer[durableMark] // nil: nothing was appended in this life
	voteDurable atomic.Uint64               // term of the last vote that is on the disk
	installing  atomic.Bool                 // a snapshot; the log's writer waits for it

	// By the flusher and the applier.

	flushed atomic.Uint64 // what of the applied entries survives a crash: flushed <= applied; does not fall
}

// durableMark means that the log, as of term, was durable up to index.
type durableMark struct{ term, index uint64 }

// now is the status, with the fields that have changed since the loop published it.
func (p *published) now() Status {
	s := *p.status.Load()
	s.Applied = p.applied.Load()
	s.Committed = max(p.committed.Load(), s.Applied)
	s.Passed = p.passed.Load() // first: what has passed has come
	s.Forwarded = p.forwarded.Load()
	return s
}

// leader is who leads as this member knows it, 0 if none.
func (p *published) leader() uint64 { return p.status.Load().Leader }

// raiseFlushed records that everything up to index survives a crash. Flusher and applier call it.
func (p *published) raiseFlushed(index uint64) {
	for old := p.flushed.Load(); old < index; old = p.flushed.Load() {
		if p.flushed.CompareAndSwap(old, index) {
			return
		}
	}
}

// noteDurable keeps how far the log is durable. Only the log's writer goroutine calls it.
func (p *published) noteDurable(responses []*raftpb.Message) {
	var mark durableMark
	if old := p.durable.Load(); old != nil {
		mark = *old
	}
	before := mark
	for _, m := range responses {
		if m.GetType() != raftpb.MsgAppResp || m.GetReject() {
			continue
		}
		switch {
		case m.GetTerm() > mark.term:
			mark = durableMark{m.GetTerm(), m.GetIndex()}
		case m.GetTerm() == mark.term:
			mark.index = max(mark.index, m.GetIndex())
		}
	}
	if mark != before {
		p.durable.Store(&mark)
	}
}

// leadChange publishes changes of leader. The loop records them.
type leadChange struct {
	mu   sync.Mutex
	next chan struct{} // closed and replaced at each change
	// elected is when the current leader was first seen, or the last one if there is none.
	elected time.Time
}

func (c *leadChange) init() { c.next = make(chan struct{}) }

// changed is closed at the next change.
func (c *leadChange) changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.next
}

// electedAt is when the current leader was first seen.
func (c *leadChange) electedAt() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.elected
}

// note is called when the leader has changed, or there is none.
func (c *leadChange) note(leader uint64) {
	c.mu.Lock()
	if leader != raft.None {
		c.elected = time.Now()
	}
	close(c.next)
	c.next = make(chan struct{})
	c.mu.Unlock()
}

// activeSince reports whether messages have been flowing to and from a member since t.
func (e *env) activeSince(id uint64, t time.Time) bool {
	since := e.cfg.Network.ActiveSince(id)
	return !since.IsZero() && since.Before(t)
}

// quorumActiveSince reports whether that holds of so many voters that they are a quorum with this
// member, if it votes.
func (e *env) quorumActiveSince(t time.Time) bool {
	voters := *e.pub.voters.Load()
	active := 0
	for _, id := range voters {
		if id == e.cfg.ID || e.activeSince(id, t) {
			active++
		}
	}
	return active > len(voters)/2
}
