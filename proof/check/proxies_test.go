package check

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
)

// TestEtcdProxies puts etcd's own grpc-proxy and gateway before a Belay: a client sees no
// difference.
func TestEtcdProxies(t *testing.T) {
	onlyBelay(t)
	t.Parallel()
	etcd := EtcdTools(t).Etcd
	c := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 1})
	member := strings.TrimPrefix(c.Members[0].Endpoint(), "http://")
	for _, kind := range []string{"grpc-proxy", "gateway"} {
		t.Run(kind, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			port, err := cluster.FreePort()
			if err != nil {
				t.Fatal(err)
			}
			address := fmt.Sprintf("127.0.0.1:%d", port)
			proxy := exec.CommandContext(ctx, etcd, kind, "start", "--endpoints="+member, "--listen-addr="+address)
			proxy.Dir = t.TempDir()
			log, err := os.Create(proxy.Dir + "/log")
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			proxy.Stdout, proxy.Stderr = log, log
			if err := proxy.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				cancel()
				_ = proxy.Wait() // killed
			}()
			client, err := clientv3.New(clientv3.Config{Endpoints: []string{address}})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			key := "proxied/" + kind
			if err := eventually(ctx, func() error {
				bounded, cancel := context.WithTimeout(ctx, 2*time.Second)
				defer cancel()
				_, err := client.Put(bounded, key, "1")
				return err
			}); err != nil {
				t.Fatal(err)
			}
			get, err := client.Get(ctx, key)
			if err != nil || len(get.Kvs) != 1 || string(get.Kvs[0].Value) != "1" {
				t.Fatalf("%v, %v", get, err)
			}
			watch := client.Watch(ctx, key, clientv3.WithRev(get.Kvs[0].ModRevision))
			lease, err := client.Grant(ctx, 30)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.KeepAliveOnce(ctx, lease.ID); err != nil {
				t.Error(err)
			}
			txn, err := client.Txn(ctx).If(clientv3.Compare(clientv3.Value(key), "=", "1")).Then(clientv3.OpPut(key, "2", clientv3.WithLease(lease.ID))).Commit()
			if err != nil || !txn.Succeeded {
				t.Errorf("%v, %v", txn, err)
			}
			var values []string
			for len(values) < 2 {
				select {
				case r := <-watch:
					for _, e := range r.Events {
						values = append(values, string(e.Kv.Value))
					}
					if r.Err() != nil {
						t.Fatal(r.Err())
					}
				case <-ctx.Done():
					t.Fatalf("the watch has only %q", values)
				}
			}
			if values[0] != "1" || values[1] != "2" {
				t.Errorf("the watch has %q", values)
			}
		})
	}
}
