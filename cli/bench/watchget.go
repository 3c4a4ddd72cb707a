package bench

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/cli/bench/load"
)

const (
	watchGetKey = "watchkey"
	watchGetGet = "abc" // the key that is read; it need not be there
)

func (b *bench) watchGetCommand() *cobra.Command {
	var watchers, streams, events int
	cmd := &cobra.Command{Use: "watch-get", Short: "Benchmark watch with get", Args: cobra.NoArgs,
		Long: `Benchmark serializable gets while many watchers ask for events of the past.`}
	fs := cmd.Flags()
	fs.IntVar(&watchers, "watchers", 10000, "watchers in all")
	fs.IntVar(&streams, "streams", 1, "streams of watchers")
	fs.IntVar(&events, "events", 8, "events that each of them gets")
	cmd.RunE = b.runs(func(*cobra.Command, []string) (*task, error) {
		if err := cmp.Or(atLeast(1, "watchers", watchers), atLeast(1, "streams", streams), atLeast(1, "events", events)); err != nil {
			return nil, err
		}
		return &task{run: func(ctx context.Context, t *target, _ int) (*outcome, error) {
			return b.watchGet(ctx, t, watchers, streams, events)
		}}, nil
	})
	return cmd
}

func (b *bench) watchGet(parent context.Context, t *target, watchers, streams, events int) (*outcome, error) {
	ctx, stop := context.WithCancel(parent)
	defer stop()
	var from int64
	for i := range events {
		resp, err := t.client(0).Put(ctx, watchGetKey, strconv.Itoa(i))
		if err != nil {
			return nil, fmt.Errorf("writing the events of the past: %s", describe(err))
		}
		if i == 0 {
			from = resp.Header.Revision
		}
	}
	reader, err := b.dial(ctx, t.endpoints[:1])
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	get, err := load.Encode(&pb.RangeRequest{Key: []byte(watchGetGet), Serializable: true})
	if err != nil {
		return nil, err
	}

	gets := b.tally()
	var wg sync.WaitGroup
	begin := sync.OnceFunc(func() {
		wg.Go(func() {
			for once := true; once || ctx.Err() == nil; once = false {
				one, cancel := parent, context.CancelFunc(func() {})
				if b.timeout > 0 {
					one, cancel = context.WithTimeout(parent, b.timeout)
				}
				start := time.Now()
				err := reader.ActiveConnection().Invoke(one, load.MethodRange, get, nil, load.Raw())
				cancel()
				if parent.Err() != nil {
					return
				}
				gets.add(time.Since(start), err)
			}
		})
	})
	var left atomic.Int64 // streams that have not got everything
	left.Add(int64(streams))
	for i := range streams {
		s, err := t.watchStream(ctx, i)
		if err != nil {
			return nil, fmt.Errorf("watch stream %d: %s", i, describe(err))
		}
		mine := watchers / streams
		if i < watchers%streams {
			mine++
		}
		wg.Go(func() { // sends
			for range mine {
				if err := s.create(&pb.WatchCreateRequest{Key: []byte(watchGetKey), StartRevision: from}); err != nil {
					return // recv says why
				}
			}
		})
		wg.Go(func() {
			if err := pastEvents(s, mine, events, begin); err != nil && ctx.Err() == nil {
				gets.add(0, fmt.Errorf("watch: %w", err))
			}
			if left.Add(-1) == 0 {
				stop()
			}
		})
	}
	wg.Wait()
	return &outcome{sections: []section{gets.section("get", "Get during watch summary:\n")}, interrupted: parent.Err() != nil}, nil
}

// pastEvents reads until each of the stream's watchers has its events; created is called when there is
// a watcher.
func pastEvents(s *watchStream, watchers, events int, created func()) error {
	got := map[int64]int{}
	for waiting := watchers; waiting > 0; {
		a, err := s.recv(nil)
		if err != nil {
			return err
		}
		if a.Created {
			created()
		}
		before := got[a.ID]
		got[a.ID] += a.Events
		if before < events && got[a.ID] >= events {
			waiting--
		}
	}
	return nil
}
