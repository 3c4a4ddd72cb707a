package server

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/state"
)

// TestNoSpaceEndsByItself: deletes and a compaction are enough; no restart, no further write, no
// disarm by hand.
func TestNoSpaceEndsByItself(t *testing.T) {
	m := newMember(t, func(c *Config, s *state.Config) {
		c.NoSpaceDisarm = true
		c.FreeBytes = func() (uint64, error) { return math.MaxInt64, nil }
		s.QuotaBytes = 8 << 20
	})
	run(t, m.space.Run)
	rng := rand.New(rand.NewPCG(1, 1))
	value := make([]byte, 1<<20)
	for i := range value {
		value[i] = byte(rng.Uint32())
	}
	put := func(i int) error {
		_, err := m.kv.Put(t.Context(), &pb.PutRequest{Key: fmt.Appendf(nil, "k%d", i), Value: value})
		return err
	}
	for range 2 { // the second time as well
		i := 0
		for ; put(i) == nil; i++ {
			if i > 100 {
				t.Fatal("100 MB fit into 8")
			}
		}
		if err := put(i); !errors.Is(err, rpctypes.ErrGRPCNoSpace) {
			t.Fatal(err)
		}
		until(t, "the alarm", m.noSpace)
		_, err := m.kv.DeleteRange(t.Context(), &pb.DeleteRangeRequest{Key: []byte("k"), RangeEnd: []byte("l")})
		must(t, err)
		_, err = m.kv.Compact(t.Context(), &pb.CompactionRequest{Revision: m.cfg.KV.Revision(), Physical: true})
		must(t, err)
		until(t, "the end of the alarm", func() bool { return !m.cfg.State.AlarmActive(pb.AlarmType_NOSPACE) })
		must(t, put(0))
	}
}

// TestAlarmsOfOthersEnd: what a member raised that was removed the leader disarms. (testdata of
// package leader has who disarms what.)
func TestAlarmsOfOthersEnd(t *testing.T) {
	for _, id := range []uint64{testMember, 77} {
		m := newMember(t, func(cfg *Config, _ *state.Config) { cfg.NoSpaceDisarm = true })
		_, err := m.log.own(t.Context(), kindAlarm, &pb.InternalRaftRequest{
			Header: &pb.RequestHeader{Username: command.Itself},
			Alarm:  &pb.AlarmRequest{MemberID: id, Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE},
		})
		must(t, err)
		run(t, m.space.Run)
		until(t, "the end of the alarm", func() bool { return !m.cfg.State.AlarmActive(pb.AlarmType_NOSPACE) })
	}
}
