package bench

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	randv2 "math/rand/v2"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/cli/bench/load"
	"github.com/belaydb/belay/internal/show"
)

// keySpace says which keys are written: a number below count as a varint, and zeros up to size, as in
// etcd's tool.
type keySpace struct{ size, count int }

// validate also refuses keys into which the largest number does not fit: etcd's tool panics.
func (k keySpace) validate() error {
	if err := cmp.Or(atLeast(1, "key-size", k.size), atLeast(1, "key-space-size", k.count)); err != nil {
		return err
	}
	if need := binary.PutVarint(make([]byte, binary.MaxVarintLen64), int64(k.count-1)); need > k.size {
		return usagef("--key-size=%d: with --key-space-size=%d the numbers in the keys take %d bytes; give --key-size=%d or more", k.size, k.count, need, need)
	}
	return nil
}

// put writes key number n. REQUIRES: key has the size that was validated.
func (k keySpace) put(key []byte, n int64) {
	clear(key)
	binary.PutVarint(key, n%int64(k.count))
}

// randomBytes are values: they cannot be compressed.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // it never fails
	return b
}

// upkeep are the flags of put that do something beside it.
type upkeep struct {
	interval time.Duration
	delta    int64
	hash     bool
}

func (b *bench) putCommand() *cobra.Command {
	var l loop
	var k keySpace
	var sequential bool
	var u upkeep
	cmd := &cobra.Command{Use: "put", Short: "Benchmark put", Args: cobra.NoArgs}
	fs := cmd.Flags()
	l.register(fs, "puts")
	fs.IntVar(&k.size, "key-size", 8, "bytes of a key")
	values := valSizes(fs, 8)
	fs.IntVar(&k.count, "key-space-size", 1, "how many different keys")
	fs.BoolVar(&sequential, "sequential-keys", false, "take the keys one after another, not at random")
	fs.DurationVar(&u.interval, "compact-interval", 0, "compact the history so often (0: never); not together with the server's auto-compaction-retention")
	fs.Int64Var(&u.delta, "compact-index-delta", 1000, "how many revisions a compaction leaves")
	fs.BoolVar(&u.hash, "check-hashkv", false, "print the first endpoint's hash of all keys at the end")
	cmd.RunE = b.runs(func(cmd *cobra.Command, _ []string) (*task, error) {
		o, err := l.options(b, fs)
		if err = cmp.Or(err, k.validate()); err != nil {
			return nil, err
		}
		if u.interval < 0 || u.delta < 0 {
			return nil, usagef("--compact-interval=%v, --compact-index-delta=%d: give 0 or more", u.interval, u.delta)
		}
		return &task{sizes: *values, run: func(ctx context.Context, t *target, valSize int) (*outcome, error) {
			stop := u.begin(ctx, b, t)
			out, err := b.puts(ctx, o, t, k, valSize, sequential)
			stop()
			if err == nil && u.hash {
				out.trailer = hashOf(ctx, t)
			}
			return out, err
		}}, nil
	})
	return cmd
}

func (b *bench) puts(ctx context.Context, o load.Options, t *target, k keySpace, valSize int, sequential bool) (*outcome, error) {
	value := randomBytes(valSize)
	template, err := load.NewTemplate(k.size, func(key []byte) proto.Message { return &pb.PutRequest{Key: key, Value: value} })
	if err != nil {
		return nil, err
	}
	return b.simple(ctx, o, t, "put", "\n", func(i int) (load.Operation, error) {
		request, conn := template.Request(), t.conn(i)
		return func(ctx context.Context, n int64) (int, error) {
			if !sequential {
				n = randv2.Int64N(int64(k.count))
			}
			k.put(request.Key(0), n)
			return 0, invoke(ctx, conn, load.MethodPut, request)
		}, nil
	})
}

// begin compacts every so often until stop is called. A compaction that fails is told on stderr.
func (u *upkeep) begin(ctx context.Context, b *bench, t *target) (stop func()) {
	if u.interval == 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(u.interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			if err := u.compact(ctx, t.client(0)); err != nil && ctx.Err() == nil {
				fmt.Fprintf(b.err, "warning: a compaction failed: %s\n", describe(err))
			}
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

func (u *upkeep) compact(ctx context.Context, c *clientv3.Client) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	resp, err := c.Get(ctx, "foo")
	if err != nil {
		return err
	}
	if rev := resp.Header.Revision - u.delta; rev > 0 {
		_, err = c.Compact(ctx, rev)
	}
	return err
}

// hashOf is the text of --check-hashkv.
func hashOf(ctx context.Context, t *target) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	host, begin := t.endpoints[0], time.Now()
	hash, err := t.client(0).HashKV(ctx, host, 0)
	if err != nil {
		return fmt.Sprintf("Failed to get the hashkv of endpoint %s (%s)\n", host, describe(err))
	}
	took := time.Since(begin)
	status, err := t.client(0).Status(ctx, host)
	if err != nil {
		return fmt.Sprintf("Failed to get the status of endpoint %s (%s)\n", host, describe(err))
	}
	return "HashKV Summary:\n\tHashKV: " + strconv.FormatUint(uint64(hash.Hash), 10) + "\n\tEndpoint: " + host +
		"\n\tTime taken to get hashkv: " + took.String() + "\n\tDB size: " + show.Bytes(status.DbSize) + "\n"
}
