package bench

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/belaydb/belay/cli/bench/load"
)

// leaseTTL is that of each client's lease, in seconds.
const leaseTTL = 100

// bidi is a stream of encoded messages both ways.
var bidi = &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}

func (b *bench) leaseCommand() *cobra.Command {
	var l loop
	var keep bool
	cmd := &cobra.Command{Use: "lease-keepalive", Short: "Benchmark lease keepalive", Args: cobra.NoArgs,
		Long: `Benchmark lease keepalive: each client has a lease and keeps it alive. As in etcd's tool each request has a stream of its own;
with --keep-stream a client's requests share one, as those of clients at work do.`}
	fs := cmd.Flags()
	l.register(fs, "keepalives")
	fs.BoolVar(&keep, "keep-stream", false, "one stream for all keepalives of a client")
	cmd.RunE = b.runs(func(*cobra.Command, []string) (*task, error) {
		o, err := l.options(b, fs)
		if err != nil {
			return nil, err
		}
		return &task{run: func(ctx context.Context, t *target, _ int) (*outcome, error) {
			return b.simple(ctx, o, t, "lease-keepalive", "", func(i int) (load.Operation, error) { return keepAlives(ctx, t, i, keep) })
		}}, nil
	})
	return cmd
}

func keepAlives(ctx context.Context, t *target, i int, keep bool) (load.Operation, error) {
	grant, err := t.client(i).Grant(ctx, leaseTTL)
	if err != nil {
		return nil, fmt.Errorf("client %d gets no lease: %s", i, describe(err))
	}
	request, err := load.Encode(&pb.LeaseKeepAliveRequest{ID: int64(grant.ID)})
	if err != nil {
		return nil, err
	}
	conn := t.conn(i)
	if !keep {
		return func(ctx context.Context, _ int64) (int, error) {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			stream, err := conn.NewStream(ctx, bidi, load.MethodKeepAlive, load.Raw())
			if err != nil {
				return 0, err
			}
			return 0, exchange(stream, request)
		}, nil
	}
	// A stream outlives the request that opens it.
	var stream grpc.ClientStream // nil: the next request opens one
	var end context.CancelFunc
	return func(one context.Context, _ int64) (int, error) {
		if stream == nil {
			var own context.Context
			own, end = context.WithCancel(ctx)
			opened, err := conn.NewStream(own, bidi, load.MethodKeepAlive, load.Raw())
			if err != nil {
				end()
				return 0, err
			}
			stream = opened
		}
		release := context.AfterFunc(one, end)
		err := exchange(stream, request)
		release()
		if err != nil {
			end()
			stream = nil
			if one.Err() != nil {
				err = one.Err()
			}
		}
		return 0, err
	}, nil
}

// exchange sends a request and waits for its answer.
func exchange(stream grpc.ClientStream, request []byte) error {
	if err := stream.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return stream.RecvMsg(nil) // also why a stream has ended, which io.EOF does not say
}
