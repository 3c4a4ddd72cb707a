package budget

// GoHeap is the memory limit for Go's runtime (debug.SetMemoryLimit): the budget without what the
// store takes beside Go's heap. It is at least half of the budget.
func (b Budget) GoHeap() int64 {
	beside := int64(0)
	if besideHeap {
		beside = b.Parts.Blocks + memTables*b.Parts.MemTable
	}
	return max(b.Bytes-beside, b.Bytes/2)
}
