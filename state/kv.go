package state

import (
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/store"
)

// putAnswer is a PutResponse with its header, in one allocation.
type putAnswer struct {
	resp   pb.PutResponse
	header pb.ResponseHeader
}

func (a *application) put(r *pb.PutRequest, unawaited bool) (*pb.PutResponse, error) {
	if err := a.checkPut(r); err != nil {
		return nil, err
	}
	if unawaited && !r.IgnoreValue && !r.IgnoreLease {
		if _, err := a.write(r.Key, r.Value, r.Lease); err != nil {
			a.failed("put", err)
		}
		return nil, nil
	}
	resp, err := a.runPut(r)
	if err != nil {
		a.failed("put", err)
	}
	return resp, nil
}

// checkPut refuses a put that cannot be done. It changes nothing.
func (a *application) checkPut(r *pb.PutRequest) error {
	if len(r.GetKey()) == 0 {
		return ErrEmptyKey
	}
	if r.Lease != 0 && !a.m.cfg.Leases.Exists(lease.ID(r.Lease)) {
		return lease.ErrNotFound
	}
	if r.IgnoreValue || r.IgnoreLease {
		prev, err := a.w.Prev(r.Key, false)
		if err != nil {
			a.failed("put", err)
		}
		if prev == nil {
			return ErrKeyNotFound
		}
	}
	return nil
}

// runPut does a checked put.
func (a *application) runPut(r *pb.PutRequest) (*pb.PutResponse, error) {
	answer := &putAnswer{}
	answer.resp.Header = &answer.header
	value, leaseID := r.Value, r.Lease
	if r.PrevKv || r.IgnoreValue || r.IgnoreLease {
		prev, err := a.w.Prev(r.Key, r.PrevKv || r.IgnoreValue)
		if err != nil {
			return nil, err
		}
		if r.IgnoreValue {
			value = prev.GetValue()
		}
		if r.IgnoreLease {
			leaseID = prev.GetLease()
		}
		if r.PrevKv {
			answer.resp.PrevKv = prev
		}
	}
	rev, err := a.write(r.Key, value, leaseID)
	answer.header.Revision = rev
	return &answer.resp, err
}

// write puts one key and moves it from its old lease to the new one.
func (a *application) write(key, value []byte, leaseID int64) (rev int64, err error) {
	var place store.Place
	place, a.entry.from = a.m.cfg.Store.Segments.Find(value, a.entry.data, a.entry.place, a.entry.from)
	if place.IsSet() {
		a.entry.placed += len(value)
	}
	prev, rev, err := a.w.PutPlaced(key, value, leaseID, place)
	if err != nil {
		return 0, err
	}
	old := prev.GetLease()
	if old == leaseID {
		return rev, nil
	}
	if old != 0 {
		if err := a.m.cfg.Leases.Detach(a.b, lease.ID(old), key); err != nil {
			return 0, err
		}
	}
	if leaseID != 0 {
		a.m.writers.attached(leaseID)
		return rev, a.m.cfg.Leases.Attach(a.b, lease.ID(leaseID), key)
	}
	return rev, nil
}

// deleteRange deletes a range. Beside a response the error may be ErrTxnAnswerTooLarge.
func (a *application) deleteRange(r *pb.DeleteRangeRequest, awaited bool) (*pb.DeleteRangeResponse, error) {
	if len(r.Key) == 0 {
		return nil, ErrEmptyKey
	}
	resp, whole, err := a.runDeleteRange(r, awaited, a.m.cfg.MaxAnswerBytes)
	if err != nil {
		a.failed("delete", err)
	}
	if !whole {
		return resp, ErrTxnAnswerTooLarge
	}
	return resp, nil
}

// runDeleteRange does a delete that has a key. The previous values are read only if somebody waits
// for them, and only up to maxBytes, if that is not 0; otherwise whole is false.
func (a *application) runDeleteRange(r *pb.DeleteRangeRequest, awaited bool, maxBytes int64) (resp *pb.DeleteRangeResponse, whole bool, err error) {
	n, prevs, whole, err := a.remove(r.Key, r.RangeEnd, r.PrevKv && awaited, maxBytes)
	if err != nil {
		return nil, false, err
	}
	resp = &pb.DeleteRangeResponse{Header: a.revisionHeader(), Deleted: n}
	if r.PrevKv && awaited && whole {
		resp.PrevKvs = prevs
	}
	return resp, whole, nil
}

// remove deletes a range and detaches its keys from their leases.
func (a *application) remove(key, end []byte, wantPrev bool, maxBytes int64) (n int64, prevs []*mvccpb.KeyValue, whole bool, err error) {
	n, prevs, whole, err = a.w.DeleteWithin(key, end, wantPrev, maxBytes)
	if err != nil {
		return 0, nil, false, err
	}
	for _, kv := range prevs {
		if kv.Lease != 0 {
			if err := a.m.cfg.Leases.Detach(a.b, lease.ID(kv.Lease), kv.Key); err != nil {
				return 0, nil, false, err
			}
		}
	}
	return n, prevs, whole, nil
}

// compact records the revision below which history may be removed; the removal follows in the
// background. As in etcd, who waits for the removal waits also where the revision is compacted
// already: for what was scheduled by then.
func (a *application) compact(r *pb.CompactionRequest) command.Result {
	if err := a.w.Compact(r.Revision); err != nil {
		result := command.Result{Err: a.orStop("compaction", err)}
		if errors.Is(err, mvcc.ErrCompacted) {
			result.Done = a.m.cfg.KV.Compacted(a.w.CompactRevision())
		}
		return result
	}
	return command.Result{
		Response: &pb.CompactionResponse{Header: a.revisionHeader()},
		Done:     a.m.cfg.KV.Compacted(r.Revision),
	}
}
