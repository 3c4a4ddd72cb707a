package peers

import (
	"errors"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// LineBeat is how often an end of a Line says that it is there, if it says nothing else.
	LineBeat = time.Second
	// LineSilence is how long the other end may say nothing, or take nothing, until it is given up.
	LineSilence = 5 * time.Second
	// MaxLineBytes bounds what waits in an end to be written, in bytes.
	MaxLineBytes = 1 << 20
	// lineReadBytes is how much is read at a time.
	lineReadBytes = 32 << 10
)

var (
	// ErrLineFull is the error of Append for a frame that there is no room for.
	ErrLineFull = errors.New("the other member takes too little of what it is sent")
	// ErrLineUnused is why a Line ended that its owner wants no more.
	ErrLineUnused = errors.New("the connection is not needed any more")
	errLineSilent = errors.New("the other member says nothing")
	errLineStuck  = errors.New("the other member takes nothing")
)

// A Line is one end of a connection on which frames of fixed sizes go both ways. What is appended
// while a write is under way leaves in the next one. Each end hears of the other at least once a
// LineBeat, so that one that hangs, or cannot be reached, is noticed.
//
// Append, Flush, Close and Err may be called from any goroutine, Run once.
type Line struct {
	conn io.ReadWriteCloser
	idle []byte // the frame that says nothing
	born time.Time

	heard   atomic.Int64 // when something came, since born
	writing atomic.Int64 // when the write that is under way began, since born; 0: none is
	wrote   atomic.Bool  // since the last beat
	wake    chan struct{}
	done    chan struct{} // closed when err is set

	mu         sync.Mutex
	out, spare []byte
	err        error
}

// NewLine makes an end of a connection, which it owns. idle is the frame that says nothing.
func NewLine(conn io.ReadWriteCloser, idle []byte) *Line {
	return &Line{conn: conn, idle: idle, born: time.Now(), wake: make(chan struct{}, 1), done: make(chan struct{})}
}

// Append adds frames to what is to be written. It does not wait; Flush must follow.
func (l *Line) Append(frames []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	if len(l.out)+len(frames) > MaxLineBytes {
		return ErrLineFull
	}
	l.out = append(l.out, frames...)
	return nil
}

// Flush has written what was appended, soon.
func (l *Line) Flush() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Close ends the Line, and Run with this error, unless it has ended already.
func (l *Line) Close(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
		close(l.done)
		_ = l.conn.Close() // given up either way
	}
}

// Err is nil while the Line stands.
func (l *Line) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Run reads until the Line ends, and returns why. take gets all frames of frameBytes that one read
// has completed, at least one, and must not keep them; its error ends the Line, as a frame does that
// no member sends. keep is asked each LineBeat whether the Line is still wanted; nil: it is.
func (l *Line) Run(frameBytes int, take func(frames []byte) error, keep func() bool) error {
	var others sync.WaitGroup
	others.Go(l.write)
	others.Go(func() { l.beat(keep) })
	defer others.Wait()
	buf := make([]byte, lineReadBytes)
	have := 0
	for {
		n, err := l.conn.Read(buf[have:])
		if n > 0 {
			l.heard.Store(int64(time.Since(l.born)))
			have += n
			if whole := have - have%frameBytes; whole > 0 {
				if err := take(buf[:whole]); err != nil {
					l.Close(err)
				}
				have = copy(buf, buf[whole:have])
			}
		}
		if err != nil {
			l.Close(err)
		}
		if err := l.Err(); err != nil {
			return err
		}
	}
}

func (l *Line) write() {
	for {
		select {
		case <-l.wake:
		case <-l.done:
			return
		}
		// Who woke this goroutine waits by now, and the others that are about to append have not
		// run: let them, so that one write is for all.
		runtime.Gosched()
		l.mu.Lock()
		out := l.out
		l.out, l.spare = l.spare[:0], nil
		l.mu.Unlock()
		if len(out) == 0 {
			continue
		}
		l.writing.Store(max(1, int64(time.Since(l.born))))
		_, err := l.conn.Write(out)
		l.writing.Store(0)
		l.wrote.Store(true)
		if err != nil {
			l.Close(err)
			return
		}
		if cap(out) > lineReadBytes {
			out = nil // a burst's buffer is not kept
		}
		l.mu.Lock()
		l.spare = out[:0]
		l.mu.Unlock()
	}
}

func (l *Line) beat(keep func() bool) {
	tick := time.NewTicker(LineBeat)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-l.done:
			return
		}
		now := time.Since(l.born)
		began := l.writing.Load()
		switch {
		case now-time.Duration(l.heard.Load()) > LineSilence:
			l.Close(errLineSilent)
		case began != 0 && now-time.Duration(began) > LineSilence:
			l.Close(errLineStuck)
		case keep != nil && !keep():
			l.Close(ErrLineUnused)
		case !l.wrote.Swap(false):
			_ = l.Append(l.idle) // full: then it is not idle
			l.Flush()
		}
	}
}
