//go:build !cgo

package budget

// besideHeap: without cgo all memory is of the Go heap.
const besideHeap = false
