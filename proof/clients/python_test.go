package clients

import (
	"bufio"
	"bytes"
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// TestPython runs etcd's API from Python, whose gRPC is the C core, over TLS and without.
func TestPython(t *testing.T) {
	wantAll(t)
	python := ""
	for _, path := range []string{"python3", "/usr/bin/python3"} { // Debian's may be another one
		if exec.Command(path, "-c", "import grpc").Run() == nil {
			python = path
			break
		}
	}
	if python == "" {
		t.Skip("no python3 has grpc; on Debian it is in the package python3-grpcio")
	}
	for _, secure := range []bool{false, true} {
		name := map[bool]string{false: "plain", true: "TLS"}[secure]
		t.Run(name, func(t *testing.T) {
			cfg := cluster.Config{Kind: checkKind(t), Size: 1}
			var files []string
			if secure {
				ca, err := cluster.NewAuthority(t.TempDir(), "check")
				if err != nil {
					t.Fatal(err)
				}
				for _, name := range []string{"server", "client"} {
					if _, err := ca.Issue(name, nil); err != nil {
						t.Fatal(err)
					}
				}
				if cfg.TLS, err = ca.Client("client"); err != nil {
					t.Fatal(err)
				}
				cfg.Args = append(cfg.Args, "--cert-file="+ca.Cert("server"), "--key-file="+ca.Key("server"), "--trusted-ca-file="+ca.CA(), "--client-cert-auth")
				files = []string{ca.CA(), ca.Cert("client"), ca.Key("client")}
			}
			c, err := startWith(t, cfg)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, python, append([]string{filepath.Join("python", "main.py"), c.Members[0].Endpoint()}, files...)...)
			var out, errs bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &errs
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v\n%s%s", err, &out, &errs)
			}
			var good []string
			for lines := bufio.NewScanner(&out); lines.Scan(); {
				if name, ok := strings.CutPrefix(lines.Text(), "ok "); ok {
					good = append(good, name)
				}
			}
			if t.Logf("%d features hold: %s", len(good), strings.Join(good, ", ")); len(good) != 12 {
				t.Errorf("%d of 12 features hold", len(good))
			}
		})
	}
}
