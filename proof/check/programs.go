package check

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/belaydb/belay/proof/cluster"
)

// EtcdTools returns etcd's own programs, built on first use.
func EtcdTools(t testing.TB) cluster.Tools {
	t.Helper()
	tools, err := cluster.EtcdTools(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return tools
}

// built remembers the one build of a test run. The folder is shared by all tests of a process and
// left to the cache: go's build cache makes the next build of the same source a matter of linking.
var built struct {
	once sync.Once
	path string
	err  error
}

// Main is TestMain of packages whose tests start Belay: it builds the program
// first, for a build on a busy machine takes longer than some tests allow.
func Main(m *testing.M) {
	flag.Parse()
	if !testing.Short() && flag.Lookup("test.list").Value.String() == "" {
		build() // the tests that need it report an error
	}
	os.Exit(m.Run())
}

// Belay returns the belay binary of this source, built once per process.
func Belay(t testing.TB) string {
	t.Helper()
	build()
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

func build() {
	built.once.Do(func() {
		cache, err := os.UserCacheDir()
		if err != nil {
			built.err = err
			return
		}
		dir := filepath.Join(cache, "belay-check")
		if built.err = os.MkdirAll(dir, 0o755); built.err != nil {
			return
		}
		built.path, built.err = cluster.BuildBelay(context.Background(), filepath.Join(dir, "belay"))
	})
}
