package store

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/internal/crc32c"
)

// LogSegment names a segment of the raft log.
type LogSegment = command.Segment

// Place is where a segment of the raft log has a value that the store does not write once more.
type Place struct {
	Segment command.Segment
	Offset  int64  // of the value in the file
	Length  int    // of the value
	Sum     uint32 // CRC-32C of the value
}

// IsSet reports whether there is a place.
func (p Place) IsSet() bool { return p.Segment != command.Segment{} }

// A version whose value has a place is stored as
//
//	+------+--------+-----------+----------------+----------------+-------+--------------------+
//	| 0x80 | log id | segment's | offset uvarint | length uvarint | crc 4 | what the version   |
//	|      |   8    | number 8  |                |                |       | has before a value |
//	+------+--------+-----------+----------------+----------------+-------+--------------------+
//
// in little endian; no version begins with this byte otherwise. Who reads through this package gets
// the version as it would be without a place: what comes before the value, and the value.
//
// Beside it there is a place key, in a space of its own:
//
//	'p' | log id:8 | number:8 | main:8 | sub:4 | 0  ->  length uvarint | key of the version
//
// It is how the live values of a segment are found. A segment without place keys is removed, once
// that is durable. Both are of this member alone: snapshots to others, and hashes, have the values.
const (
	placedMark  = 0x80
	placedMin   = 1 + 16 + 1 + 1 + 4
	placedMax   = 1 + 16 + 2*binary.MaxVarintLen64 + 4 + 64 // more than any is long
	placeKeyLen = 1 + 16 + 8 + 4 + 1
)

var (
	errPlaced    = errors.New("store: a version with a place is malformed")
	errPlacedSum = errors.New("its checksum does not match")
)

func appendPlaced(dst []byte, p Place, header []byte) []byte {
	dst = append(dst, placedMark)
	dst = binary.LittleEndian.AppendUint64(dst, p.Segment.Log)
	dst = binary.LittleEndian.AppendUint64(dst, p.Segment.Number)
	dst = binary.AppendUvarint(dst, uint64(p.Offset))
	dst = binary.AppendUvarint(dst, uint64(p.Length))
	dst = binary.LittleEndian.AppendUint32(dst, p.Sum)
	return append(dst, header...)
}

// isPlaced reports whether a stored version refers to a segment.
func isPlaced(key, stored []byte) bool {
	return len(stored) > 0 && stored[0] == placedMark && len(key) > 0 && key[0] == spaceUser
}

// parsePlaced is the inverse of appendPlaced; header refers to b.
func parsePlaced(b []byte) (p Place, header []byte, err error) {
	if len(b) < placedMin || b[0] != placedMark {
		return p, nil, errPlaced
	}
	p.Segment.Log, p.Segment.Number = binary.LittleEndian.Uint64(b[1:]), binary.LittleEndian.Uint64(b[9:])
	b = b[17:]
	offset, n := binary.Uvarint(b)
	if n <= 0 || offset > 1<<62 {
		return p, nil, errPlaced
	}
	length, m := binary.Uvarint(b[n:])
	if m <= 0 || length > 1<<32 || len(b) < n+m+4 {
		return p, nil, errPlaced
	}
	p.Offset, p.Length, p.Sum = int64(offset), int(length), binary.LittleEndian.Uint32(b[n+m:])
	return p, b[n+m+4:], nil
}

func appendSegmentKey(dst []byte, segment command.Segment) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, spacePlace), segment.Log)
	return binary.BigEndian.AppendUint64(dst, segment.Number)
}

func placeKey(segment command.Segment, main uint64, sub uint32) []byte {
	k := appendSegmentKey(make([]byte, 0, placeKeyLen), segment)
	k = binary.BigEndian.AppendUint64(k, main)
	return append(binary.BigEndian.AppendUint32(k, sub), 0)
}

// placesOf holds the place keys of one segment.
func placesOf(segment command.Segment) (lower, upper []byte) {
	lower = append(appendSegmentKey(nil, segment), 0)
	upper = append(appendSegmentKey(nil, segment), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0)
	return lower, upper
}

// parsePlaceKey takes a place key and its value apart; version refers to value.
func parsePlaceKey(k, value []byte) (segment command.Segment, length int64, version []byte, err error) {
	n, used := binary.Uvarint(value)
	if len(k) != placeKeyLen || k[0] != spacePlace || used <= 0 || n > 1<<32 {
		return segment, 0, nil, fmt.Errorf("store: a place key is malformed: %x", k)
	}
	segment.Log, segment.Number = binary.BigEndian.Uint64(k[1:]), binary.BigEndian.Uint64(k[9:])
	return segment, int64(n), value[used:], nil
}

// PlacesSpan holds the place keys, which are of this member alone.
func PlacesSpan() (lower, upper []byte) { return span(spacePlace) }

// segmentsDir is the folder, in the store's, of the segments' second names.
const segmentsDir = "segments"

// defaultPlaceBytes is from which size on values may have a place. What is gained with smaller ones
// is less than what their neighbours in the log take until the segment goes.
const defaultPlaceBytes = 32 << 10

// Segments are the kept segments of the raft log that belong to a store. Any goroutine may use them.
// They are a raftlog.Keeper.
type Segments struct {
	s       *Store
	fs      vfs.FS
	dir     string
	readers *readers
	least   int                          // bytes of a value
	damaged func(path string, err error) // tells of damage

	dropping sync.Mutex // of Drop, which removes files

	mu    sync.RWMutex // never held across I/O
	files map[command.Segment]*segmentFile
	made  bool // the store's format says that there may be places
	// from: this segment and later ones of the log may still get places. Zero: not known.
	from command.Segment
	// seq counts the commits that changed what is live. What those up to flushed did is durable.
	seq, flushed uint64
	// dead segments have nothing that is needed; they go when nobody can read an older state any more.
	// draining are those that wait for the readers of one slot.
	dead, draining []command.Segment
	drainSlot      uint32
	dropped, moved int64 // since Open: files, bytes

	open    int    // how many files are open
	maxOpen int    // bound of open, as far as they are not read; 0: none
	uses    uint64 // counts reads
}

// segmentFile is one of them.
type segmentFile struct {
	live    int64  // bytes of values that versions refer to
	size    int64  // of the file, once it grows no more; 0: not known
	changed uint64 // seq when live changed last
	isDead  bool
	bad     bool // a value in it cannot be read, so it is not moved

	file    vfs.File // nil: not open
	readers int      // who read it now
	used    uint64   // uses when it was read last
}

func newSegments(s *Store, fs vfs.FS, least int) *Segments {
	if least <= 0 {
		least = defaultPlaceBytes
	}
	return &Segments{
		s: s, fs: fs, dir: fs.PathJoin(s.dir, segmentsDir), readers: s.readers, least: least, damaged: s.tellCorrupt,
		files: map[command.Segment]*segmentFile{},
	}
}

// openSegments is how many segments a store that may open so many files has open at most, but for those
// that are read at the moment.
func openSegments(maxOpenFiles int) int { return min(max(maxOpenFiles/8, 4), 64) }

func segmentFileName(segment command.Segment) string {
	return fmt.Sprintf("%016x-%016x.log", segment.Log, segment.Number)
}

func parseSegmentFileName(name string) (segment command.Segment, ok bool) {
	log, number, ok := strings.Cut(strings.TrimSuffix(name, ".log"), "-")
	if !ok {
		return segment, false
	}
	a, errA := strconv.ParseUint(log, 16, 64)
	b, errB := strconv.ParseUint(number, 16, 64)
	segment = command.Segment{Log: a, Number: b}
	return segment, errA == nil && errB == nil && segmentFileName(segment) == name
}

func (g *Segments) path(segment command.Segment) string {
	return g.fs.PathJoin(g.dir, segmentFileName(segment))
}

// NoLog is for Segments.Drop while no log uses the store.
var NoLog = command.Segment{Log: math.MaxUint64, Number: math.MaxUint64}

// list finds the files that are there. With pin all are opened, and stay so.
func (g *Segments) list(pin bool) error {
	names, err := g.fs.List(g.dir)
	if isNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("store: list %s: %w", g.dir, err)
	}
	for _, name := range names {
		segment, ok := parseSegmentFileName(name)
		if !ok {
			continue
		}
		f := &segmentFile{} // its size is not known: the log may write on
		if pin {
			file, err := g.fs.Open(g.path(segment), vfs.RandomReadsOption)
			if isNotExist(err) {
				continue // a member removed it meanwhile
			}
			if err != nil {
				return fmt.Errorf("store: open %s: %w", g.path(segment), err)
			}
			f.file = file
			g.open++
		}
		g.files[segment] = f
	}
	return nil
}

// load counts what is live in each segment. A segment that is missing is an error, unless all is to be
// read that can be.
func (g *Segments) load(anyway bool) (err error) {
	lower, upper := PlacesSpan()
	it, err := g.s.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return Explain(err)
		}
		segment, length, _, err := parsePlaceKey(it.Key(), value)
		if err != nil {
			return err
		}
		f := g.files[segment]
		if f == nil && anyway {
			continue // who reads such a value meets the error
		}
		if f == nil {
			return damage{fmt.Errorf("store: the file %s is missing, in which large values are (restore this member from its peers: remove it from the cluster, delete its data, add it again): %w", g.path(segment), os.ErrNotExist)}
		}
		f.live += length
	}
	return Explain(it.Error())
}

func (g *Segments) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range g.files {
		if f.file != nil {
			_ = f.file.Close() // only read
		}
	}
	g.files, g.open = map[command.Segment]*segmentFile{}, 0
}

// LeastEntry is raftlog.Keeper's. No smaller value has a place.
func (g *Segments) LeastEntry() int { return g.least }

// Keep is raftlog.Keeper's: it gives a segment a second name, beside the store's files. It fails where
// the log is on another file system.
func (g *Segments) Keep(segment command.Segment, path string) error {
	s := g.s
	if !g.made { // only the log's writer gets here
		if err := s.fs.MkdirAll(g.dir, 0o700); err != nil {
			return fmt.Errorf("store: create directory %s: %w", g.dir, err)
		}
		if err := syncDir(s.fs, s.dir); err != nil {
			return fmt.Errorf("store: sync directory %s: %w", s.dir, err)
		}
	}
	if err := s.fs.Link(path, g.path(segment)); err != nil {
		return fmt.Errorf("store: keep a segment of the raft log: %w", err)
	}
	err := syncDir(s.fs, g.dir)
	if err == nil && !g.made {
		// Builds that do not know of places would read versions wrongly. They refuse this format.
		err = writeFormat(s.fs, s.dir, formatWithSegments)
		g.made = err == nil
	}
	if err != nil {
		// Else it would keep the segment's space until the next start.
		return fmt.Errorf("store: keep a segment of the raft log: %w", errors.Join(err, s.fs.Remove(g.path(segment))))
	}
	g.mu.Lock()
	g.files[segment] = &segmentFile{}
	g.mu.Unlock()
	return nil
}

// Find returns where a value is, that is part of an entry's data in the log; not set if it is too
// small, or not there. It looks for it from the given byte of the data on first, and end is where
// it ends.
func (g *Segments) Find(value, data []byte, at command.EntryPlace, from int) (p Place, end int) {
	if !at.IsSet() || len(value) < g.least {
		return Place{}, from
	}
	i := find(value, data, from)
	if i < 0 {
		return Place{}, from // a value that the entry does not name, like that of a put that keeps the old one
	}
	p = Place{Segment: at.Segment, Offset: at.Offset + int64(i), Length: len(value), Sum: valueSum(data, i, i+len(value), at.Sum)}
	return p, i + len(value)
}

// valueSum is the checksum of data[from:to], given that of data. It reads the value, or the rest.
func valueSum(data []byte, from, to int, sum uint32) uint32 {
	if to-from <= len(data)/2 {
		return crc32c.Checksum(data[from:to])
	}
	first := crc32c.First(sum, crc32c.Checksum(data[to:]), len(data)-to)
	return crc32c.Last(first, crc32c.Checksum(data[:from]), to-from)
}

// find returns where data has a value, from the given byte on first; -1: nowhere.
func find(value, data []byte, from int) int {
	// A put writes one value, its own: there is no need to compare all of it.
	const end = 64
	if at, n, ok := command.PutValue(data); ok && n == len(value) {
		if own := data[at : at+n]; bytes.Equal(own[:min(n, end)], value[:min(n, end)]) && bytes.Equal(own[max(n-end, 0):], value[max(n-end, 0):]) {
			return at
		}
	}
	if i := bytes.Index(data[from:], value); i >= 0 {
		return from + i
	}
	return bytes.Index(data, value)
}

// acquire returns an open segment, which stays so until release.
func (g *Segments) acquire(segment command.Segment) (vfs.File, error) {
	g.mu.Lock()
	f := g.files[segment]
	if f == nil {
		g.mu.Unlock()
		return nil, os.ErrNotExist
	}
	f.readers++
	g.uses++
	f.used = g.uses
	file := f.file
	g.mu.Unlock()
	if file != nil {
		return file, nil
	}
	file, err := g.fs.Open(g.path(segment), vfs.RandomReadsOption) // without the lock: the disk may hang
	g.mu.Lock()
	var spare []vfs.File
	switch {
	case err != nil:
		f.readers--
	case f.file != nil: // somebody else was faster
		spare, file = append(spare, file), f.file
	default:
		f.file = file
		g.open++
		spare = g.evict()
	}
	g.mu.Unlock()
	for _, f := range spare {
		_ = f.Close() // only read
	}
	return file, err
}

// evict takes the files that were not read for longest, as long as too many are open. REQUIRES: mu.
func (g *Segments) evict() (files []vfs.File) {
	for g.maxOpen > 0 && g.open > g.maxOpen {
		var oldest *segmentFile
		for _, f := range g.files {
			if f.file != nil && f.readers == 0 && (oldest == nil || f.used < oldest.used) {
				oldest = f
			}
		}
		if oldest == nil {
			break // all are being read
		}
		files = append(files, oldest.file)
		oldest.file = nil
		g.open--
	}
	return files
}

func (g *Segments) release(segment command.Segment) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.files[segment]; f != nil { // else the store is closed
		f.readers--
	}
}

// read appends a value to dst.
func (g *Segments) read(dst []byte, p Place) ([]byte, error) {
	n := len(dst)
	dst = slices.Grow(dst, p.Length)[:n+p.Length]
	f, err := g.acquire(p.Segment)
	if err == nil {
		_, err = f.ReadAt(dst[n:], p.Offset)
		g.release(p.Segment)
	}
	if err == nil && crc32c.Checksum(dst[n:]) != p.Sum {
		err = errPlacedSum
	}
	switch {
	case err == nil:
		return dst, nil
	case errors.Is(err, errPlacedSum), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), isNotExist(err):
		err = fmt.Errorf("the value of %d bytes at offset %d: %w", p.Length, p.Offset, err)
		g.damaged(g.path(p.Segment), err)
		return nil, corruptFile(g.path(p.Segment), err)
	}
	// The disk, or this process (descriptors, memory), failed. That says nothing of the file.
	return nil, fmt.Errorf("store: read a value of %s: %w", g.path(p.Segment), err)
}

// resolve returns a stored version with its value, in memory of its own or buf's.
func (g *Segments) resolve(buf, stored []byte) ([]byte, error) {
	p, header, err := parsePlaced(stored)
	if err != nil {
		return nil, err
	}
	return g.read(append(buf[:0], header...), p)
}

// copyOf returns a copy of a value that the engine has under a key, or that is in a segment.
func (g *Segments) copyOf(key, stored []byte) ([]byte, error) {
	if isPlaced(key, stored) {
		return g.resolve(nil, stored)
	}
	return append(make([]byte, 0, len(stored)), stored...), nil
}

// note takes what a committed batch has changed. REQUIRES: the store's write gate.
func (g *Segments) note(changes map[command.Segment]int64) {
	if len(changes) == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seq++
	for segment, bytes := range changes {
		if f := g.files[segment]; f != nil {
			f.live += bytes
			f.changed = g.seq
		}
	}
}

// replaced takes note that a snapshot was installed, durably: nothing refers to a segment any more.
func (g *Segments) replaced() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seq++
	for _, f := range g.files {
		f.live, f.changed = 0, g.seq
	}
	g.flushed = g.seq
}

// position is how many commits have changed something. REQUIRES: the store's write gate.
func (g *Segments) position() uint64 {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.seq
}

func (g *Segments) raiseFlushed(seq uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.flushed = max(g.flushed, seq)
}

// final reports whether a segment gets no more places. REQUIRES: mu.
func (g *Segments) final(segment command.Segment) bool {
	return g.from != command.Segment{} && (segment.Log != g.from.Log || segment.Number < g.from.Number)
}

// sizes are the bytes that the segments take, and those that are live. One in which the log may
// still refer to values counts as live alone, since the log has it anyhow; and of others what is not
// live counts up to as much as is: what goes beyond that is about to be freed by Move, and must not
// fill a small quota until then.
func (g *Segments) sizes() (total, live int64) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	for segment, f := range g.files {
		if f.isDead {
			continue
		}
		if g.final(segment) {
			total += max(f.live, min(f.size, 2*f.live))
		} else {
			total += f.live
		}
		live += f.live
	}
	return total, live
}

// SegmentStats are the kept segments of the raft log: how many, their bytes, and how many of those
// versions refer to. Segments in which the log may still refer to values count with these alone.
type SegmentStats struct {
	Files       int
	Bytes, Live int64
	// Dropped and Moved count, since Open, segments removed and bytes of values moved into the store.
	Dropped, Moved int64
}

// Stats are as of now. It waits for no disk.
func (g *Segments) Stats() (stats SegmentStats) {
	stats.Bytes, stats.Live = g.sizes()
	g.mu.RLock()
	defer g.mu.RUnlock()
	for _, f := range g.files {
		if !f.isDead {
			stats.Files++
		}
	}
	stats.Dropped, stats.Moved = g.dropped, g.moved
	return stats
}

// measure asks for the sizes of files that grow no more.
func (g *Segments) measure() {
	var unknown []command.Segment
	g.mu.RLock()
	for segment, f := range g.files {
		if f.size == 0 && !f.isDead && g.final(segment) {
			unknown = append(unknown, segment)
		}
	}
	g.mu.RUnlock()
	for _, segment := range unknown {
		info, err := g.fs.Stat(g.path(segment))
		if err != nil {
			continue // it counts as what is live in it
		}
		g.mu.Lock()
		if f := g.files[segment]; f != nil {
			f.size = info.Size()
		}
		g.mu.Unlock()
	}
}

// Drop is told from which segment on the log may refer to values that are not yet flushed, and
// removes those before it to which nothing durable refers. It waits for the disk.
func (g *Segments) Drop(from command.Segment) {
	g.mu.Lock()
	g.from = from
	g.mu.Unlock()
	g.measure()
	g.dropDead()
}

// dropDead removes final segments to which nothing durable refers.
func (g *Segments) dropDead() {
	var dead []command.Segment
	g.dropping.Lock()
	g.mu.RLock()
	for segment, f := range g.files {
		if !f.isDead && f.live <= 0 && f.changed <= g.flushed && g.final(segment) {
			dead = append(dead, segment)
		}
	}
	g.mu.RUnlock()
	for _, segment := range dead {
		if err := g.kill(segment); err != nil {
			g.s.logger.Warn("cannot let go of a segment of the raft log that was kept for its values", zap.String("path", g.path(segment)), zap.Error(err))
		}
	}
	g.dropping.Unlock()
	g.drain()
}

// kill has a segment removed, if the store agrees that nothing refers to it.
func (g *Segments) kill(segment command.Segment) error {
	lower, upper := placesOf(segment)
	it, err := g.s.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	used := it.First()
	if err := errors.Join(it.Error(), it.Close()); err != nil {
		return Explain(err)
	}
	if used {
		return errors.New("versions refer to it although none were counted")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.files[segment]; f != nil { // else the store is closed
		f.isDead = true
		g.dead = append(g.dead, segment)
	}
	return nil
}

// drain removes dead segments that nobody can read any more: an iterator may show a state in
// which they were in use, if it is from before they died. A crash before that leaves them to the
// next start, to which they are dead, too. It waits for the disk.
func (g *Segments) drain() {
	g.dropping.Lock()
	defer g.dropping.Unlock()
	for _, segment := range g.unused() {
		g.mu.Lock()
		f := g.files[segment]
		if f == nil { // the store is closed
			g.mu.Unlock()
			return
		}
		file := f.file
		delete(g.files, segment)
		if file != nil {
			g.open--
		}
		g.dropped++
		g.mu.Unlock()
		err := g.fs.Remove(g.path(segment))
		if file != nil {
			err = errors.Join(err, file.Close())
		}
		if err != nil {
			g.s.logger.Warn("cannot remove a segment of the raft log that was kept for its values; the next start tries it again", zap.String("path", g.path(segment)), zap.Error(err))
		}
	}
}

// unused are dead segments that can go.
func (g *Segments) unused() (list []command.Segment) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.draining) > 0 && g.readers.none(g.drainSlot) {
		list, g.draining = g.draining, nil
	}
	if len(g.draining) == 0 && len(g.dead) > 0 {
		if slot, ok := g.readers.turn(); ok {
			g.draining, g.dead, g.drainSlot = g.dead, nil, slot
			if g.readers.none(slot) {
				list, g.draining = append(list, g.draining...), nil
			}
		}
	}
	return list
}

// moveBytes is how much is moved out of segments at once, and garbageValues how much garbage makes it
// worth it, in values of the least size: 16 MiB.
const (
	moveBytes     = 4 << 20
	garbageValues = 512
)

// sparse are the final segments of which at most the given part is live, those with the least first;
// none if less than that is garbage in all of them together, unless always.
func (g *Segments) sparse(part float64, always bool) (list []command.Segment) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	var size, live int64
	for segment, f := range g.files {
		if f.isDead || !g.final(segment) {
			continue
		}
		size, live = size+f.size, live+f.live
		if f.live > 0 && !f.bad && float64(f.live) <= part*float64(f.size) {
			list = append(list, segment)
		}
	}
	if !always && (size-live < garbageValues*int64(g.least) || float64(live) > part*float64(size)) {
		return nil
	}
	slices.SortFunc(list, func(a, b command.Segment) int { return cmp.Compare(g.files[a].live, g.files[b].live) })
	return list
}

// Move writes values into the store that are in segments of which little is live, so that
// those can be removed: of which less than half is, if half of all is garbage; with all, of which
// less than nine tenths is. pause is called between batches. Now and then, and at the end, it
// removes what nothing is live in, for which it waits for a flush: so it needs room for a part of
// what it moves. What the disk has no room for stays where it is, which is an error.
//
// REQUIRES: nobody deletes versions meanwhile.
func (g *Segments) Move(ctx context.Context, all bool, pause func(context.Context) error) error {
	part := 0.5
	if all {
		part = 0.9
	}
	var damaged, full error
	var written int64 // since the last flush here
	for _, segment := range g.sparse(part, all) {
		if written, full = g.makeRoom(ctx, segment, written); full != nil {
			break
		}
		for done := false; !done; {
			var moved int64
			var err error
			moved, done, err = g.move(segment)
			written += moved
			if IsDamage(err) { // the others can still be freed
				damaged = cmp.Or(damaged, err)
				g.setBad(segment)
				break
			}
			if err != nil {
				return err
			}
			if err := pause(ctx); err != nil {
				return err
			}
		}
	}
	if damaged == nil && g.anyDead() {
		if err := g.flushAndDrop(ctx); err != nil {
			return err
		}
	}
	return cmp.Or(damaged, full)
}

// makeRoom sees to it that the disk has room for what is live in a segment. It removes the segments
// that were moved before, by a flush, when a memory table of values was written since the last one,
// or when there is too little room otherwise. Who moved all of them first would need as much space
// as is live, which a disk does not have on which space is sought. It returns what was written since
// the last flush.
func (g *Segments) makeRoom(ctx context.Context, segment command.Segment, written int64) (int64, error) {
	table := int64(g.s.opts.MemTableSize) // as much may be in memory, and is written before
	g.mu.RLock()
	var live int64
	if f := g.files[segment]; f != nil {
		live = f.live
	}
	g.mu.RUnlock()
	for {
		need := live + written + table
		free, err := g.s.FreeBytes()
		enough := err != nil || free >= uint64(need) // a file system that does not say takes all
		switch {
		case enough && written < table:
			return written, nil
		case written > 0:
			if err := g.flushAndDrop(ctx); err != nil {
				return written, err
			}
			written = 0
		default:
			return 0, fmt.Errorf("store: %s has %d MiB left, and %d MiB are needed to write the values that are left of a segment of the raft log into the store (free space, or enlarge the volume)", g.s.dir, free>>20, need>>20)
		}
	}
}

// flushAndDrop removes segments in which nothing is live, as soon as that is durable.
func (g *Segments) flushAndDrop(ctx context.Context) error {
	if err := g.s.Flush(ctx); err != nil {
		return err
	}
	g.dropDead()
	return nil
}

// setBad has a segment not moved any more.
func (g *Segments) setBad(segment command.Segment) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.files[segment]; f != nil { // else the store is closed
		f.bad = true
	}
}

// anyDead reports whether there is a final segment of which nothing is live.
func (g *Segments) anyDead() (any bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	for segment, f := range g.files {
		any = any || !f.isDead && f.live <= 0 && g.final(segment)
	}
	return any
}

// move moves some values of a segment, so many bytes; done: all of them are moved.
func (g *Segments) move(segment command.Segment) (moved int64, done bool, err error) {
	b := g.s.NewLocalBatch()
	defer b.Close()
	lower, upper := placesOf(segment)
	it, err := g.s.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return 0, false, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	versions, err := it.Clone(pebble.CloneOptions{IterOptions: &pebble.IterOptions{}})
	if err != nil {
		return 0, false, err
	}
	defer func() { err = errors.Join(err, versions.Close()) }()
	var n int64
	commit := func(done bool) (int64, bool, error) {
		if err := b.Commit(); err != nil {
			return 0, false, err
		}
		g.mu.Lock()
		g.moved += n
		g.mu.Unlock()
		return n, done, nil
	}
	for ok := it.First(); ok; ok = it.Next() {
		if n >= moveBytes {
			return commit(false)
		}
		value, err := it.ValueAndErr()
		if err != nil {
			return 0, false, Explain(err)
		}
		_, length, version, err := parsePlaceKey(it.Key(), value)
		if err != nil {
			return 0, false, err
		}
		if !versions.SeekPrefixGE(version) || !bytes.Equal(versions.Key(), version) {
			return 0, false, cmp.Or(Explain(versions.Error()), fmt.Errorf("store: a place key refers to a version that is not there: %x", version))
		}
		whole, err := versions.ValueAndErr()
		if err != nil {
			return 0, false, Explain(err)
		}
		if err := errors.Join(b.Set(version, whole), b.Delete(it.Key())); err != nil {
			return 0, false, err
		}
		b.places(segment, -length)
		n += int64(len(whole))
	}
	if err := it.Error(); err != nil {
		return 0, false, Explain(err)
	}
	return commit(true)
}
