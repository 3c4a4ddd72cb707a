package server

import (
	"context"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/leader"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/peers"
)

// history is what the corruption checks read of this member.
type history struct{ kv *mvcc.Store }

func (h history) Hash(ctx context.Context) (hash uint32, compactRev, rev int64, err error) {
	return h.kv.HashState(yielding{ctx}, 0)
}

func (h history) Position() (rev, compactRev int64) { return h.kv.Revision(), h.kv.CompactRevision() }

func (h history) CompactionHashes() []mvcc.CompactionHash { return h.kv.CompactionHashes() }

// of answers another member; its header has the revision alone.
func (h history) of(ctx context.Context, rev int64, kind string) (*pb.HashKVResponse, error) {
	switch kind {
	case peers.HashOfState:
		hash, compactRev, current, err := h.kv.HashState(yielding{ctx}, rev)
		if err != nil {
			return nil, err
		}
		return &pb.HashKVResponse{
			Header: &pb.ResponseHeader{Revision: current}, Hash: hash, CompactRevision: compactRev, HashRevision: rev,
		}, nil
	case peers.HashOfCompaction:
		if !slices.ContainsFunc(h.kv.CompactionHashes(), func(c mvcc.CompactionHash) bool { return c.Revision == rev }) {
			return nil, leader.ErrNoCompactionHash
		}
	}
	return hashKV(yielding{ctx}, h.kv, rev)
}

// hashKV is the hash that etcd's HashKV answers; its header has the revision alone.
func hashKV(ctx context.Context, kv *mvcc.Store, rev int64) (*pb.HashKVResponse, error) {
	hash, compactRev, current, err := kv.HashKV(ctx, rev)
	if err != nil {
		return nil, err
	}
	if rev == 0 {
		rev = current
	}
	return &pb.HashKVResponse{
		Header: &pb.ResponseHeader{Revision: current}, Hash: hash, CompactRevision: compactRev, HashRevision: rev,
	}, nil
}
