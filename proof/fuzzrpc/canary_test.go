package fuzzrpc

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
)

// history is what the canary was given, and what its watcher saw. It goes through all rounds.
type history struct {
	mu      sync.Mutex
	values  int              // given so far, acknowledged or not
	acked   map[string]int64 // revision of each acknowledged value
	last    int64            // the highest revision that was acknowledged
	seen    map[string]int   // how often the watcher saw a value
	version int64            // of the last event
	next    int64            // the revision that the watch goes on from
	skipped int64            // up to this revision events were compacted before they were seen
	faults  []string
}

func (h *history) newest() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return max(h.last, 1)
}

func (h *history) fault(format string, args ...any) {
	if len(h.faults) < 10 {
		h.faults = append(h.faults, fmt.Sprintf(format, args...))
	}
}

// write gives the canary new values until ctx ends.
func (h *history) write(ctx context.Context, f *fuzz) {
	for n := 0; ctx.Err() == nil; n++ {
		h.put(ctx, f, n%len(f.members))
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// put writes one value, once: an attempt without an answer may have been done.
// One is made after the other.
func (h *history) put(ctx context.Context, f *fuzz, to int) bool {
	h.mu.Lock()
	h.values++
	value := fmt.Sprint("value ", h.values)
	h.mu.Unlock()
	call, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := pb.NewKVClient(f.members[to].conn).Put(f.as(call), &pb.PutRequest{Key: []byte(canary), Value: []byte(value)})
	if err != nil {
		if ctx.Err() == nil {
			f.disarm(ctx) // it may be that
		}
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.acked == nil {
		h.acked = make(map[string]int64)
	}
	h.acked[value] = r.Header.Revision
	if r.Header.Revision <= h.last {
		h.fault("%s was acknowledged at revision %d, after one at %d", value, r.Header.Revision, h.last)
	}
	h.last = r.Header.Revision
	return true
}

// watch follows the canary from where the last watch ended, until ctx ends.
func (h *history) watch(ctx context.Context, f *fuzz) {
	for n := 0; ctx.Err() == nil; n++ {
		s, err := pb.NewWatchClient(f.members[n%len(f.members)].conn).Watch(f.as(ctx), grpc.WaitForReady(true))
		if err == nil {
			h.mu.Lock()
			from := max(h.next, 1)
			h.mu.Unlock()
			err = s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte(canary), StartRevision: from}}})
		}
		for err == nil {
			var r *pb.WatchResponse
			if r, err = s.Recv(); err != nil {
				break
			}
			h.mu.Lock()
			if r.CompactRevision > h.next {
				h.skipped, h.next, h.version = r.CompactRevision, r.CompactRevision, 0
			}
			for _, e := range r.Events {
				h.see(e)
			}
			h.mu.Unlock()
			if r.Canceled {
				break
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// see takes the next event. REQUIRES: mu.
func (h *history) see(e *mvccpb.Event) {
	value := string(e.Kv.Value)
	if e.Type != mvccpb.Event_PUT {
		h.fault("the canary was deleted at revision %d", e.Kv.ModRevision)
		return
	}
	if e.Kv.ModRevision < h.next {
		h.fault("%s came at revision %d, after %d", value, e.Kv.ModRevision, h.next-1)
	}
	if h.version != 0 && e.Kv.Version != h.version+1 {
		h.fault("%s has version %d, after %d", value, e.Kv.Version, h.version)
	}
	h.version, h.next = e.Kv.Version, e.Kv.ModRevision+1
	if h.seen == nil {
		h.seen = make(map[string]int)
	}
	if h.seen[value]++; h.seen[value] > 1 {
		h.fault("%s came twice", value)
	}
}

// finish wants one more write to be done, and waits until the watcher has seen it.
func (h *history) finish(ctx context.Context, f *fuzz) {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	for !h.put(ctx, f, 0) {
		select {
		case <-ctx.Done():
			f.t.Errorf("the canary could not be written for %v after the round", settle)
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
	want := h.newest()
	for {
		h.mu.Lock()
		next := h.next
		h.mu.Unlock()
		if next > want {
			return
		}
		select {
		case <-ctx.Done():
			f.t.Errorf("the watcher of the canary is at revision %d and should be at %d, %v after the round", next, want, settle)
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// check wants each acknowledged value to have been seen, unless it was compacted before.
func (h *history) check(t *testing.T) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for value, revision := range h.acked {
		if h.seen[value] == 0 && revision >= h.skipped {
			h.fault("%s, acknowledged at revision %d, was never seen", value, revision)
		}
	}
	for _, fault := range h.faults {
		t.Error(fault)
	}
}
