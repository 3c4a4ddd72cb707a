package offline

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/belaydb/belay/embed"
)

// holds has this process, which a test has started, hold the lock of a store as a member does, until
// the end of its standard input.
const holds = "BELAY_TEST_HOLDS"

func TestMain(m *testing.M) {
	if store := os.Getenv(holds); store != "" {
		if _, err := vfs.Default.Lock(filepath.Join(store, "LOCK")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println("held")
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// hashkv of a member that runs tells so, and what is hashed.
func TestHashKVBesideAMember(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	m, err := embed.Start(ctx, embed.Options{Name: "m", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Stop()
	client, err := m.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	put, err := client.Put(ctx, "key", "value")
	if err != nil {
		t.Fatal(err)
	}
	m.Stop()
	rev := put.Header.Revision

	hash := func(args ...string) (code int, stdout, stderr string) {
		var out, errs bytes.Buffer
		code = Main("belay util", append([]string{"hashkv", dir}, args...), &out, &errs)
		return code, out.String(), errs.String()
	}
	code, alone, errs := hash()
	if code != 0 || errs != "" || !strings.Contains(alone, fmt.Sprintf(", %d, ", rev)) {
		t.Fatalf("no member runs: code %d, %s%s", code, alone, errs)
	}

	store := filepath.Join(dir, "member", "store")
	holder := exec.CommandContext(ctx, os.Args[0])
	holder.Env, holder.Stderr = append(os.Environ(), holds+"="+store), os.Stderr
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		t.Fatalf("%q, %v", line, err)
	}
	for _, c := range []struct {
		args []string
		rev  int64
	}{{nil, rev}, {[]string{"--rev=1"}, 1}} {
		code, beside, errs := hash(c.args...)
		if want := fmt.Sprintf("Note: a member runs on %s. What it has flushed is hashed, up to revision %d;", store, c.rev); code != 0 || !strings.HasPrefix(errs, want) || c.rev == rev && beside != alone {
			t.Errorf("a member runs, %q: code %d, %s%s", c.args, code, beside, errs)
		}
	}
	if code, _, errs := hash("--rev=1000"); code == 0 || !strings.Contains(errs, fmt.Sprintf("a member runs on %s, and has flushed what is up to revision %d", store, rev)) {
		t.Errorf("a revision that is not flushed: code %d, %s", code, errs)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := holder.Wait(); err != nil {
		t.Fatal(err)
	}
	if code, again, errs := hash(); code != 0 || errs != "" || again != alone {
		t.Errorf("it runs no more: code %d, %s%s", code, again, errs)
	}
}
