package server

import (
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
)

// watchAnswer is a WatchResponse with events, as codec and package rpc write it. A stream has one,
// used again for each response. Watchers of one key on one stream get the same events one after the
// other: from the second on these are copied as they were encoded for the first.
type watchAnswer struct {
	*pb.WatchResponse
	head, size int // bytes of all but the events, and of all

	last       []*mvccpb.Event // of the response before, if they are few bytes; the hub's, which never change
	lastSize   int             // of their encoding
	lastBytes  []byte          // that encoding, made when they come for the second time
	lastCopied bool            // lastBytes is made
}

// repeatedBytes bounds what a stream remembers of its last response.
const repeatedBytes = 16 << 10

// keptBytes bounds the memory for it that a stream keeps while it waits.
const keptBytes = 1 << 10

// set makes the answer that of r. It is false for a response that proto encodes: one without events.
func (a *watchAnswer) set(r *pb.WatchResponse) bool {
	if r.GetHeader() == nil || len(r.Events) == 0 || r.CancelReason != "" {
		return false
	}
	a.WatchResponse = r
	if !slices.Equal(a.last, r.Events) {
		a.remember(r.Events)
	} else if !a.lastCopied {
		a.lastBytes, a.lastCopied = appendEvents(a.lastBytes[:0], r.Events), true
	}
	a.head = watchHeadSize(r)
	a.size = a.head + a.lastSize
	return true
}

func (a *watchAnswer) remember(events []*mvccpb.Event) {
	a.lastSize, a.lastCopied = eventsSize(events), false
	clear(a.last)
	a.last = a.last[:0]
	if a.lastSize <= repeatedBytes {
		a.last = append(a.last, events...)
	}
}

// forget lets go of the events: a stream that waits holds none.
func (a *watchAnswer) forget() {
	clear(a.last)
	a.last, a.lastCopied = a.last[:0], false
	if cap(a.lastBytes) > keptBytes || cap(a.last) > keptBytes/8 {
		a.last, a.lastBytes = nil, nil
	}
}

// Size is what AppendTo appends, in bytes.
func (a *watchAnswer) Size() int { return a.size }

// AppendTo appends the encoding to b.
func (a *watchAnswer) AppendTo(b []byte) []byte {
	n := len(b)
	b = appendWatchHead(b, a.WatchResponse)
	if a.lastCopied {
		b = append(b, a.lastBytes...)
	} else {
		b = appendEvents(b, a.Events)
	}
	filled(b[n:], a.size)
	return b
}

func watchHeadSize(r *pb.WatchResponse) int {
	return 2 + headerSize(r.Header) + fieldSize(uint64(r.WatchId)) + flagSize(r.Created) + flagSize(r.Canceled) +
		fieldSize(uint64(r.CompactRevision)) + flagSize(r.Fragment)
}

// appendWatchHead appends the fields before the events.
func appendWatchHead(b []byte, r *pb.WatchResponse) []byte {
	b = appendHeader(b, r.Header)
	b = appendField(b, 2, uint64(r.WatchId))
	b = appendFlag(b, 3, r.Created)
	b = appendFlag(b, 4, r.Canceled)
	b = appendField(b, 5, uint64(r.CompactRevision))
	return appendFlag(b, 7, r.Fragment)
}

func eventSize(ev *mvccpb.Event) int {
	n := fieldSize(uint64(ev.Type))
	if ev.Kv != nil {
		n += messageSize(keyValueSize(ev.Kv))
	}
	if ev.PrevKv != nil {
		n += messageSize(keyValueSize(ev.PrevKv))
	}
	return n
}

func eventsSize(events []*mvccpb.Event) (n int) {
	for _, ev := range events {
		n += messageSize(eventSize(ev))
	}
	return n
}

func appendEvents(b []byte, events []*mvccpb.Event) []byte {
	for _, ev := range events {
		b = protowire.AppendVarint(append(b, 11<<3|wireBytes), uint64(eventSize(ev)))
		b = appendField(b, 1, uint64(ev.Type))
		if ev.Kv != nil {
			b = appendKeyValue(b, 2, ev.Kv)
		}
		if ev.PrevKv != nil {
			b = appendKeyValue(b, 3, ev.PrevKv)
		}
	}
	return b
}
