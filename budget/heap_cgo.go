//go:build cgo

package budget

// besideHeap: with cgo the store takes its block cache and its memory tables from the C heap.
const besideHeap = true
