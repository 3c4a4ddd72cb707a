package server

import (
	"context"
	"sync"

	"go.uber.org/zap"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/watch"
)

// What a call may read is judged when it begins. An open stream is judged again whenever the policy
// changes, and loses what its caller may no longer read: a role was revoked, the user deleted, the
// password changed, authentication turned on. (etcd judges a watch only when it is created.) The
// expiry of a token, or an older auth revision in it, ends nothing: streams are meant to outlive
// tokens.

// rights are those of one stream while it is open. *streamRights implements them.
type rights interface {
	// admit judges by the present rules whether the caller may read a range and, if so, calls
	// begin, which makes the range one that review judges. Any goroutine may call it.
	admit(key, end []byte, begin func()) error
	// replaced is closed when the rules are no longer those of the last review. Only the reviewing
	// goroutine may call it.
	replaced() <-chan struct{}
	// review does nothing unless the rules have changed; then it judges all ranges of the stream
	// again, and calls deny for those that the caller may no longer read. What was applied after a
	// change, and was fetched before review was called, must not be sent if deny was called for it.
	// Only one goroutine may call it.
	review(ranges func() []watch.Range, deny func(id int64, err error))
}

// accessCheck decides whether a caller may do something under a policy; nil error: yes.
type accessCheck func(*auth.Policy, auth.Identity) error

func readCheck(key, end []byte) accessCheck {
	return func(p *auth.Policy, who auth.Identity) error { return p.Read(who, key, end) }
}

// streamRights are the rights of the caller in ctx.
type streamRights struct {
	callers *authorizer
	ctx     context.Context

	// Of the goroutine that reviews.
	judged *auth.Policy // by which every range was judged that was there at the last review
	until  <-chan struct{}

	// mu is held from the last read of the policy until review can see the range, so that no policy
	// is missed by both.
	mu      sync.Mutex
	session auth.Session // of the caller that was let in first while authentication was on
}

func (a *authorizer) rightsOf(ctx context.Context) *streamRights {
	r := &streamRights{callers: a, ctx: ctx}
	if a.lax {
		return r // without judged and until it is never judged again
	}
	r.judged, r.until = a.rules.PolicyUntil()
	return r
}

// fresh reports that all has been judged by the policy of now, or need not be.
func (r *streamRights) fresh() bool { return r.callers.rules.Policy() == r.judged || r.callers.lax }

func (r *streamRights) replaced() <-chan struct{} { return r.until }

func (r *streamRights) admit(key, end []byte, begin func()) error {
	return r.admitIf(readCheck(key, end), begin)
}

// admitIf is admit with any check.
func (r *streamRights) admitIf(check accessCheck, begin func()) error {
	by, who, err := r.callers.judge(r.ctx, check)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if by.Enabled() && !r.session.Known() {
		r.remember(by, who)
	}
	for now := r.callers.rules.Policy(); now != by; now = r.callers.rules.Policy() {
		if err := r.still(now, check); err != nil {
			return err
		}
		by = now
	}
	begin()
	return nil
}

// remember makes the caller's session. REQUIRES: mu is held.
func (r *streamRights) remember(p *auth.Policy, who auth.Identity) {
	_, token := tokenOf(r.ctx)
	r.session = p.NewSession(who, token)
}

// still judges, by a later policy, a caller that an earlier one let in. REQUIRES: mu is held.
func (r *streamRights) still(p *auth.Policy, check accessCheck) error {
	if !p.Enabled() {
		return nil
	}
	if !r.session.Known() { // authentication was off: now the caller must be somebody
		who, err := r.callers.identity(r.ctx, p)
		if err != nil {
			return err
		}
		if err := check(p, who); err != nil {
			return err
		}
		r.remember(p, who)
		return nil
	}
	who, err := p.Resume(r.session)
	if err != nil {
		return err
	}
	return check(p, who)
}

// move adopts the present policy; judge says whether anything has to be judged by it. REQUIRES: mu
// is held.
func (r *streamRights) move() (p *auth.Policy, judge bool) {
	old := r.judged
	p, r.until = r.callers.rules.PolicyUntil()
	r.judged = p
	return p, p != old && p.Enabled() && !p.SameRights(old, r.session)
}

func (r *streamRights) review(ranges func() []watch.Range, deny func(id int64, err error)) {
	if r.fresh() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p, judge := r.move()
	if !judge {
		return
	}
	denied, why := 0, error(nil)
	for _, w := range ranges() {
		if err := r.still(p, readCheck(w.Key, w.End)); err != nil {
			denied, why = denied+1, err
			deny(w.ID, err)
		}
	}
	if denied > 0 {
		r.callers.logger.Info("ended watches that their client may not read any more",
			zap.Int("watches", denied), zap.Uint64("auth-revision", p.Revision()), zap.Error(why))
	}
}

// keep returns an error unless the caller that admitIf let in still passes the check. It costs
// nothing unless the policy has changed. Only the reviewing goroutine may call it.
func (r *streamRights) keep(check accessCheck) error {
	if r.fresh() {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if p, judge := r.move(); judge {
		return r.still(p, check)
	}
	return nil
}
