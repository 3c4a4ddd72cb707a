package server

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/state"
)

// TestNoSpaceEndsByItself: deletes and a compaction are enough; no restart, no further write, no disarm by hand.
func TestNoSpaceEndsByItself(t *testing.T) {
	m := newMember(t, func(c *Config, s *state.Config) {
		c.NoSpaceDisarm = true
		c.FreeBytes = func() (uint64, error) { return math.MaxInt64, nil }
		s.QuotaBytes = 8 << 20
	})
	run(t, m.watchSpace)
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
		until(t, "the alarm", m.noSpaceOfOwn)
		_, err := m.kv.DeleteRange(t.Context(), &pb.DeleteRangeRequest{Key: []byte("k"), RangeEnd: []byte("l")})
		must(t, err)
		_, err = m.kv.Compact(t.Context(), &pb.CompactionRequest{Revision: m.kvStore.Revision(), Physical: true})
		must(t, err)
		until(t, "the end of the alarm", func() bool { return !m.state.AlarmActive(pb.AlarmType_NOSPACE) })
		must(t, put(0))
	}
}

// TestAlarmsOfClientsStay: what a client has raised no member disarms; nor any, where the flag is off; and what a member
// raised that was removed the leader disarms.
func TestAlarmsOfClientsStay(t *testing.T) {
	for _, c := range []struct {
		name           string
		disarm, itself bool
		id             uint64
		stays          bool
	}{
		{"a client's", true, false, testMember, true},
		{"switched off", false, true, testMember, true},
		{"its own", true, true, testMember, false},
		{"a removed member's", true, true, 77, false},
		{"a removed member's, by a client", true, false, 77, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMember(t, func(cfg *Config, _ *state.Config) { cfg.NoSpaceDisarm = c.disarm })
			req := &pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{MemberID: c.id, Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE}}
			if c.itself {
				req.Header = &pb.RequestHeader{Username: command.Itself}
			}
			_, err := m.proposeOwn(t.Context(), kindAlarm, req)
			must(t, err)
			before := len(m.replica.requests())
			m.room.since = time.Now().Add(-time.Minute)
			m.makeRoom(math.MaxInt64)
			if c.stays {
				if n := len(m.replica.requests()); n != before || m.quotaAlarm.Load() {
					t.Fatalf("%d requests", n-before)
				}
				return
			}
			until(t, "the end of the alarm", func() bool { return !m.state.AlarmActive(pb.AlarmType_NOSPACE) })
		})
	}
}

func TestRoom(t *testing.T) {
	const quota, minFree, plenty = 800, 100, 1 << 40
	start := time.Unix(1000, 0)
	for _, c := range []struct {
		name            string
		total, inUse    int64
		free            uint64
		enough, rewrite bool
	}{
		{"full", 800, 800, plenty, false, false},
		{"just below the quota", 701, 701, plenty, false, false},
		{"an eighth below", 700, 700, plenty, true, false},
		{"full of garbage", 800, 700, plenty, false, true},
		{"full of garbage, and no room to rewrite it in", 800, 700, 799, false, false},
		{"the disk is nearly full", 10, 10, 149, false, false},
		{"the disk is not", 10, 10, 150, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r room
			if enough, _ := r.look(start, quota, c.total, c.inUse, c.free, minFree); enough {
				t.Fatal("at the first look")
			}
			if enough, rewrite := r.look(start.Add(roomLasts), quota, c.total, c.inUse, c.free, minFree); enough != c.enough || rewrite != c.rewrite {
				t.Fatalf("enough %v, rewrite %v", enough, rewrite)
			}
			r.look(start.Add(roomLasts), quota, quota, quota, 0, minFree)
			if enough, _ := r.look(start.Add(time.Hour), quota, c.total, c.inUse, c.free, minFree); enough {
				t.Fatal("at the first look after there was none")
			}
		})
	}
	if enough, _ := (&room{since: start}).look(start.Add(time.Hour), -1, 1<<50, 1<<50, plenty, minFree); !enough {
		t.Fatal("without a quota")
	}
}
