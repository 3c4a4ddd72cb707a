package embed_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/embed"
)

// engine is the flag for what BELAY_RPC_ENGINE says, so that these tests can be run over either.
func engine() []string {
	if name := os.Getenv("BELAY_RPC_ENGINE"); name != "" {
		return []string{"--rpc-engine=" + name}
	}
	return nil
}

func started(t *testing.T, o embed.Options) *embed.Member {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	o.Flags = append(o.Flags, engine()...)
	m, err := embed.Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Stop)
	return m
}

// TestOnDisk: what one start has written the next one serves, on a port that the system chose and to
// any client.
func TestOnDisk(t *testing.T) {
	t.Parallel()
	o := embed.Options{Dir: t.TempDir(), ClientURLs: []string{"http://127.0.0.1:0"}, Flags: []string{"--max-txn-ops=2"}}
	ask := func(m *embed.Member, fn func(ctx context.Context, c *clientv3.Client)) {
		t.Helper()
		if strings.HasSuffix(m.Endpoints()[0], ":0") {
			t.Fatalf("not a port to connect to: %v", m.Endpoints())
		}
		client, err := clientv3.New(clientv3.Config{Endpoints: m.Endpoints()})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		fn(ctx, client)
	}
	m := started(t, o)
	id := m.ID()
	if m.Leader() != id {
		t.Errorf("member %x follows %x", id, m.Leader())
	}
	ask(m, func(ctx context.Context, c *clientv3.Client) {
		if _, err := c.Put(ctx, "k", "v"); err != nil {
			t.Fatal(err)
		}
		put := clientv3.OpPut("a", "")
		if _, err := c.Txn(ctx).Then(put, put, put).Commit(); err == nil || !strings.Contains(err.Error(), "too many operations") {
			t.Errorf("--max-txn-ops=2 does not hold: %v", err)
		}
	})
	m.Stop()
	select {
	case <-m.Done():
	default:
		t.Error("stopped, and not done")
	}
	if err := m.Err(); err != nil {
		t.Errorf("ended in order: %v", err)
	}
	m = started(t, o)
	if m.ID() != id {
		t.Errorf("member %x has come back as %x", id, m.ID())
	}
	ask(m, func(ctx context.Context, c *clientv3.Client) {
		r, err := c.Get(ctx, "k")
		if err != nil || len(r.Kvs) != 1 {
			t.Fatalf("%v, %v", r, err)
		}
	})
}

// TestNoSignals: a member on disk watches no signal. The goroutine of package os/signal that it would
// begin stays for ever, and a program's own test for goroutines left behind finds it.
func TestNoSignals(t *testing.T) {
	t.Parallel()
	started(t, embed.Options{Dir: t.TempDir()}).Stop()
	stacks := make([]byte, 4<<20)
	if stacks = stacks[:runtime.Stack(stacks, true)]; strings.Contains(string(stacks), "os/signal.loop") {
		t.Error("a goroutine of os/signal is left")
	}
}

// TestWrongOptions: each error names the option or the flag.
func TestWrongOptions(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		o    embed.Options
		says string
	}{
		{embed.Options{Flags: []string{"--name=x"}}, "--name is not among the flags here: Options.Name says it"},
		{embed.Options{Flags: []string{"--no-such-flag=1"}}, "no-such-flag"},
		{embed.Options{Flags: []string{"quota"}}, `"quota" is not a flag`},
		{embed.Options{Flags: []string{"--heal=true"}}, "--heal is for the command line alone"},
		{embed.Options{Flags: []string{"--heartbeat-interval=1000"}}, "--election-timeout"},
		{embed.Options{ClientURLs: []string{"127.0.0.1:1"}}, "127.0.0.1:1"},
	} {
		m, err := embed.Start(t.Context(), tc.o)
		if err == nil {
			m.Stop()
			t.Errorf("%+v is taken", tc.o)
		} else if !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%+v: %v, want %q in it", tc.o, err, tc.says)
		}
	}
	for size, o := range map[int]embed.Options{0: {}, 3: {ClientURLs: []string{"http://127.0.0.1:2379"}}, 2: {PeerURLs: []string{"http://127.0.0.1:0"}}} {
		if c, err := embed.StartCluster(t.Context(), size, o); err == nil {
			c.Stop()
			t.Errorf("a cluster of %d of %+v is taken", size, o)
		}
	}
}

func ExampleStartCluster() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cluster, err := embed.StartCluster(ctx, 3, embed.Options{Flags: engine()})
	if err != nil {
		log.Fatal(err)
	}
	defer cluster.Stop()
	client, err := cluster.Client()
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Put(ctx, "greeting", "hello"); err != nil {
		log.Fatal(err)
	}
	r, err := client.Get(ctx, "greeting")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, from %d members\n", r.Kvs[0].Value, len(cluster.Members()))
	// Output: hello, from 3 members
}
