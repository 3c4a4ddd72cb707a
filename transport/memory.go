package transport

import (
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// Link is the quality of one direction between two members.
type Link struct {
	Loss           float64       // share of messages lost, 0..1
	Delay          time.Duration // one way
	Jitter         time.Duration // added to Delay, uniformly from [0, Jitter)
	Reorder        bool          // jitter may overtake: messages are delivered by due time, not by order of sending
	BytesPerSecond int64         // 0: unlimited
	Cut            bool          // nothing passes
}

// Memory is a seeded network inside one process.
type Memory struct{}

// NewMemory makes a network whose every random decision follows from seed.
func NewMemory(seed int64) *Memory { return &Memory{} }

// Join adds a member, or gives a restarted one a new endpoint in place of its old.
func (n *Memory) Join(id uint64, h Handler, src SnapshotSource) *Endpoint { return &Endpoint{} }
func (n *Memory) SetDefault(l Link)                                       {}
func (n *Memory) SetLink(from, to uint64, l Link)                         {}
func (n *Memory) Cut(from, to uint64)                                     {}
func (n *Memory) Heal()                                                   {}
func (n *Memory) Isolate(id uint64)                                       {}
func (n *Memory) Partition(groups ...[]uint64)                            {}
func (n *Memory) Close()                                                  {}

// Endpoint is one member's side of a Memory; it has Transport's face.
type Endpoint struct{}

func (e *Endpoint) Send(msgs []*raftpb.Message)         {}
func (e *Endpoint) AddPeer(id uint64, urls []string)    {}
func (e *Endpoint) AddRemote(id uint64, urls []string)  {}
func (e *Endpoint) UpdatePeer(id uint64, urls []string) {}
func (e *Endpoint) RemovePeer(id uint64)                {}
func (e *Endpoint) ActiveSince(id uint64) time.Time     { return time.Time{} }
func (e *Endpoint) RTT(id uint64) time.Duration         { return 0 }
func (e *Endpoint) PeerKind(id uint64) Kind             { return KindBelay }
func (e *Endpoint) Stop()                               {}
