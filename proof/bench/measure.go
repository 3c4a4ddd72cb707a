package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/belaydb/belay/cli/bench/load"
	"github.com/belaydb/belay/proof/cluster"
)

// result is one run of a case. Durations are in seconds, so that the JSON has plain numbers.
type result struct {
	OpsPerSecond   float64 `json:"ops_per_second"`
	P50            float64 `json:"p50_seconds"`
	P99            float64 `json:"p99_seconds"`
	CPUPerThousand float64 `json:"server_cpu_seconds_per_1000_ops"`
	PeakRSSBytes   float64 `json:"peak_rss_bytes_of_largest_member"`
	WrittenPerOp   float64 `json:"written_bytes_per_op"`
	DevicePerOp    float64 `json:"device_bytes_per_op"`
	ClientCPU      float64 `json:"client_cpu_seconds_per_1000_ops"`
	Operations     int64   `json:"operations"`
	Errors         int64   `json:"errors"`
	// Restart case: from the start of the process to the first linearizable read.
	RestartGraceful float64 `json:"restart_graceful_seconds,omitempty"`
	RestartKilled   float64 `json:"restart_killed_seconds,omitempty"`
	Failure         string  `json:"failure,omitempty"`
}

// costs is what the members have used up to now.
type costs struct {
	cpu     time.Duration
	written int64
	peak    int64
	client  time.Duration
	device  int64
}

// deviceWritten is the number of bytes written, by any process, to the disk that holds dir. The
// kernel charges a process for the whole folio that it dirties, which with large folios can be a
// megabyte for a page; the disk gets only the page. 0 if it is not known (tmpfs, overlay).
func deviceWritten(dir string) int64 {
	var st syscall.Stat_t
	if syscall.Stat(dir, &st) != nil {
		return 0
	}
	dev := uint64(st.Dev)
	major, minor := (dev>>8)&0xfff|(dev>>32)&^0xfff, dev&0xff|(dev>>12)&^0xff
	data, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", major, minor))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(data))
	if len(fields) < 7 {
		return 0
	}
	sectors, _ := strconv.ParseInt(fields[6], 10, 64) // of 512 bytes, always
	return sectors * 512
}

func costsOf(c *cluster.Cluster) (costs, error) {
	var sum costs
	for _, m := range c.Members {
		u, err := m.Usage()
		if err != nil {
			return sum, err
		}
		sum.cpu += u.CPU
		sum.written += u.WrittenBytes
		sum.peak = max(sum.peak, u.PeakRSSBytes)
	}
	sum.client, sum.device = ownCPU(), deviceWritten(filepath.Dir(c.Members[0].LogPath))
	return sum, nil
}

// resultOf combines what was counted between two readings of the costs.
func resultOf(c *load.Counts, window time.Duration, before, after costs) result {
	n := float64(max(c.N(), 1))
	return result{
		OpsPerSecond:   float64(c.N()) / window.Seconds(),
		P50:            c.Quantile(0.50).Seconds(),
		P99:            c.Quantile(0.99).Seconds(),
		CPUPerThousand: (after.cpu - before.cpu).Seconds() / n * 1000,
		ClientCPU:      (after.client - before.client).Seconds() / n * 1000,
		PeakRSSBytes:   float64(after.peak),
		WrittenPerOp:   float64(after.written-before.written) / n,
		DevicePerOp:    float64(after.device-before.device) / n,
		Operations:     c.N(),
		Errors:         c.Failed(),
	}
}
