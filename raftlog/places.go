package raftlog

import (
	"sync"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
)

// Keeper keeps segments that hold large entries, so that the store can refer to values there instead
// of writing them once more. It gives a segment's file a second name, and the log removes its own as
// ever: neither waits for the other.
type Keeper interface {
	// Keep makes a second name of the file at path, durably. On error nothing refers to the segment,
	// and the log goes on. The writer goroutine calls it, once for a segment.
	Keep(segment command.Segment, path string) error
	// LeastEntry is from which size of their data on, in bytes, entries count as large.
	LeastEntry() int
}

// keepShare: a segment is kept once a part of 1/keepShare of it has been written with large entries,
// and they are at least half of all. A large value now and then is not worth the rest of its segment.
const keepShare = 32

// keeping is what the writer knows of the last segment and its large entries.
type keeping struct {
	kept    bool // the Keeper has it
	refused bool // the Keeper failed
	// older: the file was there before this process. What has its second name may be a copy, if a data
	// directory was copied, so nothing more is referred to in it.
	older bool
	// likely: most of the segment before were large entries, so this one need not show it first.
	likely       bool
	total, large int64 // bytes of the entries in it, and of the large ones
	// group are the large entries of the group that is being made, groupBytes those of all of it.
	group      []placedEntry
	groupBytes int64
}

// placedEntry is a large entry and where its data is: in the writer's buffer, and then in the file.
type placedEntry struct {
	index, term uint64
	bytes       int64
	place       command.EntryPlace
}

func (k *keeping) atOpen() { *k = keeping{older: true} }

func (k *keeping) nextSegment() {
	*k = keeping{likely: k.mostlyLarge() && k.large > 0, group: k.group, groupBytes: k.groupBytes}
}

func (k *keeping) mostlyLarge() bool { return 2*k.large >= k.total }

// note notes an entry whose record begins in the buffer at pos.
func (w *writer) note(e *raftpb.Entry, pos int) {
	if w.opts.Keeper == nil {
		return
	}
	w.keep.groupBytes += int64(len(e.Data))
	if len(e.Data) < w.opts.Keeper.LeastEntry() {
		return
	}
	w.keep.group = append(w.keep.group, placedEntry{
		index: e.GetIndex(), term: e.GetTerm(), bytes: int64(len(e.Data)),
		place: command.EntryPlace{Offset: int64(pos) + recordHeaderBytes + entryBodyBytes, Sum: dataSum(w.buf[pos:], w.rseed)},
	})
}

// keepSegment has the segment kept if the group in the buffer makes it worth it. REQUIRES: the file has
// its name.
func (w *writer) keepSegment() {
	k := &w.keep
	k.total += k.groupBytes
	for _, e := range k.group {
		k.large += e.bytes
	}
	if k.kept || k.refused || len(k.group) == 0 || !k.mostlyLarge() || !k.likely && k.large < w.limit/keepShare {
		return
	}
	if k.older {
		w.mustRoll = true
		return
	}
	path := w.files.path(segmentName(w.number))
	if err := w.opts.Keeper.Keep(command.Segment{Log: w.logID, Number: w.number}, path); err != nil {
		k.refused = true
		if w.toldRefused {
			return
		}
		w.toldRefused = true // once is enough: it is the same for the next one
		w.logger.Info("a segment of the raft log cannot be kept for the large values in it; the store writes them once more",
			zap.String("path", path), zap.Error(err))
		return
	}
	k.kept = true
}

// locate says where the buffer was written: its first byte would be at offset base of the last
// segment's file.
func (w *writer) locate(base int64) {
	k := &w.keep
	if !k.kept {
		k.group = k.group[:0]
	}
	for i := range k.group {
		p := &k.group[i].place
		p.Segment, p.Offset = command.Segment{Log: w.logID, Number: w.number}, p.Offset+base
	}
}

// Places are where large entries are, that are durable and in kept segments. Any goroutine may
// use them.
type Places struct {
	files *files
	logID uint64

	mu   sync.Mutex
	list []placedEntry // not yet applied, by index
}

// Places are those of this log.
func (l *Log) Places() *Places { return &l.places }

// add takes entries that are durable now. They replace those of their indexes and after.
func (p *Places) add(entries []placedEntry) {
	if len(entries) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.list)
	for n > 0 && p.list[n-1].index >= entries[0].index {
		n--
	}
	p.list = append(p.list[:n], entries...)
}

// Of returns where the data of an entry is, if it is large, durable here, and in a segment that
// is kept. It forgets the places of all entries before. It is for who applies entries, in their
// order.
func (p *Places) Of(index, term uint64) (place command.EntryPlace, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for n < len(p.list) && p.list[n].index < index {
		n++
	}
	if n > 0 {
		p.list = p.list[:copy(p.list, p.list[n:])]
	}
	if len(p.list) == 0 || p.list[0].index != index || p.list[0].term != term {
		return command.EntryPlace{}, false
	}
	return p.list[0].place, true
}

// From is the first segment in which Of may still find entries after index. Earlier ones of this
// log, and those of other logs, get no more.
func (p *Places) From(index uint64) command.Segment {
	p.files.mu.Lock()
	defer p.files.mu.Unlock()
	segs := p.files.segments
	i := 0
	for i+1 < len(segs) && segs[i+1].prevIndex <= index {
		i++
	}
	return command.Segment{Log: p.logID, Number: segs[i].number}
}
