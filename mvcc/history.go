package mvcc

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/belaydb/belay/store"
)

// Events calls fn with the changes of every revision of [from, to], in order: of each revision those
// of keys that are wanted, and none of revisions without one. wants, unless it is nil, says which
// keys are: what nobody wants costs no look at its version. It stops when it has passed maxBytes or
// more of keys and values, and returns the first revision that it has not come to. It shows one
// consistent state, up to the newest revision. The events are fn's to keep; PrevKv is not set (see
// PrevKV).
//
// Errors: ErrCompacted, before the first call of fn, if from is compacted; the context's; fn's;
// those of the disk.
func (s *Store) Events(ctx context.Context, from, to int64, maxBytes int, wants func(key []byte) bool, fn func(rev int64, events []*mvccpb.Event) error) (next int64, err error) {
	defer func() { s.st.Note(err) }()
	from = max(from, 1)
	lower := store.AppendRevisionKey(nil, uint64(from), 0)
	_, upper := store.RevisionsSpan()
	it, _, current, err := s.open(ctx, 0, &pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return from, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if from < s.compact.Load() {
		return from, ErrCompacted
	}
	values, err := it.Clone(pebble.CloneOptions{IterOptions: &pebble.IterOptions{}})
	if err != nil {
		return from, err
	}
	defer func() { err = errors.Join(err, values.Close()) }()
	to = min(to, current)

	var events []*mvccpb.Event
	var rev int64 // of events
	size := 0
	next = from
	flush := func() error {
		if rev == 0 {
			return nil
		}
		if len(events) > 0 {
			if err := fn(rev, events); err != nil {
				return err
			}
			events = nil
		}
		next = rev + 1
		return ctx.Err()
	}
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return next, store.Explain(err)
		}
		r, tombstone, key, err := decodeRevision(it.Key(), value)
		if err != nil {
			return next, err
		}
		if r.Main > to {
			break
		}
		if r.Main != rev {
			if err := flush(); err != nil {
				return next, err
			}
			if size >= maxBytes && next > from {
				return next, nil
			}
			rev = r.Main
		}
		if wants != nil && !wants(key) {
			continue
		}
		ev, err := s.event(values, r, tombstone, key)
		if err != nil {
			return next, err
		}
		events = append(events, ev)
		size += len(ev.Kv.Key) + len(ev.Kv.Value)
	}
	if err := it.Error(); err != nil {
		return next, store.Explain(err)
	}
	if err := flush(); err != nil {
		return next, err
	}
	return max(next, to+1), nil
}

// event makes the event of one revision.
func (s *Store) event(values store.Iterator, r Revision, tombstone bool, key []byte) (*mvccpb.Event, error) {
	if tombstone {
		kv := &mvccpb.KeyValue{Key: append(make([]byte, 0, len(key)), key...), ModRevision: r.Main}
		return &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: kv}, nil
	}
	if kv := s.cache.exactly(key, r); kv != nil {
		return &mvccpb.Event{Kv: kv}, nil
	}
	var stack [128]byte
	target := store.AppendUserKey(stack[:0], key, uint64(r.Main), uint32(r.Sub))
	if !values.SeekPrefixGE(target) || !bytes.Equal(values.Key(), target) {
		if err := values.Error(); err != nil {
			return nil, store.Explain(err)
		}
		return nil, fmt.Errorf("mvcc: revision %d.%d has no version of its key %q", r.Main, r.Sub, key)
	}
	b, err := values.ValueAndErr()
	if err != nil {
		return nil, store.Explain(err)
	}
	rec, err := decodeRecord(b, r.Main)
	if err != nil {
		return nil, err
	}
	kv := &mvccpb.KeyValue{
		Key: append(make([]byte, 0, len(key)), key...), CreateRevision: rec.create, ModRevision: r.Main, Version: rec.version, Lease: rec.lease,
	}
	if len(rec.value) > 0 {
		kv.Value = append(make([]byte, 0, len(rec.value)), rec.value...)
	}
	return &mvccpb.Event{Kv: kv}, nil
}

// PrevKV is the key of an event as it was before: nil if the event created it, or if it is
// compacted. It must not be changed.
func (s *Store) PrevKV(ev *mvccpb.Event) (_ *mvccpb.KeyValue, err error) {
	defer func() { s.st.Note(err) }()
	kv := ev.Kv
	if ev.Type == mvccpb.Event_PUT && kv.CreateRevision == kv.ModRevision || kv.ModRevision <= 1 {
		return nil, nil
	}
	res, err := s.point(context.Background(), kv.Key, RangeOptions{Rev: kv.ModRevision - 1})
	switch {
	case errors.Is(err, ErrCompacted):
		return nil, nil
	case err != nil:
		return nil, err
	case len(res.KVs) == 0:
		return nil, nil
	}
	return res.KVs[0], nil
}
