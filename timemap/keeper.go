package timemap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/belaydb/belay/internal/crc32c"
)

const (
	fileName = "times"
	tempName = "times.tmp"

	sampleEvery = time.Second
	writeEvery  = 10 * time.Second

	// rewriteFrom is how many superfluous records the file may have, however few are needed.
	rewriteFrom = 4096
)

// RecordBytes is the size of a record in the file:
//
//	0   8  Unix time in milliseconds, big endian
//	8   8  revision
//	16  4  CRC-32C of the 16 bytes before
const RecordBytes = 20

func (p point) append(b []byte) []byte {
	n := len(b)
	b = binary.BigEndian.AppendUint64(b, uint64(p.at))
	b = binary.BigEndian.AppendUint64(b, uint64(p.rev))
	return binary.BigEndian.AppendUint32(b, crc32c.Checksum(b[n:]))
}

// decode reads records up to the first that is torn, or does not follow the one before: n are the
// bytes of those that are good.
func decode(b []byte) (points []point, n int) {
	for ; len(b)-n >= RecordBytes; n += RecordBytes {
		r := b[n : n+RecordBytes]
		if crc32c.Checksum(r[:16]) != binary.BigEndian.Uint32(r[16:]) {
			break
		}
		p := point{int64(binary.BigEndian.Uint64(r)), int64(binary.BigEndian.Uint64(r[8:]))}
		if k := len(points); p.rev <= 0 || k > 0 && (p.at <= points[k-1].at || p.rev < points[k-1].rev) {
			break
		}
		points = append(points, p)
	}
	return points, n
}

// ReadFile returns the points in a file that a Keeper wrote, oldest first, for a reader of files.
// whole is false if something follows them that is none.
func ReadFile(path string) (points []Point, whole bool, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, false, err
	}
	kept, n := decode(b)
	for _, p := range kept {
		points = append(points, *p.public())
	}
	return points, n == len(b), nil
}

// A Keeper fills a Map, and keeps it in a file.
type Keeper struct {
	Map
	path, temp string // empty: not kept
	revision   func() int64
	logger     *zap.Logger

	stop, sampled chan struct{}
	write         chan struct{} // capacity 1
	written       chan struct{}

	pendingMu sync.Mutex
	pending   []point // not in the file yet
	rewrite   bool

	file    *os.File // of the writing goroutine
	records int      // in the file
	failed  bool
}

// Keep reads the file in dir, and samples from now on until Close. revision is the newest revision
// that was applied, 0 if that is not known yet; it is called once a second and must not wait. dir
// empty: nothing is read or kept. That a file cannot be read or written is logged once, and costs
// only what it would have kept. logger may be nil.
func Keep(dir string, revision func() int64, logger *zap.Logger) *Keeper {
	if logger == nil {
		logger = zap.NewNop()
	}
	k := &Keeper{
		revision: revision, logger: logger,
		stop: make(chan struct{}), sampled: make(chan struct{}), write: make(chan struct{}, 1), written: make(chan struct{}),
	}
	if dir != "" {
		k.path, k.temp = dir+string(os.PathSeparator)+fileName, dir+string(os.PathSeparator)+tempName
		k.read()
	}
	k.take(time.Now()) // what is written from now on is later
	go k.sample()
	go k.writeAll()
	return k
}

func (k *Keeper) read() {
	b, err := os.ReadFile(k.path)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err != nil {
		k.fail("read", err)
		return
	}
	points, n := decode(b)
	if n := len(points); n > 0 {
		k.points = thin(points, min(time.Now().UnixMilli(), points[n-1].at)) // a clock that is ahead at a start forgets nothing
	}
	k.records = len(points)
	k.rewrite = n < len(b) // the rest would be behind what is appended
}

func (k *Keeper) sample() {
	defer close(k.sampled)
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case now := <-tick.C:
			k.take(now)
			if now.Sub(last) < writeEvery {
				continue
			}
			last = now
			select {
			case k.write <- struct{}{}:
			default: // the disk is slower; what waits is written together
			}
		case <-k.stop:
			k.take(time.Now())
			return
		}
	}
}

func (k *Keeper) take(now time.Time) {
	added, replaced := k.note(now, k.revision())
	if k.path == "" || len(added) == 0 && !replaced {
		return
	}
	k.pendingMu.Lock()
	defer k.pendingMu.Unlock()
	k.rewrite = k.rewrite || replaced || len(k.pending) > rewriteFrom // a disk that hangs must not cost memory
	if k.rewrite {
		k.pending = nil // the map has it all
		return
	}
	k.pending = append(k.pending, added...)
}

func (k *Keeper) writeAll() {
	defer close(k.written)
	for range k.write {
		k.flush()
	}
	k.flush()
	if k.file != nil {
		_ = k.file.Close() // nothing in it was promised
	}
}

func (k *Keeper) flush() {
	if k.path == "" || k.failed {
		return
	}
	k.pendingMu.Lock()
	pending, rewrite := k.pending, k.rewrite
	k.pending, k.rewrite = nil, false
	k.pendingMu.Unlock()
	var err error
	switch {
	case rewrite || k.records+len(pending) > 2*k.len()+rewriteFrom:
		err = k.writeAnew()
	case len(pending) > 0:
		err = k.appendAll(pending)
	}
	if err != nil {
		k.fail("write", err)
	}
}

func (k *Keeper) len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.points)
}

func (k *Keeper) appendAll(points []point) (err error) {
	if k.file == nil {
		if k.file, err = os.OpenFile(k.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600); err != nil {
			return err
		}
	}
	if _, err = k.file.Write(encode(points)); err == nil {
		k.records += len(points)
	}
	return err
}

func encode(points []point) []byte {
	b := make([]byte, 0, len(points)*RecordBytes)
	for _, p := range points {
		b = p.append(b)
	}
	return b
}

// writeAnew replaces the file by one with the points of the map.
func (k *Keeper) writeAnew() error {
	points := k.snapshot()
	if k.file != nil {
		_ = k.file.Close() // it is replaced
		k.file = nil
	}
	if err := os.WriteFile(k.temp, encode(points), 0o600); err != nil {
		return err
	}
	k.records = len(points)
	return os.Rename(k.temp, k.path)
}

// fail gives the file up: the map goes on in memory.
func (k *Keeper) fail(doing string, err error) {
	k.failed = true
	k.logger.Warn("cannot "+doing+" the file that says when which revision was written; it is known in memory only, until the next start",
		zap.String("path", k.path), zap.Error(err))
}

// Close writes what is left, and waits for that at most so long: the disk may hang.
func (k *Keeper) Close(wait time.Duration) error {
	close(k.stop)
	<-k.sampled
	close(k.write)
	select {
	case <-k.written:
		return nil
	case <-time.After(wait):
		return fmt.Errorf("timemap: %s could not be written within %v", k.path, wait)
	}
}
