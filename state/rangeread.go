package state

import (
	"bytes"
	"context"
	"math"
	"sort"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/belaydb/belay/mvcc"
)

// Ranger reads a range of keys: a *mvcc.Store, a *mvcc.View, or the *mvcc.Writer of the batch being
// applied.
type Ranger interface {
	Range(ctx context.Context, key, end []byte, o mvcc.RangeOptions) (mvcc.RangeResult, error)
}

// RangeResponse answers one RangeRequest as etcd does: filtered by revision, sorted, cut to the
// limit. The header holds the revision alone.
//
// etcd's quirks are kept: `count` ignores limit and filters; a sort target other than the key,
// without an order, sorts ascending, but only the first limit+1 keys; equal sort values are in the
// order in which sort.Sort leaves them; keys_only (unless sorted by value) shows every lease as 0.
//
// It may be used by any goroutine. Errors: ErrInvalidSortOption, mvcc.ErrCompacted,
// mvcc.ErrFutureRev, the context's.
func RangeResponse(ctx context.Context, rd Ranger, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	return RangeWithin(ctx, rd, r, 0)
}

// RangeWithin is RangeResponse with a bound of maxBytes on the keys and values that it reads, if
// that is not 0; beyond it the error is mvcc.ErrTooLarge.
func RangeWithin(ctx context.Context, rd Ranger, r *pb.RangeRequest, maxBytes int64) (*pb.RangeResponse, error) {
	if err := checkSort(r); err != nil {
		return nil, err
	}
	rr, err := rd.Range(ctx, r.Key, r.RangeEnd, rangeOptions(r, maxBytes))
	if err != nil {
		return nil, err
	}
	kvs := filterByRevision(rr.KVs, r)
	sortKVs(kvs, r)
	return assembleRange(kvs, rr, r), nil
}

// rangeOptions is what a request asks of the store.
func rangeOptions(r *pb.RangeRequest, maxBytes int64) mvcc.RangeOptions {
	return mvcc.RangeOptions{
		Limit:     pushedLimit(r),
		Rev:       r.Revision,
		CountOnly: r.CountOnly,
		KeysOnly:  stripsEarly(r),
		MaxBytes:  maxBytes,
	}
}

// InOrder reports whether a request asks for the keys of a range in their order, with no filter, so
// that RangeEach may answer it.
func InOrder(r *pb.RangeRequest) bool {
	return len(r.RangeEnd) > 0 && !r.CountOnly && !hasRevisionFilters(r) && r.SortTarget == pb.RangeRequest_KEY &&
		(r.SortOrder == pb.RangeRequest_NONE || r.SortOrder == pb.RangeRequest_ASCEND)
}

// RangeEach is RangeWithin whose answer has no Kvs: each gets them one by one, as they are read. What
// it gets is valid until it returns. After an error, what it got is of no use. REQUIRES: InOrder(r).
func RangeEach(ctx context.Context, rd Ranger, r *pb.RangeRequest, maxBytes int64, each func(*mvccpb.KeyValue)) (*pb.RangeResponse, error) {
	options := rangeOptions(r, maxBytes)
	options.Limit = r.Limit // what is not in the answer is not read: the store's count tells whether there is more
	options.Each = func(kv *mvccpb.KeyValue) bool {
		if options.KeysOnly {
			kv.Value, kv.Lease = nil, 0
		}
		each(kv)
		return true
	}
	rr, err := rd.Range(ctx, r.Key, r.RangeEnd, options)
	if err != nil {
		return nil, err
	}
	answer := &struct {
		resp   pb.RangeResponse
		header pb.ResponseHeader
	}{}
	answer.header.Revision = rr.Rev
	answer.resp.Header = &answer.header
	answer.resp.Count, answer.resp.More = rr.Count, r.Limit > 0 && rr.Count > r.Limit
	return &answer.resp, nil
}

// checkSort refuses sort options that the API does not define.
func checkSort(r *pb.RangeRequest) error {
	if _, ok := pb.RangeRequest_SortOrder_name[int32(r.SortOrder)]; !ok {
		return ErrInvalidSortOption
	}
	if _, ok := pb.RangeRequest_SortTarget_name[int32(r.SortTarget)]; !ok {
		return ErrInvalidSortOption
	}
	return nil
}

// naturalOrder reports whether keys may be taken in the order of the index. Order NONE counts as
// natural whatever the target: that is the quirk by which only the first keys are sorted.
func naturalOrder(r *pb.RangeRequest) bool {
	return r.SortOrder == pb.RangeRequest_NONE ||
		(r.SortTarget == pb.RangeRequest_KEY && r.SortOrder == pb.RangeRequest_ASCEND)
}

func hasRevisionFilters(r *pb.RangeRequest) bool {
	return r.MinModRevision != 0 || r.MaxModRevision != 0 || r.MinCreateRevision != 0 || r.MaxCreateRevision != 0
}

// pushedLimit is how many keys the store must return at most: one more than the limit, to know
// whether there are more.
func pushedLimit(r *pb.RangeRequest) int64 {
	if r.Limit <= 0 || !naturalOrder(r) || hasRevisionFilters(r) {
		return 0
	}
	if r.Limit == math.MaxInt64 {
		return r.Limit
	}
	return r.Limit + 1
}

// MostKeys is the largest number of keys read to answer a range.
func MostKeys(r *pb.RangeRequest) int64 {
	if n := pushedLimit(r); n > 0 {
		return n
	}
	return math.MaxInt64
}

// stripsEarly reports whether values are not even read: nobody sorts by them.
func stripsEarly(r *pb.RangeRequest) bool {
	return r.KeysOnly && r.SortTarget != pb.RangeRequest_VALUE
}

func filterByRevision(kvs []*mvccpb.KeyValue, r *pb.RangeRequest) []*mvccpb.KeyValue {
	if !hasRevisionFilters(r) {
		return kvs
	}
	kept := kvs[:0]
	for _, kv := range kvs {
		switch {
		case r.MaxModRevision != 0 && kv.ModRevision > r.MaxModRevision:
		case r.MinModRevision != 0 && kv.ModRevision < r.MinModRevision:
		case r.MaxCreateRevision != 0 && kv.CreateRevision > r.MaxCreateRevision:
		case r.MinCreateRevision != 0 && kv.CreateRevision < r.MinCreateRevision:
		default:
			kept = append(kept, kv)
		}
	}
	return kept
}

func assembleRange(kvs []*mvccpb.KeyValue, rr mvcc.RangeResult, r *pb.RangeRequest) *pb.RangeResponse {
	answer := &struct {
		resp   pb.RangeResponse
		header pb.ResponseHeader
	}{}
	resp := &answer.resp
	resp.Header = &answer.header
	resp.Header.Revision = rr.Rev
	resp.Count = rr.Count
	if r.Limit > 0 && int64(len(kvs)) > r.Limit {
		kvs = kvs[:r.Limit]
		resp.More = true
	}
	resp.Kvs = kvs
	if !r.KeysOnly && 2*len(kvs) < len(rr.KVs) {
		// What was read is contiguous in memory, so the few that are returned would keep all of it:
		// until they are sent, or until the end of a transaction that asks a thousand times.
		resp.Kvs = copied(kvs)
	}
	if r.KeysOnly {
		// Copies: the originals may be shared with the store's cache.
		early, few := stripsEarly(r), 2*len(kvs) < len(rr.KVs)
		resp.Kvs = make([]*mvccpb.KeyValue, len(kvs))
		bare := make([]mvccpb.KeyValue, len(kvs))
		for i, kv := range kvs {
			b := &bare[i]
			b.Key, b.CreateRevision, b.ModRevision, b.Version = kv.Key, kv.CreateRevision, kv.ModRevision, kv.Version
			if !early {
				b.Lease = kv.Lease
			}
			if few {
				b.Key = bytes.Clone(kv.Key)
			}
			resp.Kvs[i] = b
		}
	}
	return resp
}

func copied(kvs []*mvccpb.KeyValue) []*mvccpb.KeyValue {
	out := make([]*mvccpb.KeyValue, len(kvs))
	for i, kv := range kvs {
		out[i] = &mvccpb.KeyValue{
			Key: bytes.Clone(kv.Key), Value: bytes.Clone(kv.Value), Lease: kv.Lease,
			CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Version: kv.Version,
		}
	}
	return out
}

// keyValuesBytes estimates their size in an answer.
func keyValuesBytes(kvs []*mvccpb.KeyValue) (n int64) {
	for _, kv := range kvs {
		n += int64(len(kv.Key) + len(kv.Value) + 16)
	}
	return n
}

// sortKVs sorts as the request asks. It uses sort.Sort and etcd's comparisons, since the order of
// equal elements, which clients may depend on, follows from both.
func sortKVs(kvs []*mvccpb.KeyValue, r *pb.RangeRequest) {
	order := r.SortOrder
	if r.SortTarget != pb.RangeRequest_KEY && order == pb.RangeRequest_NONE {
		order = pb.RangeRequest_ASCEND
	}
	if order == pb.RangeRequest_NONE || (r.SortTarget == pb.RangeRequest_KEY && order == pb.RangeRequest_ASCEND) {
		return
	}
	s := &kvSorter{kvs: kvs}
	switch r.SortTarget {
	case pb.RangeRequest_KEY:
		s.less = func(a, b *mvccpb.KeyValue) bool { return bytes.Compare(a.Key, b.Key) < 0 }
	case pb.RangeRequest_VERSION:
		s.less = func(a, b *mvccpb.KeyValue) bool { return a.Version < b.Version }
	case pb.RangeRequest_CREATE:
		s.less = func(a, b *mvccpb.KeyValue) bool { return a.CreateRevision < b.CreateRevision }
	case pb.RangeRequest_MOD:
		s.less = func(a, b *mvccpb.KeyValue) bool { return a.ModRevision < b.ModRevision }
	case pb.RangeRequest_VALUE:
		s.less = func(a, b *mvccpb.KeyValue) bool { return bytes.Compare(a.Value, b.Value) < 0 }
	}
	if order == pb.RangeRequest_DESCEND {
		sort.Sort(sort.Reverse(s))
	} else {
		sort.Sort(s)
	}
}

// SortChunk sorts one chunk of a streamed range by the request's target, as RangeResponse sorts a
// whole one.
func SortChunk(kvs []*mvccpb.KeyValue, r *pb.RangeRequest) { sortKVs(kvs, r) }

type kvSorter struct {
	kvs  []*mvccpb.KeyValue
	less func(a, b *mvccpb.KeyValue) bool
}

func (s *kvSorter) Len() int           { return len(s.kvs) }
func (s *kvSorter) Swap(i, j int)      { s.kvs[i], s.kvs[j] = s.kvs[j], s.kvs[i] }
func (s *kvSorter) Less(i, j int) bool { return s.less(s.kvs[i], s.kvs[j]) }
