package check

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

func parseScrape(t testing.TB, text []byte) map[string]*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("%v in:\n%.2000s", err, text)
	}
	return families
}

// sum adds up the series of a family, or the counts of a histogram.
func sum(families map[string]*dto.MetricFamily, name string) (n float64) {
	for _, m := range families[name].GetMetric() {
		n += m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetUntyped().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	return n
}

// shape is what of a family rules and dashboards depend on: its type, the names
// of its labels, its buckets, and the values of labels that are not ids.
func shape(f *dto.MetricFamily) (kind string, values map[string]bool) {
	var names []string
	values = map[string]bool{}
	buckets := ""
	for _, m := range f.Metric {
		var pairs []string
		names = names[:0]
		for _, l := range m.Label {
			names = append(names, l.GetName())
			value := l.GetValue()
			switch l.GetName() {
			case "To", "From", "Local", "Remote", "server_id", "server_version", "server_go_version", "version":
				if f.GetName() != "etcd_server_apply_duration_seconds" {
					value = "*"
				}
			}
			pairs = append(pairs, l.GetName()+"="+value)
		}
		values[strings.Join(pairs, ",")] = true
		buckets = ""
		for _, b := range m.GetHistogram().GetBucket() {
			buckets += fmt.Sprint(" ", b.GetUpperBound())
		}
		for _, q := range m.GetSummary().GetQuantile() {
			buckets += fmt.Sprint(" ", q.GetQuantile())
		}
	}
	return fmt.Sprintf("%s {%s}%s", f.GetType(), strings.Join(names, ","), buckets), values
}

// absent are etcd's families that Belay has not, and why.
func absent() map[string]string {
	reasons := map[string][]string{
		"there is no v2 store, so no action of it": {
			"etcd_debugging_store_reads_failed_total", "etcd_debugging_store_reads_total", "etcd_debugging_store_writes_failed_total", "etcd_debugging_store_writes_total",
		},
	}
	names := map[string]string{}
	for reason, list := range reasons {
		for _, name := range list {
			names[name] = reason
		}
	}
	return names
}

// otherValues are families whose series differ in the values of labels, or that
// only Belay shows on such a day, and why.
func otherValues() map[string]string {
	return map[string]string{
		"etcd_server_apply_duration_seconds":        "etcd has op=unknown for what it applies without a name",
		"etcd_network_peer_received_failures_total": "made with the peer, not with the first failure",
		"etcd_network_peer_sent_failures_total":     "made with the peer, not with the first failure",
		"etcd_network_disconnected_peers_total":     "made with the peer, not with the first failure",
		"etcd_network_peer_round_trip_time_seconds": "etcd's prober is slower to begin",
	}
}

// still are families that count in etcd and not here, and why.
func still() map[string]string {
	return map[string]string{
		"etcd_debugging_disk_backend_commit_rebalance_duration_seconds":    "the store has no pages to rebalance",
		"etcd_debugging_disk_backend_commit_spill_duration_seconds":        "the store has no pages to spill",
		"etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds": "there is no index in memory",
		"etcd_mvcc_db_open_read_transactions":                              "etcd keeps one open for ever",
		"etcd_network_peer_received_failures_total":                        "depends on the moment",
		"etcd_server_slow_read_indexes_total":                              "depends on the moment",
		"etcd_server_read_indexes_failed_total":                            "depends on the moment",
		"etcd_server_proposals_failed_total":                               "depends on the moment",
		"etcd_server_proposals_pending":                                    "depends on the moment",
		"etcd_debugging_mvcc_slow_watcher_total":                           "depends on the moment",
		"etcd_debugging_mvcc_pending_events_total":                         "depends on the moment",
	}
}

func merge(t *testing.T, d *day) map[string]*dto.MetricFamily {
	all := map[string]*dto.MetricFamily{}
	for _, text := range append(slices.Collect(maps.Values(d.scrapes)), d.early) {
		if len(text) == 0 {
			continue
		}
		for name, f := range parseScrape(t, text) {
			if all[name] == nil {
				all[name] = f
				continue
			}
			all[name].Metric = append(all[name].Metric, f.Metric...)
		}
	}
	return all
}

func compareMetrics(t *testing.T, etcd, belay *day) {
	theirs, ours := merge(t, etcd), merge(t, belay)
	absent, otherValues, still := absent(), otherValues(), still()
	for _, name := range slices.Sorted(maps.Keys(theirs)) {
		own := ours[name]
		if own == nil {
			if absent[name] == "" {
				t.Errorf("%s is missing", name)
			}
			continue
		}
		if absent[name] != "" {
			t.Errorf("%s is said to be missing, and is there", name)
		}
		want, wantValues := shape(theirs[name])
		have, haveValues := shape(own)
		if have != want {
			t.Errorf("%s is\n%s, not\n%s", name, have, want)
		}
		for v := range wantValues {
			if !haveValues[v] && otherValues[name] == "" {
				t.Errorf("%s has no series %s", name, v)
			}
		}
	}
	for name := range ours {
		if theirs[name] == nil && !strings.HasPrefix(name, "belay_") && otherValues[name] == "" {
			t.Errorf("%s: etcd has no such family", name)
		}
	}
	// What moved there moved here.
	moved := 0
	for _, name := range slices.Sorted(maps.Keys(theirs)) {
		a, b := sum(theirs, name), sum(ours, name)
		if a != 0 && b == 0 && absent[name] == "" && still[name] == "" {
			t.Errorf("%s: etcd %v, Belay %v", name, a, b)
		}
		if b != 0 {
			moved++
		}
	}
	t.Logf("etcd shows %d families, Belay %d, of which %d of etcd's moved", len(theirs), len(ours), moved)
}
