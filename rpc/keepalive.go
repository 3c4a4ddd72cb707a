package rpc

import (
	"errors"
	"math"
	"math/rand/v2"
	"time"

	"golang.org/x/net/http2"
)

// Pings, age and the end. All is as in grpc-go, whose clients and their settings depend on it:
//
//   - A client that pings more often than Options.KeepaliveMinTime, or than each two hours without a
//     call, is told `too_many_pings` with the third such ping; what was sent of a call in between
//     forgives the earlier ones.
//   - The server pings a client of which nothing has come for Options.Keepalive.Time, and closes
//     the connection when nothing comes for Timeout after that.
//   - A connection ends in two steps: a GOAWAY that still lets all streams in, with a ping, since
//     some may be on their way; when the ping is answered, or after drainTimeout, one that names the
//     last stream that is served. The connection is closed when its streams have ended.

const (
	maxStrikes       = 2
	idlePingInterval = 2 * time.Hour
	drainTimeout     = 5 * time.Second
	// lastStream is the id that lets every stream in.
	lastStream = 1<<31 - 1
)

// drainPing is the payload of the ping behind the first GOAWAY.
var drainPing = [8]byte{1, 6, 1, 8, 0, 3, 3, 9}

var (
	errPingTimeout = errors.New("rpc: a keepalive ping was not answered")
	errMaxAge      = errors.New("rpc: the connection's age and grace are over")
	errUnsettled   = errors.New("rpc: the connection was drained before its client had said anything")
)

// ping takes a PING.
func (r *reader) ping(flags http2.Flags, id uint32, p []byte) error {
	c := r.c
	if id != 0 {
		return protocolError("PING on a stream")
	}
	if len(p) != len(drainPing) {
		return connError{http2.ErrCodeFrameSize, "PING"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if flags.Has(http2.FlagPingAck) {
		if [8]byte(p) == drainPing && !c.drainDue.IsZero() {
			c.drained()
		}
		return nil
	}
	c.out = append(appendFrame(c.buffer(), len(p), http2.FramePing, http2.FlagPingAck, 0), p...)
	now, last := time.Now(), r.lastPing
	r.lastPing = now
	if c.pingOwed {
		c.pingOwed, r.strikes = false, 0
		return nil
	}
	least := c.s.opts.KeepaliveMinTime
	if len(c.streams) == 0 && !c.s.opts.PermitWithoutStream {
		least = idlePingInterval
	}
	if last.Add(least).After(now) {
		r.strikes++
	}
	if r.strikes > maxStrikes {
		return connError{http2.ErrCodeEnhanceYourCalm, "too_many_pings"}
	}
	return nil
}

// drain begins a graceful end; text is for the client. Any goroutine.
func (c *conn) drain(text string) {
	c.mu.Lock()
	if c.settled {
		c.beginDrain(text)
		c.kick()
		c.mu.Unlock()
		return
	}
	c.mu.Unlock()
	c.close(errUnsettled)
}

// beginDrain sends the first GOAWAY, once. REQUIRES: mu.
func (c *conn) beginDrain(text string) {
	if !c.drainDue.IsZero() || c.stage != stageOpen {
		return
	}
	c.drainText, c.drainDue = text, time.Now().Add(drainTimeout)
	c.goAway(lastStream, http2.ErrCodeNo, text)
	c.out = append(appendFrame(c.buffer(), len(drainPing), http2.FramePing, 0, 0), drainPing[:]...)
	if c.timer != nil {
		c.timer.Reset(drainTimeout)
	}
}

// drained sends the second GOAWAY. REQUIRES: mu.
func (c *conn) drained() {
	if c.stage != stageOpen {
		return
	}
	c.stage = stageDraining
	c.goAway(c.served, http2.ErrCodeNo, c.drainText)
	if len(c.streams) == 0 {
		c.closeAfter = true
	}
}

// keep begins to look after the connection.
func (c *conn) keep() {
	k := &c.s.opts.Keepalive
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stage == stageClosed {
		return
	}
	if k.MaxConnectionAge > 0 {
		jitter := time.Duration((rand.Float64()*2 - 1) * float64(k.MaxConnectionAge) / 10)
		c.ageDue = c.born.Add(k.MaxConnectionAge + jitter)
	}
	c.timer = time.AfterFunc(time.Until(c.nextLook(time.Now())), c.look)
}

// look does what is due.
func (c *conn) look() {
	k := &c.s.opts.Keepalive
	now := time.Now()
	c.mu.Lock()
	if c.stage == stageClosed {
		c.mu.Unlock()
		return
	}
	var end error
	if !c.graceDue.IsZero() && !now.Before(c.graceDue) {
		end = errMaxAge
	}
	if !c.ageDue.IsZero() && !now.Before(c.ageDue) {
		c.ageDue = time.Time{}
		c.beginDrain("max_age")
		if k.MaxConnectionAgeGrace > 0 {
			c.graceDue = now.Add(k.MaxConnectionAgeGrace)
		}
	}
	if k.MaxConnectionIdle > 0 && !c.idleSince.IsZero() && now.Sub(c.idleSince) >= k.MaxConnectionIdle {
		c.beginDrain("max_idle")
	}
	if !c.drainDue.IsZero() && !now.Before(c.drainDue) {
		c.drained()
	}
	c.kept.look(now)
	heard := c.heard()
	if heard.After(c.pinged) {
		c.pinged = time.Time{}
	}
	switch {
	case !c.pinged.IsZero():
		if now.Sub(c.pinged) >= k.Timeout {
			end = errPingTimeout
		}
	case now.Sub(heard) >= k.Time:
		c.out = append(appendFrame(c.buffer(), 8, http2.FramePing, 0, 0), 0, 0, 0, 0, 0, 0, 0, 0)
		c.pinged = now
	}
	c.timer.Reset(time.Until(c.nextLook(now)))
	c.kick()
	c.mu.Unlock()
	if end != nil {
		c.close(end)
	}
}

// heard is when something came last.
func (c *conn) heard() time.Time {
	if n := c.lastRead.Load(); n != 0 {
		return c.s.born.Add(time.Duration(n))
	}
	return c.born
}

// nextLook is when something may be due next, after now. REQUIRES: mu.
func (c *conn) nextLook(now time.Time) time.Time {
	k := &c.s.opts.Keepalive
	next := c.heard().Add(k.Time)
	if !c.pinged.IsZero() {
		next = c.pinged.Add(k.Timeout)
	}
	sooner := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	sooner(c.ageDue)
	sooner(c.graceDue)
	sooner(c.kept.due)
	if c.stage == stageOpen {
		sooner(c.drainDue)
	}
	if k.MaxConnectionIdle > 0 && c.drainDue.IsZero() {
		since := c.idleSince
		if since.IsZero() {
			since = now
		}
		sooner(since.Add(k.MaxConnectionIdle))
	}
	if least := now.Add(time.Millisecond); next.Before(least) {
		return least
	}
	return next
}

// leastPingTime is how often the server pings at most.
func (o *Options) leastPingTime() time.Duration {
	if o.pingOften {
		return 0
	}
	return time.Second
}

// setDefaults completes the keepalive options as grpc-go does.
func (o *Options) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&o.Keepalive.Time, 2*time.Hour)
	o.Keepalive.Time = max(o.Keepalive.Time, o.leastPingTime())
	def(&o.Keepalive.Timeout, 20*time.Second)
	def(&o.KeepaliveMinTime, 5*time.Minute)
	if o.MaxStreams == math.MaxUint32 {
		o.MaxStreams = 0
	}
	if o.MaxRecvBytes == 0 {
		o.MaxRecvBytes = 4 << 20
	}
	if o.MaxSendBytes == 0 {
		o.MaxSendBytes = math.MaxInt32
	}
	if o.MaxHeaderBytes == 0 {
		o.MaxHeaderBytes = 256 << 10
	}
	if o.StreamWindow == 0 {
		o.StreamWindow = defaultWindow
	}
	o.StreamWindow = min(max(o.StreamWindow, maxFrameBytes), defaultWindow)
	if o.LongBytes == 0 {
		o.LongBytes = 192 << 20
	}
	if o.AnswerBytes == 0 {
		o.AnswerBytes = 256 << 20
	}
	def(&o.patience, longPatience)
}
