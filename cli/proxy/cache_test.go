package proxy

import (
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

const cacheHits = "etcd_grpc_proxy_cache_hits_total"

// awaitCache reads until the cache answers.
func awaitCache(t *testing.T, address string, r *pb.RangeRequest) {
	t.Helper()
	kv := pb.NewKVClient(dial(t, address))
	before := metric(t, address, cacheHits)
	eventually(t, func() error {
		if _, err := kv.Range(t.Context(), proto.Clone(r).(*pb.RangeRequest)); err != nil {
			return err
		}
		if metric(t, address, cacheHits) == before {
			return fmt.Errorf("nothing is answered from the cache")
		}
		return nil
	})
}

// TestCacheLikeTheMember asks for ranges of all forms through a proxy that has them in its cache,
// and the member: the answers are the same, with a namespace, too.
func TestCacheLikeTheMember(t *testing.T) {
	t.Parallel()
	for _, namespace := range []string{"", "ns/"} {
		t.Run("namespace="+namespace, func(t *testing.T) {
			t.Parallel()
			member := startMember(t)
			_, address := startProxy(t, "--endpoints="+member, "--namespace="+namespace, "--cache-prefix=k")
			through := pb.NewKVClient(dial(t, address))
			direct := through // a proxy that has no cache
			if namespace == "" {
				direct = pb.NewKVClient(dial(t, member))
			} else {
				_, other := startProxy(t, "--endpoints="+member, "--namespace="+namespace, "--cache-bytes=0")
				direct = pb.NewKVClient(dial(t, other))
			}
			awaitCache(t, address, &pb.RangeRequest{Key: []byte("k")})
			seed := uint64(time.Now().UnixNano())
			random := rand.New(rand.NewPCG(seed, 1))
			t.Logf("seed %d", seed)
			key := func() []byte { return fmt.Appendf(nil, "k%d", random.IntN(8)) }
			oneOf := func(n int) bool { return random.IntN(n) == 0 }
			before := metric(t, address, cacheHits)
			const rounds = 300
			for range rounds {
				switch {
				case oneOf(2):
					if _, err := direct.Put(t.Context(), &pb.PutRequest{Key: key(), Value: make([]byte, random.IntN(9))}); err != nil {
						t.Fatal(err)
					}
				case oneOf(4):
					if _, err := direct.DeleteRange(t.Context(), &pb.DeleteRangeRequest{Key: key(), RangeEnd: []byte("k4")}); err != nil {
						t.Fatal(err)
					}
				case oneOf(4):
					if _, err := direct.Put(t.Context(), &pb.PutRequest{Key: []byte("elsewhere")}); err != nil {
						t.Fatal(err)
					}
				}
				r := &pb.RangeRequest{Key: key()}
				if oneOf(2) {
					r.RangeEnd = []byte("l")
				}
				if oneOf(3) {
					r.Limit = random.Int64N(5)
				}
				r.KeysOnly, r.CountOnly = oneOf(5), oneOf(5)
				if oneOf(3) {
					r.SortOrder, r.SortTarget = pb.RangeRequest_SortOrder(random.IntN(3)), pb.RangeRequest_SortTarget(random.IntN(5))
				}
				if oneOf(4) {
					r.MinCreateRevision, r.MaxModRevision = random.Int64N(20), random.Int64N(200)
				}
				want, err := direct.Range(t.Context(), r)
				if err != nil {
					t.Fatal(err)
				}
				for _, serializable := range []bool{false, true} { // the first one is what the connection has seen
					r.Serializable = serializable
					got, err := through.Range(t.Context(), r)
					if err != nil {
						t.Fatal(err)
					}
					if !proto.Equal(got, want) {
						t.Fatalf("%v:\n%v\nthe member:\n%v", r, got, want)
					}
				}
			}
			// Few go to the member: when it is slower than a read is patient.
			if hits := metric(t, address, cacheHits) - before; hits < rounds {
				t.Errorf("%v of %d reads were answered from the cache", hits, 2*rounds)
			}
		})
	}
}

// TestCacheByHeat: a range that is read often is kept, and many readers of it share few barriers.
func TestCacheByHeat(t *testing.T) {
	t.Parallel()
	member := startMember(t)
	_, address := startProxy(t, "--endpoints="+member)
	hot := &pb.RangeRequest{Key: []byte("hot/"), RangeEnd: []byte("hot0")}
	awaitCache(t, address, hot)
	if keys, bytes := metric(t, address, "etcd_grpc_proxy_cache_keys_total"), metric(t, address, "belay_proxy_cache_bytes"); keys != 1 || bytes == 0 {
		t.Errorf("%v ranges, %v bytes", keys, bytes)
	}
	kv := pb.NewKVClient(dial(t, address))
	const readers, each = 50, 20
	hits, barriers := metric(t, address, cacheHits), metric(t, address, "belay_proxy_cache_barriers_total")
	done := make(chan error, readers)
	for range readers {
		go func() {
			var err error
			for range each {
				if _, e := kv.Range(t.Context(), proto.Clone(hot).(*pb.RangeRequest)); e != nil {
					err = e
				}
			}
			done <- err
		}()
	}
	for range readers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	hits, barriers = metric(t, address, cacheHits)-hits, metric(t, address, "belay_proxy_cache_barriers_total")-barriers
	if hits < readers || barriers >= hits {
		t.Errorf("%v reads were answered from the cache with %v barriers", hits, barriers)
	}
}

// TestCacheAndUsers: with users every read is judged by the members, from when they are there.
func TestCacheAndUsers(t *testing.T) {
	t.Parallel()
	member := startMember(t)
	_, address := startProxy(t, "--endpoints="+member, "--cache-prefix=k", "--cache-staleness=200ms")
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	through, direct := newClient(t, address), newClient(t, member)
	if _, err := through.Put(ctx, "k", "secret"); err != nil {
		t.Fatal(err)
	}
	awaitCache(t, address, &pb.RangeRequest{Key: []byte("k")})
	for _, do := range []func() error{
		func() error { _, err := direct.UserAdd(ctx, "root", "root"); return err },
		func() error { _, err := direct.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := direct.AuthEnable(ctx); return err },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := through.Get(ctx, "k"); err != rpctypes.ErrUserEmpty {
		t.Errorf("a read by nobody: %v, %v", r, err)
	}
	if r, err := through.Get(ctx, "k", clientv3.WithSerializable()); err != rpctypes.ErrUserEmpty {
		t.Errorf("a serializable one, when the cache knows: %v, %v", r, err)
	}
	if keys := metric(t, address, "etcd_grpc_proxy_cache_keys_total"); keys != 0 {
		t.Errorf("%v ranges are kept", keys)
	}
	// Who says who it is, is not answered from the cache either, whatever the proxy knows.
	_, fresh := startProxy(t, "--endpoints="+member, "--cache-prefix=k")
	hits := metric(t, fresh, cacheHits)
	_, err := pb.NewKVClient(dial(t, fresh)).Range(metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, "none"), &pb.RangeRequest{Key: []byte("k"), Serializable: true})
	if err == nil || metric(t, fresh, cacheHits) != hits {
		t.Errorf("a token that is none: %v", err)
	}
}

// TestMaxConnections: nearly all descriptors of a proxy are its clients'.
func TestMaxConnections(t *testing.T) {
	t.Parallel()
	for descriptors, want := range map[uint64]int{0: math.MaxInt32, 1 << 40: math.MaxInt32, 100: 0, 1024: 438, 20512: 20000} {
		got, err := maxConnections(descriptors)
		if got != want || (err != nil) != (want == 0) {
			t.Errorf("with %d descriptors %d, %v; want %d", descriptors, got, err, want)
		}
	}
	for descriptors := uint64(151); descriptors < 3000; descriptors++ {
		if got, err := maxConnections(descriptors); err != nil || got < 1 || got > int(descriptors) {
			t.Fatalf("with %d descriptors %d, %v", descriptors, got, err)
		}
	}
}

// TestUnreadAnswers: an answer that its client does not read is counted until the client is gone, each
// version of it once.
func TestUnreadAnswers(t *testing.T) {
	t.Parallel()
	member := startMember(t)
	_, address := startProxy(t, "--endpoints="+member, "--cache-prefix=k")
	kv := pb.NewKVClient(dial(t, member))
	const bytes = 100_000
	put := func(key string) {
		t.Helper()
		if _, err := kv.Put(t.Context(), &pb.PutRequest{Key: []byte(key), Value: make([]byte, bytes)}); err != nil {
			t.Fatal(err)
		}
	}
	put("k")
	awaitCache(t, address, &pb.RangeRequest{Key: []byte("k")})
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() { _, _ = io.Copy(io.Discard, conn) }() // it reads, but lets nothing be sent
	f := http2.NewFramer(conn, nil)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}); err != nil {
		t.Fatal(err)
	}
	var head strings.Builder
	e := hpack.NewEncoder(&head)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/etcdserverpb.KV/Range"}, {":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		if err := e.WriteField(hpack.HeaderField{Name: h[0], Value: h[1], Sensitive: true}); err != nil {
			t.Fatal(err)
		}
	}
	stream := uint32(1)
	const versions = 4
	sending := func() float64 { return metric(t, address, "belay_proxy_cache_sending_bytes") }
	for version := range versions {
		before := metric(t, address, cacheHits)
		eventually(t, func() error { // on a busy machine some go to the member
			if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte(head.String()), EndHeaders: true}); err != nil {
				t.Fatal(err)
			}
			if err := f.WriteData(stream, true, []byte{0, 0, 0, 0, 3, 0x0a, 1, 'k'}); err != nil {
				t.Fatal(err)
			}
			stream += 2
			if metric(t, address, cacheHits) == before {
				return fmt.Errorf("version %d is not answered from the cache", version)
			}
			return nil
		})
		put("k")
	}
	expect := func(what string, good func(float64) bool) {
		t.Helper()
		eventually(t, func() error {
			put("k2") // the metric is brought to what is when something happens
			if n := sending(); !good(n) {
				return fmt.Errorf("%s: %v bytes are under way", what, n)
			}
			return nil
		})
	}
	expect("each version once", func(n float64) bool { return n >= versions*bytes && n < 2*versions*bytes })
	conn.Close()
	expect("the client is gone", func(n float64) bool { return n == 0 })
}
