package bench

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/cli/bench/load"
)

// latencyPlan are the flags of watch-latency.
type latencyPlan struct {
	streams, perStream int
	prevKV             bool
	total, rate        int
	keySize            int
}

func (b *bench) watchLatencyCommand() *cobra.Command {
	var p latencyPlan
	cmd := &cobra.Command{Use: "watch-latency", Short: "Benchmark watch latency", Args: cobra.NoArgs,
		Long: `Benchmark the latency of watches: from when a put is answered until each watcher has its event (0 if it had it before). The
percentiles at the end also count it from when the put was sent.`}
	fs := cmd.Flags()
	fs.IntVar(&p.streams, "streams", 10, "streams of watchers")
	fs.IntVar(&p.perStream, "watchers-per-stream", 10, "watchers in a stream")
	fs.BoolVar(&p.prevKV, "prevkv", false, "events have the value before them")
	fs.IntVar(&p.total, "put-total", 1000, "how many puts in all")
	fs.IntVar(&p.rate, "put-rate", 100, "at most this many puts a second (0: no limit)")
	fs.IntVar(&p.keySize, "key-size", 32, "bytes of the key")
	values := valSizes(fs, 32)
	cmd.RunE = b.runs(func(*cobra.Command, []string) (*task, error) {
		if err := cmp.Or(atLeast(1, "streams", p.streams), atLeast(1, "watchers-per-stream", p.perStream), atLeast(1, "put-total", p.total),
			atLeast(0, "put-rate", p.rate), atLeast(1, "key-size", p.keySize)); err != nil {
			return nil, err
		}
		return &task{sizes: *values, run: func(ctx context.Context, t *target, valSize int) (*outcome, error) { return p.run(ctx, b, t, valSize) }}, nil
	})
	return cmd
}

// arrival is when a watcher had the event of a revision.
type arrival struct {
	revision int64
	at       time.Time
}

// written is a put: when it was sent and when it was answered.
type written struct{ sent, answered time.Time }

func (p latencyPlan) run(parent context.Context, b *bench, t *target, valSize int) (*outcome, error) {
	ctx, stop := context.WithCancel(parent)
	defer stop()
	key := randomBytes(p.keySize)
	arrivals := make([][]arrival, p.streams)
	var wg, created sync.WaitGroup
	var mu sync.Mutex
	arrived := sync.NewCond(&mu)
	broken := map[string]int64{} // streams that ended, by why
	ended := 0
	for i := range p.streams {
		s, err := t.watchStream(ctx, i)
		if err != nil {
			return nil, fmt.Errorf("watch stream %d: %s", i, describe(err))
		}
		created.Add(1)
		wg.Go(func() {
			ready := sync.OnceFunc(created.Done)
			defer ready()
			err := p.follow(s, key, ready, func(a arrival) {
				mu.Lock()
				arrivals[i] = append(arrivals[i], a)
				arrived.Broadcast()
				mu.Unlock()
			})
			mu.Lock()
			defer mu.Unlock()
			if ctx.Err() == nil {
				broken[describe(err)]++
			}
			ended++
			arrived.Broadcast()
		})
	}
	created.Wait()

	request, err := load.Encode(&pb.PutRequest{Key: key, Value: randomBytes(valSize)})
	if err != nil {
		return nil, err
	}
	puts := map[int64]written{}
	conn := t.conn(0)
	var answer []byte
	r, err := load.Run(ctx, load.Options{Clients: 1, Total: int64(p.total), Rate: float64(p.rate), Timeout: b.timeout, Describe: describe}, func(int) (load.Operation, error) {
		return func(ctx context.Context, _ int64) (int, error) {
			w := written{sent: time.Now()}
			if err := conn.Invoke(ctx, load.MethodPut, request, &answer, load.Raw()); err != nil {
				return 0, err
			}
			w.answered = time.Now()
			puts[load.Revision(answer)] = w
			return 0, nil
		}, nil
	})
	if err != nil {
		return nil, err
	}

	// Each watcher of a stream has each put's event; a stream that has ended gets no more.
	wake := context.AfterFunc(ctx, arrived.Broadcast)
	defer wake()
	mu.Lock()
	for ctx.Err() == nil && ended < p.streams && waits(arrivals, len(puts)*p.perStream, ended) {
		arrived.Wait()
	}
	mu.Unlock()
	stop()
	wg.Wait()

	since, whole := newTally(), newTally()
	for _, all := range arrivals {
		for _, a := range all {
			if w, ok := puts[a.revision]; ok {
				since.add(max(a.at.Sub(w.answered), 0), nil)
				whole.add(max(a.at.Sub(w.sent), 0), nil)
			}
		}
	}
	out := outcomeOf(r)
	out.interrupted = parent.Err() != nil
	events := since.section("event since the put's answer", "\nWatch events summary:\n")
	events.elapsed = r.Elapsed
	for why, n := range broken {
		for range n {
			events.class.Counts.Fail("watch: " + why)
		}
	}
	out.sections = []section{{before: "\nPut summary:\n", name: "put", class: r.Classes[0], elapsed: r.Elapsed}, events}
	out.more = []section{whole.section("event since the put was sent", "")}
	return out, nil
}

// waits reports whether a stream that may still get events lacks some.
func waits(arrivals [][]arrival, want, ended int) bool {
	lacking := 0
	for _, all := range arrivals {
		if len(all) < want {
			lacking++
		}
	}
	return lacking > ended
}

// follow creates the stream's watchers, calls ready, and then event with each event, until the stream
// ends.
func (p latencyPlan) follow(s *watchStream, key []byte, ready func(), event func(arrival)) error {
	for range p.perStream {
		if err := s.create(&pb.WatchCreateRequest{Key: key, PrevKv: p.prevKV}); err != nil {
			return err
		}
	}
	for missing := p.perStream; ; {
		var at time.Time
		a, err := s.recv(func(_ []byte, revision int64) {
			if at.IsZero() {
				at = time.Now()
			}
			event(arrival{revision, at})
		})
		if err != nil {
			return err
		}
		if a.Created {
			if missing--; missing == 0 {
				ready()
			}
		}
	}
}
