package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/evidence"
	"github.com/belaydb/belay/raftlog"
)

// StateMachine is the replicated state as the replica uses it. All methods but
// Flush are called by the applier goroutine only.
type StateMachine interface {
	// Apply applies committed entries in index order, none of them a member
	// change, and returns one result for each.
	Apply(entries []command.Entry) []command.Result
	// CheckChange reports whether a member change can be applied; its answer depends only on the
	// replicated state. The raft loop calls it, too.
	CheckChange(c *command.Change) error
	// ApplyChange applies one member change entry.
	ApplyChange(e command.Entry) command.Result
	Applied() (index, term uint64)
	ConfState() *raftpb.ConfState
	// Flush starts to make everything applied so far durable: when done closes, everything up to
	// index survives a crash. It may wait for a disk that has stalled, until ctx ends.
	Flush(ctx context.Context) (index uint64, done <-chan struct{}, err error)
}

// Segments are those of the log that the store keeps for the values in them.
type Segments interface {
	// DropSegments says from which segment on the log may have values of entries that are not flushed.
	// What is kept of earlier ones, and holds no value that is needed, can go.
	DropSegments(from command.Segment)
}

// Network carries messages to the other members.
type Network interface {
	// Send never blocks: what cannot be queued is dropped and reported by
	// Replica.ReportUnreachable.
	Send(msgs []*raftpb.Message)
	// ActiveSince says since when messages flow to and from a peer; zero: they do not.
	ActiveSince(id uint64) time.Time
}

// DefaultFlushEntries is how many entries lie between two flushes of the applied
// state at most, where Config does not say.
const DefaultFlushEntries = 100_000

// defaultFlushBytes is the same in bytes of log. It is less than what a memory table of the store
// holds of large values (32 MiB), so that a flush of them begins before one table is full, and what
// comes meanwhile finds room.
const defaultFlushBytes = 24 << 20

// Config is what New needs.
type Config struct {
	ID    uint64
	Log   *raftlog.Log // has adopted State's applied index
	State StateMachine
	// Segments, if not nil, hears of each flush.
	Segments Segments
	Network  Network
	Logger   *zap.Logger
	Metrics  *Metrics
	Settings

	// StoreDisk reports the state of the disk under State; nil: only State's own progress is
	// watched. The loop calls it at each tick; it must not wait.
	StoreDisk func() StoreDisk
	// PeerDisks asks the other members for the state of their disks; nil: nobody is asked, and so
	// leadership is not handed over because of a disk.
	PeerDisks PeerDisks
	// RoundTrips measures them; nil: only the gaps count.
	RoundTrips RoundTrips
	// Evidence gets what the loop observes about itself; nil: nothing is recorded.
	Evidence *evidence.Ring

	// MembersChanged, if set, is called by the applier after a member change and
	// after a snapshot was installed, and again, by another goroutine, when the change
	// is durable: a removal counts from then on, see RemovalPending.
	MembersChanged func()
	// Failed is called once when the replica cannot go on (state machine or
	// log failed to install); it must stop the process.
	Failed func(error)
}

// Settings are what was chosen about a replica; node fills them from its own at one place.
// Durations and sizes have the defaults that their comments name when zero.
type Settings struct {
	TickInterval  time.Duration // heartbeat interval; default 100 ms
	ElectionTicks int           // election timeout in ticks; default 10
	PreVote       bool
	// AdvanceTicks makes the first election come early: a member that starts
	// with peers campaigns within about one heartbeat instead of one election
	// timeout unless it hears from a leader. PreVote keeps that harmless.
	AdvanceTicks bool
	// RequestTimeout bounds a proposal's and a read barrier's wait; default
	// 5 s and two election timeouts, as etcd.
	RequestTimeout time.Duration
	// MaxRequestBytes bounds one encoded proposal; default 1.5 MiB.
	MaxRequestBytes int
	// MaxUnsyncedBytes bounds the log in memory that its disk does not have, and the log in memory
	// that the store does not have durably because it is not committed, not applied or not flushed.
	// Beyond it proposals are refused with ErrTooManyRequests, forwarded ones too, and a follower
	// takes no more appends; for a follower uncommitted entries do not count. Member changes are
	// accepted: they may be the way out. See bounds.go. Default 512 MiB.
	MaxUnsyncedBytes int64
	// DiskStallHandOver is how long the log's writer may make no progress (a sync
	// in flight, mostly), or the store, until a leader hands leadership over to a
	// member whose disk, or store, works. Default 5 s; negative: never.
	DiskStallHandOver time.Duration
	// TuneTimeouts lets the election timeout follow the measured round trips and the
	// gaps between heartbeats, from the configured one up; see tuning.go.
	TuneTimeouts bool
	// FlushBytes and FlushEntries say how much log may lie between the durable applied index and
	// the applied index before the flusher asks for a flush. They bound the replay at a start after
	// a crash. Of large values that stay in the log an eighth of the bytes counts, but never is it more
	// than half of MaxUnsyncedBytes with all of theirs. Defaults 24 MiB (a quarter of
	// MaxUnsyncedBytes if that is less), 100,000.
	FlushBytes   int64
	FlushEntries uint64
	// KeepBytes is how much log is kept in memory for followers that lag, below what the
	// state machine needs; a follower further behind gets what is on disk (HoldDiskBytes) or
	// a snapshot. While no follower is behind an eighth of it is in memory and the rest on disk.
	// Default 32 MiB.
	KeepBytes int64
	// HoldBytes is the same while an active follower gets a snapshot, and until it has caught up to
	// within half of KeepBytes: it will need what is written in the meantime. The log's own bound
	// in memory holds as well. Default 256 MiB.
	HoldBytes int64
	// HoldDiskBytes is how much more of the log a leader keeps on disk, in whole segments, for
	// followers that are behind, as far as they need it and the log takes no more than a quarter of
	// the free space: they get it from there, and not a snapshot. It must hold what is written
	// while a snapshot of the whole state is sent and installed. Default 16 GiB.
	HoldDiskBytes int64
}

func (c *Config) setDefaults() error {
	if c.ID == 0 || c.Log == nil || c.State == nil || c.Network == nil {
		return errors.New("replica: Config needs ID, Log, State and Network")
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics(nil)
	}
	if c.TickInterval == 0 {
		c.TickInterval = 100 * time.Millisecond
	}
	if c.ElectionTicks == 0 {
		c.ElectionTicks = 10
	}
	if c.RequestTimeout == 0 {
		c.RequestTimeout = 5*time.Second + 2*c.electionTimeout()
	}
	if c.MaxRequestBytes == 0 {
		c.MaxRequestBytes = 1536 << 10
	}
	if c.MaxUnsyncedBytes == 0 {
		c.MaxUnsyncedBytes = 512 << 20
	}
	if c.DiskStallHandOver == 0 {
		c.DiskStallHandOver = defaultDiskStallHandOver
	}
	if c.FlushBytes == 0 {
		c.FlushBytes = min(defaultFlushBytes, c.MaxUnsyncedBytes/4)
	}
	if c.FlushEntries == 0 {
		c.FlushEntries = DefaultFlushEntries
	}
	if c.KeepBytes == 0 {
		c.KeepBytes = 32 << 20
	}
	if c.HoldBytes == 0 {
		c.HoldBytes = 256 << 20
	}
	if c.HoldDiskBytes == 0 {
		c.HoldDiskBytes = 16 << 30
	}
	if c.Failed == nil {
		c.Failed = func(err error) { panic(err) }
	}
	return nil
}

func (c *Config) electionTimeout() time.Duration {
	return time.Duration(c.ElectionTicks) * c.TickInterval
}

// Replica is one member of the raft group. Its exported methods may be called
// from any goroutine between Start and Stop.
type Replica struct {
	*env

	// Queues, and what is common to those at their ends.
	inbox   inbox   // to the loop
	window  window  // of large proposals, before the inbox
	waiters waiters // proposals without a result: of clients, the applier, the keeper and the loop
	buffers buffers // of clients and the loop
	reads   reads   // of readers, the loop and the applier

	// Each of these has a goroutine, beside the loop.
	applier applier
	keeper  keeper
	flusher flusher

	proposer proposer
	work     storeWork // of applier and flusher, seen by the loop
	stopOnce sync.Once
}

// Status is what the loop last published of raft's state. Applied, Committed, Forwarded and Passed
// are newer: they are read at the call.
type Status struct {
	ID        uint64
	Leader    uint64 // 0: none known
	Term      uint64
	Vote      uint64
	State     raft.StateType
	Applied   uint64
	Committed uint64
	// Transferee is the member that leadership is being handed to, 0 if none.
	Transferee uint64
	// Forwarded is how many messages with other members' proposals have come, and Passed how many of
	// them raft has had: where another member leads, they were passed on. Passed <= Forwarded.
	Forwarded, Passed uint64
}

// IsLeader reports whether this member believes it leads. A member that was paused may believe so
// while another leads; only ReadBarrier and a committed proposal prove it.
func (s Status) IsLeader() bool { return s.State == raft.StateLeader }

// New prepares a replica over a log and a state machine that agree (the log
// has adopted the state machine's applied index). Nothing runs until Start.
func New(cfg Config) (*Replica, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	e := &env{cfg: cfg, logger: cfg.Logger, metrics: cfg.Metrics, stopped: make(chan struct{})}
	r := &Replica{env: e}
	r.metrics.ElectionTimeout.Set(cfg.electionTimeout().Seconds())
	r.metrics.Heartbeat.Set(cfg.TickInterval.Seconds())
	r.pub.lead.init()
	r.inbox.init()
	r.window.init(r)
	r.waiters.init(cfg.Metrics, &r.window)
	r.proposer = proposer{env: e, ids: command.NewIDGenerator(cfg.ID), inbox: &r.inbox, waiters: &r.waiters, buffers: &r.buffers}
	r.applier.init(r)
	r.keeper.init(e, &r.waiters)
	r.flusher.init(e, &r.work, &r.window)
	index, term := cfg.State.Applied()
	r.pub.applied.Store(index)
	r.pub.raftApplied.Store(index)
	r.pub.flushed.Store(index) // an opened store shows what is durable
	r.pub.status.Store(&Status{ID: cfg.ID, Applied: index})
	r.pub.voters.Store(&[]uint64{})
	if index > 0 {
		cfg.Log.SetSnapshotMeta(index, term, cfg.State.ConfState())
	}
	return r, nil
}

// Start runs the replica's goroutines.
func (r *Replica) Start() error {
	node, err := newRawNode(r.env)
	if err != nil {
		return fmt.Errorf("replica: %w", err)
	}
	r.running.Add(4)
	go func() { defer r.running.Done(); newLoop(r, node).run() }()
	go func() { defer r.running.Done(); r.applier.run() }()
	go func() { defer r.running.Done(); r.keeper.run() }()
	go func() { defer r.running.Done(); r.flusher.run() }()
	return nil
}

// Stop ends the goroutines; every waiting call returns ErrStopped. It does not
// close the log nor the state machine.
func (r *Replica) Stop() {
	r.stopOnce.Do(func() { close(r.stopped) })
	r.running.Wait()
	r.waiters.closeAll()
	r.reads.closeAll(nil)
}

// Stopped is closed once Stop was called.
func (r *Replica) Stopped() <-chan struct{} { return r.stopped }

// Status returns the member's raft state.
func (r *Replica) Status() Status { return r.pub.now() }

// Role returns the member's raft state and term, of one moment.
func (r *Replica) Role() (raft.StateType, uint64) {
	st := r.pub.now()
	return st.State, st.Term
}

// ID is this member's.
func (r *Replica) ID() uint64 { return r.cfg.ID }

// Leader returns the leader's id as this member knows it, 0 if none.
func (r *Replica) Leader() uint64 { return r.pub.leader() }

// Term returns the current term.
func (r *Replica) Term() uint64 { return r.pub.status.Load().Term }

// IsLeader reports whether this member believes it leads; see Status.IsLeader.
func (r *Replica) IsLeader() bool { return r.pub.status.Load().IsLeader() }

// AppliedIndex is the index of the newest applied entry.
func (r *Replica) AppliedIndex() uint64 { return r.pub.applied.Load() }

// CommittedIndex is the index of the newest entry known to be committed.
func (r *Replica) CommittedIndex() uint64 { return max(r.pub.committed.Load(), r.pub.applied.Load()) }

// LeaderChanged returns a channel that is closed at the next change of leader,
// to or from none included.
func (r *Replica) LeaderChanged() <-chan struct{} { return r.pub.lead.changed() }

// NextID returns a request id that is unique in the cluster; server takes lease ids from it.
func (r *Replica) NextID() uint64 { return r.proposer.ids.Next() }

// ReportUnreachable tells raft that messages to a member are being lost, so
// that it probes instead of streaming. Any goroutine.
func (r *Replica) ReportUnreachable(id uint64) {
	r.inbox.request(unreachable{id})
}

// unreachable: messages to a member are being lost.
type unreachable struct{ id uint64 }

func (u unreachable) handle(l *loop) { l.node.ReportUnreachable(u.id) }

// ReportSnapshot tells raft how sending a snapshot ended. Any goroutine.
func (r *Replica) ReportSnapshot(id uint64, ok bool) {
	status := raft.SnapshotFinish
	if !ok {
		status = raft.SnapshotFailure
	}
	r.inbox.request(snapshotSent{id, status})
}

// snapshotSent: a snapshot to a member has been sent, or could not be.
type snapshotSent struct {
	id     uint64
	status raft.SnapshotStatus
}

func (s snapshotSent) handle(l *loop) { l.node.ReportSnapshot(s.id, s.status) }

// Progress is how far a member's log is known to match the leader's; ok is
// false when this member does not lead or does not know id.
func (r *Replica) Progress(ctx context.Context, id uint64) (match uint64, ok bool) {
	q := &progressRequest{id: id}
	if r.inbox.ask(ctx, r.stopped, q) != nil {
		return 0, false
	}
	return q.match, q.known
}

// progressRequest asks how far a member's log matches the leader's.
type progressRequest struct {
	id    uint64
	match uint64
	known bool // this member leads and knows id
}

func (q *progressRequest) handle(l *loop) {
	if !l.raftLeads() {
		return
	}
	if p, found := l.node.Status().Progress[q.id]; found {
		q.match, q.known = p.Match, true
	}
}

// learnerReadyPercent is how far a learner's log must have come, of what is
// committed, before it may be promoted (etcd: readyPercentThreshold).
const learnerReadyPercent = 90

// LearnerReady returns nil when the learner id has caught up enough with what is
// committed to become a voter, ErrLearnerNotReady when not, ErrNotLeader when this member does not
// lead, ErrMemberNotFound when raft does not know id.
func (r *Replica) LearnerReady(ctx context.Context, id uint64) error {
	if !r.IsLeader() {
		return ErrNotLeader
	}
	match, ok := r.Progress(ctx, id)
	if !ok {
		return ErrMemberNotFound
	}
	// Not this leader's own Match, as in etcd: that is what its disk has, which may stall while
	// others commit.
	own := r.CommittedIndex()
	if match*100 < own*learnerReadyPercent {
		r.logger.Error("rejecting promote learner: learner is not ready",
			zap.Float64("learner-ready-percent", float64(match)/float64(own)), zap.Float64("ready-percent-threshold", learnerReadyPercent/100.),
			zap.String("requested-member-promote-id", command.IDText(id)))
		return ErrLearnerNotReady
	}
	return nil
}
