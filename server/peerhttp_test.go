package server

import (
	"errors"
	"fmt"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/leader"
	"github.com/belaydb/belay/peers"
)

// TestHashForPeers: what a Belay peer is answered, by kind.
func TestHashForPeers(t *testing.T) {
	m := newMember(t)
	for i := range 5 {
		m.put(fmt.Sprintf("k%d", i), "v")
	}
	if _, err := m.Server.peers.hashes.of(t.Context(), 4, peers.HashOfCompaction); !errors.Is(err, leader.ErrNoCompactionHash) {
		t.Errorf("without a compaction: %v", err)
	}
	plain, err := m.Server.peers.hashes.of(t.Context(), 4, "")
	must(t, err)
	state, err := m.Server.peers.hashes.of(t.Context(), 4, peers.HashOfState)
	must(t, err)
	if state.CompactRevision != -1 || state.HashRevision != 4 || state.Header.Revision != 6 || state.Hash != plain.Hash {
		t.Errorf("%v, %v", state, plain)
	}
	_, err = m.kv.Compact(t.Context(), &pb.CompactionRequest{Revision: 4, Physical: true})
	must(t, err)
	kept, err := m.Server.peers.hashes.of(t.Context(), 4, peers.HashOfCompaction)
	must(t, err)
	if kept.CompactRevision != -1 || kept.Hash != plain.Hash {
		t.Errorf("%v, want the hash of before the compaction %v", kept, plain)
	}
	if state, err = m.Server.peers.hashes.of(t.Context(), 4, peers.HashOfState); err != nil || state.CompactRevision != 4 {
		t.Errorf("%v %v", state, err)
	}
}
