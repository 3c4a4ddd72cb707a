package config

import (
	"errors"
	"flag"
	"slices"
	"strings"
	"time"
)

// Inert are the values of etcd's flags for parts that Belay does not have. They are parsed as in
// etcd and give a warning, but nothing depends on them.
type Inert struct {
	MaxSnapshots, MaxWALs    uint
	FreelistType             string
	BatchInterval            time.Duration
	BatchLimit               int
	MemoryMlock              bool
	BootstrapDefragMegabytes uint
	SnapshotCatchupEntries   uint64
	V2Deprecation            []string
}

func defaultInert() Inert {
	return Inert{MaxSnapshots: 5, MaxWALs: 5, SnapshotCatchupEntries: 5000}
}

const groupInert group = "Without effect here"

// inertFlags are those flags; the warning says why each has no effect.
func inertFlags() []flagDef {
	const noBolt = "the data is not in bbolt"
	return []flagDef{
		{group: groupInert, name: "max-snapshots", inert: "there are no snapshot files",
			bind: uintFlag(func(c *Config) *uint { return &c.MaxSnapshots })},
		{group: groupInert, name: "max-wals", inert: "the raft log bounds its own files, by bytes",
			bind: uintFlag(func(c *Config) *uint { return &c.MaxWALs })},
		{group: groupInert, name: "backend-bbolt-freelist-type", inert: noBolt,
			bind: stringFlag(func(c *Config) *string { return &c.FreelistType })},
		{group: groupInert, name: "backend-batch-interval", inert: noBolt,
			bind: durationFlag(func(c *Config) *time.Duration { return &c.BatchInterval })},
		{group: groupInert, name: "backend-batch-limit", inert: noBolt,
			bind: intFlag(func(c *Config) *int { return &c.BatchLimit })},
		{group: groupInert, name: "memory-mlock", inert: "the data is not mapped into memory",
			bind: boolFlag(func(c *Config) *bool { return &c.MemoryMlock })},
		{group: groupInert, name: "bootstrap-defrag-threshold-megabytes", inert: "free space is given back all the time",
			bind: uintFlag(func(c *Config) *uint { return &c.BootstrapDefragMegabytes })},
		{group: groupInert, name: "snapshot-catchup-entries", inert: "what is kept of the raft log for members that lag is counted in bytes",
			bind: uint64Flag(func(c *Config) *uint64 { return &c.SnapshotCatchupEntries })},
		{group: groupInert, name: "v2-deprecation", inert: "there is no v2 store",
			bind: valueFlag(func(c *Config) flag.Value { return deprecationValue{&c.V2Deprecation} })},
	}
}

// ignoredFlags are what etcd itself has accepted without effect since version 2.
func ignoredFlags() []string {
	return []string{
		"cluster-active-size", "cluster-remove-delay", "cluster-sync-interval", "config", "force", "max-result-buffer",
		"max-retry-attempts", "peer-heartbeat-interval", "peer-election-timeout", "retry-interval", "snapshot", "v", "vv",
		"test.coverprofile", "test.outputdir",
	}
}

// dependent says of which flags the others of a group have no effect: a member that is told how often
// to make backups, and not where, makes none.
func dependent() []dependence {
	return []dependence{
		{"backup-to", "backup-", "no backups are made", func(c *Config) bool { return c.Backup.To != "" }},
		{"enable-log-rotation", "log-rotation-", "the log is not rotated", func(c *Config) bool { return c.LogRotation }},
		{"enable-distributed-tracing", "distributed-tracing-", "nothing is traced", func(c *Config) bool { return c.Tracing }},
		{"discovery-srv", "discovery-srv-name", "DNS is not asked", func(c *Config) bool { return c.DiscoverySRV != "" }},
	}
}

type dependence struct {
	on, prefix string // the flag, and how the names of those begin that depend on it
	so         string
	set        func(*Config) bool
}

// deprecated are flags for which etcd logs a warning when they are given.
func deprecated() map[string]string {
	return map[string]string{
		"max-snapshots":  "--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8.",
		"v2-deprecation": "--v2-deprecation is deprecated and scheduled for removal in v3.8. The default value is enforced, ignoring user input.",
	}
}

// ignoredValue takes anything, or nothing.
type ignoredValue struct{ text *string }

func (v ignoredValue) IsBoolFlag() bool { return true }

func (v ignoredValue) Set(s string) error {
	*v.text = s
	return nil
}

func (v ignoredValue) String() string {
	if v.text == nil {
		return ""
	}
	return *v.text
}

// deprecationValue is --v2-deprecation: a few fixed words.
type deprecationValue struct{ words *[]string }

func (v deprecationValue) Set(s string) error {
	for word := range strings.SplitSeq(s, ",") {
		if !slices.Contains([]string{"write-only", "write-only-skip-check", "write-only-drop-data", "gone"}, word) {
			return errors.New("invalid value " + `"` + word + `"`)
		}
		*v.words = append(*v.words, word)
	}
	return nil
}

func (v deprecationValue) String() string {
	if v.words == nil {
		return ""
	}
	return strings.Join(*v.words, ",")
}
