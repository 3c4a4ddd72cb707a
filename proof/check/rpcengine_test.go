package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
)

// TestRPCEngines is what a client does, over each gRPC server. All of this package's tests run over
// Belay's own, or over grpc-go with BELAY_RPC_ENGINE=grpc-go.
func TestRPCEngines(t *testing.T) {
	for _, engine := range []string{"belay", "grpc-go"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			testRPCEngine(t, engine)
		})
	}
}

func testRPCEngine(t *testing.T, engine string) {
	m := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 1, Args: []string{"--rpc-engine=" + engine}}).Members[0]
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{m.Endpoint()}, Context: ctx})
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	const writers, writes = 20, 10
	events := cli.Watch(ctx, "k", clientv3.WithPrefix())
	lease, err := cli.Grant(ctx, 600)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range writes {
				key, value := fmt.Sprint("k", w), fmt.Sprint(i, strings.Repeat("x", i*i*1000))
				if _, err := cli.Put(ctx, key, value, clientv3.WithLease(lease.ID)); err != nil {
					t.Error(err)
					return
				}
				for _, opts := range [][]clientv3.OpOption{nil, {clientv3.WithSerializable()}} {
					got, err := cli.Get(ctx, key, opts...)
					if err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != value {
						t.Errorf("a get of %s: %v", key, err)
						return
					}
				}
				if _, err := cli.KeepAliveOnce(ctx, lease.ID); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for seen := 0; seen < writers*writes; {
		r, ok := <-events
		if !ok || r.Err() != nil {
			t.Fatalf("the watch has ended: %v", r.Err())
		}
		seen += len(r.Events)
	}
	all.Wait()
	resp, err := http.Post("http://"+m.Endpoint()+"/v3/kv/range", "application/json", bytes.NewReader([]byte(`{"key":"azA="}`)))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("over JSON: %v %v", resp, err)
	}
	if err == nil {
		resp.Body.Close()
	}
	if _, err := cli.Get(ctx, "k0", clientv3.WithRev(1<<40)); !errors.Is(err, rpctypes.ErrFutureRev) {
		t.Errorf("a get of the future: %v", err)
	}
	if err := m.Stop(ctx); err != nil { // beside a watch that is open
		t.Error(err)
	}
	if log := m.LogTail(200); !strings.Contains(log, `"rpc-engine":"`+engine+`"`) {
		t.Error("the log does not name the engine")
	}
}
