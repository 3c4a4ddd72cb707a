package leader

import (
	"context"
	"errors"
	"math"
	"os"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/internal/show"
)

// A full disk stops a member, since what is acknowledged must be written. So the cluster stops
// taking writes earlier, by the alarm that operators know, NOSPACE. Each member raises its own, for
// its disk and for its quota.
//
// How the alarm ends by itself: a member that raised one by itself disarms it when it has had room
// for roomLasts: its data takes at most seven eighths of the quota, and its disk has one and a half
// times the required free space. That is far enough from where the alarm is raised, so that it does
// not come and go. The cluster takes writes again when the last member has done so. An alarm raised
// by a client (see command.Itself) only a client disarms.
const (
	roomShare   = 8 // the part of the quota that must be free is 1/roomShare
	roomLasts   = 800 * time.Millisecond
	spaceLook   = 500 * time.Millisecond
	rewriteRest = 10 * time.Second // between two rewritings of the store, at least
)

// Alarms is what Space needs of the replicated state; *state.Machine implements it.
type Alarms interface {
	// Alarm says whether a member's alarm is active, and whether the member raised it itself.
	Alarm(t pb.AlarmType, member uint64) (active, itself bool)
	AlarmActive(t pb.AlarmType) bool
	Alarms() []*pb.AlarmMember
	Member(id uint64) *command.Member // nil: it is none
	QuotaBytes() int64                // negative: no quota
}

// SpaceConfig is what Space needs.
type SpaceConfig struct {
	MemberID        uint64
	DataDir, WALDir string // for log lines
	MinFreeBytes    uint64 // free on the disk, below which the alarm is raised
	Disarm          bool   // alarms may end by themselves
	Leads           func() bool
	Alarms          Alarms
	Free            func() (uint64, error)              // what the disk can take
	Seen            func(free uint64)                   // told of what Free said; nil: nobody
	Size            func() (total, inUse int64)         // of the store
	Rewrite         func()                              // has the store rewritten in the background
	Rewriting       func() bool                         // it is being rewritten
	Raise           func(context.Context) error         // proposes this member's alarm, as raised by itself
	End             func(context.Context, uint64) error // proposes that a member's alarm ends
	// Background runs a function whose context ends with the member.
	Background func(func(context.Context))
	Timeout    time.Duration // of a proposal
	Logger     *zap.Logger   // nil: none
}

// Space raises and ends NOSPACE alarms.
type Space struct {
	cfg       SpaceConfig
	room      room        // of Run's goroutine
	proposing atomic.Bool // an alarm is being raised or disarmed in the background
	gone      bool        // of Run's goroutine: the data's directory is not there any more
}

// NewSpace makes it; until Run only Exceeded raises alarms.
func NewSpace(cfg SpaceConfig) *Space {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	return &Space{cfg: cfg}
}

// Run watches the file systems under the store and the raft log, and ends alarms, until ctx ends.
func (s *Space) Run(ctx context.Context) {
	tick := time.NewTicker(spaceLook)
	defer tick.Stop()
	for {
		s.act(s.room.look(s.observe(time.Now())))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Exceeded raises the alarm because the database would be, or is, larger than its quota. It does
// not wait, and may be called from any goroutine.
func (s *Space) Exceeded() {
	s.raise(func() {
		bytes := s.cfg.Alarms.QuotaBytes()
		s.cfg.Logger.Warn("message exceeded backend quota; raising alarm",
			zap.Int64("quota-size-bytes", bytes), zap.String("quota-size", show.LogBytes(bytes)), zap.Error(errors.New("etcdserver: no space")),
			zap.String("what-to-do", s.endsBy("delete or compact, or restart with a larger --quota-backend-bytes")))
	})
}

// space is an observation of a member's space.
type space struct {
	now                 time.Time
	quota, total, inUse int64
	free, minFree       uint64
	freeKnown           bool
	active, itself      bool // this member's alarm
	rewriting           bool
	disarm              bool     // alarms may end by themselves
	leads               bool     // the rest concerns only a leader
	left                []uint64 // former members with an alarm that they raised themselves
}

func (s *Space) observe(now time.Time) space {
	o := space{
		now: now, quota: s.cfg.Alarms.QuotaBytes(), minFree: s.cfg.MinFreeBytes,
		rewriting: s.cfg.Rewriting(), disarm: s.cfg.Disarm, leads: s.cfg.Leads(),
	}
	var err error
	o.free, err = s.cfg.Free()
	if o.freeKnown = err == nil; o.freeKnown && s.cfg.Seen != nil {
		s.cfg.Seen(o.free)
	}
	s.tellGone(err)
	o.total, o.inUse = s.cfg.Size()
	o.active, o.itself = s.cfg.Alarms.Alarm(pb.AlarmType_NOSPACE, s.cfg.MemberID)
	if !s.cfg.Alarms.AlarmActive(pb.AlarmType_NOSPACE) {
		return o
	}
	for _, a := range s.cfg.Alarms.Alarms() {
		if _, itself := s.cfg.Alarms.Alarm(a.Alarm, a.MemberID); a.Alarm == pb.AlarmType_NOSPACE && itself && s.cfg.Alarms.Member(a.MemberID) == nil {
			o.left = append(o.left, a.MemberID)
		}
	}
	return o
}

// tellGone says once that the data's directory was removed or moved under the running member. Such
// a member goes on until it needs a new file, and what it acknowledges until then may end with it.
func (s *Space) tellGone(err error) {
	switch gone := errors.Is(err, os.ErrNotExist); {
	case gone && !s.gone:
		s.cfg.Logger.WithOptions(zap.AddStacktrace(zapcore.InvalidLevel)).Error("the data directory is not there any more; this member will stop when it needs a new file, and what it acknowledges until then may be lost with it",
			append(s.directories(), zap.Error(err),
				zap.String("what-to-do", "put the directory back if it was moved or unmounted; if it was removed, replace this member, or save its data elsewhere before it stops if it is the only one"))...)
	case !gone && s.gone && err == nil:
		s.cfg.Logger.Info("the data directory is there again", s.directories()...)
	}
	if err == nil || errors.Is(err, os.ErrNotExist) {
		s.gone = err != nil
	}
}

func (s *Space) directories() []zap.Field {
	return []zap.Field{zap.String("data-dir", s.cfg.DataDir), zap.String("wal-dir", s.cfg.WALDir)}
}

// room is the state between two observations.
type room struct {
	since   time.Time // there has been room at every check since; zero: there was none at the last
	rewrite time.Time // the store is not rewritten again before
}

// orders are what to do about space; of several proposals, only the first possible one is made.
type orders struct {
	raise   bool   // the disk is nearly full
	forget  uint64 // disarm the alarm of a member that was removed; 0: none
	rewrite bool   // have the store rewritten
	disarm  bool   // disarm this member's alarm

	seen space
}

// look decides. While the member's alarm is not active, the only state is when the store was last
// rewritten.
func (r *room) look(o space) orders {
	do := orders{seen: o}
	free := o.free
	if !o.freeKnown { // an unknown value raises no alarm, and keeps none from ending
		free = math.MaxInt64
	}
	do.raise = free < o.minFree && !o.active
	if o.disarm && o.leads && len(o.left) > 0 {
		do.forget = o.left[0]
	}
	if !o.active {
		r.since = time.Time{}
		return do
	}
	mark := o.quota - o.quota/roomShare
	fits := o.quota < 0 || o.total <= mark
	if !fits || free < o.minFree+o.minFree/2 {
		r.since = time.Time{}
	} else if r.since.IsZero() {
		r.since = o.now
	}
	if !fits && o.inUse <= mark && free >= uint64(o.inUse)+o.minFree && !o.rewriting && !o.now.Before(r.rewrite) {
		do.rewrite = true
		r.rewrite = o.now.Add(rewriteRest)
	}
	do.disarm = o.itself && o.disarm && !r.since.IsZero() && o.now.Sub(r.since) >= roomLasts
	return do
}

func (s *Space) act(do orders) {
	logger, seen := s.cfg.Logger, do.seen
	if do.raise {
		logger.Warn("the file system of the data directory is nearly full; raising alarm",
			zap.String("data-dir", s.cfg.DataDir), zap.String("wal-dir", s.cfg.WALDir),
			zap.Uint64("free-bytes", seen.free), zap.Uint64("minimum-free-bytes", seen.minFree),
			zap.String("what-to-do", s.endsBy("free space or enlarge the volume")))
		s.raise(func() {})
	}
	if do.forget != 0 {
		s.disarm(do.forget, func() {
			logger.Info("disarming the NOSPACE alarm of a member that was removed", zap.String("member-id", command.IDText(do.forget)))
		})
	}
	if do.rewrite {
		logger.Info("the database is full of what is no longer in use; rewriting it", SizeFields(seen.total, seen.inUse)...)
		s.cfg.Rewrite()
	}
	if do.disarm {
		s.disarm(s.cfg.MemberID, func() {
			fields := SizeFields(seen.total, seen.inUse)
			if !seen.freeKnown {
				seen.free = math.MaxInt64
			}
			logger.Info("this member has room again; disarming its NOSPACE alarm",
				append(fields, zap.Int64("quota-size-bytes", seen.quota), zap.Uint64("free-bytes", seen.free))...)
		})
	}
}

// SizeFields are the log fields for the size of the store.
func SizeFields(total, inUse int64) []zap.Field {
	return []zap.Field{
		zap.Int64("current-db-size-bytes", total), zap.String("current-db-size", show.LogBytes(total)),
		zap.Int64("current-db-size-in-use-bytes", inUse), zap.String("current-db-size-in-use", show.LogBytes(inUse)),
	}
}

// raised reports whether this member's alarm is active.
func (s *Space) raised() bool {
	active, _ := s.cfg.Alarms.Alarm(pb.AlarmType_NOSPACE, s.cfg.MemberID)
	return active
}

// raise proposes the alarm in the background, one proposal at a time: the refused clients need not
// wait for it. tell logs the reason at each attempt.
func (s *Space) raise(tell func()) {
	if s.raised() || !s.proposing.CompareAndSwap(false, true) {
		return
	}
	if s.raised() { // since the check above
		s.proposing.Store(false)
		return
	}
	tell()
	s.propose(func(ctx, stopped context.Context) {
		if err := s.cfg.Raise(ctx); err != nil && stopped.Err() == nil {
			s.cfg.Logger.Warn("failed to raise the NOSPACE alarm", zap.Error(err))
		}
	})
}

// disarm proposes in the background that the alarm of a member ends, as raise does that it begins.
func (s *Space) disarm(id uint64, tell func()) {
	if !s.proposing.CompareAndSwap(false, true) {
		return
	}
	tell()
	s.propose(func(ctx, stopped context.Context) {
		err := s.cfg.End(ctx, id)
		switch {
		case stopped.Err() != nil:
		case err != nil:
			s.cfg.Logger.Warn("failed to disarm the NOSPACE alarm", zap.Error(err))
		case s.cfg.Alarms.AlarmActive(pb.AlarmType_NOSPACE):
			var others []string
			for _, a := range s.cfg.Alarms.Alarms() {
				if a.Alarm == pb.AlarmType_NOSPACE {
					others = append(others, command.IDText(a.MemberID))
				}
			}
			s.cfg.Logger.Info("other members have no space yet: writes are refused still", zap.Strings("member-ids", others))
		default:
			s.cfg.Logger.Info("NOSPACE is over: no member has raised it; writes are taken again")
		}
	})
}

// propose runs f in the background. REQUIRES: proposing was set by the caller; it is cleared when f
// has ended.
func (s *Space) propose(f func(bounded, stopped context.Context)) {
	s.cfg.Background(func(stopped context.Context) {
		defer s.proposing.Store(false)
		ctx, cancel := context.WithTimeout(stopped, s.cfg.Timeout)
		defer cancel()
		f(ctx, stopped)
	})
}

// endsBy is an advice that makes room, and how the alarm ends then.
func (s *Space) endsBy(advice string) string {
	if s.cfg.Disarm {
		return advice + "; the NOSPACE alarm ends by itself then"
	}
	return advice + "; then disarm the NOSPACE alarm"
}
