package budget

import "math"

// Budget is what a member may take, and how that is divided. The zero value is no budget.
type Budget struct {
	Bytes int64
	Limit Limit // what there is
	Parts Parts
}

// Parts are the shares, in bytes. A zero means the default of the part that uses it.
type Parts struct {
	Blocks       int64 // the store's cache of blocks
	HotKeys      int64 // mvcc's cache of the newest versions
	ExistsFilter int64 // mvcc's filter of keys that exist
	MemTable     int64 // one memory table of the store; two are taken by default
	LogKept      int64 // raft log in memory that is kept for followers
	Log          int64 // raft log in memory, with what waits for a disk, in all
	Proposals    int64 // proposals in flight
	Answers      int64 // answers that are read, encoded or being sent
	Answer       int64 // keys and values of one answer
	Watches      int64 // undelivered events of all watch streams
	Recent       int64 // events kept for late watchers
	Backlog      int64 // events that wait for the dispatcher
	Receiving    int64 // incomplete requests
	Garbage      int64 // garbage beside what is live before Go collects it
	Process      int64 // goroutines, connections, the program: an estimate, nothing is held to it
}

// memTables is how many memory tables are counted: one being written, one being flushed. More wait
// only when a disk stalls, and hold what the log holds, too.
const memTables = 2

// Part is one share, for a table of them.
type Part struct {
	Name  string // as in the log and as the label of the metric
	Bytes int64
	// Within: it is taken out of another part, or at most of one at a time, and not added.
	Within bool
}

// whole is what the shares below are parts of.
const whole = 64

// share is one row of the division.
type share struct {
	name  string
	of    int64 // of the whole, in 64ths
	most  int64 // the figure for a large machine; 0: none
	times int64 // how often it is taken
	field func(*Parts) *int64
	// within: the bytes are a part of what another row allows.
	within bool
}

// shares is the division. Where a row has a most, this was the bound before there was a budget, and
// is the default where a part is used without one.
func shares() []share {
	const mib = 1 << 20
	return []share{
		{name: "block-cache", of: 6, most: 128 * mib, times: 1, field: func(p *Parts) *int64 { return &p.Blocks }},
		{name: "hot-keys", of: 3, most: 64 * mib, times: 1, field: func(p *Parts) *int64 { return &p.HotKeys }},
		{name: "key-filter", of: 1, most: 32 * mib, times: 1, field: func(p *Parts) *int64 { return &p.ExistsFilter }},
		{name: "memory-table", of: 2, most: 32 * mib, times: memTables, field: func(p *Parts) *int64 { return &p.MemTable }},
		{name: "raft-log", of: 8, most: 512 * mib, times: 1, field: func(p *Parts) *int64 { return &p.Log }},
		{name: "raft-log-kept", of: 2, most: 32 * mib, times: 1, within: true, field: func(p *Parts) *int64 { return &p.LogKept }},
		// A byte of a proposal in flight is held twice beside the log: the request, and encoded. Of a
		// large one half of the bytes count: it is not encoded while it waits for its turn.
		{name: "proposals", of: 3, most: 1024 * mib, times: 2, field: func(p *Parts) *int64 { return &p.Proposals }},
		{name: "range-answers", of: 14, most: 4096 * mib, times: 1, field: func(p *Parts) *int64 { return &p.Answers }},
		{name: "one-answer", of: 14, most: math.MaxInt32, times: 1, within: true, field: func(p *Parts) *int64 { return &p.Answer }},
		{name: "watch-queues", of: 4, most: 1024 * mib, times: 1, field: func(p *Parts) *int64 { return &p.Watches }},
		{name: "watch-recent", of: 1, most: 8 * mib, times: 1, field: func(p *Parts) *int64 { return &p.Recent }},
		{name: "watch-backlog", of: 1, most: 64 * mib, times: 1, field: func(p *Parts) *int64 { return &p.Backlog }},
		{name: "receiving", of: 6, most: 512 * mib, times: 1, field: func(p *Parts) *int64 { return &p.Receiving }},
		{name: "garbage", of: 6, most: 192 * mib, times: 1, field: func(p *Parts) *int64 { return &p.Garbage }},
		{name: "process", of: 4, most: 256 * mib, times: 1, field: func(p *Parts) *int64 { return &p.Process }},
	}
}

// Divide divides a budget, of at least Least bytes.
func Divide(bytes int64, there Limit) Budget {
	b := Budget{Bytes: bytes, Limit: there}
	for _, s := range shares() {
		n := bytes / whole * s.of
		if s.most > 0 {
			n = min(n, s.most)
		}
		*s.field(&b.Parts) = n
	}
	return b
}

// Table is the division, in the order of the documentation.
func (b Budget) Table() (parts []Part) {
	for _, s := range shares() {
		parts = append(parts, Part{Name: s.name, Bytes: *s.field(&b.Parts) * s.times, Within: s.within})
	}
	return parts
}

// Taken is what the parts may take together.
func (b Budget) Taken() (bytes int64) {
	for _, p := range b.Table() {
		if !p.Within {
			bytes += p.Bytes
		}
	}
	return bytes
}

// mostLogInMemory is the bound of the log in memory that the store has durably, on a large machine.
const mostLogInMemory = 256 << 20

// LogInMemory is how much of the raft log stays in memory besides what waits for a disk. 0: no
// budget.
func (b Budget) LogInMemory() int64 { return min(b.Parts.Log, mostLogInMemory) }
