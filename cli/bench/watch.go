package bench

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/cli/bench/load"
)

// A watchStream is one stream of watchers, read by one goroutine.
type watchStream struct {
	stream grpc.ClientStream
	buf    []byte
}

func (t *target) watchStream(ctx context.Context, i int) (*watchStream, error) {
	stream, err := t.conn(i).NewStream(ctx, bidi, load.MethodWatch, load.Raw())
	if err != nil {
		return nil, err
	}
	return &watchStream{stream: stream}, nil
}

// create asks for one more watcher; its answer comes in the order of the requests.
func (w *watchStream) create(request *pb.WatchCreateRequest) error {
	encoded, err := load.Encode(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: request}})
	if err != nil {
		return err
	}
	if err := w.stream.SendMsg(encoded); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil // why a stream has ended is known to recv
}

// recv waits for an answer. A watcher that the server ended is an error.
func (w *watchStream) recv(event func(key []byte, revision int64)) (load.WatchAnswer, error) {
	if err := w.stream.RecvMsg(&w.buf); err != nil {
		return load.WatchAnswer{}, err
	}
	a := load.ReadWatch(w.buf, event)
	switch {
	case a.Canceled && a.Compacted > 0:
		return a, fmt.Errorf("a watch was canceled: revision %d is compacted", a.Compacted)
	case a.Canceled && a.Reason != "":
		return a, fmt.Errorf("a watch was canceled: %s", a.Reason)
	case a.Canceled:
		return a, errors.New("a watch was canceled")
	}
	return a, nil
}

// tally counts one class of operations outside a load.Run; any goroutine may add.
type tally struct {
	mu      sync.Mutex
	class   load.Class
	begin   time.Time
	elapsed time.Duration
	since   *load.Counts // since the current second began
	second  time.Time
	tick    func(s load.Second, done int64) // nil: nobody is told
}

// tally is one that prints a line each second.
func (b *bench) tally() *tally {
	t := newTally()
	t.tick = func(s load.Second, done int64) { b.second(t.begin, s, done, 0) }
	return t
}

func newTally() *tally {
	now := time.Now()
	return &tally{class: load.Class{Counts: load.NewCounts()}, since: load.NewCounts(), begin: now, second: now}
}

func (t *tally) add(took time.Duration, err error) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.second) >= time.Second {
		t.endSecond(now)
	}
	if err != nil {
		t.since.Fail(describe(err))
		return
	}
	t.since.Add(took)
}

func (t *tally) endSecond(now time.Time) {
	s := t.since.Second(t.second, now.Sub(t.second))
	t.class.Seconds = append(t.class.Seconds, s)
	t.class.Counts.Merge(t.since)
	if t.tick != nil {
		t.tick(s, t.class.Counts.N())
	}
	t.since = load.NewCounts()
	t.second = now
}

// section ends the counting.
func (t *tally) section(name, before string) section {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	t.endSecond(now)
	t.elapsed = now.Sub(t.begin)
	t.class.Name = name
	return section{before: before, name: name, class: &t.class, elapsed: t.elapsed}
}

// watchPlan are the flags of watch.
type watchPlan struct {
	streams, perStream, watched int
	putRate, putTotal           int
	keySize, keySpace           int
	sequential                  bool
}

func (b *bench) watchCommand() *cobra.Command {
	var p watchPlan
	cmd := &cobra.Command{Use: "watch", Short: "Benchmark watch", Args: cobra.NoArgs,
		Long: `Benchmark watch: first the watchers are created, and each creation is timed; then the watched keys are written, and it is counted
how many events a second all watchers get. (The latencies of the second part are those inside the client; for that of an event
there is watch-latency.)`}
	fs := cmd.Flags()
	fs.IntVar(&p.streams, "streams", 10, "streams of watchers")
	fs.IntVar(&p.perStream, "watch-per-stream", 100, "watchers in a stream")
	fs.IntVar(&p.watched, "watched-key-total", 1, "how many keys are watched")
	fs.IntVar(&p.putRate, "put-rate", 0, "at most this many puts a second (0: no limit)")
	fs.IntVar(&p.putTotal, "put-total", 1000, "how many puts in all")
	fs.IntVar(&p.keySize, "key-size", 32, "bytes of a key")
	fs.IntVar(&p.keySpace, "key-space-size", 1, "how many different keys")
	fs.BoolVar(&p.sequential, "sequential-keys", false, "take the keys one after another, not at random")
	cmd.RunE = b.runs(func(*cobra.Command, []string) (*task, error) {
		k := keySpace{p.keySize, p.keySpace}
		if err := cmp.Or(k.validate(), atLeast(1, "streams", p.streams), atLeast(1, "watch-per-stream", p.perStream),
			atLeast(1, "watched-key-total", p.watched), atLeast(0, "put-rate", p.putRate), atLeast(1, "put-total", p.putTotal)); err != nil {
			return nil, err
		}
		return &task{run: func(ctx context.Context, t *target, _ int) (*outcome, error) {
			if have, need := len(t.conns), 1+p.streams/100; have < need {
				fmt.Fprintf(b.err, "warning: grpc limits 100 streams per client connection, have %d but need %d\n", have, need)
			}
			return p.run(ctx, b, t)
		}}, nil
	})
	return cmd
}

// keys are the watched ones.
func (p watchPlan) keys() []string {
	all := make([]string, p.watched)
	for i := range all {
		key := make([]byte, p.keySize)
		n := i % p.keySpace
		if !p.sequential {
			n = rand.IntN(p.keySpace)
		}
		binary.PutVarint(key, int64(n))
		all[i] = string(key)
	}
	return all
}

func (p watchPlan) run(parent context.Context, b *bench, t *target) (*outcome, error) {
	ctx, stop := context.WithCancel(parent)
	defer stop()
	keys := p.keys()
	puts := map[string]int64{} // of each key
	for i := range p.putTotal {
		puts[keys[i%len(keys)]]++
	}
	streams := make([]*watchStream, p.streams)
	for i := range streams {
		s, err := t.watchStream(ctx, i)
		if err != nil {
			return nil, fmt.Errorf("watch stream %d: %s", i, describe(err))
		}
		streams[i] = s
	}

	// Watcher n of all watches key n, and round again.
	created := b.tally()
	expected := make([]int64, p.streams) // events of each stream
	watchers := map[string]int64{}       // of each key
	var mu sync.Mutex
	var wg sync.WaitGroup
	var next atomic.Int64
	for i, s := range streams {
		wg.Go(func() {
			for range p.perStream {
				key := keys[int(next.Add(1)-1)%len(keys)]
				begin := time.Now()
				err := s.create(&pb.WatchCreateRequest{Key: []byte(key)})
				for a := (load.WatchAnswer{}); err == nil && !a.Created; {
					a, err = s.recv(nil)
				}
				if ctx.Err() != nil {
					return
				}
				if created.add(time.Since(begin), err); err != nil {
					continue
				}
				expected[i] += puts[key]
				mu.Lock()
				watchers[key]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	out := &outcome{sections: []section{created.section("watch creation", "Watch creation summary:\n")}}
	if parent.Err() == nil && len(watchers) > 0 {
		received, err := p.events(ctx, stop, b, t, streams, keys, expected, watchers)
		if err != nil {
			return nil, err
		}
		out.sections = append(out.sections, received)
	}
	out.interrupted = parent.Err() != nil
	return out, nil
}

// events writes the keys and counts what the watchers get. A put that fails, and a stream that ends,
// are counted as errors, and their events are not waited for.
func (p watchPlan) events(ctx context.Context, stop context.CancelFunc, b *bench, t *target, streams []*watchStream, keys []string, expected []int64, watchers map[string]int64) (section, error) {
	received := b.tally()
	var left atomic.Int64
	for _, n := range expected {
		left.Add(n)
	}
	less := func(n int64) {
		if left.Add(-n) <= 0 {
			stop()
		}
	}
	var wg sync.WaitGroup
	for i, s := range streams {
		wg.Go(func() {
			for mine := expected[i]; ; {
				a, err := s.recv(nil)
				begin := time.Now()
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					received.add(0, err)
					less(max(mine, 0))
					return
				}
				for range a.Events {
					received.add(time.Since(begin), nil)
				}
				mine -= int64(a.Events)
				less(int64(a.Events))
			}
		})
	}
	template, err := load.NewTemplate(p.keySize, func(key []byte) proto.Message { return &pb.PutRequest{Key: key, Value: []byte("data")} })
	if err != nil {
		return section{}, err
	}
	o := load.Options{Clients: int(b.clients), Total: int64(p.putTotal), Rate: float64(p.putRate), Timeout: b.timeout, Describe: describe}
	_, err = load.Run(ctx, o, func(i int) (load.Operation, error) {
		request, conn := template.Request(), t.conn(i)
		return func(ctx context.Context, n int64) (int, error) {
			key := keys[int(n)%len(keys)]
			copy(request.Key(0), key)
			err := invoke(ctx, conn, load.MethodPut, request)
			if err != nil && ctx.Err() == nil {
				received.add(0, fmt.Errorf("put: %w", err))
				less(watchers[key])
			}
			return 0, err
		}, nil
	})
	if err != nil {
		return section{}, err
	}
	wg.Wait()
	return received.section("watch events", "Watch events received summary:\n"), nil
}
