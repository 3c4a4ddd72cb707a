package check

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// TestLogFlags gives both programs log flags that they must refuse, and requires the same text and
// exit code.
func TestLogFlags(t *testing.T) {
	if _, err := os.Stat("/run/systemd/journal/socket"); err == nil {
		t.Log("systemd's journal is here; its absence is not tried")
	}
	for _, flags := range [][]string{
		{"--log-outputs=default,stderr"},
		{"--log-outputs=systemd/journal,stderr"},
		{"--log-outputs=systemd/journal"},
		{"--log-outputs=/nonexistent/folder/log"},
		{"--enable-log-rotation"},
		{"--enable-log-rotation", "--log-outputs=a,b"},
		{"--enable-log-rotation", "--log-outputs=a", "--log-rotation-config-json={"},
		{"--enable-log-rotation", "--log-outputs=a", `--log-rotation-config-json={"maxsize":"x"}`},
		{"--log-format=xml"},
		{"--logger=capnslog"},
		{"--logger=other"},
	} {
		t.Run(strings.Join(flags, " "), func(t *testing.T) {
			if _, err := os.Stat("/run/systemd/journal/socket"); err == nil && flags[0] == "--log-outputs=systemd/journal" {
				t.Skip("needs a machine without systemd's journal")
			}
			said := func(kind cluster.Kind) (text string, code int) {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				args := flags
				if kind == cluster.Belay {
					args = append([]string{"server"}, flags...)
				}
				cmd := exec.CommandContext(ctx, binaryOf(t, kind), args...)
				cmd.Dir = t.TempDir()
				out, err := cmd.CombinedOutput()
				var exit *exec.ExitError
				if !errors.As(err, &exit) {
					t.Fatalf("%s took it: %v\n%s", kind, err, out)
				}
				for line := range strings.Lines(string(out)) {
					var l struct{ Msg, Error string }
					if json.Unmarshal([]byte(line), &l) == nil && l.Msg == "failed to verify flags" {
						text = l.Error
					}
				}
				return text, exit.ExitCode()
			}
			want, wantCode := said(cluster.Etcd)
			have, haveCode := said(cluster.Belay)
			if have != want || haveCode != wantCode || want == "" {
				t.Errorf("Belay: %q, %d\netcd:  %q, %d", have, haveCode, want, wantCode)
			}
		})
	}
}

// TestLogRotation: the log goes to a file that is cut at its largest size, and
// every line of it stays a line.
func TestLogRotation(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "member.log")
	kind := checkKind(t)
	c := startCluster(t, cluster.Config{Kind: kind, Binary: binaryOf(t, kind), Size: 1, Dir: t.TempDir(), Args: []string{
		"--log-level=debug", "--log-outputs=" + log, "--enable-log-rotation", `--log-rotation-config-json={"maxsize": 1, "maxbackups": 3}`,
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	client := newClient(t, c.Endpoints())
	key := strings.Repeat("k", 2000) // in the debug lines of each request
	var rotated []string
	if err := eventually(ctx, func() error {
		for range 300 {
			if _, err := client.Get(ctx, key); err != nil {
				return err
			}
		}
		var err error
		if rotated, err = filepath.Glob(filepath.Join(dir, "member-*.log")); err == nil && len(rotated) == 0 {
			err = errors.New("nothing was rotated")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(rotated[0])
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var l struct{ Msg string }
		if err := json.Unmarshal([]byte(line), &l); err != nil || l.Msg == "" {
			t.Fatalf("not a line of the log: %.200q (%v)", line, err)
		}
	}
}
