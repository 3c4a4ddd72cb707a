package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
	"github.com/belaydb/belay/proof/inject"
)

const (
	heavyWriters = 8
	heavyValue   = 4 << 10
	heavyKeys    = 512 // of each writer: what it writes replaces what it wrote
)

// heavyLoad writes as fast as it can, beside the load that is measured and verified.
type heavyLoad struct {
	wg      sync.WaitGroup
	stop    context.CancelFunc
	clients []*clientv3.Client
	bytes   atomic.Int64 // acknowledged
	since   time.Time
}

// fillRemoveAndWrite prepares twice as large a store as fillAndRemove does, and starts a heavyLoad
// that runs until the run ends.
func fillRemoveAndWrite(ctx context.Context, r *run) error {
	r.snapshotBytes *= 2
	if err := fillAndRemove(ctx, r); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	h := &heavyLoad{stop: stop, since: time.Now()}
	r.heavy = h
	var there []string
	for i, m := range r.c.Members {
		if i != r.free {
			there = append(there, m.Endpoint())
		}
	}
	for w := range heavyWriters {
		cl, err := newClient(there)
		if err != nil {
			return err
		}
		h.clients = append(h.clients, cl)
		h.wg.Go(func() { h.write(ctx, w, cl) })
	}
	return nil
}

func (h *heavyLoad) write(ctx context.Context, w int, cl *clientv3.Client) {
	value := make([]byte, heavyValue)
	rng, random := rand.New(rand.NewPCG(uint64(w), 1)), uint64(0)
	for i := 0; ctx.Err() == nil; i++ {
		for j := range value { // not compressible
			if j%8 == 0 {
				random = rng.Uint64()
			}
			value[j], random = byte(random), random>>8
		}
		one, cancel := context.WithTimeout(ctx, requestTimeout)
		if _, err := cl.Put(one, fmt.Sprintf("heavy/%d/%03d", w, i%heavyKeys), string(value)); err == nil {
			h.bytes.Add(heavyValue)
		} else {
			inject.Think(ctx, 10*time.Millisecond)
		}
		cancel()
	}
}

// close ends it. It may be nil.
func (h *heavyLoad) close() {
	if h == nil {
		return
	}
	h.stop()
	h.wg.Wait()
	for _, cl := range h.clients {
		_ = cl.Close() // nothing is asked of it any more
	}
}

// newMemberUnderLoad is newMember, and waits until the new member has caught up: three times in a
// row it has applied what the leader had a second before.
func newMemberUnderLoad(ctx context.Context, r *run) error {
	start, bytes := time.Now(), r.heavy.bytes.Load()
	if err := newMember(ctx, r); err != nil {
		return err
	}
	leader, member := r.c.Members[r.leader], r.c.Members[r.free]
	var most int64 // resident at the new member
	for equal := 0; equal < 3; {
		want, err := appliedBy(ctx, leader)
		if err != nil {
			return err
		}
		inject.Think(ctx, time.Second)
		most = max(most, residentBytes(member.PID()))
		got, err := appliedBy(ctx, member)
		if err == nil && got >= want {
			equal++
		} else {
			equal = 0
		}
		if ctx.Err() != nil {
			return fmt.Errorf("the new member is %d entries behind after %v", max(want, got)-got, cluster.Round(time.Since(start)))
		}
	}
	r.receiver = max(r.receiver, most)
	took := time.Since(start)
	r.note("it was a voter's equal after %v, with %.0f MB/s written meanwhile beside the measured load", cluster.Round(took-3*time.Second),
		float64(r.heavy.bytes.Load()-bytes)/1e6/took.Seconds())
	return nil
}

func appliedBy(ctx context.Context, m *cluster.Member) (uint64, error) {
	conn, err := m.Dial()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	one, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	st, err := pb.NewMaintenanceClient(conn).Status(one, &pb.StatusRequest{})
	if err != nil {
		return 0, err
	}
	return st.RaftAppliedIndex, nil
}
