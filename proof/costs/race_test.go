//go:build race

package costs

// raced: the race detector's own costs are not the member's.
const raced = true
