package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/belaydb/belay/proof/cluster"
)

const (
	putEvery   = 25 * time.Millisecond
	freshEvery = 200 * time.Millisecond
	// lightTimeout is how long the light client waits for an answer.
	lightTimeout = 7 * time.Second
)

// light is the light client of one member.
type light struct {
	m     *cluster.Member
	token string

	mu    sync.Mutex
	puts  []time.Duration // of those that were answered
	fresh []time.Duration
	errs  map[string]int // the others, by text
}

func (l *light) call(ctx context.Context) (context.Context, context.CancelFunc) {
	if l.token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, l.token)
	}
	return context.WithTimeout(ctx, lightTimeout)
}

// run sends requests to the member until ctx ends, and waits for those under way.
func (l *light) run(ctx context.Context) error {
	conn, err := l.m.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	l.errs = make(map[string]int)
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			took, err := l.put(conn)
			l.done(&l.puts, took, "put: ", err)
			pause(ctx, putEvery)
		}
	})
	wg.Go(func() {
		for ctx.Err() == nil {
			took, err := l.get()
			l.done(&l.fresh, took, "get on a new connection: ", err)
			pause(ctx, freshEvery)
		}
	})
	wg.Wait()
	return nil
}

func (l *light) done(list *[]time.Duration, took time.Duration, what string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.errs[what+rpctypes.ErrorDesc(err)]++
	}
	*list = append(*list, took) // a refusal took time, too
}

func (l *light) put(conn *grpc.ClientConn) (time.Duration, error) {
	ctx, cancel := l.call(context.Background())
	defer cancel()
	began := time.Now()
	_, err := pb.NewKVClient(conn).Put(ctx, &pb.PutRequest{Key: []byte("light/" + l.m.Name), Value: []byte("v")}, grpc.WaitForReady(true))
	return time.Since(began), err
}

func (l *light) get() (time.Duration, error) {
	began := time.Now()
	conn, err := l.m.Dial()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	ctx, cancel := l.call(context.Background())
	defer cancel()
	_, err = pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("light/" + l.m.Name)}, grpc.WaitForReady(true))
	return time.Since(began), err
}

// figures are what one or more light clients measured.
type figures struct {
	p50, p99, worst, worstFresh time.Duration
	requests, failed            int
	errs                        []string
}

func felt(clients ...*light) (f figures) {
	var puts []time.Duration
	errs := make(map[string]int)
	for _, l := range clients {
		l.mu.Lock()
		puts = append(puts, l.puts...)
		f.requests += len(l.puts) + len(l.fresh)
		for _, d := range l.fresh {
			f.worstFresh = max(f.worstFresh, d)
		}
		for text, n := range l.errs {
			errs[text] += n
			f.failed += n
		}
		l.mu.Unlock()
	}
	slices.Sort(puts)
	if n := len(puts); n > 0 {
		f.p50, f.p99, f.worst = puts[n/2], puts[n*99/100], puts[n-1]
	}
	for text, n := range errs {
		f.errs = append(f.errs, fmt.Sprintf("%d × %s", n, text))
	}
	slices.Sort(f.errs)
	return f
}
