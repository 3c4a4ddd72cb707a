package main

import (
	"context"
	"fmt"
	"net"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/belaydb/belay/proof/cluster"
)

// restart loads many keys into one member and measures how long it takes from
// the start of the process to the first linearizable read: once after it was
// stopped with SIGTERM, once after kill -9.
func restart(ctx context.Context, o options, cl *cluster.Cluster) (result, error) {
	m := cl.Members[0]
	before, err := costsOf(cl)
	if err != nil {
		return result{}, err
	}
	began := time.Now()
	if _, err := withConns(o, cl, func(cs conns) (result, error) {
		return result{}, fill(ctx, cs, o.keys, valueBytes)
	}); err != nil {
		return result{}, err
	}
	loaded := time.Since(began)
	after, err := costsOf(cl)
	if err != nil {
		return result{}, err
	}
	res := result{
		OpsPerSecond:   float64(o.keys) / loaded.Seconds(), // keys loaded, 100 to a transaction
		CPUPerThousand: (after.cpu - before.cpu).Seconds() / float64(o.keys) * 1000,
		WrittenPerOp:   float64(after.written-before.written) / float64(o.keys),
		DevicePerOp:    float64(after.device-before.device) / float64(o.keys),
		Operations:     int64(o.keys),
	}
	stop, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := m.Stop(stop); err != nil {
		return res, err
	}
	graceful, err := startToRead(ctx, m, o.keys)
	if err != nil {
		return res, fmt.Errorf("after SIGTERM: %w", err)
	}
	// Write something that is not flushed yet, for the kill.
	if _, err := withConns(o, cl, func(cs conns) (result, error) {
		return result{}, fill(ctx, cs, min(o.keys, 50_000), valueBytes)
	}); err != nil {
		return res, err
	}
	m.Kill()
	killed, err := startToRead(ctx, m, o.keys)
	if err != nil {
		return res, fmt.Errorf("after kill -9: %w", err)
	}
	res.RestartGraceful, res.RestartKilled = graceful.Seconds(), killed.Seconds()
	end, err := costsOf(cl)
	if err != nil {
		return res, err
	}
	res.PeakRSSBytes = float64(max(after.peak, end.peak))
	return res, nil
}

// startToRead starts the member and returns how long it took to read one of
// the loaded keys, linearizably.
func startToRead(ctx context.Context, m *cluster.Member, keys int) (time.Duration, error) {
	began := time.Now()
	if err := m.Start(); err != nil {
		return 0, err
	}
	// Poll the port frequently: gRPC's own retries are too coarse here.
	for {
		conn, err := net.Dial("tcp", m.Endpoint())
		if err == nil {
			conn.Close()
			break
		}
		select {
		case <-m.Exited():
			return 0, fmt.Errorf("%s exited: %v\n%s", m.Name, m.ExitErr(), m.LogTail(20))
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	conn, err := m.Dial()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	kv := pb.NewKVClient(conn)
	for {
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		resp, err := kv.Range(call, &pb.RangeRequest{Key: key(uint64(keys - 1))}, grpc.WaitForReady(true))
		cancel()
		if err == nil && len(resp.Kvs) == 1 {
			return time.Since(began), nil
		}
		if err == nil {
			return 0, fmt.Errorf("the last loaded key is missing after the restart")
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}
