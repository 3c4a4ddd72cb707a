package command

// Segment names a file of a member's raft log: the log's random id, and the segment's number, which
// no other segment of that log ever has.
type Segment struct{ Log, Number uint64 }

// EntryPlace is where this member's log has the data of an entry, durably and in one piece. The zero
// value is no place.
type EntryPlace struct {
	Segment Segment
	Offset  int64 // of the data's first byte in the file
}

// IsSet reports whether there is a place.
func (p EntryPlace) IsSet() bool { return p.Segment != Segment{} }
