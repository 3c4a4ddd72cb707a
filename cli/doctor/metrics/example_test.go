package metrics_test

import (
	"fmt"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/doctor/metrics"
)

// Two answers of a member's /metrics tell how long its disk took to sync in the time between them.
func ExampleHistogram_Since() {
	answer := func(quick, all int) *metrics.Scrape {
		text := fmt.Sprintf(`# TYPE etcd_disk_wal_fsync_duration_seconds histogram
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.004"} %d
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.008"} %d
etcd_disk_wal_fsync_duration_seconds_bucket{le="+Inf"} %d
etcd_disk_wal_fsync_duration_seconds_sum 1
etcd_disk_wal_fsync_duration_seconds_count %d
`, quick, all, all, all)
		s, err := metrics.Parse(strings.NewReader(text), time.Now())
		if err != nil {
			panic(err)
		}
		return s
	}
	const fsync = "etcd_disk_wal_fsync_duration_seconds"
	before, _ := answer(900, 1000).Histogram(fsync)
	after, _ := answer(950, 1100).Histogram(fsync)
	between, ok := after.Since(before)
	fmt.Println(between.Count, between.QuantileText(0.5), between.QuantileText(0.99), ok)
	// Output: 100 4.0 ms 7.9 ms true
}
