package leader

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/peers"
)

// CorruptionChecks says how often the leader checks. An interval of 0 disables a check.
type CorruptionChecks struct {
	Interval           time.Duration // of the periodic check
	CompactionInterval time.Duration // of the compaction check
}

// Data is the history of this member, which Corruption reads.
type Data interface {
	// Hash covers the newest revision.
	Hash(ctx context.Context) (hash uint32, compactRev, rev int64, err error)
	Position() (rev, compactRev int64)
	// CompactionHashes are the kept hashes, oldest first.
	CompactionHashes() []mvcc.CompactionHash
}

// CorruptionConfig is what Corruption needs.
type CorruptionConfig struct {
	MemberID uint64
	Checks   CorruptionChecks
	Timeout  time.Duration // of one request to a member, in addition to the time for its hash
	Raft     Raft
	Data     Data
	Members  *Members
	Raise    func(id uint64)             // raises the CORRUPT alarm, without waiting; 0: for no known member
	Outcome  func(check, outcome string) // counts
	Logger   *zap.Logger                 // nil: none
}

// Corruption makes the three checks. At most one of them runs at a time: Initial ends before Run
// begins.
type Corruption struct {
	cfg    CorruptionConfig
	others asker

	checkedRev int64 // newest compaction whose hash all members were seen to share

	// What the last compaction check could not compare, and what this one cannot: it is logged
	// once, not every minute that a member is down.
	said, saying map[string]bool
}

// asker gets the others' hashes; *Members is one, tests have another.
type asker interface {
	hashes(ctx context.Context, rev int64, of string, patience time.Duration) []peerHash
	others() []*command.Member
}

// NewCorruption makes the checks; none is made until Initial or Run.
func NewCorruption(cfg CorruptionConfig) *Corruption {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	return &Corruption{cfg: cfg, others: cfg.Members}
}

const (
	checkInitial    = "initial"
	checkPeriodic   = "periodic"
	checkCompaction = "compaction"
)

// patience is how long a peer may take for a hash that took this member `own`: the timeout alone
// would be too short for large data.
func (c *Corruption) patience(own time.Duration) time.Duration { return c.cfg.Timeout + 4*own }

func (c *Corruption) hash(ctx context.Context) (covered, error) {
	hash, compactRev, rev, err := c.cfg.Data.Hash(ctx)
	return covered{rev, compactRev, hash}, err
}

// Initial compares this member's data with its peers' before it serves. It may run once the peers'
// addresses are known; an error means that this member must not serve.
func (c *Corruption) Initial(ctx context.Context) error {
	err := c.initial(ctx)
	if err != nil {
		c.cfg.Logger.Error("checkInitialHashKV failed", zap.Error(err))
	}
	return err
}

func (c *Corruption) initial(ctx context.Context) error {
	local := command.IDText(c.cfg.MemberID)
	c.cfg.Logger.Info("starting initial corruption check", zap.String("local-member-id", local), zap.Duration("timeout", c.cfg.Timeout))
	start := time.Now()
	own, err := c.hash(ctx)
	if err != nil {
		c.cfg.Outcome(checkInitial, outcomeFailed)
		return fmt.Errorf("%s failed to fetch hash (%w)", local, err)
	}
	v := compareInitial(c.cfg.MemberID, own, c.others.hashes(ctx, own.rev, peers.HashOfState, c.patience(time.Since(start))))
	c.cfg.Outcome(checkInitial, v.outcome)
	say(c.cfg.Logger, v.lines)
	if v.unfit {
		err := fmt.Errorf("%s found data inconsistency with peers", local)
		if v.alone {
			err = OutlierError{err}
		}
		return err
	}
	return nil
}

// An OutlierError is the initial check's if a quorum of the others have the same data, and this member
// has not.
type OutlierError struct{ error }

// Run makes the two checks of a leader, one after the other, until ctx ends.
func (c *Corruption) Run(ctx context.Context) {
	var periodic, compaction <-chan time.Time
	if every := c.cfg.Checks.Interval; every > 0 {
		c.cfg.Logger.Info("enabled corruption checking", zap.String("local-member-id", command.IDText(c.cfg.MemberID)), zap.Duration("interval", every))
		tick := time.NewTicker(every)
		defer tick.Stop()
		periodic = tick.C
	}
	if every := c.cfg.Checks.CompactionInterval; every > 0 {
		tick := time.NewTicker(every)
		defer tick.Stop()
		compaction = tick.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-periodic:
			if leads(c.cfg.Raft) {
				if err := c.periodic(ctx); err != nil && ctx.Err() == nil {
					c.cfg.Logger.Warn("failed to check hash KV", zap.Error(err))
				}
			}
		case <-compaction:
			if leads(c.cfg.Raft) {
				c.compaction(ctx)
			}
		}
	}
}

// periodic compares the newest revision of all members. REQUIRES: this member leads, or the result
// is of little use.
func (c *Corruption) periodic(ctx context.Context) error {
	v, err := c.compareNewest(ctx)
	if err == nil && len(v.culprits) > 0 {
		// Once more: only a lasting difference is worth stopping the cluster for.
		v, err = c.compareNewest(ctx)
	}
	if err != nil {
		c.cfg.Outcome(checkPeriodic, outcomeFailed)
		return err
	}
	c.announce(v)
	c.cfg.Outcome(checkPeriodic, v.outcome)
	return nil
}

// compareNewest compares the newest revision once.
func (c *Corruption) compareNewest(ctx context.Context) (v verdict, err error) {
	o := newest{local: c.cfg.MemberID}
	start := time.Now()
	if o.first, err = c.hash(ctx); err != nil {
		return v, err
	}
	o.peers = c.others.hashes(ctx, o.first.rev, peers.HashOfState, c.patience(time.Since(start)))
	// What a peer had applied when it answered is committed; after the barrier it is applied here.
	bounded, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	err = c.cfg.Raft.ReadBarrier(bounded)
	cancel()
	if err != nil {
		return v, err
	}
	if o.second, err = c.hash(ctx); err != nil {
		return v, err
	}
	o.rev, o.compactRev = c.cfg.Data.Position()
	return compareNewest(o), nil
}

// compaction compares the hashes that members kept of their last compactions,
// the newest that all of them have first.
func (c *Corruption) compaction(ctx context.Context) {
	hashes := slices.DeleteFunc(c.cfg.Data.CompactionHashes(), func(h mvcc.CompactionHash) bool { return h.Revision <= c.checkedRev })
	if len(hashes) == 0 || len(c.others.others()) == 0 {
		return // once a minute, by default: silence is enough
	}
	c.cfg.Logger.Info("starting compact hash check", zap.String("local-member-id", command.IDText(c.cfg.MemberID)), zap.Duration("timeout", c.cfg.Timeout))
	slices.Reverse(hashes)
	c.saying = map[string]bool{}
	defer func() { c.said = c.saying }()
	count, outcome := 0, outcomeEqual
	for _, h := range hashes {
		if ctx.Err() != nil {
			return
		}
		answers := c.others.hashes(ctx, h.Revision, peers.HashOfCompaction, c.cfg.Timeout)
		if len(answers) == 0 {
			continue
		}
		count++
		v := compareCompaction(c.cfg.MemberID, h, answers)
		c.announce(v)
		if outcome = v.outcome; outcome == outcomeEqual {
			c.checkedRev = max(c.checkedRev, h.Revision)
		}
		if outcome != outcomeIncomplete {
			break
		}
	}
	c.cfg.Logger.Info("finished compaction hash check", zap.Int("number-of-hashes-checked", count))
	if count > 0 {
		c.cfg.Outcome(checkCompaction, outcome)
	}
}

// announce logs what was found and raises the alarms for it.
func (c *Corruption) announce(v verdict) {
	lines := slices.DeleteFunc(v.lines, func(l line) bool {
		if l.once == "" {
			return false
		}
		c.saying[l.once] = true
		return c.said[l.once]
	})
	say(c.cfg.Logger, lines)
	for _, id := range v.culprits {
		c.cfg.Raise(id)
	}
}
