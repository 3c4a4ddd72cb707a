package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/belaydb/belay/cli/bench/load"
	"github.com/belaydb/belay/proof/cluster"
)

// What the readers of the case read, and how often the light client puts.
const (
	readKeys      = 10_000
	readBytes     = 1000 // of a value
	lightInterval = 25 * time.Millisecond
)

// readers measures what readers leave for other clients. Many clients, each with its own
// connection, read 10 MB again and again, and a light client in a process of its own puts. The
// result has the latencies of the light client and the number of ranges. The light client first
// runs alone, to check its clock and connection.
func readers(clients int) func(context.Context, options, *cluster.Cluster) (result, error) {
	return func(ctx context.Context, o options, cl *cluster.Cluster) (result, error) {
		o.conns = clients
		return withConns(o, cl, func(cs conns) (result, error) {
			if err := fill(ctx, cs[:8], readKeys, readBytes); err != nil {
				return result{}, err
			}
			began := time.Now()
			light := make(chan lightResult, 1)
			go func() { light <- runLight(ctx, cl.Members[0].Endpoint(), o.warmup, o.duration) }()
			request, err := load.Encode(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0xff, 0xff}})
			if err != nil {
				return result{}, err
			}
			res, err := loop(ctx, o, cl, clients, func(i int) (load.Operation, error) {
				return call(cs[i], load.MethodRange, request), nil
			})
			if err != nil {
				return res, err
			}
			puts := <-light
			if puts.err != nil {
				return res, fmt.Errorf("the light client, after %v: %w", time.Since(began), puts.err)
			}
			res.P50, res.P99 = puts.latencies.Quantile(0.50).Seconds(), puts.latencies.Quantile(0.99).Seconds()
			res.Errors += puts.latencies.Failed()
			return res, nil
		})
	}
}

type lightResult struct {
	latencies *load.Counts
	err       error
}

// runLight runs the light client and reads what it prints.
func runLight(ctx context.Context, endpoint string, warmup, duration time.Duration) (res lightResult) {
	res.latencies = load.NewCounts()
	exe, err := os.Executable()
	if err != nil {
		return lightResult{err: err}
	}
	cmd := exec.CommandContext(ctx, exe, "light-client", endpoint, warmup.String(), duration.String())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return lightResult{err: err}
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		ns, err := strconv.ParseInt(lines.Text(), 10, 64)
		if err != nil {
			res.latencies.Fail(lines.Text())
			fmt.Fprintln(os.Stderr, "bench: light client:", lines.Text())
			continue
		}
		res.latencies.Add(time.Duration(ns))
	}
	if res.err = cmd.Wait(); res.err == nil && res.latencies.N() == 0 {
		res.err = fmt.Errorf("no put of it has ended")
	}
	return res
}

// lightClient puts every 25 ms, or when the previous put is answered if that is later, and prints
// how long each took in nanoseconds, or its error. args are an endpoint, how long it is to warm up,
// and how long it is to measure.
func lightClient(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("light-client wants an endpoint and two durations")
	}
	warmup, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	duration, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("passthrough:///"+args[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	request, err := load.Encode(putOf(valueBytes)(key(0)))
	if err != nil {
		return err
	}
	put := call(conn, load.MethodPut, request)
	begin := time.Now().Add(warmup)
	end := begin.Add(duration)
	tick := time.NewTicker(lightInterval)
	defer tick.Stop()
	for start := time.Now(); start.Before(end); start = <-tick.C {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		start = time.Now()
		_, err := put(ctx, 0)
		took := time.Since(start)
		cancel()
		if start.Before(begin) {
			continue
		}
		if err != nil {
			fmt.Fprintln(out, firstLine(err))
			continue
		}
		fmt.Fprintln(out, took.Nanoseconds())
	}
	return nil
}
