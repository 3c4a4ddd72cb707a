package clients

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestNode runs the npm package etcd3, installed as its lock file says.
func TestNode(t *testing.T) {
	wantAll(t)
	node, npm := tool(t, "node", "nodejs"), tool(t, "npm", "npm")
	dir := t.TempDir()
	for _, file := range []string{"package.json", "package-lock.json", "main.js"} {
		data, err := os.ReadFile(filepath.Join("node", file))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	install := exec.Command(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
	install.Dir = dir
	if stdout, stderr, err := run(t, 3*time.Minute, install); err != nil {
		t.Fatalf("npm ci: %v\n%s%s", err, stdout, stderr)
	}
	for _, e := range entries() {
		t.Run(e.String(), func(t *testing.T) {
			d := enter(t, e)
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, node, append([]string{"main.js"}, urls(d.Cluster)...)...)
			cmd.Dir, cmd.Stderr = dir, os.Stderr
			// A member forgets simple tokens when it starts, as etcd does, and the
			// package hangs when the only member does not know its own any more.
			lonely := e == entry{1, secured}
			if lonely {
				cmd.Args = append(cmd.Args, "--without=failover")
			}
			cmd.Env = append(os.Environ(), "ETCD_USER="+d.user, "ETCD_PASSWORD="+d.password)
			if d.ca != nil {
				// The package sends no token with streams of answers (snapshot), so the
				// name in its certificate counts there.
				cmd.Env = append(cmd.Env, "ETCD_CA="+d.ca.CA(), "ETCD_CERT="+d.ca.Cert("root"), "ETCD_KEY="+d.ca.Key("root"))
			}
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var good []string
			killed := make(chan struct{})
			for lines := bufio.NewScanner(stdout); lines.Scan(); {
				line := lines.Text()
				switch name, ok := strings.CutPrefix(line, "ok "); {
				case ok:
					good = append(good, name)
				case line == "kill":
					go func() {
						defer close(killed)
						failover(ctx, t, d.Cluster)
					}()
					fmt.Fprintln(stdin, "now")
				default:
					t.Log(line)
				}
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("node: %v", err)
			}
			features := 11
			if lonely {
				features--
			}
			if t.Logf("%d features hold: %s", len(good), strings.Join(good, ", ")); len(good) != features {
				t.Errorf("%d of %d features hold", len(good), features)
			} else if !lonely {
				<-killed
			}
		})
	}
}
