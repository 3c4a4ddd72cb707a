package command

import "unsafe"

// Segment names a file of a member's raft log: the log's random id, and the segment's number, which
// no other segment of that log ever has.
type Segment struct{ Log, Number uint64 }

// EntryPlace is where this member's log has the data of an entry, durably and in one piece. The zero
// value is no place.
type EntryPlace struct {
	Segment Segment
	Offset  int64  // of the data's first byte in the file
	Sum     uint32 // CRC-32C of the data
}

// IsSet reports whether there is a place.
func (p EntryPlace) IsSet() bool { return p.Segment != Segment{} }

// PutValue returns where the value is in the data of an entry that is a put in the form that Encode
// gives it, and writes that value; ok is false for other entries.
func PutValue(data []byte) (offset, length int, ok bool) {
	req := decodePlainPut(data)
	if req == nil || len(req.Put.Value) == 0 || req.Put.IgnoreValue {
		return 0, 0, false
	}
	value := req.Put.Value // it refers to data
	offset = int(uintptr(unsafe.Pointer(&value[0])) - uintptr(unsafe.Pointer(&data[0])))
	if offset < 0 || offset > len(data)-len(value) {
		return 0, 0, false
	}
	return offset, len(value), true
}
