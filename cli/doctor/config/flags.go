package config

import (
	"strings"

	server "github.com/belaydb/belay/config"
)

// own are Belay's own flags, which etcd does not know.
func own() []string {
	return []string{
		"disk-stall-handover", "strict-auth", "cors-simple-requests", "nospace-disarm", "usage", "web-view", "heal", "max-unsynced-bytes", "memory-budget", "neighbours-record-bytes", "rpc-engine",
		"max-key-bytes", "max-txn-total-ops", "max-txn-range-keys", "max-txn-range-bytes", "max-answer-bytes", "max-receive-bytes",
		"backup-to", "backup-interval", "backup-increment-interval", "backup-retention", "backup-keep", "backup-max-bytes-per-second", "backup-max-age", "backup-scratch-dir",
	}
}

// known are all flags of a server: etcd's of 3.7, which Belay takes, too, and Belay's own.
func known() map[string]bool {
	all := map[string]bool{"config-file": true, "version": true, "help": true}
	choices, _ := server.Complete([]string{"--"})
	for _, c := range choices {
		all[strings.TrimSuffix(strings.TrimLeft(c.Text, "-"), "=")] = true
	}
	return all
}

// gates are the experimental flags that have become feature gates.
var gates = map[string]string{
	"experimental-initial-corrupt-check":             "InitialCorruptCheck",
	"experimental-compact-hash-check-enabled":        "CompactHashCheck",
	"experimental-txn-mode-write-with-shared-buffer": "TxnModeWriteWithSharedBuffer",
	"experimental-stop-grpc-service-on-defrag":       "StopGRPCServiceOnDefrag",
	"experimental-enable-lease-checkpoint":           "LeaseCheckpoint",
	"experimental-enable-lease-checkpoint-persist":   "LeaseCheckpointPersist",
}

// gone says what became of a flag that etcd had once; empty: it never had it.
func gone(name string, known map[string]bool) string {
	switch {
	case gates[name] != "":
		return "it is a feature gate now: --feature-gates=" + gates[name] + "=true"
	case strings.HasPrefix(name, "experimental-") && known[strings.TrimPrefix(name, "experimental-")]:
		return "it is --" + strings.TrimPrefix(name, "experimental-") + " since 3.6"
	case strings.HasPrefix(name, "experimental-"):
		return "etcd 3.6 and 3.7 dropped the experimental flags"
	case name == "enable-v2" || name == "enable-v2v3" || strings.HasPrefix(name, "proxy"):
		return "the v2 API and its proxy are gone; data of v2 is not served"
	case name == "discovery" || name == "discovery-proxy":
		return "discovery by v2 is gone: --discovery-token and --discovery-endpoints, or --initial-cluster"
	case name == "debug":
		return "it is --log-level=debug"
	case name == "log-output":
		return "it is --log-outputs"
	case name == "log-package-levels" || name == "ca-file" || name == "peer-ca-file":
		return "etcd dropped it; --trusted-ca-file and --log-level are what there is"
	}
	return ""
}

// nearest is the known flag that differs least from name; empty: none is near.
func nearest(name string, known map[string]bool) (best string) {
	least := max(2, len(name)/4) + 1
	for flag := range known {
		if d := distance(name, flag, least+1); d < least || d == least && best != "" && flag < best {
			best, least = flag, d
		}
	}
	return best
}

// distance is Levenshtein's, at most limit.
func distance(a, b string, limit int) int {
	if len(a)-len(b) > limit || len(b)-len(a) > limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := before
			if a[i] != b[j] {
				cost++
			}
			before, row[j+1] = row[j+1], min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return min(row[len(b)], limit)
}
