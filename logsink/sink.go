package logsink

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	defaultBufferBytes = 4 << 20
	defaultSyncTimeout = 2 * time.Second
	// reserveBytes is the room beyond the bound for lines that must not be lost.
	reserveBytes = 256 << 10
	// keepBytes is the largest buffer that is kept for reuse.
	keepBytes = 64 << 10
)

// Metrics count what was lost.
type Metrics struct{ dropped prometheus.Counter }

// NewMetrics makes the metrics; reg nil means unregistered but working.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{dropped: prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "belay", Name: "log_dropped_total",
		Help: "Log lines dropped because a log output was slower than the log, or failed.",
	})}
	if reg != nil {
		reg.MustRegister(m.dropped)
	}
	return m
}

// Options of a Sink. Zero values mean the default in brackets.
type Options struct {
	BufferBytes int           // [4 MiB] lines not yet written, at most
	SyncTimeout time.Duration // [2 s] the longest that Sync and Close wait
	Metrics     *Metrics      // [unregistered]
	// Notice makes the line that says how many lines were dropped. [a plain line]
	Notice func(dropped uint64) []byte
}

// A Sink is a zapcore.WriteSyncer that never waits for its output.
type Sink struct {
	out  io.Writer
	opts Options
	wake chan struct{} // capacity 1: there is something to do
	done chan struct{} // closed when run has ended

	mu       sync.Mutex
	pending  []byte    // whole lines, not yet taken by run
	inHand   int       // bytes that run is writing
	began    time.Time // when it began to write them
	dropped  uint64    // lines dropped since the last notice
	lost     uint64    // lines dropped in all
	written  uint64    // batches that run has finished
	taken    uint64    // batches that run has taken; written <= taken <= written+1
	progress chan struct{}
	err      error // of the last write
	closed   bool
}

// NewSink starts a Sink before out. Each Write to out consists of whole lines.
func NewSink(out io.Writer, opts Options) *Sink {
	if opts.BufferBytes <= 0 {
		opts.BufferBytes = defaultBufferBytes
	}
	if opts.SyncTimeout <= 0 {
		opts.SyncTimeout = defaultSyncTimeout
	}
	if opts.Metrics == nil {
		opts.Metrics = NewMetrics(nil)
	}
	if opts.Notice == nil {
		opts.Notice = plainNotice
	}
	s := &Sink{out: out, opts: opts, wake: make(chan struct{}, 1), done: make(chan struct{}), progress: make(chan struct{})}
	go s.run()
	return s
}

// Write queues one or more whole lines. It always reports success: a log must not fail its callers.
func (s *Sink) Write(line []byte) (int, error) {
	s.put(line, 0)
	return len(line), nil
}

// WriteUrgent is Write for a line that should be written even when the buffer is full.
func (s *Sink) WriteUrgent(line []byte) (int, error) {
	s.put(line, reserveBytes)
	return len(line), nil
}

func (s *Sink) put(line []byte, reserve int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.pending)+s.inHand+len(line) > s.opts.BufferBytes+reserve {
		s.drop(1)
		return
	}
	s.pending = append(s.pending, line...)
	s.signal()
}

// drop counts lines that are lost. REQUIRES: mu is held.
func (s *Sink) drop(lines int) {
	s.dropped += uint64(lines)
	s.lost += uint64(lines)
	s.opts.Metrics.dropped.Add(float64(lines))
}

// Dropped is how many lines were dropped since the start.
func (s *Sink) Dropped() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

// Stalled is how long the write under way has taken; 0 if there is none.
func (s *Sink) Stalled() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inHand == 0 {
		return 0
	}
	return time.Since(s.began)
}

func (s *Sink) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Sink) run() {
	defer close(s.done)
	var spare []byte
	for range s.wake {
		for {
			s.mu.Lock()
			if len(s.pending) == 0 && s.dropped == 0 {
				closed := s.closed
				s.mu.Unlock()
				if closed {
					return
				}
				break
			}
			batch, told := s.pending, s.dropped
			if told > 0 {
				batch = append(batch, s.opts.Notice(told)...)
				s.dropped = 0
			}
			s.pending = spare[:0]
			s.inHand, s.began = len(batch), time.Now()
			s.taken++
			s.mu.Unlock()

			n, err := s.out.Write(batch)

			s.mu.Lock()
			s.err = err
			if err != nil {
				lost := bytes.Count(batch[n:], []byte("\n"))
				if told > 0 && lost > 0 { // it was not told
					s.dropped += told
					lost--
				}
				s.drop(lost)
			}
			s.inHand = 0
			s.written++
			close(s.progress)
			s.progress = make(chan struct{})
			closed := s.closed
			s.mu.Unlock()
			if err != nil && closed {
				return
			}
			if spare = batch; cap(spare) > keepBytes {
				spare = nil
			}
			if err != nil {
				break // the next line tries again, not this loop
			}
		}
	}
}

// ErrSyncTimeout says that the output did not take everything in time.
var ErrSyncTimeout = errors.New("logsink: the log output did not take all lines in time")

// Sync waits until everything written before is out, for at most the timeout. It returns the error
// of the last write, if there was one.
func (s *Sink) Sync() error {
	timeout := time.NewTimer(s.opts.SyncTimeout)
	defer timeout.Stop()
	s.mu.Lock()
	target := s.taken
	if len(s.pending) > 0 || s.dropped > 0 {
		target++ // what waits goes out with the next batch
		s.signal()
	}
	for s.written < target {
		progress := s.progress
		s.mu.Unlock()
		select {
		case <-progress:
		case <-timeout.C:
			return ErrSyncTimeout
		}
		s.mu.Lock()
	}
	defer s.mu.Unlock()
	return s.err
}

// Close writes what waits, for at most the timeout, and ends the goroutine. It does not close the
// output. Lines written afterwards are dropped.
func (s *Sink) Close() error {
	err := s.Sync()
	s.mu.Lock()
	s.closed = true
	s.signal()
	s.mu.Unlock()
	if errors.Is(err, ErrSyncTimeout) {
		return err
	}
	timeout := time.NewTimer(s.opts.SyncTimeout)
	defer timeout.Stop()
	select {
	case <-s.done:
		return err
	case <-timeout.C:
		return ErrSyncTimeout
	}
}
