package metrics

import (
	"math"
	"strings"
	"testing"
	"time"
)

const page = `# TYPE etcd_disk_wal_fsync_duration_seconds histogram
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.001"} 10
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.002"} 90
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.004"} 100
etcd_disk_wal_fsync_duration_seconds_bucket{le="+Inf"} 100
etcd_disk_wal_fsync_duration_seconds_sum 0.2
etcd_disk_wal_fsync_duration_seconds_count 100
# TYPE etcd_server_leader_changes_seen_total counter
etcd_server_leader_changes_seen_total 3
# TYPE etcd_network_peer_sent_bytes_total counter
etcd_network_peer_sent_bytes_total{To="a"} 10
etcd_network_peer_sent_bytes_total{To="b"} 20
`

func TestScrape(t *testing.T) {
	s, err := Parse(strings.NewReader(page), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := s.Value("etcd_network_peer_sent_bytes_total"); !ok || v != 30 {
		t.Errorf("sum of series: %v, %v", v, ok)
	}
	if _, ok := s.Value("nothing"); ok || (*Scrape)(nil).Has("x") {
		t.Error("what is not there is found")
	}
	h, ok := s.Histogram("etcd_disk_wal_fsync_duration_seconds")
	if !ok || h.Count != 100 || math.Abs(h.Mean()-0.002) > 1e-9 {
		t.Fatalf("%+v, %v", h, ok)
	}
	for q, want := range map[float64]float64{0.5: 0.0015, 0.1: 0.001, 0.95: 0.003, 1: 0.004} {
		if v, beyond := h.Quantile(q); beyond || math.Abs(v-want) > 1e-9 {
			t.Errorf("quantile %v: %v, %v; want %v", q, v, beyond, want)
		}
	}
	if n, ok := h.Above(0.002); !ok || n != 10 {
		t.Errorf("above 2 ms: %v, %v", n, ok)
	}
	if _, err := Parse(strings.NewReader("<html>"), time.Now()); err == nil || !strings.Contains(err.Error(), "Prometheus") {
		t.Errorf("a page that is none: %v", err)
	}
}

func TestSince(t *testing.T) {
	a := Histogram{Count: 10, Sum: 1, Buckets: []Bucket{{1, 5}, {math.Inf(1), 10}}}
	b := Histogram{Count: 30, Sum: 9, Buckets: []Bucket{{1, 6}, {math.Inf(1), 30}}}
	d, ok := b.Since(a)
	if !ok || d.Count != 20 || d.Sum != 8 || d.Buckets[0].Count != 1 || d.Buckets[1].Count != 20 {
		t.Errorf("%+v, %v", d, ok)
	}
	if v, beyond := d.Quantile(0.99); v != 1 || !beyond || d.QuantileText(0.99) != "over 1.0 s" {
		t.Errorf("beyond the last bound: %v, %v", v, beyond)
	}
	if _, ok := a.Since(b); ok {
		t.Error("a process that was started again is not noticed")
	}
}

func TestModes(t *testing.T) {
	of := func(counts ...float64) Histogram {
		var h Histogram
		for i, c := range counts {
			h.Count += c
			h.Buckets = append(h.Buckets, Bucket{math.Pow(2, float64(i)), h.Count})
		}
		return h
	}
	for _, tc := range []struct {
		h    Histogram
		want int
	}{
		{of(0, 10, 80, 10, 0, 0), 1},
		{of(5, 100, 10, 0, 0, 3, 40, 2), 2},
		{of(5, 100, 10, 0, 0, 0, 1, 0), 1}, // one that was slow is no mode
		{of(10, 100, 60, 55, 20, 5), 1},    // a shoulder
		{of(100), 1},
		{of(0, 0, 0), 0},
	} {
		if modes := tc.h.Modes(); len(modes) != tc.want {
			t.Errorf("%v: %v", tc.h.Buckets, modes)
		}
	}
	if m := of(5, 100, 10, 0, 0, 3, 40, 2).Modes(); len(m) == 2 && (m[0].High != 4 || m[1].Low != 16 && m[1].Low != 32) {
		t.Errorf("bounds: %v", m)
	}
}
