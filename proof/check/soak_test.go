package check

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/proof/cluster"
)

const (
	soakWriters = 6
	// soakWindow is how many of a writer's keys are kept; the older ones it deletes.
	soakWindow = 4000
	// soakCycle is how long all clients are busy between two times at rest, with a fault each
	// soakCalm.
	soakCycle, soakCalm = 4 * time.Minute, 25 * time.Second
	// soakRest is how long after the last call a member may take to be at rest, on a machine
	// without CPU.
	soakRest = 2 * time.Minute
)

// TestSoak runs three members under all kinds of calls for BELAY_SOAK, over TLS and with the
// --rpc-engine of BELAY_RPC_ENGINE (Belay's own if it is not set), while members are killed and
// stopped and their certificate is renewed. The third member is only talked to, so that what it
// would lose over time shows.
//
// What must hold: a write that was acknowledged stays, at its revision, on each member, and each
// watcher sees it once and in order; a lease that is kept alive lives; no call has an error that
// etcd's clients do not know; and when all clients have gone, goroutines and sockets go back to what
// they were, and memory does not grow.
func TestSoak(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("BELAY_SOAK"))
	if err != nil {
		t.Skip("runs for the time BELAY_SOAK, as in make soak")
	}
	s := newSoak(t)
	s.cycle(min(soakCalm, length)) // warms up: what it leaves is the level
	level := s.levels()
	for end, filling := time.Now().Add(length), 2; time.Now().Before(end) && !t.Failed(); filling-- {
		s.cycle(min(soakCycle, time.Until(end)))
		s.returnTo(level, filling > 0)
		s.quietLogs()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, what := range slices.Sorted(maps.Keys(s.counts)) {
		t.Logf("%9d %s", s.counts[what], what)
	}
}

// soak is one run.
type soak struct {
	t       *testing.T
	seed    uint64
	issuer  *issuer
	c       *cluster.Cluster
	metrics []string // URLs, by member
	writers []*soakWriter
	rounds  int

	mu     sync.Mutex
	counts map[string]int // what was done, and which errors came
}

// soakWriter writes each of its keys once. Its lock is held for its fields alone.
type soakWriter struct {
	id    int
	mu    sync.Mutex
	next  int           // the number of the next key
	first int           // of those that are not deleted
	acked map[int]int64 // the revisions of those that were acknowledged
	sent  map[int]bool  // those whose outcome is not known
}

func newSoak(t *testing.T) *soak {
	s := &soak{t: t, seed: seedOf(t, "TestSoak"), issuer: newIssuer(t, "check"), counts: make(map[string]int)}
	s.issuer.issue("server", nil)
	s.issuer.issue("good", nil)
	for i := range soakWriters {
		s.writers = append(s.writers, &soakWriter{id: i, acked: make(map[int]int64), sent: make(map[int]bool)})
	}
	c, err := cluster.New(cluster.Config{Kind: cluster.Belay, Binary: Belay(t), Size: 3, Dir: t.TempDir(), TLS: s.issuer.client("good"), Args: []string{
		"--cert-file=" + s.issuer.Cert("server"), "--key-file=" + s.issuer.Key("server"), "--trusted-ca-file=" + s.issuer.CA(), "--client-cert-auth",
		"--enable-pprof", "--snapshot-count=10000", "--auto-compaction-mode=periodic", "--auto-compaction-retention=4m",
		"--quota-backend-bytes=17179869184", // a fast machine writes more than a gigabyte a minute
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.c = c
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.Tails(30))
		}
		c.Close()
	})
	for _, m := range c.Members {
		port, err := cluster.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		url := fmt.Sprintf("http://127.0.0.1:%d", port)
		s.metrics = append(s.metrics, url)
		m.SetArgs(func(args []string) []string { return append(args, "--listen-metrics-urls="+url) })
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *soak) count(what string) {
	s.mu.Lock()
	s.counts[what]++
	s.mu.Unlock()
}

// client makes a client of these members.
func (s *soak) client(members []*cluster.Member, opts ...grpc.DialOption) *clientv3.Client {
	var endpoints []string
	for _, m := range members {
		endpoints = append(endpoints, m.ClientURL)
	}
	cli, err := clientv3.New(clientv3.Config{
		Endpoints: endpoints, DialTimeout: 20 * time.Second, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 20 * time.Second,
		TLS: s.issuer.client("good"), Logger: zap.NewNop(), DialOptions: opts,
	})
	if err != nil {
		s.t.Errorf("a client: %v", err)
	}
	return cli
}

// soakErrors are the errors that clients of etcd get of members that come and go, of calls that are
// given up, and of what others do meanwhile.
var soakErrors = map[codes.Code]*regexp.Regexp{
	codes.Canceled:         regexp.MustCompile(``),
	codes.DeadlineExceeded: regexp.MustCompile(``),
	codes.Unavailable: regexp.MustCompile(`connection error|error reading (from server|server preface)|connection refused|transport is closing|connection closed|` +
		`the (client )?connection is (closing|draining)|the connection is draining|received prior goaway: code: NO_ERROR|latest balancer error|closing transport due to|` +
		`etcdserver: (no leader|leader changed|request timed out|server stopped|not capable|server is (stopping|not ready))|` +
		`keepalive ping failed|client connection force closed|EOF|write: broken pipe|connection reset by peer`),
	codes.ResourceExhausted: regexp.MustCompile(`etcdserver: too many requests`),
	codes.NotFound:          regexp.MustCompile(`etcdserver: requested lease not found`),
	codes.OutOfRange:        regexp.MustCompile(`etcdserver: mvcc: required revision has been compacted`),
}

// broken matches what a server says, or a client of it, when frames are wrong.
var broken = regexp.MustCompile(`PROTOCOL_ERROR|INTERNAL_ERROR|FLOW_CONTROL_ERROR|FRAME_SIZE_ERROR|COMPRESSION_ERROR|STREAM_CLOSED|ENHANCE_YOUR_CALM|too_many_pings|` +
	`REFUSED_STREAM|unmarshal|malformed|cardinality|unexpected (HTTP|content)|panic`)

func codeOf(err error) codes.Code {
	var own rpctypes.EtcdError
	switch {
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.As(err, &own):
		return own.Code()
	}
	return status.Code(err)
}

// outcome counts how a call ended, and fails the test for an error that no client should get.
func (s *soak) outcome(what string, err error) {
	if err == nil {
		s.count(what)
		return
	}
	code := codeOf(err)
	text := err.Error()
	if known := soakErrors[code]; known == nil || !known.MatchString(text) || broken.MatchString(text) {
		s.t.Errorf("%s: %v: %s", what, code, text)
	}
	s.count(fmt.Sprintf("%s: %v", what, code))
}

// cycle keeps all clients busy for some time, with faults, and then looks at what is there.
func (s *soak) cycle(length time.Duration) {
	s.rounds++
	begun := time.Now()
	ctx, stop := context.WithCancel(s.t.Context())
	var busy sync.WaitGroup
	var watchers []*soakWatcher
	for i, m := range s.c.Members {
		w := &soakWatcher{s: s, name: m.Name, seen: make(map[string]int64)}
		watchers = append(watchers, w)
		busy.Go(func() { w.watch(ctx, m, i) })
	}
	for _, w := range watchers {
		for !w.begun.Load() && ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
		}
	}
	writing, stopWriting := context.WithCancel(ctx)
	var writers sync.WaitGroup
	for i, w := range s.writers {
		rng := rand.New(rand.NewPCG(s.seed, uint64(s.rounds*1000+i)))
		writers.Go(func() { s.write(writing, w, rng) })
	}
	for i, f := range []func(context.Context, *rand.Rand){s.read, s.read, s.giveUp, s.giveUp, s.giveUp, s.lease, s.keep, s.comeAndGo, s.ranges} {
		rng := rand.New(rand.NewPCG(s.seed, uint64(s.rounds*1000+100+i)))
		writers.Go(func() { f(writing, rng) })
	}
	s.faults(begun.Add(length), rand.New(rand.NewPCG(s.seed, uint64(s.rounds))))
	stopWriting()
	writers.Wait()
	verify, cancel := context.WithTimeout(s.t.Context(), 3*time.Minute)
	defer cancel()
	if err := s.c.WaitReady(verify); err != nil {
		s.t.Error(err)
	}
	s.verify(verify, watchers)
	stop()
	busy.Wait()
	s.mu.Lock()
	s.t.Logf("cycle %d, %v: %d puts, %d gets, %d given up or failed", s.rounds, time.Since(begun).Round(time.Second), s.counts["put"]+s.counts["txn"],
		s.counts["get"]+s.counts["serializable get"], func() (n int) {
			for what, k := range s.counts {
				if strings.Contains(what, ": ") {
					n += k
				}
			}
			return n
		}())
	s.mu.Unlock()
}

// soakKey and soakValue are what a writer writes for its n-th time.
func soakKey(writer, n int) string { return fmt.Sprintf("u/%d/%010d", writer, n) }

func soakValue(writer, n int) string {
	size := 20 + (writer*7+n*13)%200
	switch {
	case n%1500 == 700:
		size = 1 << 20
	case n%300 == 100:
		size = 150 << 10
	case n%50 == 10:
		size = 20 << 10 // more than a frame
	}
	head := fmt.Sprintf("%d/%d/", writer, n)
	return head + strings.Repeat(string(rune('a'+n%26)), size)
}

// write writes new keys and deletes old ones.
func (s *soak) write(ctx context.Context, w *soakWriter, rng *rand.Rand) {
	var opts []grpc.DialOption
	if w.id == 0 {
		opts = append(opts, grpc.WithDefaultCallOptions(grpc.UseCompressor(gzip.Name)))
	}
	cli := s.client(s.c.Members, opts...)
	if cli == nil {
		return
	}
	defer cli.Close()
	for ctx.Err() == nil {
		w.mu.Lock()
		n := w.next
		w.next++
		w.sent[n] = true
		w.mu.Unlock()
		key, value := soakKey(w.id, n), soakValue(w.id, n)
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		var rev int64
		var err error
		what := "put"
		if rng.IntN(4) == 0 {
			what = "txn"
			var resp *clientv3.TxnResponse
			resp, err = cli.Txn(call).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).Then(clientv3.OpPut(key, value), clientv3.OpGet(key)).Commit()
			if err == nil {
				rev = resp.Header.Revision
				if !resp.Succeeded {
					s.t.Errorf("%s is there before it was written", key)
				}
			}
		} else {
			var resp *clientv3.PutResponse
			if resp, err = cli.Put(call, key, value); err == nil {
				rev = resp.Header.Revision
			}
		}
		s.outcome(what, err)
		if err == nil {
			w.mu.Lock()
			w.acked[n] = rev
			delete(w.sent, n)
			w.mu.Unlock()
		}
		if n >= w.first+soakWindow+soakWindow/4 {
			until := n - soakWindow
			w.mu.Lock() // from here on nobody asks for them
			for i := w.first; i < until; i++ {
				delete(w.acked, i)
				delete(w.sent, i)
			}
			w.first = until
			w.mu.Unlock()
			_, err := cli.Delete(call, soakKey(w.id, 0), clientv3.WithRange(soakKey(w.id, until)))
			s.outcome("delete", err)
		}
		cancel()
	}
}

// read gets keys that were acknowledged.
func (s *soak) read(ctx context.Context, rng *rand.Rand) {
	cli := s.client(s.c.Members)
	if cli == nil {
		return
	}
	defer cli.Close()
	for ctx.Err() == nil {
		w := s.writers[rng.IntN(len(s.writers))]
		w.mu.Lock()
		n := w.next - 1 - rng.IntN(50)
		rev, acked := w.acked[n]
		w.mu.Unlock()
		if !acked {
			time.Sleep(time.Millisecond)
			continue
		}
		what, opts := "get", []clientv3.OpOption(nil)
		if rng.IntN(3) == 0 {
			what, opts = "serializable get", []clientv3.OpOption{clientv3.WithSerializable()}
		}
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		resp, err := cli.Get(call, soakKey(w.id, n), opts...)
		cancel()
		s.outcome(what, err)
		if err != nil {
			continue
		}
		w.mu.Lock()
		gone := n < w.first
		w.mu.Unlock()
		switch {
		case gone:
		case len(resp.Kvs) == 0 && what == "get":
			s.t.Errorf("%s, acknowledged at revision %d, is not there at %d", soakKey(w.id, n), rev, resp.Header.Revision)
		case len(resp.Kvs) == 1 && (resp.Kvs[0].ModRevision != rev || string(resp.Kvs[0].Value) != soakValue(w.id, n)):
			s.t.Errorf("%s, acknowledged at revision %d, is another one, of %d", soakKey(w.id, n), rev, resp.Kvs[0].ModRevision)
		}
	}
}

// ranges reads much at a time.
func (s *soak) ranges(ctx context.Context, rng *rand.Rand) {
	cli := s.client(s.c.Members)
	if cli == nil {
		return
	}
	defer cli.Close()
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(ctx, 20*time.Second)
		_, err := cli.Get(call, fmt.Sprintf("u/%d/", rng.IntN(soakWriters)), clientv3.WithPrefix(), clientv3.WithLimit(int64(rng.IntN(2000))))
		cancel()
		s.outcome("range", err)
		pause(ctx, time.Duration(rng.IntN(300))*time.Millisecond)
	}
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// giveUp makes calls that are cancelled, or time out, mostly before they are answered.
func (s *soak) giveUp(ctx context.Context, rng *rand.Rand) {
	cli := s.client(s.c.Members)
	if cli == nil {
		return
	}
	defer cli.Close()
	for ctx.Err() == nil {
		limit := time.Duration(rng.IntN(5000)) * time.Microsecond
		call, cancel := context.WithTimeout(ctx, limit)
		if rng.IntN(2) == 0 {
			call, cancel = context.WithCancel(ctx)
			time.AfterFunc(limit, cancel)
		}
		key := fmt.Sprintf("junk/%d", rng.IntN(100))
		var err error
		switch rng.IntN(7) {
		case 0:
			_, err = cli.Put(call, key, strings.Repeat("j", rng.IntN(60<<10)))
		case 1:
			_, err = cli.Get(call, key)
		case 2:
			_, err = cli.Get(call, "u/", clientv3.WithPrefix(), clientv3.WithLimit(500))
		case 3:
			_, err = cli.Txn(call).Then(clientv3.OpPut(key, "j"), clientv3.OpGet(key)).Commit()
		case 4:
			_, err = cli.Grant(call, 5)
		case 5:
			watch := cli.Watch(clientv3.WithRequireLeader(call), "u/", clientv3.WithPrefix())
			for range watch { // until the end of call
			}
		default:
			_, err = cli.Delete(call, key)
		}
		s.outcome("given up", err)
		cancel()
	}
}

// lease grants leases with keys, and revokes them.
func (s *soak) lease(ctx context.Context, rng *rand.Rand) {
	cli := s.client(s.c.Members)
	if cli == nil {
		return
	}
	defer cli.Close()
	for n := 0; ctx.Err() == nil; n++ {
		err := func() error {
			call, cancel := context.WithTimeout(ctx, 15*time.Second)
			defer cancel()
			key := fmt.Sprintf("leased/%d/%d", s.rounds, n)
			l, err := cli.Grant(call, 60)
			if err != nil {
				return err
			}
			if _, err := cli.Put(call, key, "v", clientv3.WithLease(l.ID)); err != nil {
				return err
			}
			for range rng.IntN(4) {
				_, err := cli.KeepAliveOnce(call, l.ID)
				if errors.Is(err, io.EOF) { // the stream had ended; etcd's client does not ask why
					err = status.Error(codes.Unavailable, "EOF")
				}
				if err != nil {
					return err
				}
			}
			if _, err := cli.Revoke(call, l.ID); err != nil {
				return err
			}
			got, err := cli.Get(call, key)
			if err == nil && len(got.Kvs) > 0 {
				s.t.Errorf("%s outlives its lease", key)
			}
			return err
		}()
		s.outcome("lease", err)
		pause(ctx, time.Duration(rng.IntN(20))*time.Millisecond)
	}
}

// keep keeps a lease alive as clients do, by a stream: it must live until the end.
func (s *soak) keep(ctx context.Context, _ *rand.Rand) {
	cli := s.client(s.c.Members)
	if cli == nil {
		return
	}
	defer cli.Close()
	var id clientv3.LeaseID
	for id == 0 && ctx.Err() == nil {
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		l, err := cli.Grant(call, 90)
		cancel()
		if s.outcome("kept lease", err); err == nil {
			id = l.ID
		}
	}
	renewed, err := cli.KeepAlive(ctx, id)
	if err != nil {
		s.outcome("keepalive", err)
		return
	}
	for r := range renewed {
		if r.ID != id || r.TTL != 90 {
			s.t.Errorf("a keepalive of lease %x is answered with %x, %d s", id, r.ID, r.TTL)
		}
		s.count("keepalive")
	}
	if ctx.Err() == nil {
		s.t.Error("a lease that is kept alive was lost")
	}
}

// comeAndGo connects for one call each, and to one member in turn.
func (s *soak) comeAndGo(ctx context.Context, rng *rand.Rand) {
	for n := 0; ctx.Err() == nil; n++ {
		cli := s.client(s.c.Members[n%3:][:1])
		if cli == nil {
			return
		}
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, err := cli.Get(call, "u/0")
		cancel()
		s.outcome("short connection", err)
		if rng.IntN(4) == 0 { // another may be open when it closes
			watching, end := context.WithCancel(ctx)
			watch := cli.Watch(watching, "u/", clientv3.WithPrefix())
			time.AfterFunc(time.Duration(rng.IntN(50))*time.Millisecond, end)
			for range watch {
			}
			end()
		}
		_ = cli.Close() // it may say that its context has ended
		pause(ctx, time.Duration(rng.IntN(200))*time.Millisecond)
	}
}

// faults has something happen to the first two members until the end, each soakCalm.
func (s *soak) faults(end time.Time, rng *rand.Rand) {
	ctx := s.t.Context()
	for {
		pause(ctx, min(soakCalm, time.Until(end)))
		if time.Until(end) < soakCalm || s.t.Failed() {
			return
		}
		m := s.c.Members[rng.IntN(2)]
		again, cancel := context.WithTimeout(ctx, 2*time.Minute)
		var err error
		what := []string{"kill", "stop", "renew", "kill both"}[rng.IntN(4)]
		switch what {
		case "kill":
			err = errors.Join(m.Kill(), m.Start())
		case "kill both":
			err = errors.Join(s.c.Members[0].Kill(), s.c.Members[1].Kill(), s.c.Members[0].Start(), s.c.Members[1].Start())
		case "stop":
			err = errors.Join(m.Stop(again), m.Start())
		case "renew":
			serial := s.issuer.issue("server", nil).String()
			for _, m := range s.c.Members {
				err = errors.Join(err, s.presents(again, m, serial))
			}
		}
		if err = errors.Join(err, s.c.WaitReady(again)); err != nil {
			s.t.Errorf("%s: %v", what, err)
		}
		cancel()
		s.count("fault " + what)
	}
}

// presents waits until a member presents a certificate to a new connection.
func (s *soak) presents(ctx context.Context, m *cluster.Member, serial string) error {
	var last string
	for ctx.Err() == nil {
		cfg := s.issuer.client("good")
		cfg.VerifyConnection = func(state tls.ConnectionState) error {
			last = state.PeerCertificates[0].SerialNumber.String()
			return nil
		}
		if conn, err := tls.Dial("tcp", m.Endpoint(), cfg); err == nil {
			_ = conn.Close() // nothing was said
		}
		if last == serial {
			return nil
		}
		pause(ctx, 50*time.Millisecond)
	}
	return fmt.Errorf("%s presents the certificate %s instead of %s", m.Name, last, serial)
}

// soakWatcher watches all writers' keys on one member, by a client that resumes.
type soakWatcher struct {
	s     *soak
	name  string
	begun atomic.Bool

	mu   sync.Mutex
	seen map[string]int64 // the revision of each put
	rev  int64            // of the last event
}

func (w *soakWatcher) watch(ctx context.Context, m *cluster.Member, i int) {
	cli := w.s.client([]*cluster.Member{w.s.c.Members[i]})
	if cli == nil {
		w.begun.Store(true)
		return
	}
	defer cli.Close()
	for r := range cli.Watch(ctx, "u/", clientv3.WithPrefix(), clientv3.WithCreatedNotify()) {
		w.begun.Store(true)
		if err := r.Err(); err != nil && ctx.Err() == nil {
			w.s.t.Errorf("the watch of %s has ended: %v", m.Name, err)
		}
		w.mu.Lock()
		before := w.rev
		for _, ev := range r.Events {
			key, rev := string(ev.Kv.Key), ev.Kv.ModRevision
			if rev <= before || rev < w.rev {
				w.s.t.Errorf("%s: %s of revision %d after revision %d", m.Name, key, rev, w.rev)
			}
			w.rev = rev
			if ev.Type == clientv3.EventTypeDelete {
				delete(w.seen, key)
				continue
			}
			if w.seen[key] != 0 {
				w.s.t.Errorf("%s: %s comes twice", m.Name, key)
			}
			w.seen[key] = rev
			if !intact(key, ev.Kv.Value) {
				w.s.t.Errorf("%s: the event of %s has another value", m.Name, key)
			}
		}
		w.mu.Unlock()
	}
	w.begun.Store(true)
}

// intact reports whether a value is what was written for its key.
func intact(key string, value []byte) bool {
	parts := strings.Split(key, "/")
	if len(parts) != 3 {
		return false
	}
	writer, err1 := strconv.Atoi(parts[1])
	n, err2 := strconv.Atoi(parts[2])
	return err1 == nil && err2 == nil && string(value) == soakValue(writer, n)
}

// verify wants all that was acknowledged on each member, at its revision, and nothing else there.
func (s *soak) verify(ctx context.Context, watchers []*soakWatcher) {
	var newest int64
	for _, m := range s.c.Members {
		cli := s.client([]*cluster.Member{m})
		if cli == nil {
			return
		}
		defer cli.Close()
		for _, w := range s.writers {
			there := make(map[string]int64)
			err := eventually(ctx, func() error {
				clear(there)
				for key := soakKey(w.id, 0); ; {
					resp, err := cli.Get(ctx, key, clientv3.WithRange(fmt.Sprintf("u/%d0", w.id)), clientv3.WithLimit(500))
					if err != nil {
						return err
					}
					for _, kv := range resp.Kvs {
						there[string(kv.Key)] = kv.ModRevision
						if !intact(string(kv.Key), kv.Value) {
							s.t.Errorf("%s: %s has another value", m.Name, kv.Key)
						}
						newest = max(newest, kv.ModRevision)
						key = string(kv.Key) + "\x00"
					}
					if !resp.More {
						return nil
					}
				}
			})
			if err != nil {
				s.t.Errorf("%s: %v", m.Name, err)
				continue
			}
			w.mu.Lock()
			for n, rev := range w.acked {
				key := soakKey(w.id, n)
				if there[key] != rev {
					s.t.Errorf("%s: %s, acknowledged at revision %d, is there at %d (0: not there)", m.Name, key, rev, there[key])
				}
				delete(there, key)
			}
			for n := range w.sent {
				delete(there, soakKey(w.id, n))
			}
			for key := range there {
				if key >= soakKey(w.id, w.first) {
					s.t.Errorf("%s: %s was never sent", m.Name, key)
				}
			}
			w.mu.Unlock()
		}
	}
	for _, watcher := range watchers {
		if err := eventually(ctx, func() error { return watcher.has(s.writers, newest) }); err != nil {
			s.t.Errorf("the watcher of %s: %v", watcher.name, err)
		}
	}
}

// has wants the events of all puts up to a revision that were acknowledged since the watch began.
func (w *soakWatcher) has(writers []*soakWriter, newest int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.rev < newest {
		return fmt.Errorf("revision %d has come, %d is there", w.rev, newest)
	}
	oldest := int64(0)
	for _, rev := range w.seen {
		if oldest == 0 || rev < oldest {
			oldest = rev
		}
	}
	for _, writer := range writers {
		writer.mu.Lock()
		for n, rev := range writer.acked {
			if got := w.seen[soakKey(writer.id, n)]; got != rev && rev >= oldest {
				writer.mu.Unlock()
				return fmt.Errorf("%s of revision %d has come with %d (0: not at all)", soakKey(writer.id, n), rev, got)
			}
		}
		writer.mu.Unlock()
	}
	return nil
}

// A soakLevel is what a member holds.
type soakLevel struct {
	goroutines, kept, sockets int   // kept: see goroutinesIn
	heap, rss                 int64 // what lives on the heap; all that is resident
}

func (l soakLevel) String() string {
	return fmt.Sprintf("%d goroutines and %d kept, %d sockets, a heap of %d MiB, %d MiB resident", l.goroutines, l.kept, l.sockets, l.heap>>20, l.rss>>20)
}

// level is what a member holds now.
func (s *soak) level(i int) (l soakLevel, err error) {
	text, err := getBody(s.t.Context(), s.metrics[i]+"/metrics")
	if err != nil {
		return l, err
	}
	for line := range bytes.Lines(text) {
		name, v, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		if name == "go_memstats_alloc_bytes" {
			bytes, _ := strconv.ParseFloat(v, 64)
			l.heap = int64(bytes)
		}
	}
	stacks, err := s.stacks(i)
	if err != nil {
		return l, err
	}
	l.goroutines, l.kept = goroutinesIn(stacks)
	u, err := s.c.Members[i].Usage()
	l.rss = u.RSSBytes
	if runtime.GOOS != "linux" || err != nil {
		return l, err
	}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", s.c.Members[i].PID()))
	for _, f := range files {
		if to, err := os.Readlink(f); err == nil && strings.HasPrefix(to, "socket:") {
			l.sockets++
		}
	}
	return l, err
}

// stacks are those of a member's goroutines: those that are equal once, with their number.
func (s *soak) stacks(i int) (string, error) {
	transport := &http.Transport{TLSClientConfig: s.issuer.client("good")}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Get(s.c.Members[i].ClientURL + "/debug/pprof/goroutine?debug=1")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}

// goroutinesIn counts the goroutines of stacks; apart from them those that package rpc keeps for what
// comes next. Of these there may be 64: how many there are says how much came at a time, once.
func goroutinesIn(stacks string) (count, kept int) {
	for group := range strings.SplitSeq(stacks, "\n\n") {
		head, frames, _ := strings.Cut(group, " @ ")
		head = head[strings.LastIndex(head, "\n")+1:] // the first group comes after the total
		n, _ := strconv.Atoi(head)
		_, top, _ := strings.Cut(frames, "\n")
		top, _, _ = strings.Cut(top, "\n")
		if strings.Contains(top, "/rpc.(*Server).worker+") {
			kept += n
		} else {
			count += n
		}
	}
	return count, kept
}

// levels are those of all members when nothing changes any more.
func (s *soak) levels() []soakLevel {
	ctx, cancel := context.WithTimeout(s.t.Context(), soakRest)
	defer cancel()
	var was []soakLevel
	for same := 0; same < 5; {
		var now []soakLevel
		for i := range s.c.Members {
			l, err := s.level(i)
			if err != nil {
				s.t.Fatal(err)
			}
			now = append(now, l)
		}
		same++
		for i, l := range now {
			if was == nil || l.goroutines != was[i].goroutines || l.sockets != was[i].sockets {
				same = 0
			}
		}
		if was = now; ctx.Err() != nil {
			break
		}
		pause(ctx, time.Second)
	}
	s.t.Logf("the level: %v", was)
	return was
}

// returnTo waits until all members are at the level they had at first. Their caches fill meanwhile, in
// the first cycles: what they hold of memory then is the level. Beyond it half may be added, and
// 128 MiB.
func (s *soak) returnTo(first []soakLevel, filling bool) {
	for i, m := range s.c.Members { // what lives is what is left when garbage has been collected
		if _, err := getWith(s.issuer.client("good"), m.ClientURL+"/debug/pprof/heap?gc=1"); err != nil {
			s.t.Error(err)
		}
		if now, err := s.level(i); err == nil && filling {
			first[i].heap, first[i].rss = max(first[i].heap, now.heap), max(first[i].rss, now.rss)
		}
	}
	more := func(level int64) int64 { return level + level/2 + 128<<20 }
	for i, m := range s.c.Members {
		var l soakLevel
		for end := time.Now().Add(soakRest); ; time.Sleep(time.Second) {
			var err error
			if l, err = s.level(i); err != nil {
				s.t.Error(err)
				break
			}
			if l.goroutines <= first[i].goroutines+10 && l.sockets <= first[i].sockets+6 && l.heap <= more(first[i].heap) && l.rss <= more(first[i].rss) {
				break
			}
			if time.Now().After(end) {
				stacks, _ := s.stacks(i)
				s.t.Errorf("%s has %v long after the last call; at first %v\n%s", m.Name, l, first[i], stacks)
				break
			}
		}
		s.t.Logf("%s: %v", m.Name, l)
	}
}

// quietLogs wants no log with a panic.
func (s *soak) quietLogs() {
	for _, m := range s.c.Members {
		text, err := os.ReadFile(m.LogPath)
		if err != nil {
			s.t.Error(err)
		}
		if at := regexp.MustCompile(`(?m)^panic|^goroutine \d|^fatal error|runtime error|"level":"(panic|fatal|dpanic)"`).FindIndex(text); at != nil {
			s.t.Errorf("the log of %s: %.2000s", m.Name, text[at[0]:])
		}
	}
}
