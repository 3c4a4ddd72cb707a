package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
	"github.com/belaydb/belay/proof/inject"
)

const (
	bigPrefix = "big/"
	bigValue  = 256 << 10
	// The memory that a snapshot may take, whatever its size: the sender streams from a view of its
	// store, the receiver writes table files as it reads.
	maxSenderGrowth = 512 << 20
	maxReceiver     = 1 << 30
)

// fillStore puts enough into the cluster that a new member gets a snapshot.
func fillStore(ctx context.Context, r *run) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	const workers = 4
	n := int(r.snapshotBytes / bigValue)
	errs := make(chan error, workers)
	for w := range workers {
		go func() {
			cl, err := newClient(r.c.Endpoints())
			if err != nil {
				errs <- err
				return
			}
			defer cl.Close()
			// Not compressible, and not the same for any two keys.
			value := make([]byte, bigValue)
			state := uint64(w) + 1
			for i := w; i < n && err == nil; i += workers {
				for j := range value {
					state = state*6364136223846793005 + 1442695040888963407
					value[j] = byte(state >> 56)
				}
				_, err = cl.Put(ctx, fmt.Sprintf("%s%06d", bigPrefix, i), string(value))
			}
			errs <- err
		}()
	}
	var failed error
	for range workers {
		failed = cmp.Or(failed, <-errs)
	}
	return failed
}

// fillAndRemove then takes a follower out, for a new member to take its place.
func fillAndRemove(ctx context.Context, r *run) error {
	if err := fillStore(ctx, r); err != nil {
		return err
	}
	if err := r.findLeader(ctx); err != nil {
		return err
	}
	m := r.c.Members[oneFollower(r)[0]]
	r.free = oneFollower(r)[0]
	cl, err := newClient([]string{r.c.Members[r.leader].Endpoint()})
	if err != nil {
		return err
	}
	defer cl.Close()
	list, err := cl.MemberList(ctx)
	if err != nil {
		return err
	}
	if err := m.Kill(); err != nil {
		return err
	}
	for _, o := range list.Members {
		if o.Name == m.Name {
			r.freeURLs = o.PeerURLs
			if _, err := cl.MemberRemove(ctx, o.ID); err != nil {
				return fmt.Errorf("remove a member: %w", err)
			}
		}
	}
	return os.RemoveAll(m.DataDir)
}

// newMember starts a new member without data, and waits until it serves. Meanwhile it samples the
// memory of sender and receiver.
func newMember(ctx context.Context, r *run) error {
	m := r.c.Members[r.free]
	cl, err := newClient([]string{r.c.Members[r.leader].Endpoint()})
	if err != nil {
		return err
	}
	defer cl.Close()
	added, err := addMember(ctx, cl, r.freeURLs)
	if err != nil {
		return err
	}
	if err := knownToAll(ctx, r, added.Member.ID); err != nil {
		return err
	}
	r.net.Name(added.Member.ID, r.free)
	m.SetArgs(func(args []string) []string {
		for i := range args[:len(args)-1] {
			if args[i] == "--initial-cluster-state" {
				args[i+1] = "existing"
			}
		}
		return args
	})
	before := residentBytes(r.c.Members[r.leader].PID())
	if err := m.Start(); err != nil {
		return err
	}
	watched, stop := context.WithCancel(ctx)
	var watching sync.WaitGroup
	var sender, receiver int64
	watching.Go(func() {
		for watched.Err() == nil {
			sender = max(sender, residentBytes(r.c.Members[r.leader].PID()))
			receiver = max(receiver, residentBytes(m.PID()))
			inject.Think(watched, 50*time.Millisecond)
		}
	})
	start := time.Now()
	err = m.WaitReady(ctx)
	stop()
	watching.Wait()
	if err != nil {
		return fmt.Errorf("the new member does not serve: %w", err)
	}
	r.note("the new member served after %v; the leader had %d MB resident before and %d MB at most, the new member %d MB at most",
		cluster.Round(time.Since(start)), before>>20, sender>>20, receiver>>20)
	r.senderGrowth, r.receiver = sender-before, receiver
	if r.kind == cluster.Belay {
		for _, o := range r.c.Members {
			events, err := eventsOf(ctx, o)
			if err != nil {
				return err
			}
			for _, e := range events {
				if e.Kind == "late-heartbeat" && e.Ago < time.Since(start).Seconds() {
					r.lateHeartbeats++
				}
			}
		}
	}
	return nil
}

func heartbeatsInTime(res *result) string {
	if n := res.run.lateHeartbeats; n > 0 {
		return fmt.Sprintf("heartbeats were missed, %d times", n)
	}
	return ""
}

func addMember(ctx context.Context, cl *clientv3.Client, urls []string) (added *clientv3.MemberAddResponse, err error) {
	for ctx.Err() == nil {
		// Refused until the leader has been connected to all for some seconds.
		if added, err = cl.MemberAdd(ctx, urls); err == nil {
			return added, nil
		}
		inject.Think(ctx, 200*time.Millisecond)
	}
	return nil, fmt.Errorf("add a member: %w", err)
}

// knownToAll waits until every other member has applied the addition of the new one: a new member,
// of either kind, that asks one that has not ends at once.
func knownToAll(ctx context.Context, r *run, id uint64) error {
	for i, m := range r.c.Members {
		if i == r.free {
			continue
		}
		cl, err := newClient([]string{m.Endpoint()})
		if err != nil {
			return err
		}
		defer cl.Close()
		for {
			list, err := cl.MemberList(ctx, clientv3.WithSerializable())
			if err == nil && slices.ContainsFunc(list.Members, func(o *pb.Member) bool { return o.ID == id }) {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("%s does not know the new member: %w", m.Name, ctx.Err())
			}
			inject.Think(ctx, 20*time.Millisecond)
		}
	}
	return nil
}

// residentBytes is what a process holds in memory; 0: it has ended.
func residentBytes(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

func snapshotMemoryBounded(res *result) string {
	if g := res.run.senderGrowth; g > maxSenderGrowth {
		return fmt.Sprintf("the sender grew by %d MB", g>>20)
	}
	if n := res.run.receiver; n > maxReceiver {
		return fmt.Sprintf("the receiver took %d MB", n>>20)
	}
	return ""
}

func p99AtMostDoubled(res *result) string {
	// Differences below this go unnoticed, and are noise on a busy machine.
	const fine = 50 * time.Millisecond
	if res.p99Write > max(fine, 2*res.p99Before) {
		return fmt.Sprintf("p99 of writes went from %v to %v", cluster.Round(res.p99Before), cluster.Round(res.p99Write))
	}
	return ""
}
