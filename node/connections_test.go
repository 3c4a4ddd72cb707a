package node

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// Every kind of port closes connections whose headers do not end and that hold too much together,
// and says so by a metric and in the log.
func TestPreludesOfEveryPort(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	l := &lone{dir: shortDir(t)}
	cfg := l.config()
	cfg.Logger = zap.New(core)
	cfg.Limits.ReceiveBytes = 1 << 20 // an eighth is less than the least
	cfg.ListenMetricsURLs = []url.URL{{Scheme: "unix", Path: filepath.Join(l.dir, "metrics")}}
	var err error
	if l.n, err = Start(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.stop)
	l.put(t, "before", 1)
	headers := append([]byte("GET / HTTP/1.1\r\nHost: x\r\nX: "), bytes.Repeat([]byte("y"), 900<<10)...)
	within := time.Now().Add(time.Minute)
	metric := func(name, label, value string) (total float64) {
		t.Helper()
		families, err := l.n.registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.Metric {
				if f.GetName() == name && m.Label[0].GetName() == label && m.Label[0].GetValue() == value {
					total += m.GetCounter().GetValue() + m.GetGauge().GetValue()
				}
			}
		}
		return total
	}
	for i, port := range []string{"client", "peer", "metrics"} {
		for range 4 {
			conn, err := net.Dial("unix", filepath.Join(l.dir, port))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			if err := conn.SetDeadline(within); err != nil {
				t.Fatal(err)
			}
			go io.Copy(io.Discard, conn) //nolint:errcheck // until it is closed
			_, _ = conn.Write(headers)   // or it was closed
		}
		for metric("belay_receiving_refused_total", "what", "headers") < float64(i+1) || metric("belay_prelude_bytes", "port", port) > minPreludeBytes {
			if time.Now().After(within) {
				t.Fatalf("%s: %v closed, %v bytes held", port, metric("belay_receiving_refused_total", "what", "headers"), metric("belay_prelude_bytes", "port", port))
			}
			time.Sleep(time.Millisecond)
		}
		told := logs.FilterMessageSnippet("headers that are not complete").FilterField(zap.String("port", port)).Len()
		if told != 1 {
			t.Errorf("%s: %d lines in the log: %s", port, told, fmt.Sprint(logs.All()))
		}
	}
	l.put(t, "after", 1)
}
