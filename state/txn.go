package state

import (
	"bytes"
	"cmp"
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/mvcc"
)

// A transaction runs in three steps, so that it happens completely or not at all:
//
//  1. All compares, those of nested transactions too, are judged by the state before it. That fixes
//     the path: which branch each (nested) transaction takes, in the order in which a walk meets
//     them.
//  2. Every operation on the path is checked against the same state: revisions of ranges, leases,
//     keys that must exist. The first failure is the transaction's error; nothing was written.
//  3. The operations run in order. They cannot fail any more. (A put that ignores its value and
//     follows a delete of its key could; the API refuses such a pair of operations. Here it writes
//     an empty value.)

// txnReader is the state against which a transaction is judged.
type txnReader interface {
	Ranger
	Rev() int64
	CompactRevision() int64
}

// txnPath is the outcome of every compare list on the way, outermost first, depth first.
type txnPath struct {
	taken []bool
	next  int
}

// step gives the operations of the branch that the next transaction on the path takes.
func (p *txnPath) step(r *pb.TxnRequest) (succeeded bool, ops []*pb.RequestOp) {
	succeeded = p.taken[p.next]
	p.next++
	if succeeded {
		return true, r.Success
	}
	return false, r.Failure
}

func (p *txnPath) rewind() { p.next = 0 }

// judge appends the outcome of the compares of a transaction and of those nested in the branch it
// takes.
func (p *txnPath) judge(ctx context.Context, rd Ranger, r *pb.TxnRequest) error {
	succeeded := true
	for _, c := range r.Compare {
		ok, err := compareHolds(ctx, rd, c)
		if err != nil {
			return err
		}
		if !ok {
			succeeded = false
			break
		}
	}
	p.taken = append(p.taken, succeeded)
	ops := r.Success
	if !succeeded {
		ops = r.Failure
	}
	for _, op := range ops {
		if nested := op.GetRequestTxn(); nested != nil {
			if err := p.judge(ctx, rd, nested); err != nil {
				return err
			}
		}
	}
	return nil
}

// compareHolds reports whether every key of the compare's range satisfies it. A range without keys
// is compared once, as a key with all numbers 0; but a value that does not exist satisfies nothing,
// not even "not equal".
func compareHolds(ctx context.Context, rd Ranger, c *pb.Compare) (bool, error) {
	if len(c.GetKey()) == 0 {
		return false, ErrEmptyKey
	}
	if w, ok := rd.(*mvcc.Writer); ok && len(c.RangeEnd) == 0 { // the common case without a list around it
		kv, err := w.Prev(c.Key, c.Target == pb.Compare_VALUE)
		if err != nil {
			return false, err
		}
		if kv == nil {
			return holdsWithoutKey(c), nil
		}
		return compareKV(c, kv), nil
	}
	found, holds := false, true
	compare := func(kv *mvccpb.KeyValue) bool {
		found, holds = true, compareKV(c, kv)
		return holds // the first key that does not satisfy it decides, and none is kept
	}
	rr, err := rd.Range(ctx, c.Key, c.RangeEnd, mvcc.RangeOptions{KeysOnly: c.Target != pb.Compare_VALUE, NoCount: true, Each: compare})
	if err != nil {
		return false, err
	}
	for _, kv := range rr.KVs { // of one key
		compare(kv)
	}
	if !found {
		return holdsWithoutKey(c), nil
	}
	return holds, nil
}

func holdsWithoutKey(c *pb.Compare) bool {
	return c.Target != pb.Compare_VALUE && compareKV(c, &mvccpb.KeyValue{})
}

// compareKV follows etcd where the request is malformed: an unknown target compares as equal, an
// unknown result holds, and an operand that is missing or of another target is 0 or empty.
func compareKV(c *pb.Compare, kv *mvccpb.KeyValue) bool {
	var order int
	switch c.Target {
	case pb.Compare_VALUE:
		order = bytes.Compare(kv.Value, c.GetValue())
	case pb.Compare_CREATE:
		order = cmp.Compare(kv.CreateRevision, c.GetCreateRevision())
	case pb.Compare_MOD:
		order = cmp.Compare(kv.ModRevision, c.GetModRevision())
	case pb.Compare_VERSION:
		order = cmp.Compare(kv.Version, c.GetVersion())
	case pb.Compare_LEASE:
		order = cmp.Compare(kv.Lease, c.GetLease())
	}
	switch c.Result {
	case pb.Compare_EQUAL:
		return order == 0
	case pb.Compare_NOT_EQUAL:
		return order != 0
	case pb.Compare_GREATER:
		return order > 0
	case pb.Compare_LESS:
		return order < 0
	}
	return true
}

// check is step 2 for one transaction and those nested in it.
func (p *txnPath) check(r *pb.TxnRequest, rd txnReader, checkPut func(*pb.PutRequest) error) error {
	_, ops := p.step(r)
	for _, op := range ops {
		var err error
		switch o := op.GetRequest().(type) {
		case *pb.RequestOp_RequestRange:
			err = checkRange(rd, o.RequestRange)
		case *pb.RequestOp_RequestPut:
			err = checkPut(o.RequestPut)
		case *pb.RequestOp_RequestDeleteRange:
			if len(o.RequestDeleteRange.GetKey()) == 0 {
				err = ErrEmptyKey
			}
		case *pb.RequestOp_RequestTxn:
			if o.RequestTxn != nil {
				err = p.check(o.RequestTxn, rd, checkPut)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkRange refuses a range that could not be answered. A negative revision is one below every
// compaction, unless there was none.
func checkRange(rd txnReader, r *pb.RangeRequest) error {
	switch {
	case len(r.GetKey()) == 0:
		return ErrEmptyKey
	case r.Revision == 0:
	case r.Revision > rd.Rev():
		return mvcc.ErrFutureRev
	case r.Revision < rd.CompactRevision():
		return mvcc.ErrCompacted
	}
	return checkSort(r)
}

// IsReadOnly reports whether every operation of both branches is a range, those of nested
// transactions too.
func IsReadOnly(r *pb.TxnRequest) bool {
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			if nested := op.GetRequestTxn(); op.GetRequestRange() == nil && (nested == nil || !IsReadOnly(nested)) {
				return false
			}
		}
	}
	return true
}

// ReadTxn answers a transaction all of whose operations are ranges, from one consistent view.
// maxBytes, unless it is 0, bounds the answer: mvcc.ErrTooLarge. Any goroutine may call it. Errors:
// as RangeResponse, and ErrEmptyKey; ErrNotReadOnly for a transaction that must go through the log.
func ReadTxn(ctx context.Context, v *mvcc.View, r *pb.TxnRequest, maxBytes int64) (*pb.TxnResponse, error) {
	if !IsReadOnly(r) {
		return nil, ErrNotReadOnly
	}
	var path txnPath
	if err := path.judge(ctx, v, r); err != nil {
		return nil, err
	}
	if err := path.check(r, v, nil); err != nil {
		return nil, err
	}
	path.rewind()
	run := txnRun{path: &path, rd: v, left: maxBytes}
	resp, err := run.txn(ctx, r, nil)
	if err == nil && run.tooLarge {
		err = mvcc.ErrTooLarge
	}
	if err != nil {
		return nil, err
	}
	resp.Header.Revision = v.Rev()
	return resp, nil
}

// txn applies a transaction to the batch. Beside a response the error may be ErrTxnAnswerTooLarge.
func (a *application) txn(e *command.Entry) (*pb.TxnResponse, error) {
	ctx, r := context.Background(), e.Request.Txn
	var path txnPath
	if err := path.judge(ctx, a.w, r); err != nil {
		return nil, a.orStop("compare of a transaction", err)
	}
	if err := path.check(r, a.w, a.checkPut); err != nil {
		return nil, err
	}
	path.rewind()
	run := txnRun{path: &path, rd: a.w, entry: e, left: a.m.cfg.MaxAnswerBytes}
	resp, err := run.txn(ctx, r, a)
	if err != nil {
		a.failed("a checked transaction failed half-way", err)
	}
	resp.Header.Revision = a.w.Rev()
	if run.tooLarge {
		return resp, ErrTxnAnswerTooLarge
	}
	return resp, nil
}

// txnRun is step 3. What it writes depends only on the path. What it reads affects only the answer:
// once nobody waits for that any longer, or it has become too large to be sent, nothing more is
// read.
type txnRun struct {
	path     *txnPath
	rd       txnReader
	entry    *command.Entry // nil: not of the log
	left     int64          // bytes that the answer may still have; 0: no bound
	tooLarge bool
}

// awaitedContext ends when nobody waits for the result of an entry any longer.
type awaitedContext struct {
	context.Context
	entry *command.Entry
}

func (c awaitedContext) Err() error {
	if c.entry.Awaited() {
		return nil
	}
	return context.Canceled
}

func (t *txnRun) read(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	nothing := &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: t.rd.Rev()}}
	if t.tooLarge || t.entry != nil && !t.entry.Awaited() {
		return nothing, nil
	}
	if t.entry != nil && t.entry.GivenUp != nil {
		ctx = awaitedContext{ctx, t.entry}
	}
	rr, err := RangeWithin(ctx, t.rd, r, t.left)
	switch {
	case err == nil:
		t.has(true, keyValuesBytes(rr.Kvs))
	case errors.Is(err, mvcc.ErrTooLarge):
		t.has(false, 0)
		return nothing, nil
	case t.entry != nil && errors.Is(err, context.Canceled):
		return nothing, nil
	}
	return rr, err
}

// has counts what is added to the answer, or that something did not fit.
func (t *txnRun) has(whole bool, bytes int64) {
	if t.left > 0 {
		t.left -= bytes
		t.tooLarge = t.tooLarge || t.left <= 0
	}
	t.tooLarge = t.tooLarge || !whole
}

// txn runs one transaction. The header of its response stays empty, as a nested one does in etcd;
// the caller fills the outermost. a writes; nil: there is nothing to write.
func (t *txnRun) txn(ctx context.Context, r *pb.TxnRequest, a *application) (*pb.TxnResponse, error) {
	succeeded, ops := t.path.step(r)
	resp := &pb.TxnResponse{
		Header:    &pb.ResponseHeader{},
		Succeeded: succeeded,
		Responses: make([]*pb.ResponseOp, len(ops)),
	}
	for i, op := range ops {
		out := &pb.ResponseOp{}
		switch o := op.GetRequest().(type) {
		case *pb.RequestOp_RequestRange:
			rr, err := t.read(ctx, o.RequestRange)
			if err != nil {
				return nil, err
			}
			out.Response = &pb.ResponseOp_ResponseRange{ResponseRange: rr}
		case *pb.RequestOp_RequestPut:
			pr, err := a.runPut(o.RequestPut)
			if err != nil {
				return nil, err
			}
			out.Response = &pb.ResponseOp_ResponsePut{ResponsePut: pr}
		case *pb.RequestOp_RequestDeleteRange:
			dr, whole, err := a.runDeleteRange(o.RequestDeleteRange, !t.tooLarge && t.entry.Awaited(), t.left)
			if err != nil {
				return nil, err
			}
			t.has(whole, keyValuesBytes(dr.PrevKvs))
			out.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: dr}
		case *pb.RequestOp_RequestTxn:
			if o.RequestTxn == nil {
				break
			}
			tr, err := t.txn(ctx, o.RequestTxn, a)
			if err != nil {
				return nil, err
			}
			out.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: tr}
		}
		resp.Responses[i] = out
	}
	return resp, nil
}
