package load

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// An Operation does one thing and returns when it is done. n counts the operations of all clients,
// from 0; class says which of Options.Classes it was. An error that lies in ctx having ended is not
// counted.
type Operation func(ctx context.Context, n int64) (class int, err error)

// Options say how operations are done.
type Options struct {
	Clients int
	// Total is how many operations are done after the warming up; 0: as many as fit into Duration.
	Total int64
	// Duration ends a run; 0: Total does.
	Duration time.Duration
	// WarmUp is how long operations are done before any is counted.
	WarmUp time.Duration
	// Rate is operations a second, of all clients; 0: as many as are answered.
	Rate float64
	// Open makes operation n due n/Rate after the start, and counts its latency from then.
	Open bool
	// Timeout is how long an operation may take; 0: for ever.
	Timeout time.Duration
	// Classes are the names of what is counted apart; nil: one without a name.
	Classes []string
	// Describe is the text under which an error is counted; nil: the error's own.
	Describe func(error) string
	// Tick is called about once a second with what has ended since, and with how many operations
	// have in all; nil: nobody is told.
	Tick func(now Second, done int64)
	// Begin and End are called where what is counted begins and ends; End before the clients of a run
	// that a Duration ends have stopped. nil: nobody is told. An error of Begin ends the run.
	Begin func(context.Context) error
	End   func(context.Context)
}

// Validate says what is wrong.
func (o Options) Validate() error {
	switch {
	case o.Clients < 1:
		return fmt.Errorf("load: %d clients", o.Clients)
	case o.Total < 0, o.Duration < 0, o.WarmUp < 0, o.Rate < 0, o.Timeout < 0:
		return errors.New("load: a negative number")
	case o.Total == 0 && o.Duration == 0:
		return errors.New("load: neither a total nor a duration ends the run")
	case o.Open && o.Rate == 0:
		return errors.New("load: an open loop needs a rate")
	}
	return nil
}

// A Result is what a run has counted.
type Result struct {
	Classes []*Class
	Seconds []Second // of all classes
	Begin   time.Time
	Elapsed time.Duration // what is counted ended within it
	// Unanswered, of an open loop: how many operations were due and had not ended when the run
	// did, and since when the oldest of them was due.
	Unanswered int64
	Oldest     time.Duration
	// Interrupted: the context ended before the run was through.
	Interrupted bool
	// GaveUp is set when nothing but errors came: it is the last one.
	GaveUp error
}

// N is how many operations succeeded, of all classes.
func (r *Result) N() (n int64) {
	for _, c := range r.Classes {
		n += c.Counts.N()
	}
	return n
}

// Whole are the counts of all classes together.
func (r *Result) Whole() *Counts {
	whole := NewCounts()
	for _, c := range r.Classes {
		whole.Merge(c.Counts)
	}
	return whole
}

// Hopeless is how many errors, besides ten of each client, without one success end a run.
const hopeless = 1000

// Run does operations until the run is through or ctx ends. newClient(i) makes client i's operation.
func Run(ctx context.Context, o Options, newClient func(client int) (Operation, error)) (*Result, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Classes == nil {
		o.Classes = []string{""}
	}
	if o.Describe == nil {
		o.Describe = error.Error
	}
	operations := make([]Operation, o.Clients)
	for i := range operations {
		op, err := newClient(i)
		if err != nil {
			return nil, err
		}
		operations[i] = op
	}
	parent := ctx
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	r := &run{Options: o, rec: newRecorder(o.Classes), start: time.Now(), stop: stop}
	r.begin = r.start.Add(o.WarmUp)
	r.end = time.Unix(math.MaxInt32<<8, 0)
	if o.Duration > 0 {
		r.end = r.begin.Add(o.Duration)
	}
	r.pace.Store(r.start.UnixNano())
	var clients sync.WaitGroup
	r.oldest = make([]atomic.Int64, o.Clients)
	for i, op := range operations {
		clients.Go(func() { r.client(ctx, i, op) })
	}
	ended := make(chan struct{})
	go func() {
		clients.Wait()
		close(ended)
	}()
	err := r.watch(ctx, ended)
	stop(nil)
	<-ended
	if err != nil {
		return nil, err
	}
	r.rec.drain()
	res := r.result
	res.Interrupted = parent.Err() != nil
	res.Classes = r.rec.all
	if failed := r.lastError.Load(); !r.succeeded.Load() && failed != nil && r.failures.Load() >= r.patience() {
		res.GaveUp = *failed
	}
	return &res, nil
}

// run is one Run.
type run struct {
	Options
	rec               *recorder
	start, begin, end time.Time
	stop              context.CancelCauseFunc

	sequence atomic.Int64 // operations that were begun
	counted  atomic.Int64 // of those that Total counts
	done     atomic.Int64 // that have ended and are counted
	pace     atomic.Int64 // closed loop with a rate: when the next one may begin, Unix nanoseconds

	oldest []atomic.Int64 // open loop: since when each client's operation is due, Unix nanoseconds; 0: it has none

	failures  atomic.Int64
	succeeded atomic.Bool
	lastError atomic.Pointer[error]

	result Result
}

func (r *run) patience() int64 { return hopeless + 10*int64(r.Clients) }

// client does operations until there are no more to be done.
func (r *run) client(ctx context.Context, me int, op Operation) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		n := r.sequence.Add(1) - 1
		due := r.due(n)
		if !sleepUntil(ctx, timer, due) {
			return
		}
		start := time.Now()
		if start.After(r.end) {
			return
		}
		// What Total counts is what began after the warming up; else what ends after it.
		counts := !start.Before(r.begin)
		if r.Total > 0 && counts && r.counted.Add(1) > r.Total {
			return
		}
		if r.Open {
			r.oldest[me].Store(due.UnixNano())
			start = due
		}
		class, err := r.one(ctx, op, n)
		now := time.Now()
		if now.After(r.end) || ctx.Err() != nil {
			return
		}
		r.oldest[me].Store(0)
		if r.Total == 0 {
			counts = !now.Before(r.begin)
		}
		if err != nil {
			if counts {
				r.rec.fail(me, class, r.Describe(err))
				r.done.Add(1)
			}
			r.lastError.Store(&err)
			if r.failures.Add(1) >= r.patience() && !r.succeeded.Load() {
				r.stop(err)
				return
			}
			continue
		}
		if !r.succeeded.Load() {
			r.succeeded.Store(true)
		}
		if counts {
			r.rec.add(me, class, now.Sub(start))
			r.done.Add(1)
		}
	}
}

func (r *run) one(ctx context.Context, op Operation, n int64) (int, error) {
	if r.Timeout == 0 {
		return op(ctx, n)
	}
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	return op(ctx, n)
}

// due is when operation n may begin; the zero time: at once.
func (r *run) due(n int64) time.Time {
	if r.Rate == 0 {
		return time.Time{}
	}
	interval := float64(time.Second) / r.Rate
	if r.Open {
		return r.start.Add(time.Duration(float64(n) * interval))
	}
	for {
		next := r.pace.Load()
		at := max(next, time.Now().UnixNano())
		if r.pace.CompareAndSwap(next, at+int64(interval)) {
			return time.Unix(0, at)
		}
	}
}

// sleepUntil reports whether the time came before the context ended.
func sleepUntil(ctx context.Context, timer *time.Timer, at time.Time) bool {
	wait := time.Until(at)
	if at.IsZero() || wait <= 0 {
		return ctx.Err() == nil
	}
	timer.Reset(wait)
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// watch takes the seconds from the recorder until the run ends.
func (r *run) watch(ctx context.Context, ended <-chan struct{}) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	wait := func(until time.Time) bool {
		timer.Reset(time.Until(until))
		select {
		case <-timer.C:
			return true
		case <-ended:
		case <-ctx.Done():
		}
		return false
	}
	going := wait(r.begin)
	if going && r.Begin != nil {
		if err := r.Begin(ctx); err != nil {
			return err
		}
	}
	from := r.begin
	for k := 1; going; k++ {
		until := r.begin.Add(time.Duration(k) * time.Second)
		if until.After(r.end) {
			until = r.end
		}
		going = wait(until) && until.Before(r.end)
		now := time.Now()
		r.second(from, now)
		from = now
	}
	r.result.Begin, r.result.Elapsed = r.begin, max(from.Sub(r.begin), 0)
	if r.Open {
		r.unanswered(from)
	}
	if r.End != nil {
		r.End(ctx)
	}
	return nil
}

func (r *run) second(from, now time.Time) {
	s := r.rec.take(from, now.Sub(from))
	r.result.Seconds = append(r.result.Seconds, s)
	if r.Tick != nil {
		r.Tick(s, r.done.Load())
	}
}

// unanswered counts what is due at the end of an open loop and has not ended: the clients' operations,
// and those for which no client was free.
func (r *run) unanswered(now time.Time) {
	since := now
	for i := range r.oldest {
		if at := r.oldest[i].Load(); at != 0 {
			r.result.Unanswered++
			if at := time.Unix(0, at); at.Before(since) {
				since = at
			}
		}
	}
	due := int64(now.Sub(r.start).Seconds() * r.Rate)
	if r.Total == 0 {
		r.result.Unanswered += max(due-r.sequence.Load(), 0)
	}
	r.result.Oldest = now.Sub(since)
}
