package logsink

import (
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// FoldInterval is the shortest time between two lines that repeat that a peer is lost or that there
// is no leader.
const FoldInterval = time.Minute

// RepeatsKey is the field that says how many lines of the kind were left out since the last one.
const RepeatsKey = "repeats-not-logged"

// A folder keeps lines that members repeat while others are lost from filling the log: raft's lines
// about elections that nobody answers, seven a second, and those about probes and connections that
// are retried. The first line of a kind is written as it is; later ones, word for word the same,
// once a minute, with the number left out; and when what was lost is back, a last one, if any were
// left out since.
//
// All members of a log share it: zap's clones of a core have one folder. Time is that of the
// entries.
type folder struct {
	mu   sync.Mutex
	told map[string]*told
}

// told is a kind of line that was written, and what was left out since.
type told struct {
	at    time.Time // of the last line that was written
	count int       // not written since
	peer  string    // whom it is about; empty: nobody, it is raft's
	// The last of those that were not written.
	core   *core
	entry  zapcore.Entry
	fields []zapcore.Field
}

// maxTold bounds the memory; beyond it all kinds are new again.
const maxTold = 1000

// repeatedWhole are messages that are folded, repeatedRaft parts of raft's.
var (
	repeatedWhole = []string{
		"prober detected unhealthy status", "failed to reach the peer URL", "failed to get version",
		"lost TCP streaming connection with remote peer",
	}
	repeatedRaft = []string{
		" is starting a new election at term ", " became pre-candidate at term ", " sent MsgPreVote request to ",
		" received MsgPreVoteResp from ", " MsgPreVoteResp votes and ",
	}
	// back are messages that say that a peer is back.
	back = []string{"peer became active", "established TCP streaming connection with remote peer"}
	// peerKeys are the fields that name a peer, otherKeys those that tell lines about it apart.
	peerKeys  = []string{"remote-peer-id", "remote-member-id", "peer-id"}
	otherKeys = []string{"round-tripper-name", "address", "stream-type", "stream-reader-type", "stream-writer-type"}
)

// elected is in raft's line about a new leader.
const elected = " elected leader "

// pass reports whether an entry is to be written, with which fields, and what is to be written
// before it.
func (f *folder) pass(c *core, ent zapcore.Entry, fields []zapcore.Field) (with []zapcore.Field, write bool, before []*told) {
	raft := func(part string) bool { return strings.Contains(ent.Message, part) }
	switch {
	case slices.Contains(back, ent.Message):
		peer := valueOf(fields, peerKeys)
		return fields, true, f.end(func(t *told) bool { return t.peer == peer })
	case raft(elected):
		return fields, true, f.end(func(t *told) bool { return t.peer == "" })
	case !slices.Contains(repeatedWhole, ent.Message) && !slices.ContainsFunc(repeatedRaft, raft):
		return fields, true, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	kind := kindOf(ent, fields)
	t := f.told[kind]
	if t != nil && ent.Time.Sub(t.at) < FoldInterval && !ent.Time.Before(t.at) {
		t.count++
		t.core, t.entry, t.fields = c, ent, slices.Clone(fields)
		return nil, false, nil
	}
	if f.told == nil || len(f.told) >= maxTold {
		f.told = map[string]*told{}
	}
	f.told[kind] = &told{at: ent.Time, peer: valueOf(fields, peerKeys)}
	if t != nil && t.count > 0 {
		fields = append(slices.Clone(fields), zap.Int(RepeatsKey, t.count))
	}
	return fields, true, nil
}

// end forgets kinds, and returns those with lines left out.
func (f *folder) end(of func(*told) bool) (unwritten []*told) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for kind, t := range f.told {
		if of(t) {
			delete(f.told, kind)
			if t.count > 0 {
				t.fields = append(t.fields, zap.Int(RepeatsKey, t.count-1)) // this one is written
				unwritten = append(unwritten, t)
			}
		}
	}
	slices.SortFunc(unwritten, func(a, b *told) int { return a.entry.Time.Compare(b.entry.Time) })
	return unwritten
}

// kindOf is what lines that say the same have in common: an error counts, except for its numbers,
// such as a port.
func kindOf(ent zapcore.Entry, fields []zapcore.Field) string {
	var kind strings.Builder
	kind.WriteString(ent.Message)
	for _, f := range fields {
		switch {
		case slices.Contains(peerKeys, f.Key), slices.Contains(otherKeys, f.Key):
			kind.WriteString("\x00" + f.Key + "\x00" + f.String)
		case f.Type == zapcore.ErrorType:
			if err, ok := f.Interface.(error); ok && err != nil {
				kind.WriteString("\x00" + strings.Map(withoutDigits, Cut(textOf(err.Error), cutBytes)))
			}
		}
	}
	return kind.String()
}

func withoutDigits(r rune) rune {
	if unicode.IsDigit(r) {
		return -1
	}
	return r
}

// valueOf is the text of the first field that has one of the names.
func valueOf(fields []zapcore.Field, names []string) string {
	for _, f := range fields {
		if slices.Contains(names, f.Key) {
			return f.String
		}
	}
	return ""
}
