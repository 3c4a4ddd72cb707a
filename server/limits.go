package server

import (
	"context"
	"math"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/state"
)

// Limits bound what one request may ask for, where etcd has no bound. 0 is the default in brackets,
// a negative number no limit.
type Limits struct {
	KeyBytes int64 // of a key that is written, and of the name of a new user or role [DefaultKeyBytes]
	// TxnTotalOps is how many compares and operations a transaction may have on all levels together
	// [DefaultTxnTotalOps].
	TxnTotalOps int64
	// TxnRangeKeys is how many keys the ranges of a transaction that writes may cover, besides the
	// largest that it deletes [DefaultTxnRangeKeys]: one delete may always be as large as a request
	// of its own.
	TxnRangeKeys int64
	// TxnRangeBytes is how many bytes of keys and values a request that goes through the log may
	// read: the ranges of a transaction that writes, its compares of values, and previous values of
	// what is deleted [DefaultTxnRangeBytes].
	TxnRangeBytes int64
	// AnswerBytes is how many bytes of keys and values a request may read [DefaultAnswerBytes].
	AnswerBytes int64
	// ReceiveBytes is how many bytes of incomplete requests may be held [DefaultReceiveBytes]; see
	// listen.Receiving.
	ReceiveBytes int64
}

const (
	// DefaultKeyBytes is sixteen times the longest keys of known clients.
	DefaultKeyBytes = 64 << 10
	// DefaultTxnTotalOps is 128 times --max-txn-ops, which bounds each level.
	DefaultTxnTotalOps = 16384
	// DefaultTxnRangeKeys takes the applier some half a second, in which it does nothing else.
	DefaultTxnRangeKeys = 1_000_000
	// DefaultTxnRangeBytes takes the applier a third of a second, too.
	DefaultTxnRangeBytes = 256 << 20
	// DefaultAnswerBytes is what gRPC can send.
	DefaultAnswerBytes = math.MaxInt32
	// DefaultReceiveBytes lets one connection send 170 of the largest requests at once.
	DefaultReceiveBytes = 512 << 20
)

func (l *Limits) setDefaults() {
	def := func(v *int64, to int64) {
		switch {
		case *v == 0:
			*v = to
		case *v < 0:
			*v = math.MaxInt64
		}
	}
	def(&l.KeyBytes, DefaultKeyBytes)
	def(&l.TxnTotalOps, DefaultTxnTotalOps)
	def(&l.TxnRangeKeys, DefaultTxnRangeKeys)
	def(&l.TxnRangeBytes, DefaultTxnRangeBytes)
	def(&l.AnswerBytes, DefaultAnswerBytes)
	def(&l.ReceiveBytes, DefaultReceiveBytes)
}

// MaxAnswer is AnswerBytes with its default.
func (l Limits) MaxAnswer() int64 {
	l.setDefaults()
	return l.AnswerBytes
}

// MaxReceive is ReceiveBytes with its default.
func (l Limits) MaxReceive() int64 {
	l.setDefaults()
	return l.ReceiveBytes
}

// checkKey refuses to write a key that is too long. Reading and deleting one is not refused: data
// of etcd may hold it.
func (l *Limits) checkKey(key []byte) error {
	if int64(len(key)) <= l.KeyBytes {
		return nil
	}
	return status.Errorf(codes.InvalidArgument, "etcdserver: key is too long: %d bytes, --max-key-bytes is %d", len(key), l.KeyBytes)
}

// checkName is checkKey for the name of a new user or role.
func (l *Limits) checkName(name string) error {
	if int64(len(name)) <= l.KeyBytes {
		return nil
	}
	return status.Errorf(codes.InvalidArgument, "etcdserver: name is too long: %d bytes, --max-key-bytes is %d", len(name), l.KeyBytes)
}

// checkKeys is checkKey for all keys that a transaction may write.
func (l *Limits) checkKeys(r *pb.TxnRequest) error {
	for _, branch := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, op := range branch {
			var err error
			switch o := op.GetRequest().(type) {
			case *pb.RequestOp_RequestPut:
				err = l.checkKey(o.RequestPut.GetKey())
			case *pb.RequestOp_RequestTxn:
				err = l.checkKeys(o.RequestTxn)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// checkTotal bounds what a transaction has on all levels: --max-txn-ops bounds each, and levels
// multiply.
func (l *Limits) checkTotal(r *pb.TxnRequest) error {
	if n := totalOps(r); n > l.TxnTotalOps {
		return status.Errorf(codes.InvalidArgument,
			"etcdserver: too many operations in txn request: %d on all levels, --max-txn-total-ops is %d", n, l.TxnTotalOps)
	}
	return nil
}

func totalOps(r *pb.TxnRequest) int64 {
	n := int64(len(r.GetCompare()) + len(r.GetSuccess()) + len(r.GetFailure()))
	for _, branch := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, op := range branch {
			if nested := op.GetRequestTxn(); nested != nil {
				n += totalOps(nested)
			}
		}
	}
	return n
}

// walk estimates how many keys are visited.
type walk struct {
	keys    int64
	largest int64 // of one delete
	known   bool  // false: some range could not be estimated, it may be of any size
}

func (w *walk) add(keys int64, ok bool) {
	w.keys += keys
	w.known = w.known && ok
}

func (w *walk) addDelete(keys int64, ok bool) {
	w.add(keys, ok)
	w.largest = max(w.largest, keys)
}

// estimator estimates how many keys a range holds; see mvcc.Store.Estimate.
type estimator func(key, end []byte) (keys int64, ok bool)

// ofRange is how many keys a range visits: at most its limit; a count visits none.
func (e estimator) ofRange(r *pb.RangeRequest) (int64, bool) {
	keys, ok := e(r.GetKey(), r.GetRangeEnd())
	natural := r.GetSortOrder() == pb.RangeRequest_NONE || r.GetSortOrder() == pb.RangeRequest_ASCEND && r.GetSortTarget() == pb.RangeRequest_KEY
	filtered := r.GetMinModRevision() != 0 || r.GetMaxModRevision() != 0 || r.GetMinCreateRevision() != 0 || r.GetMaxCreateRevision() != 0
	switch {
	case !ok || filtered:
	case r.GetCountOnly():
		keys = min(keys, countedKeys)
	case r.GetLimit() > 0 && natural:
		keys = min(keys, r.GetLimit()+countedKeys)
	}
	return keys, ok
}

// countedKeys is the approximate cost of counting a range, in keys.
const countedKeys = 400

// ofTxn is how many keys a transaction visits on the more expensive of its branches, on all levels.
func (e estimator) ofTxn(r *pb.TxnRequest) walk {
	w := walk{known: true}
	for _, c := range r.GetCompare() {
		w.add(e(c.GetKey(), c.GetRangeEnd()))
	}
	success, failure := e.ofOps(r.GetSuccess()), e.ofOps(r.GetFailure())
	costlier := success
	if failure.keys > success.keys {
		costlier = failure
	}
	w.keys += costlier.keys
	w.largest = max(w.largest, success.largest, failure.largest)
	w.known = w.known && success.known && failure.known
	return w
}

func (e estimator) ofOps(ops []*pb.RequestOp) walk {
	w := walk{known: true}
	for _, op := range ops {
		switch o := op.GetRequest().(type) {
		case *pb.RequestOp_RequestRange:
			w.add(e.ofRange(o.RequestRange))
		case *pb.RequestOp_RequestPut:
			w.add(1, true)
		case *pb.RequestOp_RequestDeleteRange:
			w.addDelete(e(o.RequestDeleteRange.GetKey(), o.RequestDeleteRange.GetRangeEnd()))
		case *pb.RequestOp_RequestTxn:
			nested := e.ofTxn(o.RequestTxn)
			w.keys += nested.keys
			w.largest = max(w.largest, nested.largest)
			w.known = w.known && nested.known
		}
	}
	return w
}

// checkWalk bounds the work of a transaction that goes through the log: the applier of every member
// does it (all but the ranges), one after the other.
func (l *Limits) checkWalk(e estimator, r *pb.TxnRequest) error {
	w := e.ofTxn(r)
	if besides := w.keys - w.largest; besides > l.TxnRangeKeys {
		return status.Errorf(codes.InvalidArgument,
			"etcdserver: too much work in txn request: its ranges hold some %d keys besides the largest that it deletes, --max-txn-range-keys is %d",
			besides, l.TxnRangeKeys)
	}
	return nil
}

// weigher tells how many bytes of keys and values the first keys of a range hold; it stops beyond
// most. See mvcc.Store.Weigh.
type weigher func(key, end []byte, keys, most int64) (bytes int64, err error)

// ofTxn is what a transaction reads on the costlier of its branches, on all levels.
func (w weigher) ofTxn(r *pb.TxnRequest, most int64) (bytes int64, err error) {
	for _, c := range r.GetCompare() {
		if c.GetTarget() != pb.Compare_VALUE || len(c.GetRangeEnd()) == 0 || bytes > most {
			continue
		}
		n, err := w(c.GetKey(), c.GetRangeEnd(), math.MaxInt64, most-bytes)
		if err != nil {
			return 0, err
		}
		bytes += n
	}
	success, err := w.ofOps(r.GetSuccess(), most-bytes)
	if err != nil {
		return 0, err
	}
	failure, err := w.ofOps(r.GetFailure(), most-bytes)
	return bytes + max(success, failure), err
}

// ofOps stops beyond most, which may be negative then.
func (w weigher) ofOps(ops []*pb.RequestOp, most int64) (bytes int64, err error) {
	for _, op := range ops {
		if bytes > most {
			break
		}
		var n int64
		switch o := op.GetRequest().(type) {
		case *pb.RequestOp_RequestRange:
			n, err = w.ofRange(o.RequestRange, most-bytes)
		case *pb.RequestOp_RequestDeleteRange:
			n, err = w.ofDelete(o.RequestDeleteRange, most-bytes)
		case *pb.RequestOp_RequestTxn:
			n, err = w.ofTxn(o.RequestTxn, most-bytes)
		}
		if err != nil {
			return 0, err
		}
		bytes += n
	}
	return bytes, nil
}

func (w weigher) ofRange(r *pb.RangeRequest, most int64) (int64, error) {
	if r.GetCountOnly() || len(r.GetRangeEnd()) == 0 || r.GetKeysOnly() && r.GetSortTarget() != pb.RangeRequest_VALUE {
		return 0, nil
	}
	return w(r.GetKey(), r.GetRangeEnd(), state.MostKeys(r), most)
}

func (w weigher) ofDelete(r *pb.DeleteRangeRequest, most int64) (int64, error) {
	if !r.GetPrevKv() || len(r.GetRangeEnd()) == 0 {
		return 0, nil
	}
	return w(r.GetKey(), r.GetRangeEnd(), math.MaxInt64, most)
}

// checkWork bounds what the applier of every member walks over for a transaction that writes, and
// reads for it or for a delete: it does nothing else meanwhile. The measurement is of the present
// state. A caller that may not make the request learns nothing about its size; propose refuses it.
func (k *kvService) checkWork(t *turn, r *pb.InternalRaftRequest) error {
	if !k.mayKnow(t.Context, r) {
		return nil
	}
	defer t.end() // before the proposal
	limits := &k.limits
	weigh := func(key, end []byte, keys, most int64) (int64, error) {
		_, bytes, err := k.kv.Weigh(t, key, end, keys, most)
		return bytes, err
	}
	var bytes int64
	var err error
	if r.Txn != nil {
		if err := limits.checkWalk(k.measured(t, k.kv.Estimate), r.Txn); err != nil {
			return err
		}
		bytes, err = weigher(weigh).ofTxn(r.Txn, limits.TxnRangeBytes)
	} else {
		bytes, err = weigher(weigh).ofDelete(r.DeleteRange, limits.TxnRangeBytes)
	}
	if err != nil {
		return err
	}
	if bytes > limits.TxnRangeBytes {
		return status.Errorf(codes.InvalidArgument,
			"etcdserver: the request writes, and reads more than %d bytes, --max-txn-range-bytes; read them in a request of its own", limits.TxnRangeBytes)
	}
	return nil
}

// mayKnow reports whether this member's present rules let the caller make a request.
func (k *kvService) mayKnow(ctx context.Context, r *pb.InternalRaftRequest) bool {
	p := k.callers.rules.Policy()
	if !p.Enabled() {
		return true
	}
	who, err := k.callers.identity(ctx, p)
	return err == nil && k.callers.rules.Policy().Judge(who, r, noLeaseKeys) == nil
}

// measured is an estimator that counts keys where another does not know their number, up to
// somewhat more in all than would be allowed.
func (k *kvService) measured(t *turn, known estimator) estimator {
	left := k.limits.TxnRangeKeys
	left += min(left, math.MaxInt64-left)
	return func(key, end []byte) (int64, bool) {
		if n, ok := known(key, end); ok {
			return n, true
		}
		if left <= 0 {
			return k.limits.TxnRangeKeys, true // refused at any rate
		}
		n, _, err := k.kv.Weigh(t, key, end, left, math.MaxInt64)
		left -= n
		return n, err == nil
	}
}
