package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/internal/crc32c"
)

// formatVersion is written in META and in every segment. A reader refuses what
// is newer than itself.
const formatVersion = 1

const (
	// sectorBytes is the unit that we assume a disk writes whole or not at all. Groups start on it,
	// so that a write never touches a sector that holds something already promised.
	sectorBytes = 512
	// pageBytes: a write is padded with zeros to the end of its page, so that the
	// kernel never has to read a page of a recycled segment before changing it.
	pageBytes = 4096

	segmentHeaderBytes = sectorBytes
	groupHeaderBytes   = 48
	recordHeaderBytes  = 9
	metaBytes          = 48

	maxRecordBytes = 1 << 30
)

var (
	segmentMagic = [8]byte{'b', 'e', 'l', 'a', 'y', 'l', 'o', 'g'}
	metaMagic    = [8]byte{'b', 'e', 'l', 'a', 'y', 'm', 'e', 't'}
)

const groupMagic = 0x5047_4c42 // "BLGP"

// hard is raft's HardState without its pointers.
type hard struct {
	term, vote, commit uint64
}

func (h hard) empty() bool { return h == hard{} }

// META says whose log this is. One file, written once, by rename, after the first segment is
// durable.
//
//	+---------+-------+---------+----------+-----------+--------+----------+
//	| magic 8 | crc 4 | version | member 8 | cluster 8 | log id | zero 8   |
//	|         |       |    4    |          |           |   8    |          |
//	+---------+-------+---------+----------+-----------+--------+----------+
//
// All numbers of all formats are little endian. crc is CRC-32C of all that
// follows it. The log id is random; it seeds every other checksum, so that a file
// of another log is never taken for one of this.
type meta struct {
	version         uint32
	member, cluster uint64
	logID           uint64
}

func (m meta) encode() []byte {
	b := make([]byte, metaBytes)
	copy(b, metaMagic[:])
	binary.LittleEndian.PutUint32(b[12:], m.version)
	binary.LittleEndian.PutUint64(b[16:], m.member)
	binary.LittleEndian.PutUint64(b[24:], m.cluster)
	binary.LittleEndian.PutUint64(b[32:], m.logID)
	binary.LittleEndian.PutUint32(b[8:], crc32c.Checksum(b[12:]))
	return b
}

var (
	errTooShort    = errors.New("too short")
	errMagic       = errors.New("no magic number of ours at its start")
	errChecksum    = errors.New("checksum does not match")
	errStale       = errors.New("left over from another segment")
	errUnknownKind = errors.New("unknown kind of record")
)

func decodeMeta(b []byte) (meta, error) {
	if len(b) < metaBytes {
		return meta{}, errTooShort
	}
	b = b[:metaBytes]
	if [8]byte(b) != metaMagic {
		return meta{}, errMagic
	}
	if binary.LittleEndian.Uint32(b[8:]) != crc32c.Checksum(b[12:]) {
		return meta{}, errChecksum
	}
	return meta{
		version: binary.LittleEndian.Uint32(b[12:]),
		member:  binary.LittleEndian.Uint64(b[16:]),
		cluster: binary.LittleEndian.Uint64(b[24:]),
		logID:   binary.LittleEndian.Uint64(b[32:]),
	}, nil
}

// segmentHeader is the first sector of a segment.
//
//	+---------+-------+---------+----------+----------+---------+
//	| magic 8 | crc 4 | version | log id 8 | number 8 | flags 8 |
//	|         |       |    4    |          |          |         |
//	+---------+-------+---------+----------+----------+---------+
//	| first 8 | synced 8 | prev index 8 | prev term 8 |
//	+---------+----------+--------------+-------------+
//	| term 8 | vote 8 | commit 8 | zeros up to 512 |
//	+--------+--------+----------+-----------------+
//
// prev is the last entry of the log before this segment and term, vote, commit the hard state then:
// the oldest segment needs nothing that came before it. With flagReset, prev is a new base: nothing
// that came before counts.
type segmentHeader struct {
	version             uint32
	logID               uint64
	number              uint64 // equals the file's name
	flags               uint64
	first               uint64 // the number of the first group here
	synced              uint64 // groups up to this one were known to be durable when this was written
	prevIndex, prevTerm uint64
	hard                hard
}

const flagReset = 1

func (h segmentHeader) encode(b []byte) {
	b = b[:segmentHeaderBytes]
	clear(b)
	copy(b, segmentMagic[:])
	binary.LittleEndian.PutUint32(b[12:], formatVersion)
	binary.LittleEndian.PutUint64(b[16:], h.logID)
	binary.LittleEndian.PutUint64(b[24:], h.number)
	binary.LittleEndian.PutUint64(b[32:], h.flags)
	binary.LittleEndian.PutUint64(b[40:], h.first)
	binary.LittleEndian.PutUint64(b[48:], h.synced)
	binary.LittleEndian.PutUint64(b[56:], h.prevIndex)
	binary.LittleEndian.PutUint64(b[64:], h.prevTerm)
	binary.LittleEndian.PutUint64(b[72:], h.hard.term)
	binary.LittleEndian.PutUint64(b[80:], h.hard.vote)
	binary.LittleEndian.PutUint64(b[88:], h.hard.commit)
	binary.LittleEndian.PutUint32(b[8:], crc32c.Checksum(b[12:]))
}

// decodeSegmentHeader returns errStale for the header that a recycled file had
// under an earlier name.
func decodeSegmentHeader(b []byte, logID, number uint64) (segmentHeader, error) {
	if len(b) < segmentHeaderBytes {
		return segmentHeader{}, errTooShort
	}
	b = b[:segmentHeaderBytes]
	if [8]byte(b) != segmentMagic {
		return segmentHeader{}, errMagic
	}
	if binary.LittleEndian.Uint32(b[8:]) != crc32c.Checksum(b[12:]) {
		return segmentHeader{}, errChecksum
	}
	h := segmentHeader{
		version:   binary.LittleEndian.Uint32(b[12:]),
		logID:     binary.LittleEndian.Uint64(b[16:]),
		number:    binary.LittleEndian.Uint64(b[24:]),
		flags:     binary.LittleEndian.Uint64(b[32:]),
		first:     binary.LittleEndian.Uint64(b[40:]),
		synced:    binary.LittleEndian.Uint64(b[48:]),
		prevIndex: binary.LittleEndian.Uint64(b[56:]),
		prevTerm:  binary.LittleEndian.Uint64(b[64:]),
		hard: hard{
			term:   binary.LittleEndian.Uint64(b[72:]),
			vote:   binary.LittleEndian.Uint64(b[80:]),
			commit: binary.LittleEndian.Uint64(b[88:]),
		},
	}
	if h.number != number || h.logID != logID {
		return h, errStale
	}
	return h, nil
}

// groupHeader starts each group: what one write and one fdatasync made durable together. A group is
// valid as a whole or not at all.
//
//	+-------+---------+----------+----------+---------+-----------+-----------+--------+
//	| crc 4 | magic 4 | number 8 | synced 8 | epoch 8 | payload 4 | records 4 | zero 8 |
//	+-------+---------+----------+----------+---------+-----------+-----------+--------+
//	| record | record | ...                                                            |
//	+--------+--------+----------------------------------------------------------------+
//	| zeros up to the next sector: where the next group starts                         |
//	| zeros up to the end of the page: overwritten by the next group                   |
//	+----------------------------------------------------------------------------------+
//
// crc covers the rest of the header and is seeded with the log id and the segment's
// number: a header that the file held under an earlier name never passes.
//
// number counts groups over the whole life of the log without a gap. synced is the highest group of
// which fdatasync had returned before this one was written: number-1, or 0 with NoSync. It is the
// proof by which recovery tells a torn write from damage (see doc.go). epoch is drawn anew whenever
// the log is opened and seeds the records' checksums, so that what remains of a torn group cannot
// mix with the group that is later written over it.
type groupHeader struct {
	number  uint64
	synced  uint64
	epoch   uint64
	payload uint32
	records uint32
}

// headerSeed seeds the checksums of the group headers of one segment.
// Two seeds of one log differ whenever the segments' numbers do within 2^32.
func headerSeed(logID, number uint64) uint32 {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], logID)
	binary.LittleEndian.PutUint64(b[8:], number)
	return crc32c.Checksum(b[:])
}

// recordSeed seeds the checksums of the records of one group.
func recordSeed(logID, epoch, number uint64) uint32 {
	var b [24]byte
	binary.LittleEndian.PutUint64(b[:], logID)
	binary.LittleEndian.PutUint64(b[8:], epoch)
	binary.LittleEndian.PutUint64(b[16:], number)
	return crc32c.Checksum(b[:])
}

func (h groupHeader) encode(b []byte, seed uint32) {
	b = b[:groupHeaderBytes]
	clear(b)
	binary.LittleEndian.PutUint32(b[4:], groupMagic)
	binary.LittleEndian.PutUint64(b[8:], h.number)
	binary.LittleEndian.PutUint64(b[16:], h.synced)
	binary.LittleEndian.PutUint64(b[24:], h.epoch)
	binary.LittleEndian.PutUint32(b[32:], h.payload)
	binary.LittleEndian.PutUint32(b[36:], h.records)
	binary.LittleEndian.PutUint32(b, crc32c.Update(seed, b[4:]))
}

func decodeGroupHeader(b []byte, seed uint32) (groupHeader, error) {
	if len(b) < groupHeaderBytes {
		return groupHeader{}, errTooShort
	}
	b = b[:groupHeaderBytes]
	if binary.LittleEndian.Uint32(b[4:]) != groupMagic {
		return groupHeader{}, errMagic
	}
	if binary.LittleEndian.Uint32(b) != crc32c.Update(seed, b[4:]) {
		return groupHeader{}, errChecksum
	}
	return groupHeader{
		number:  binary.LittleEndian.Uint64(b[8:]),
		synced:  binary.LittleEndian.Uint64(b[16:]),
		epoch:   binary.LittleEndian.Uint64(b[24:]),
		payload: binary.LittleEndian.Uint32(b[32:]),
		records: binary.LittleEndian.Uint32(b[36:]),
	}, nil
}

// A record:
//
//	+-------+----------+--------+------------------+
//	| crc 4 | length 4 | kind 1 | body of length   |
//	+-------+----------+--------+------------------+
//
//	kindEntry  | entry type 1 | index 8 | term 8 | data |    an index already held cuts the log there first
//	kindHard   | term 8 | vote 8 | commit 8 |              the last record of a group that changes it
//	kindBase   | index 8 | term 8 |                        a snapshot was installed: the log starts anew after it
//
// crc covers all that follows it and is seeded with recordSeed.
const (
	kindEntry = 1
	kindHard  = 2
	kindBase  = 3

	entryBodyBytes = 17
	hardBodyBytes  = 24
	baseBodyBytes  = 16
)

func sealRecord(b []byte, start int, kind byte, seed uint32) []byte {
	r := b[start:]
	binary.LittleEndian.PutUint32(r[4:], uint32(len(r)-recordHeaderBytes))
	r[8] = kind
	binary.LittleEndian.PutUint32(r, crc32c.Update(seed, r[4:]))
	return b
}

// appendEntry appends the record of one entry to b. It is the hot path: one copy
// and one checksum of the data.
func appendEntry(b []byte, e *raftpb.Entry, seed uint32) []byte {
	start := len(b)
	var h [recordHeaderBytes + entryBodyBytes]byte
	h[recordHeaderBytes] = byte(e.GetType())
	binary.LittleEndian.PutUint64(h[recordHeaderBytes+1:], e.GetIndex())
	binary.LittleEndian.PutUint64(h[recordHeaderBytes+9:], e.GetTerm())
	b = append(b, h[:]...)
	b = append(b, e.Data...)
	return sealRecord(b, start, kindEntry, seed)
}

// dataSum is the checksum of the data of the entry whose record b ends with, by the record's.
func dataSum(b []byte, seed uint32) uint32 {
	const at = recordHeaderBytes + entryBodyBytes
	return crc32c.Last(binary.LittleEndian.Uint32(b), crc32c.Update(seed, b[4:at]), len(b)-at)
}

func appendHard(b []byte, s hard, seed uint32) []byte {
	start := len(b)
	var h [recordHeaderBytes + hardBodyBytes]byte
	binary.LittleEndian.PutUint64(h[recordHeaderBytes:], s.term)
	binary.LittleEndian.PutUint64(h[recordHeaderBytes+8:], s.vote)
	binary.LittleEndian.PutUint64(h[recordHeaderBytes+16:], s.commit)
	b = append(b, h[:]...)
	return sealRecord(b, start, kindHard, seed)
}

func appendBase(b []byte, index, term uint64, seed uint32) []byte {
	start := len(b)
	var h [recordHeaderBytes + baseBodyBytes]byte
	binary.LittleEndian.PutUint64(h[recordHeaderBytes:], index)
	binary.LittleEndian.PutUint64(h[recordHeaderBytes+8:], term)
	b = append(b, h[:]...)
	return sealRecord(b, start, kindBase, seed)
}

// record is one decoded record; data aliases the input.
type record struct {
	kind        byte
	entryType   raftpb.EntryType
	index, term uint64
	data        []byte
	hard        hard
}

// decodeRecord reads the record at the start of b and returns its length in bytes.
func decodeRecord(b []byte, seed uint32) (record, int, error) {
	if len(b) < recordHeaderBytes {
		return record{}, 0, errTooShort
	}
	length := binary.LittleEndian.Uint32(b[4:])
	if length > maxRecordBytes || int(length) > len(b)-recordHeaderBytes {
		return record{}, 0, errTooShort
	}
	n := recordHeaderBytes + int(length)
	if binary.LittleEndian.Uint32(b) != crc32c.Update(seed, b[4:n]) {
		return record{}, 0, errChecksum
	}
	return parseRecord(b, n)
}

// parseRecord reads a record of n bytes whose checksum is right.
func parseRecord(b []byte, n int) (record, int, error) {
	r := record{kind: b[8]}
	body := b[recordHeaderBytes:n]
	switch {
	case r.kind == kindEntry && len(body) >= entryBodyBytes:
		r.entryType = raftpb.EntryType(body[0])
		r.index = binary.LittleEndian.Uint64(body[1:])
		r.term = binary.LittleEndian.Uint64(body[9:])
		r.data = body[entryBodyBytes:]
	case r.kind == kindHard && len(body) == hardBodyBytes:
		r.hard.term = binary.LittleEndian.Uint64(body)
		r.hard.vote = binary.LittleEndian.Uint64(body[8:])
		r.hard.commit = binary.LittleEndian.Uint64(body[16:])
	case r.kind == kindBase && len(body) == baseBodyBytes:
		r.index = binary.LittleEndian.Uint64(body)
		r.term = binary.LittleEndian.Uint64(body[8:])
	default:
		return record{}, 0, fmt.Errorf("%w (%d, %d bytes)", errUnknownKind, r.kind, len(body))
	}
	return r, n, nil
}

// decodeGroup checks the whole group at the start of b, then calls fn for each of its records: fn
// is never called for a group that is refused.
func decodeGroup(b []byte, logID uint64, seed uint32, fn func(record)) (groupHeader, int, error) {
	h, err := decodeGroupHeader(b, seed)
	if err != nil {
		return h, 0, err
	}
	if uint64(h.payload) > uint64(len(b)-groupHeaderBytes) {
		return h, 0, fmt.Errorf("group of %d bytes: %w", h.payload, errTooShort)
	}
	payload := b[groupHeaderBytes : groupHeaderBytes+int(h.payload)]
	rs := recordSeed(logID, h.epoch, h.number)
	for p, i := payload, uint32(0); ; i++ {
		if len(p) == 0 {
			if i != h.records {
				return h, 0, fmt.Errorf("%d records instead of %d", i, h.records)
			}
			break
		}
		_, n, err := decodeRecord(p, rs)
		if err != nil {
			return h, 0, fmt.Errorf("record %d of %d: %w", i+1, h.records, err)
		}
		p = p[n:]
	}
	if fn != nil {
		for p := payload; len(p) > 0; {
			// Checked above.
			r, n, _ := parseRecord(p, recordHeaderBytes+int(binary.LittleEndian.Uint32(p[4:])))
			fn(r)
			p = p[n:]
		}
	}
	return h, int(roundUp(int64(groupHeaderBytes)+int64(h.payload), sectorBytes)), nil
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
