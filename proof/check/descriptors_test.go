//go:build linux

package check

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// withFewDescriptors is a program that runs binary with a limit of file descriptors.
func withFewDescriptors(t *testing.T, binary string, limit int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "few")
	script := fmt.Sprintf("#!/bin/sh\nulimit -n %d\nexec %s \"$@\"\n", limit, binary)
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// Silent connections, three times as many as the process may open files, are held on each port of a
// member while it makes log segments and tables: it lives, the other members reach it, new clients
// and scrapers are served, and it logs what happens.
func TestConnectionsLeaveFilesAlone(t *testing.T) {
	t.Parallel()
	const limit = 400
	c, err := cluster.New(cluster.Config{Kind: cluster.Belay, Binary: withFewDescriptors(t, Belay(t), limit), Size: 3, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.Tails(15))
		}
		c.Close()
	})
	m := c.Members[0]
	port, err := cluster.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	metricsURL := fmt.Sprintf("http://127.0.0.1:%d", port)
	m.SetArgs(func(args []string) []string { return append(args, "--listen-metrics-urls="+metricsURL) })
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	flood := func() {
		for _, u := range []string{m.ClientURL, m.PeerURL, metricsURL} {
			for range limit {
				conn, err := net.Dial("tcp", strings.TrimPrefix(u, "http://"))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
			}
		}
	}
	flood()
	cli := admin(t, m)
	value := string(bytes.Repeat([]byte("v"), 1<<20))
	for i := range 150 { // some segments, and tables
		if i == 50 || i == 100 {
			flood()
		}
		if err := eventually(ctx, func() error { _, err := cli.Put(ctx, fmt.Sprint(i), value); return err }); err != nil {
			t.Fatalf("put %d: %v", i, err)
		}
	}
	if _, err := admin(t, m).Get(ctx, "1"); err != nil {
		t.Errorf("a new client: %v", err)
	}
	resp, err := http.Get(metricsURL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range []string{"peer", "metrics"} { // the client port closes those that wait to say what they speak, too
		if name := fmt.Sprintf("belay_connections_refused_total{port=%q,state=\"silent\"} ", port); !strings.Contains(string(text), name) || strings.Contains(string(text), name+"0\n") {
			t.Errorf("no connection of the %s port was closed", port)
		}
	}
	if log := m.LogTail(10000); !strings.Contains(log, "too many connections") || strings.Contains(log, "too many open files") {
		t.Error("the log does not say what it should")
	}
	select {
	case <-m.Exited():
		t.Fatalf("the member ended: %v", m.ExitErr())
	default:
	}
	// The others still reach it, and it them.
	if err := c.Members[1].Kill(); err != nil {
		t.Fatal(err)
	}
	if err := eventually(ctx, func() error { _, err := cli.Put(ctx, "after", ""); return err }); err != nil {
		t.Errorf("with two members: %v", err)
	}
}
