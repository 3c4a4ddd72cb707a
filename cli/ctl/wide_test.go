package ctl

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const etcdMetrics = `# TYPE etcd_server_leader_changes_seen_total counter
etcd_server_leader_changes_seen_total 4
# TYPE etcd_disk_wal_fsync_duration_seconds histogram
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.001"} 0
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.002"} 100
etcd_disk_wal_fsync_duration_seconds_bucket{le="+Inf"} 100
etcd_disk_wal_fsync_duration_seconds_sum 0.15
etcd_disk_wal_fsync_duration_seconds_count 100
`

// TestWide: of Belay json always has what its metrics tell; of etcd, and of who does not answer,
// only if it was asked for, so that scripts see what etcdctl prints.
func TestWide(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, metrics, format string
		wide                  bool
		want                  string
	}{
		{"Belay", etcdMetrics + "belay_disk_state 0\nbelay_store_state 2\n", "json", false, `{"leader_changes":4,"disk":"stalled","disk_state":2,"fsync_p99_seconds":0.00199}`},
		{"Belay", etcdMetrics + "belay_disk_state 0\nbelay_store_state 0\n", "table", true, `{"leader_changes":4,"disk":"healthy","disk_state":0,"fsync_p99_seconds":0.00199}`},
		{"Belay", etcdMetrics + "belay_disk_state 0\n", "table", false, `null`},
		{"etcd", etcdMetrics, "json", false, `null`},
		{"etcd", etcdMetrics, "json", true, `{"leader_changes":4,"fsync_p99_seconds":0.00199}`},
		{"nobody", "", "json", false, `null`},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if tc.metrics == "" || r.URL.Path != "/metrics" {
				http.NotFound(w, r)
				return
			}
			_, _ = io.WriteString(w, tc.metrics)
		}))
		defer server.Close()
		out := &output{format: tc.format}
		asker, err := out.widely(&clientv3.ConfigSpec{Endpoints: []string{server.URL}}, tc.wide, nil, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		defer asker.close()
		got, err := json.Marshal(asker.ask(t.Context(), server.URL, 1))
		if err != nil || string(got) != tc.want {
			t.Errorf("%s, %s, wide %v: %v, %s, want %s", tc.name, tc.format, tc.wide, err, got, tc.want)
		}
	}
	asker, err := (&output{format: "table"}).widely(&clientv3.ConfigSpec{Endpoints: []string{"127.0.0.1:1"}}, true, nil, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer asker.close()
	if got := asker.ask(t.Context(), "127.0.0.1:1", 1); got == nil || got.Error == "" {
		t.Errorf("nobody there: %+v", got)
	}
}
