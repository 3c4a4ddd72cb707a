package watch

import (
	"context"
	"errors"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

var errFakeCompacted = errors.New("fake: compacted")

// fakeHistory keeps every revision in memory. Revision 1 is the empty store, as in etcd.
type fakeHistory struct {
	mu      sync.Mutex
	revs    [][]*mvccpb.Event // revs[i] is revision i+2
	compact int64
	fail    error // of the next read of history
	scans   int
}

func (f *fakeHistory) Revision() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return int64(len(f.revs)) + 1
}

func (f *fakeHistory) CompactRevision() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.compact
}

func (f *fakeHistory) model() *fakeHistory { return f }

func (f *fakeHistory) compactTo(rev int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.compact = max(f.compact, rev)
}

// write describes one event: a put, or a delete if del is set.
type write struct {
	key, value string
	del        bool
}

// commit adds a revision and returns it. A delete of what is not there becomes a put.
func (f *fakeHistory) commit(ws ...write) (int64, []*mvccpb.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	rev := int64(len(f.revs)) + 2
	var evs []*mvccpb.Event
	for _, w := range ws {
		ev := &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte(w.key), ModRevision: rev}}
		if w.del && f.before(w.key, rev) != nil {
			ev.Type = mvccpb.Event_DELETE
		} else {
			ev.Kv.Value = []byte(w.value)
			ev.Kv.CreateRevision, ev.Kv.Version = rev, 1
			if prev := f.before(w.key, rev); prev != nil {
				ev.Kv.CreateRevision, ev.Kv.Version = prev.CreateRevision, prev.Version+1
			}
		}
		evs = append(evs, ev)
	}
	f.revs = append(f.revs, evs)
	return rev, evs
}

func (f *fakeHistory) before(key string, rev int64) *mvccpb.KeyValue {
	for r := min(rev-1, int64(len(f.revs))+1); r >= 2; r-- {
		for _, ev := range f.revs[r-2] {
			if string(ev.Kv.Key) == key {
				if ev.Type == mvccpb.Event_DELETE {
					return nil
				}
				return ev.Kv
			}
		}
	}
	return nil
}

func (f *fakeHistory) PrevKV(ev *mvccpb.Event) (*mvccpb.KeyValue, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ev.Kv.ModRevision-1 < f.compact {
		return nil, nil
	}
	return f.before(string(ev.Kv.Key), ev.Kv.ModRevision), nil
}

func (f *fakeHistory) Events(_ context.Context, from, to int64, maxBytes int, wants func([]byte) bool, fn func(int64, []*mvccpb.Event) error) (int64, error) {
	f.mu.Lock()
	revs, compact, fail := f.revs, f.compact, f.fail
	f.fail = nil
	f.scans++
	f.mu.Unlock()
	if fail != nil {
		return from, fail
	}
	if from < compact {
		return from, errFakeCompacted
	}
	size := 0
	for ; from <= to && from-2 < int64(len(revs)); from++ {
		if from < 2 {
			continue
		}
		var events []*mvccpb.Event
		for _, ev := range revs[from-2] {
			if wants(ev.Kv.Key) {
				events = append(events, ev)
				size += int(eventBytes(ev))
			}
		}
		if len(events) > 0 {
			if err := fn(from, events); err != nil {
				return from, err
			}
		}
		if size > maxBytes {
			return from + 1, nil
		}
	}
	return from, nil
}
