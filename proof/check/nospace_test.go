package check

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/proof/cluster"
)

// toEndNoSpace is what the page tells operators of a full store to type, in one shell script.
func toEndNoSpace(t *testing.T) string {
	t.Helper()
	root, err := cluster.Root()
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "\nTo end it:\n\n")
	if !ok {
		t.Fatal("docs/operations.md does not say any more how to end NOSPACE")
	}
	block, _, _ := strings.Cut(rest, "\n\n")
	return "set -e\n" + block
}

// TestNoSpaceEnds fills a store up to its quota with values of a size that is kept apart, and of
// one that is not; all is deleted, and writes are taken again: by what the page says, word for
// word, and by a compaction alone where members take the alarm back by themselves.
func TestNoSpaceEnds(t *testing.T) {
	t.Parallel()
	const quota = 24 << 20
	for _, c := range []struct {
		name             string
		members, bytes   int
		disarmByThemself bool
	}{
		{"one member, by the page", 1, 1 << 20, false},
		{"three members, by the page", 3, 1 << 20, false},
		{"one member, small values, by itself", 1, 2 << 10, true},
		{"three members, values of 16 KiB, by themselves", 3, 16 << 10, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cl := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: c.members, Args: []string{
				"--unsafe-no-fsync", fmt.Sprint("--quota-backend-bytes=", quota), fmt.Sprint("--nospace-disarm=", c.disarmByThemself),
			}})
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
			defer cancel()
			conn, err := cl.Members[0].Dial()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			kv := pb.NewKVClient(conn)
			value, rng := make([]byte, c.bytes), rand.New(rand.NewPCG(1, 2))
			put := func(key string) error {
				for i := range value {
					value[i] = byte(rng.Uint32())
				}
				_, err := kv.Put(ctx, &pb.PutRequest{Key: []byte(key), Value: value})
				return err
			}
			refused := func(err error) bool {
				return status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "database space exceeded")
			}
			for i := 0; ; i++ {
				if err := put(fmt.Sprintf("key-%06d", i)); refused(err) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				if i*c.bytes > 2*quota {
					t.Fatalf("%d bytes went into a store with a quota of %d", i*c.bytes, quota)
				}
			}
			deleted, err := kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("key-"), RangeEnd: []byte("key.")})
			if err != nil {
				t.Fatal(err)
			}
			rev := deleted.Header.Revision
			if c.disarmByThemself {
				if _, err := kv.Compact(ctx, &pb.CompactionRequest{Revision: rev, Physical: true}); err != nil {
					t.Fatal(err)
				}
				for start := time.Now(); ; time.Sleep(50 * time.Millisecond) {
					if err := put("after"); err == nil {
						t.Logf("a put passed %v after the compaction", time.Since(start).Round(10*time.Millisecond))
						return
					} else if !refused(err) || time.Since(start) > time.Minute {
						t.Fatalf("%v after the compaction: %v", time.Since(start), err)
					}
				}
			}
			cmd := exec.CommandContext(ctx, "sh", "-c", toEndNoSpace(t))
			cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(Belay(t))+":"+os.Getenv("PATH"), fmt.Sprint("REV=", rev),
				"ETCDCTL_ENDPOINTS="+strings.Join(cl.Endpoints(), ","))
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v\n%s", err, out.Bytes())
			}
			if err := put("after"); err != nil {
				t.Fatalf("%v, after\n%s", err, out.Bytes())
			}
		})
	}
}
