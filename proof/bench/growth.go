package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/cli/bench/load"
	"github.com/belaydb/belay/proof/cluster"
)

// growing is what -growth and the flags beside it say.
type growing struct {
	curves   string
	pictures string // folder
	most     int    // of keys, connections and leases
}

// A curve is one thing that grows, measured at each of its sizes.
type curve struct {
	name    string
	about   string
	nodes   int
	sizes   []int
	figures []shown
	// run measures fresh members at ascending sizes and calls point after each.
	run func(ctx context.Context, o options, cl *cluster.Cluster, sizes []int, point func(size int, values map[string]float64)) error
}

// shown is one figure of a curve: a column of its table, and a picture.
type shown struct {
	name string
	text func(float64) string
}

// Figures that several curves have.
const (
	figGets, figGetP99, figGetCPU = "gets a second", "p99 of gets", "server CPU s per 1,000 gets"
	figPuts, figPutP99, figPutCPU = "puts a second", "p99 of puts", "server CPU s per 1,000 puts"
	figRSS                        = "resident"
	figDisk                       = "on disk"
	figGraceful, figKilled        = "start after SIGTERM", "start after kill -9"
)

func count(v float64) string { return fmt.Sprintf("%.0f", v) }
func cpu(v float64) string   { return fmt.Sprintf("%.4f", v) }

func allCurves() []curve {
	return []curve{
		{
			name: "keys", about: "keys of 8 bytes with values of 256; 100 clients read and write any of them", nodes: 1,
			sizes: []int{10_000, 100_000, 1_000_000, 10_000_000, 50_000_000}, run: growKeys,
			figures: []shown{{figGets, count}, {figGetP99, seconds}, {figGetCPU, cpu}, {figPuts, count}, {figPutP99, seconds}, {figPutCPU, cpu}, {figRSS, size}, {figDisk, size}, {figGraceful, seconds}, {figKilled, seconds}},
		},
		{
			name: "connections", about: "connections, on each of which one client reads one key linearizably", nodes: 1,
			sizes: []int{1, 10, 100, 1000, 10_000}, run: growConnections,
			figures: []shown{{figGets, count}, {figGetP99, seconds}, {figGetCPU, cpu}, {figRSS, size}},
		},
		{
			name: "leases", about: "leases that nobody keeps alive, granted as fast as they are answered; late is from when a lease is due to the event that its key is gone", nodes: 1,
			sizes: []int{10_000, 100_000, 1_000_000}, run: growLeases,
			figures: []shown{{"grants a second", count}, {"late, p50", seconds}, {"late, p99", seconds}, {"late, most", seconds}, {"server CPU s per 1,000 leases", cpu}, {figRSS, size}},
		},
		{
			name: "catch-up", about: "keys of 256 bytes that two members have got while the third was stopped; from its start until it has applied them", nodes: 3,
			sizes: []int{10_000, 100_000, 1_000_000}, run: growCatchUp,
			figures: []shown{{"caught up after", seconds}, {figRSS, size}},
		},
	}
}

// grow measures the curves that are asked for and writes tables to standard output and pictures
// into the folder.
func grow(ctx context.Context, o options, g growing, kinds []cluster.Kind) error {
	curves := allCurves()
	var chosen []curve
	runs := g.curves == "all"
	if g.curves != "all" {
		for _, want := range strings.Split(g.curves, ",") {
			if want == articleName {
				runs = true
				continue
			}
			i := slices.IndexFunc(curves, func(c curve) bool { return c.name == want })
			if i < 0 {
				return fmt.Errorf("-growth: no curve %q; there are all, keys, connections, leases, catch-up, "+articleName, want)
			}
			chosen = append(chosen, curves[i])
		}
		curves = chosen
	}
	if both := slices.Contains(kinds, cluster.Etcd) && slices.Contains(kinds, cluster.Belay); runs && !both {
		return fmt.Errorf("-growth %s compares: give -kinds etcd,belay", articleName)
	}
	if err := os.MkdirAll(g.pictures, 0o755); err != nil {
		return err
	}
	for _, c := range curves {
		sizes := slices.DeleteFunc(slices.Clone(c.sizes), func(n int) bool { return n > g.most })
		if len(sizes) == 0 {
			return fmt.Errorf("-most=%d is below the first size of %s, %d", g.most, c.name, c.sizes[0])
		}
		d := &drawing{curve: c, sizes: sizes, kinds: kinds, values: map[string]map[string]float64{}, failed: map[string]string{}}
		for _, kind := range kinds {
			at := sizes[0]
			err := onCluster(ctx, o, kind, c.nodes, 3*time.Hour, func(ctx context.Context, cl *cluster.Cluster) error {
				return c.run(ctx, o, cl, sizes, func(size int, values map[string]float64) {
					d.values[d.key(kind, size)] = values
					fmt.Fprintf(os.Stderr, "bench: %s, %s, %d: %v\n", c.name, kind, size, values)
					if i := slices.Index(sizes, size) + 1; i < len(sizes) {
						at = sizes[i]
					}
				})
			})
			if ctx.Err() != nil {
				return errors.New("interrupted")
			}
			if err != nil {
				d.failed[d.key(kind, at)] = firstLine(err)
				fmt.Fprintf(os.Stderr, "bench: %s, %s, %d: %v\n", c.name, kind, at, err)
			}
		}
		d.table(os.Stdout)
		if err := d.picture(filepath.Join(g.pictures, c.name+".svg")); err != nil {
			return err
		}
	}
	if runs {
		return article(ctx, o, g)
	}
	return nil
}

// articleName is the name of the write path's runs among the curves.
const articleName = "article"

// article runs the commands of docs/bench.md that an article on etcd's write path is about: a
// thousand clients put small and large values, and a hundred very large ones, on three members of
// etcd and three of Belay in turn. `belay bench` draws the pictures. A thousand clients with 1 MB
// each took three etcds 8 GB of memory for each member.
func article(ctx context.Context, o options, g growing) error {
	fmt.Printf("\n### %s\n", articleName)
	return onCluster(ctx, o, cluster.Etcd, 3, time.Hour, func(ctx context.Context, etcd *cluster.Cluster) error {
		return onCluster(ctx, o, cluster.Belay, 3, time.Hour, func(ctx context.Context, belay *cluster.Cluster) error {
			for _, size := range []string{"256", "100k", "1m"} {
				duration, clients := max(o.duration, 10*time.Second), "1000"
				if size == "1m" {
					clients = "100"
				}
				args := []string{
					"bench", "--endpoints=" + strings.Join(etcd.Endpoints(), ","), "--versus=" + strings.Join(belay.Endpoints(), ","),
					"--conns=100", "--clients=" + clients, "--repeat=" + strconv.Itoa(max(o.repeat, 3)), "--report=" + filepath.Join(g.pictures, articleName+"-"+size+".svg"),
					"put", "--val-size=" + size, "--key-space-size=1000", "--duration=" + duration.String(), "--warm-up=" + (duration / 5).String(),
				}
				if size != "256" { // with the history of six members a disk of 50 GB is full after some runs
					args = append(args, "--compact-interval=1s", "--compact-index-delta=1000")
				}
				fmt.Printf("\nbelay %s\n\n", strings.Join(args, " "))
				cmd := exec.CommandContext(ctx, o.binaries[cluster.Belay], args...)
				cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
				if err := cmd.Run(); err != nil {
					return fmt.Errorf("values of %s: %w", size, err)
				}
			}
			return nil
		})
	})
}

// growKeys fills one member further and further, measures gets and puts of any key at each size,
// and starts it again, after SIGTERM and after kill -9.
func growKeys(ctx context.Context, o options, cl *cluster.Cluster, sizes []int, point func(int, map[string]float64)) error {
	from := 0
	for _, n := range sizes {
		v := map[string]float64{}
		_, err := withConns(o, cl, func(cs conns) (result, error) {
			if err := fillFrom(ctx, cs, from, n, valueBytes); err != nil {
				return result{}, err
			}
			gets, err := unary(ctx, o, cl, cs, 100, load.MethodRange, uint64(n), func(key []byte) proto.Message { return &pb.RangeRequest{Key: key} })
			if err != nil {
				return result{}, fmt.Errorf("gets: %w", err)
			}
			puts, err := unary(ctx, o, cl, cs, 100, load.MethodPut, uint64(n), putOf(valueBytes))
			if err != nil {
				return result{}, fmt.Errorf("puts: %w", err)
			}
			v[figGets], v[figGetP99], v[figGetCPU] = gets.OpsPerSecond, gets.P99, gets.CPUPerThousand
			v[figPuts], v[figPutP99], v[figPutCPU] = puts.OpsPerSecond, puts.P99, puts.CPUPerThousand
			return result{}, nil
		})
		if err != nil {
			return err
		}
		from = n
		m := cl.Members[0]
		if v[figRSS], err = resident(m); err != nil {
			return err
		}
		if err := m.Stop(ctx); err != nil {
			return err
		}
		graceful, err := startToRead(ctx, m, n)
		if err != nil {
			return fmt.Errorf("start after SIGTERM: %w", err)
		}
		if _, err := withConns(o, cl, func(cs conns) (result, error) {
			return result{}, fill(ctx, cs, min(n, 50_000), valueBytes) // something that is not flushed
		}); err != nil {
			return err
		}
		if err := m.Kill(); err != nil {
			return err
		}
		killed, err := startToRead(ctx, m, n)
		if err != nil {
			return fmt.Errorf("start after kill -9: %w", err)
		}
		v[figGraceful], v[figKilled], v[figDisk] = graceful.Seconds(), killed.Seconds(), diskOf(m.DataDir)
		point(n, v)
	}
	return nil
}

// growConnections opens as many connections, each of which asks once, and then all ask again and
// again.
func growConnections(ctx context.Context, o options, cl *cluster.Cluster, sizes []int, point func(int, map[string]float64)) error {
	for _, n := range sizes {
		o.conns = n
		if n > 1000 { // each is answered some times
			o.warmup, o.duration = max(o.warmup, 5*time.Second), max(o.duration, 15*time.Second)
		}
		_, err := withConns(o, cl, func(cs conns) (result, error) {
			if err := fill(ctx, cs[:min(n, 8)], 1, valueBytes); err != nil {
				return result{}, err
			}
			request, err := load.Encode(&pb.RangeRequest{Key: key(0)})
			if err != nil {
				return result{}, err
			}
			if err := each(ctx, n, 64, func(i int) error {
				_, err := call(cs[i], load.MethodRange, request)(ctx, 0)
				return err
			}); err != nil {
				return result{}, fmt.Errorf("the first request of each connection: %w", err)
			}
			res, err := loop(ctx, o, cl, n, func(i int) (load.Operation, error) { return call(cs[i], load.MethodRange, request), nil })
			if err != nil {
				return res, err
			}
			rss, err := resident(cl.Members[0])
			if err != nil {
				return res, err
			}
			point(n, map[string]float64{figGets: res.OpsPerSecond, figGetP99: res.P99, figGetCPU: res.CPUPerThousand, figRSS: rss})
			return res, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// lastingSeconds is the time to live of the leases: so long that many live at once, and so short
// that one waits for them.
func lastingSeconds(leases int) int64 { return int64(max(20, leases/10_000)) }

// sampled is how many of the leases have a key, by whose end one sees when they expire.
const sampled = 1000

// growLeases grants leases and sees them expire.
func growLeases(ctx context.Context, o options, cl *cluster.Cluster, sizes []int, point func(int, map[string]float64)) error {
	for _, n := range sizes {
		_, err := withConns(o, cl, func(cs conns) (result, error) {
			v, err := expiries(ctx, cl, cs, n)
			if err == nil {
				point(n, v)
			}
			return result{}, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func expiries(ctx context.Context, cl *cluster.Cluster, cs conns, n int) (map[string]float64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ttl := lastingSeconds(n)
	prefix := fmt.Sprintf("lease/%d/", n)
	watch, err := pb.NewWatchClient(cs[0]).Watch(ctx)
	if err != nil {
		return nil, err
	}
	if err := watch.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte(prefix), RangeEnd: []byte(prefix + "\xff"), Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}}}}); err != nil {
		return nil, err
	}
	if _, err := watch.Recv(); err != nil { // it is created
		return nil, err
	}
	var mu sync.Mutex
	due, gone := map[string]time.Time{}, map[string]time.Time{}
	every := max(n/sampled, 1)
	var wg sync.WaitGroup
	all := make(chan struct{})
	wg.Go(func() {
		for len(gone) < (n+every-1)/every {
			resp, err := watch.Recv()
			if err != nil {
				cancel(fmt.Errorf("the watch: %w", err))
				return
			}
			now := time.Now()
			for _, e := range resp.Events {
				if e.Type == mvccpb.Event_DELETE {
					gone[string(e.Kv.Key)] = now
				}
			}
		}
		close(all)
	})
	before, err := costsOf(cl)
	if err != nil {
		return nil, err
	}
	run := rand.Int64N(1 << 40)
	r, err := load.Run(ctx, load.Options{Clients: 100, Total: int64(n), Describe: firstLine}, func(i int) (load.Operation, error) {
		lease, kv := pb.NewLeaseClient(cs[i%len(cs)]), pb.NewKVClient(cs[i%len(cs)])
		return func(ctx context.Context, k int64) (int, error) {
			id := run<<22 + k + 1
			began := time.Now()
			if _, err := lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id, TTL: ttl}); err != nil || k%int64(every) != 0 || k >= int64(n) {
				return 0, err
			}
			name := prefix + strconv.FormatInt(k, 10)
			mu.Lock()
			due[name] = began.Add(time.Duration(ttl) * time.Second)
			mu.Unlock()
			_, err := kv.Put(ctx, &pb.PutRequest{Key: []byte(name), Lease: id})
			return 0, err
		}, nil
	})
	if err != nil {
		return nil, err
	}
	if failed := r.Whole().Failed(); failed > 0 {
		return nil, fmt.Errorf("%d grants failed: %v", failed, r.Whole().Errors())
	}
	rss, err := resident(cl.Members[0])
	if err != nil {
		return nil, err
	}
	// etcd revokes at most a thousand leases a second.
	timer := time.NewTimer(time.Duration(ttl)*time.Second + time.Duration(n/200+120)*time.Second)
	defer timer.Stop()
	select {
	case <-all:
	case <-timer.C:
		cancel(nil)
		wg.Wait()
		return nil, fmt.Errorf("%d of %d keys were gone %v after the last lease was due", len(gone), len(due), time.Duration(n/200+120)*time.Second)
	case <-ctx.Done():
		wg.Wait()
		return nil, context.Cause(ctx)
	}
	wg.Wait()
	after, err := costsOf(cl)
	if err != nil {
		return nil, err
	}
	late := load.NewCounts()
	for name, at := range gone {
		late.Add(at.Sub(due[name]))
	}
	return map[string]float64{
		"grants a second": float64(r.N()) / r.Elapsed.Seconds(), figRSS: rss, "server CPU s per 1,000 leases": (after.cpu - before.cpu).Seconds() / float64(n) * 1000,
		"late, p50": late.Quantile(0.5).Seconds(), "late, p99": late.Quantile(0.99).Seconds(), "late, most": late.Slowest().Seconds(),
	}, nil
}

// growCatchUp stops a follower, writes, and starts it.
func growCatchUp(ctx context.Context, o options, cl *cluster.Cluster, sizes []int, point func(int, map[string]float64)) error {
	leader, err := leaderOf(ctx, cl)
	if err != nil {
		return err
	}
	behind := cl.Members[(leader+1)%len(cl.Members)]
	for _, n := range sizes {
		if err := behind.Stop(ctx); err != nil {
			return err
		}
		rest := &cluster.Cluster{Members: slices.DeleteFunc(slices.Clone(cl.Members), func(m *cluster.Member) bool { return m == behind })}
		var want uint64
		if _, err := withConns(o, rest, func(cs conns) (result, error) {
			if err := fill(ctx, cs, n, valueBytes); err != nil {
				return result{}, err
			}
			status, err := pb.NewMaintenanceClient(cs[0]).Status(ctx, &pb.StatusRequest{})
			if err == nil {
				want = status.RaftAppliedIndex
			}
			return result{}, err
		}); err != nil {
			return err
		}
		began := time.Now()
		if err := behind.Start(); err != nil {
			return err
		}
		conn, err := behind.Dial()
		if err != nil {
			return err
		}
		err = until(ctx, 10*time.Minute, func(ctx context.Context) bool {
			status, err := pb.NewMaintenanceClient(conn).Status(ctx, &pb.StatusRequest{}, grpc.WaitForReady(true))
			return err == nil && status.RaftAppliedIndex >= want
		})
		took := time.Since(began)
		conn.Close()
		if err != nil {
			return fmt.Errorf("the member that was stopped has not caught up: %w", err)
		}
		rss, err := resident(behind)
		if err != nil {
			return err
		}
		point(n, map[string]float64{"caught up after": took.Seconds(), figRSS: rss})
	}
	return nil
}

// leaderOf is the index of the member that leads.
func leaderOf(ctx context.Context, cl *cluster.Cluster) (int, error) {
	for i, m := range cl.Members {
		conn, err := m.Dial()
		if err != nil {
			return 0, err
		}
		status, err := pb.NewMaintenanceClient(conn).Status(ctx, &pb.StatusRequest{}, grpc.WaitForReady(true))
		conn.Close()
		if err != nil {
			return 0, err
		}
		if status.Leader == status.Header.MemberId {
			return i, nil
		}
	}
	return 0, errors.New("no member leads")
}

// until asks again and again, for at most so long.
func until(ctx context.Context, limit time.Duration, ask func(context.Context) bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for !ask(ctx) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

func resident(m *cluster.Member) (float64, error) {
	u, err := m.Usage()
	return float64(u.RSSBytes), err
}

// diskOf is what the files below a folder hold.
func diskOf(dir string) (bytes float64) {
	_ = filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil {
			return nil // it was removed meanwhile
		}
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			bytes += float64(info.Size())
		}
		return nil
	})
	return bytes
}

// each does n things, some at once, and stops at the first error.
func each(ctx context.Context, n, atOnce int, do func(i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan int)
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() {
			for i := range next {
				if err := do(i); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	for i := 0; i < n && ctx.Err() == nil; i++ {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
	return context.Cause(ctx)
}
