package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// EtcdVersion is the etcd that Belay is compared with; proof/etcdtools/pins/go.mod
// pins the same one.
const EtcdVersion = "3.7.3"

// Tools are paths of real etcd's programs.
type Tools struct {
	Etcd, Etcdctl, Etcdutl string
}

// Root returns the root folder of Belay's module, searching upwards from the working directory.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(data), "module github.com/belaydb/belay\n") {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("cluster: not inside Belay's module")
		}
		dir = parent
	}
}

var toolsMu sync.Mutex

// EtcdTools returns etcd's own programs, built from the module
// proof/etcdtools/pins into the user's cache directory when they are not there
// yet. BELAY_ETCD, BELAY_ETCDCTL and BELAY_ETCDUTL name others to use.
func EtcdTools(ctx context.Context) (Tools, error) {
	t := Tools{os.Getenv("BELAY_ETCD"), os.Getenv("BELAY_ETCDCTL"), os.Getenv("BELAY_ETCDUTL")}
	if t.Etcd != "" && t.Etcdctl != "" && t.Etcdutl != "" {
		return t, nil
	}
	toolsMu.Lock()
	defer toolsMu.Unlock()
	cache, err := os.UserCacheDir()
	if err != nil {
		return t, fmt.Errorf("cluster: where to keep etcd's programs: %w", err)
	}
	dir := filepath.Join(cache, "belay-etcdtools", EtcdVersion)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return t, err
	}
	root, err := Root()
	if err != nil {
		return t, err
	}
	for _, b := range []struct {
		path *string
		name string
		pkg  string
	}{
		{&t.Etcd, "etcd", "go.etcd.io/etcd/server/v3"},
		{&t.Etcdctl, "etcdctl", "go.etcd.io/etcd/etcdctl/v3"},
		{&t.Etcdutl, "etcdutl", "go.etcd.io/etcd/etcdutl/v3"},
	} {
		if *b.path != "" {
			continue
		}
		*b.path = filepath.Join(dir, b.name)
		if _, err := os.Stat(*b.path); err == nil {
			continue
		}
		// Built aside and renamed: two test binaries may do this at once.
		tmp := fmt.Sprintf("%s.%d", *b.path, os.Getpid())
		cmd := exec.CommandContext(ctx, "go", "build", "-C", filepath.Join(root, "proof", "etcdtools", "pins"), "-o", tmp, b.pkg)
		if out, err := cmd.CombinedOutput(); err != nil {
			return t, fmt.Errorf("cluster: build %s: %w\n%s", b.name, err, out)
		}
		if err := os.Rename(tmp, *b.path); err != nil {
			return t, err
		}
	}
	return t, nil
}

// BuildBelay builds cmd/belay to the file out; BELAY_BIN names a binary to use
// instead. It returns the path of the binary.
func BuildBelay(ctx context.Context, out string, flags ...string) (string, error) {
	if bin := os.Getenv("BELAY_BIN"); bin != "" {
		return bin, nil
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	args := append([]string{"build", "-C", root, "-o", out}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/belay")...)
	if msg, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cluster: build cmd/belay: %w\n%s", err, msg)
	}
	return out, nil
}

// Program returns the path of a kind's program: the one that is named, or one that is
// built, Belay's into dir.
func Program(ctx context.Context, kind Kind, dir, belay, etcd string) (string, error) {
	switch kind {
	case Belay:
		if belay != "" {
			return filepath.Abs(belay)
		}
		return BuildBelay(ctx, filepath.Join(dir, "belay"))
	case Etcd:
		if etcd != "" {
			return filepath.Abs(etcd)
		}
		tools, err := EtcdTools(ctx)
		return tools.Etcd, err
	}
	return "", fmt.Errorf("cluster: no kind %q; there are belay and etcd", kind)
}
