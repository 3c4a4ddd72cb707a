package discovery

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// keys is what a registry needs of a cluster.
type keys struct {
	clientv3.KV
	clientv3.Watcher

	mu       sync.Mutex
	size     string // "": no such key
	members  []*mvccpb.KeyValue
	revision int64
	failures int           // calls that fail before one works
	lost     int           // watches that end at once
	changed  chan struct{} // closed by a put
}

func (k *keys) failing() bool {
	if k.failures > 0 {
		k.failures--
		return true
	}
	return false
}

func (k *keys) Get(_ context.Context, key string, _ ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failing() {
		return nil, errors.New("not now")
	}
	resp := &clientv3.GetResponse{Header: &pb.ResponseHeader{Revision: k.revision}}
	switch {
	case key == "/size" && k.size != "":
		resp.Kvs = []*mvccpb.KeyValue{{Key: []byte(key), Value: []byte(k.size)}}
	case key == "/members":
		resp.Kvs = append(resp.Kvs, k.members...)
	}
	return resp, nil
}

func (k *keys) Put(_ context.Context, key, value string, _ ...clientv3.OpOption) (*clientv3.PutResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failing() {
		return nil, errors.New("not now")
	}
	k.revision++
	k.members = append(k.members, &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), CreateRevision: k.revision})
	close(k.changed)
	k.changed = make(chan struct{})
	return &clientv3.PutResponse{}, nil
}

func (k *keys) Watch(ctx context.Context, _ string, opts ...clientv3.OpOption) clientv3.WatchChan {
	from := clientv3.OpGet("x", opts...).Rev()
	events := make(chan clientv3.WatchResponse)
	go func() {
		defer close(events)
		for {
			k.mu.Lock()
			if k.lost > 0 {
				k.lost--
				k.mu.Unlock()
				return
			}
			var resp clientv3.WatchResponse
			for _, m := range k.members {
				if m.CreateRevision >= from {
					resp.Events = append(resp.Events, &clientv3.Event{Kv: m})
					from = m.CreateRevision + 1
				}
			}
			changed := k.changed
			k.mu.Unlock()
			if len(resp.Events) > 0 {
				select {
				case events <- resp:
				case <-ctx.Done():
					return
				}
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return events
}

func (k *keys) join(ctx context.Context, id string) (string, error) {
	r := &registry{kv: k, watcher: k, logger: zap.NewNop(), timeout: time.Second, backoff: time.Second, sizeKey: "/size", members: "/members"}
	return r.join(ctx, "/members/"+id, id+"=http://"+id+":1")
}

func newKeys(size string) *keys {
	return &keys{size: size, changed: make(chan struct{}), revision: 1}
}

func TestJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeys("3")
		k.failures, k.lost = 5, 2
		var wg sync.WaitGroup
		got := map[string]string{}
		var mu sync.Mutex
		for i, id := range []string{"a", "b", "c"} {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Minute) // of the bubble
				cluster, err := k.join(t.Context(), id)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				got[id] = cluster
				mu.Unlock()
			})
		}
		wg.Wait()
		for id, cluster := range got {
			if cluster != got["a"] || strings.Count(cluster, "=") != 3 {
				t.Errorf("%s got %q, a got %q", id, cluster, got["a"])
			}
		}
		if _, err := k.join(t.Context(), "d"); !errors.Is(err, ErrFull) {
			t.Errorf("a fourth got %v", err)
		}
		if cluster, err := k.join(t.Context(), "b"); err != nil || cluster != got["a"] {
			t.Errorf("one that comes again got %q, %v", cluster, err)
		}
	})
}

// TestJoinAtOnce: too many register at the same moment; the first ones are in, and the others get
// an error.
func TestJoinAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeys("2")
		var wg sync.WaitGroup
		var mu sync.Mutex
		full, clusters := 0, map[string]int{}
		for _, id := range []string{"a", "b", "c", "d", "e"} {
			wg.Go(func() {
				cluster, err := k.join(t.Context(), id)
				mu.Lock()
				defer mu.Unlock()
				if errors.Is(err, ErrFull) {
					full++
				} else {
					clusters[cluster]++
				}
			})
		}
		wg.Wait()
		if full != 3 || len(clusters) != 1 {
			t.Errorf("%d were refused, and %v", full, clusters)
		}
	})
}

func TestJoinRefused(t *testing.T) {
	for size, want := range map[string]error{"": ErrSizeNotFound, "x": ErrBadSize, "0": ErrBadSize, "-1": ErrBadSize} {
		if _, err := newKeys(size).join(t.Context(), "a"); !errors.Is(err, want) {
			t.Errorf("size %q: %v, want %v", size, err, want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		k := newKeys("1")
		k.failures = 1 << 30
		if _, err := k.join(ctx, "a"); err == nil {
			t.Error("joined nothing")
		}
		k = newKeys("2")
		if _, err := k.join(ctx, "a"); err == nil {
			t.Error("a cluster of two with one member")
		}
	})
}

// TestDialIsSilent: zap complains itself of a logger that is quieter than what the client is to be.
func TestDialIsSilent(t *testing.T) {
	var out strings.Builder
	core := zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{}), zapcore.AddSync(&out), zap.ErrorLevel)
	for _, logger := range []*zap.Logger{zap.New(core, zap.ErrorOutput(zapcore.AddSync(&out))), zap.NewNop()} {
		client, err := Config{Endpoints: []string{"127.0.0.1:1"}, InsecureTransport: true}.dial(t.Context(), logger)
		if err != nil {
			t.Fatal(err)
		}
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if out.Len() > 0 {
		t.Error(out.String())
	}
}
