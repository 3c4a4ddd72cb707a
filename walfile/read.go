package walfile

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/internal/crc32c"
)

// Types of records.
const (
	typeMetadata = 1
	typeEntry    = 2
	typeState    = 3
	typeCRC      = 4
	typeSnapshot = 5
)

// Position is a snapshot that the log mentions: the state after an entry.
type Position struct {
	Index, Term uint64
	ConfState   *raftpb.ConfState // nil: not in the log (etcd before 3.5), but in the .snap file
}

// Contents is what a log says.
type Contents struct {
	Member, Cluster uint64
	HardState       *raftpb.HardState // never nil
	// Snapshot is the newest one at or below the commit index, from which etcd would start; zero:
	// none.
	Snapshot Position
	// First and Last are the oldest and the newest entry in the files; 0: none.
	First, Last uint64
	// Term is that of the entry that Read was asked about; 0: the log does not know it.
	Term uint64
	// Changes are the member changes after Snapshot and up to that entry, and Tail all entries
	// after it.
	Changes, Tail []*raftpb.Entry
	// Torn, if not nil, is where a write that a crash interrupted was cut.
	Torn *DamageError
}

// DamageError is a record that cannot be read.
type DamageError struct {
	File   string
	Offset int64
	Reason string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("%s is damaged at offset %d: %s", e.File, e.Offset, e.Reason)
}

// Read reads the log in dir. applied is the last entry whose effect the database has.
func Read(dir string, applied uint64) (*Contents, error) {
	names, err := segments(dir)
	if err != nil {
		return nil, err
	}
	r := reader{c: Contents{HardState: new(raftpb.HardState)}, applied: applied}
	for i, name := range names {
		if err := r.segment(filepath.Join(dir, name), i == len(names)-1); err != nil {
			return nil, err
		}
	}
	return r.finish(dir)
}

// segments are the names of the files of a log, in order. Numbers must follow each other.
func segments(dir string) ([]string, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, f := range files {
		if _, _, ok := parseName(f.Name()); ok {
			names = append(names, f.Name())
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s holds no write-ahead log of etcd", dir)
	}
	slices.Sort(names)
	for i := 1; i < len(names); i++ {
		before, _, _ := parseName(names[i-1])
		if number, _, _ := parseName(names[i]); number != before+1 {
			return nil, &DamageError{File: filepath.Join(dir, names[i]), Reason: fmt.Sprintf("the file before it is %s: files between them are missing", names[i-1])}
		}
	}
	return names, nil
}

func parseName(name string) (number, index uint64, ok bool) {
	if !strings.HasSuffix(name, ".wal") || len(name) != 16+1+16+4 {
		return 0, 0, false
	}
	n, err := fmt.Sscanf(name, "%016x-%016x.wal", &number, &index)
	return number, index, err == nil && n == 2
}

type reader struct {
	c         Contents
	applied   uint64
	crc       uint32
	started   bool // something was read: the next segment's checksum must continue
	entries   bool // an entry was read
	snapshots []Position
	path      string
	offset    int64
}

// record is one frame's.
type record struct {
	kind int64
	crc  uint32
	data []byte
}

func parseRecord(b []byte) (r record, err error) {
	for len(b) > 0 {
		num, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return r, protowire.ParseError(n)
		}
		b = b[n:]
		switch {
		case num == 1 && kind == protowire.VarintType:
			v, m := protowire.ConsumeVarint(b)
			r.kind, n = int64(v), m
		case num == 2 && kind == protowire.VarintType:
			v, m := protowire.ConsumeVarint(b)
			r.crc, n = uint32(v), m
		case num == 3 && kind == protowire.BytesType:
			r.data, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, kind, b)
		}
		if n < 0 {
			return r, protowire.ParseError(n)
		}
		b = b[n:]
	}
	return r, nil
}

func (r *reader) damage(format string, args ...any) *DamageError {
	return &DamageError{File: r.path, Offset: r.offset, Reason: fmt.Sprintf(format, args...)}
}

// segment reads one file.
func (r *reader) segment(path string, last bool) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	r.path, r.offset = path, 0
	in := bufio.NewReaderSize(f, 1<<20)
	for {
		var head [8]byte
		switch _, err := io.ReadFull(in, head[:]); {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return r.cut(r.damage("the file ends in a length"), last)
		case err != nil:
			return fmt.Errorf("read %s: %w", path, err)
		}
		length := binary.LittleEndian.Uint64(head[:])
		if length == 0 {
			return nil
		}
		size, padding := int64(length&(1<<56-1)), int64(0)
		if length>>63 == 1 {
			padding = int64(length >> 56 & 7)
		}
		if rest := info.Size() - r.offset - 8; size+padding > rest {
			return r.cut(r.damage("a record of %d bytes, but the file has %d more", size, rest), last)
		}
		data := make([]byte, size+padding)
		if _, err := io.ReadFull(in, data); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		rec, err := parseRecord(data[:size])
		if err == nil && rec.kind != typeCRC {
			if sum := crc32c.Update(r.crc, rec.data); sum == rec.crc {
				r.crc = sum
			} else {
				err = errors.New("its checksum does not fit")
			}
		}
		if err != nil {
			return r.cut(r.damage("a record cannot be read: %v", err), last && torn(r.offset+8, data))
		}
		if err := r.record(rec); err != nil {
			return err
		}
		r.offset += 8 + size + padding
	}
}

// cut ends the log before a record that a crash has interrupted, or returns the damage.
func (r *reader) cut(d *DamageError, interrupted bool) error {
	if !interrupted {
		return d
	}
	r.c.Torn = d
	return nil
}

// torn is etcd's rule: a sector of zeros in a record is one that never reached the disk.
func torn(offset int64, data []byte) bool {
	const sector = 512
	for len(data) > 0 {
		n := min(sector-int(offset%sector), len(data))
		if len(strings.Trim(string(data[:n]), "\x00")) == 0 {
			return true
		}
		offset, data = offset+int64(n), data[n:]
	}
	return false
}

func (r *reader) record(rec record) error {
	switch rec.kind {
	case typeCRC:
		// The first file that is left may continue one that was removed.
		if r.started && r.crc != rec.crc {
			return r.damage("it does not continue the file before it: checksum %x, not %x", rec.crc, r.crc)
		}
		r.crc, r.started = rec.crc, true
	case typeMetadata:
		member, cluster, err := parseMetadata(rec.data)
		if err != nil {
			return r.damage("metadata: %v", err)
		}
		if r.c.Member != 0 && (r.c.Member != member || r.c.Cluster != cluster) {
			return r.damage("it is of member %x of cluster %x, what comes before of member %x of cluster %x", member, cluster, r.c.Member, r.c.Cluster)
		}
		r.c.Member, r.c.Cluster = member, cluster
	case typeEntry:
		e := new(raftpb.Entry)
		if err := proto.Unmarshal(rec.data, e); err != nil {
			return r.damage("entry: %v", err)
		}
		return r.entry(e)
	case typeState:
		hs := new(raftpb.HardState)
		if err := proto.Unmarshal(rec.data, hs); err != nil {
			return r.damage("hard state: %v", err)
		}
		r.c.HardState = hs
	case typeSnapshot:
		p, err := parsePosition(rec.data)
		if err != nil {
			return r.damage("snapshot: %v", err)
		}
		r.snapshots = append(r.snapshots, p)
		if p.Index > r.c.Last { // received from the leader: the log continues after it
			r.c.First, r.c.Last = p.Index+1, p.Index
			r.c.Tail, r.c.Term = nil, 0
			if p.Index == r.applied {
				r.c.Term = p.Term
			}
		}
		if p.Index == r.applied && r.c.Term == 0 {
			r.c.Term = p.Term
		}
	default:
		return r.damage("a record of the unknown type %d", rec.kind)
	}
	return nil
}

// entry takes an entry; one that exists already is replaced, and what followed it is gone.
func (r *reader) entry(e *raftpb.Entry) error {
	c, i := &r.c, e.GetIndex()
	switch {
	case i == 0:
		return r.damage("an entry has no index")
	case !r.entries:
		// The oldest file may begin anywhere, and with a snapshot of before its first entry.
		c.First, c.Tail = i, nil
	case i > c.Last+1:
		return r.damage("entry %d follows entry %d", i, c.Last)
	}
	c.Last, r.entries = i, true
	after := func(o *raftpb.Entry) bool { return o.GetIndex() >= i }
	c.Changes = slices.DeleteFunc(c.Changes, after)
	if n := len(c.Tail); n > 0 && c.Tail[n-1].GetIndex() >= i {
		c.Tail = slices.DeleteFunc(c.Tail, after)
	}
	if i > r.applied {
		c.Tail = append(c.Tail, e)
		return nil
	}
	if i == r.applied {
		c.Term = e.GetTerm()
	} else {
		c.Term = 0 // what was there is replaced
	}
	if e.GetType() != raftpb.EntryNormal {
		c.Changes = append(c.Changes, e)
	}
	return nil
}

func (r *reader) finish(dir string) (*Contents, error) {
	c := &r.c
	if c.Member == 0 {
		return nil, fmt.Errorf("the log in %s does not say whose it is", dir)
	}
	for _, p := range r.snapshots {
		if p.Index <= c.HardState.GetCommit() && p.Index >= c.Snapshot.Index {
			c.Snapshot = p
		}
	}
	c.Changes = slices.DeleteFunc(c.Changes, func(e *raftpb.Entry) bool { return e.GetIndex() <= c.Snapshot.Index })
	if c.First > c.Snapshot.Index+1 {
		return nil, fmt.Errorf("the log in %s begins with entry %d, but its newest snapshot is of entry %d: files are missing", dir, c.First, c.Snapshot.Index)
	}
	return c, nil
}

func parseMetadata(b []byte) (member, cluster uint64, err error) {
	fields, err := varints(b, 2)
	if err != nil {
		return 0, 0, err
	}
	return fields[0], fields[1], nil
}

// parsePosition reads etcd's walpb.Snapshot: index (1), term (2), configuration (3).
func parsePosition(b []byte) (p Position, err error) {
	fields, err := varints(b, 2)
	if err != nil {
		return p, err
	}
	p.Index, p.Term = fields[0], fields[1]
	for len(b) > 0 {
		num, kind, n := protowire.ConsumeTag(b)
		b = b[n:] // varints has checked it
		if num == 3 && kind == protowire.BytesType {
			var v []byte
			if v, n = protowire.ConsumeBytes(b); n >= 0 {
				p.ConfState = new(raftpb.ConfState)
				err = proto.Unmarshal(v, p.ConfState)
			}
		} else {
			n = protowire.ConsumeFieldValue(num, kind, b)
		}
		if err != nil {
			return p, err
		}
		b = b[n:]
	}
	return p, nil
}

// varints reads the fields 1 to n of a message that are numbers, and checks the form of the others.
func varints(b []byte, fields int) ([]uint64, error) {
	values := make([]uint64, fields)
	for len(b) > 0 {
		num, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		b = b[n:]
		if int(num) <= fields && kind == protowire.VarintType {
			values[num-1], n = protowire.ConsumeVarint(b)
		} else {
			n = protowire.ConsumeFieldValue(num, kind, b)
		}
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		b = b[n:]
	}
	return values, nil
}
