package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	return buildTools(ctx, t, EtcdVersion, "", true)
}

// OlderEtcd are the older etcds that proof/etcdtools/pins has a module for, one of each minor
// version, oldest first. `make tools-old` builds them.
func OlderEtcd() []string { return []string{"3.4.13", "3.5.35", "3.6.16"} }

// OlderTools returns the programs of one of OlderEtcd. 3.4 has no etcdutl: its path is empty. With
// build they are built when they are not there yet; otherwise ok says whether they are.
func OlderTools(ctx context.Context, version string, build bool) (t Tools, ok bool, err error) {
	minor := version[:strings.LastIndexByte(version, '.')]
	t, err = buildTools(ctx, Tools{}, version, minor, build)
	if errors.Is(err, os.ErrNotExist) && !build {
		return Tools{}, false, nil
	}
	return t, err == nil, err
}

// buildTools fills the empty paths of t with programs of one version, and builds those that are not
// there, from the module in the folder pins of proof/etcdtools/pins.
func buildTools(ctx context.Context, t Tools, version, pins string, build bool) (Tools, error) {
	type program struct {
		path      *string
		name, pkg string
	}
	programs := []program{
		{&t.Etcd, "etcd", "go.etcd.io/etcd/server/v3"},
		{&t.Etcdctl, "etcdctl", "go.etcd.io/etcd/etcdctl/v3"},
		{&t.Etcdutl, "etcdutl", "go.etcd.io/etcd/etcdutl/v3"},
	}
	if strings.HasPrefix(version, "3.4.") { // of before its modules
		programs = []program{{&t.Etcd, "etcd", "go.etcd.io/etcd"}, {&t.Etcdctl, "etcdctl", "go.etcd.io/etcd/etcdctl"}}
	}
	programs = slices.DeleteFunc(programs, func(p program) bool { return *p.path != "" })
	if len(programs) == 0 {
		return t, nil
	}
	toolsMu.Lock()
	defer toolsMu.Unlock()
	cache, err := os.UserCacheDir()
	if err != nil {
		return t, fmt.Errorf("cluster: where to keep etcd's programs: %w", err)
	}
	dir := filepath.Join(cache, "belay-etcdtools", version)
	root, err := Root()
	if err != nil {
		return t, err
	}
	for _, b := range programs {
		*b.path = filepath.Join(dir, b.name)
		if _, err := os.Stat(*b.path); err == nil {
			continue
		} else if !build {
			return t, err
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return t, err
		}
		// Built aside and renamed: two test binaries may do this at once.
		tmp := fmt.Sprintf("%s.%d", *b.path, os.Getpid())
		cmd := exec.CommandContext(ctx, "go", "build", "-C", filepath.Join(root, "proof", "etcdtools", "pins", pins), "-o", tmp, b.pkg)
		if out, err := cmd.CombinedOutput(); err != nil {
			return t, fmt.Errorf("cluster: build %s %s: %w\n%s", b.name, version, err, out)
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
