package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	// readsPrefix is kept in the proxies' caches.
	readsPrefix    = "c/"
	readsStaleness = time.Second
	// readsAllowance is on top of it: a serializable read that is not answered from the cache is as
	// old as some member, and this machine may be busy.
	readsAllowance = 10 * time.Second
	// readsPause is between two requests of a client, so that the judge comes to an end.
	readsPause = 15 * time.Millisecond
)

// proxyReads is clients of proxies that write and read what is in the proxies' caches: registers,
// whose history is judged, and serializable reads, which are judged at once.
type proxyReads struct {
	t     *testing.T
	load  load
	stop  context.CancelFunc
	group sync.WaitGroup

	mu           sync.Mutex
	serializable int
	oldest       time.Duration // what a serializable read did not know, at most
}

// startProxyReads starts clients of each proxy.
func startProxyReads(t *testing.T, ctx context.Context, proxies []string) *proxyReads {
	t.Helper()
	r := &proxyReads{t: t, load: load{epoch: time.Now(), tried: make(map[string]string)}}
	ctx, r.stop = context.WithCancel(ctx)
	t.Cleanup(r.stop)
	seed := uint64(time.Now().UnixNano())
	t.Logf("reads and writes by seed %d", seed)
	for i := range 3 * len(proxies) {
		address := proxies[i%len(proxies)]
		client := newClient(t, []string{address})
		r.group.Go(func() { r.registers(ctx, i, client, rand.New(rand.NewPCG(seed, uint64(i)))) })
		if i >= 2*len(proxies) {
			r.group.Go(func() { r.serializables(ctx, address) })
		}
	}
	return r
}

// registers writes and reads a few keys: two reads for each write.
func (r *proxyReads) registers(ctx context.Context, id int, c *clientv3.Client, random *rand.Rand) {
	for seq := 0; ctx.Err() == nil; seq++ {
		key := fmt.Sprintf("%sregister/%d", readsPrefix, random.IntN(3))
		switch random.IntN(9) {
		case 0, 1:
			r.load.do(id, c, regInput{kind: opPut, key: key, new: fmt.Sprintf("%d.%d", id, seq)})
		case 2:
			r.load.do(id, c, regInput{kind: opDelete, key: key})
		default:
			r.load.do(id, c, regInput{kind: opGet, key: key})
		}
		restFor(ctx, readsPause)
	}
}

func restFor(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// serializables reads all registers by one connection after the other: a new one begins when one
// has had an error.
func (r *proxyReads) serializables(ctx context.Context, address string) {
	for ctx.Err() == nil {
		if err := r.oneConnection(ctx, address); err != nil {
			r.t.Error(err)
			return
		}
		restFor(ctx, readsPause)
	}
}

// oneConnection reads until there is an error; its own is one of what was read.
func (r *proxyReads) oneConnection(ctx context.Context, address string) error {
	dialled := false // grpc would connect again by itself
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			if dialled {
				return nil, errors.New("one connection is enough")
			}
			dialled = true
			var d net.Dialer
			return d.DialContext(ctx, "tcp", address)
		}))
	if err != nil {
		return err
	}
	defer conn.Close()
	seen := int64(0)
	for ctx.Err() == nil {
		bounded, cancel := context.WithTimeout(ctx, requestTimeout)
		began := time.Since(r.load.epoch)
		resp, err := pb.NewKVClient(conn).Range(bounded, &pb.RangeRequest{Key: []byte(readsPrefix), RangeEnd: []byte("c0"), Serializable: true})
		cancel()
		if err != nil {
			return nil
		}
		revision := resp.Header.Revision
		if revision < seen {
			return fmt.Errorf("a connection has read at revision %d, and then at %d", seen, revision)
		}
		seen = revision
		for _, kv := range resp.Kvs {
			if kv.ModRevision > revision {
				return fmt.Errorf("an answer at revision %d has a key of revision %d", revision, kv.ModRevision)
			}
		}
		if age := r.age(revision, began); age > readsStaleness+readsAllowance {
			return fmt.Errorf("a serializable read does not know what was acknowledged %v before", age)
		}
		restFor(ctx, readsPause)
	}
	return nil
}

// age is how long before a read the first write was acknowledged that it does not know.
func (r *proxyReads) age(revision int64, began time.Duration) (age time.Duration) {
	r.load.mu.Lock()
	for _, op := range r.load.history[max(0, len(r.load.history)-5000):] {
		if out := op.Output.(regOutput); out.revision > revision && op.Return < began.Nanoseconds() {
			age = max(age, began-time.Duration(op.Return))
		}
	}
	r.load.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.serializable++
	r.oldest = max(r.oldest, age)
	return age
}

// end stops the clients and judges what they have seen.
func (r *proxyReads) end() {
	r.t.Helper()
	r.stop()
	r.group.Wait()
	reads := 0
	for _, op := range r.load.history {
		if op.Input.(regInput).kind == opGet {
			reads++
		}
	}
	r.t.Logf("%d operations on registers, %d of them reads; %d serializable reads, the oldest %v behind", len(r.load.history), reads, r.serializable, r.oldest)
	if reads == 0 || r.serializable == 0 {
		r.t.Error("nothing was read")
	}
	if err := checkLinearizable(r.t, r.load.history); err != nil {
		r.t.Error(err)
	}
}

// cacheHits is how many reads a proxy has answered from its cache.
func cacheHits(t *testing.T, address string) float64 {
	t.Helper()
	resp, err := http.Get("http://" + address + "/proxy/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	families := parseScrape(t, text)
	if families["etcd_grpc_proxy_cache_hits_total"] == nil {
		t.Fatal("no etcd_grpc_proxy_cache_hits_total")
	}
	return sum(families, "etcd_grpc_proxy_cache_hits_total")
}
