package config

import (
	"flag"
	"net/url"
	"slices"
	"time"
)

// A group is a heading of the help text.
type group string

const (
	groupMember     group = "Member"
	groupClustering group = "Clustering"
	groupMonitoring group = "Profiling and Monitoring"
	groupLogging    group = "Logging"
	groupAuth       group = "Auth"
	groupFeatures   group = "Features"
	groupBelay      group = "Disks that stall (not in etcd)"
	groupUnsafe     group = "Unsafe feature"
)

// A flagDef is a flag that works.
type flagDef struct {
	group group
	name  string
	usage string
	shown string // in place of the default value in the help text
	bind  func(fs *flag.FlagSet, c *Config, name string)
}

func stringFlag(field func(*Config) *string) func(*flag.FlagSet, *Config, string) {
	return func(fs *flag.FlagSet, c *Config, name string) { fs.StringVar(field(c), name, *field(c), "") }
}

func boolFlag(field func(*Config) *bool) func(*flag.FlagSet, *Config, string) {
	return func(fs *flag.FlagSet, c *Config, name string) { fs.BoolVar(field(c), name, *field(c), "") }
}

func intFlag(field func(*Config) *int) func(*flag.FlagSet, *Config, string) {
	return func(fs *flag.FlagSet, c *Config, name string) { fs.IntVar(field(c), name, *field(c), "") }
}

func int64Flag(field func(*Config) *int64) func(*flag.FlagSet, *Config, string) {
	return func(fs *flag.FlagSet, c *Config, name string) { fs.Int64Var(field(c), name, *field(c), "") }
}

func uintFlag(field func(*Config) *uint) func(*flag.FlagSet, *Config, string) {
	return func(fs *flag.FlagSet, c *Config, name string) { fs.UintVar(field(c), name, *field(c), "") }
}

func uint64Flag(field func(*Config) *uint64) func(*flag.FlagSet, *Config, string) {
	return func(fs *flag.FlagSet, c *Config, name string) { fs.Uint64Var(field(c), name, *field(c), "") }
}

func durationFlag(field func(*Config) *time.Duration) func(*flag.FlagSet, *Config, string) {
	return func(fs *flag.FlagSet, c *Config, name string) { fs.DurationVar(field(c), name, *field(c), "") }
}

func valueFlag(value func(*Config) flag.Value) func(*flag.FlagSet, *Config, string) {
	return func(fs *flag.FlagSet, c *Config, name string) { fs.Var(value(c), name, "") }
}

func urlsFlag(field func(*Config) *[]url.URL) func(*flag.FlagSet, *Config, string) {
	return valueFlag(func(c *Config) flag.Value { return urlsValue{field(c)} })
}

func millisecondsFlag(field func(*Config) *time.Duration) func(*flag.FlagSet, *Config, string) {
	return valueFlag(func(c *Config) flag.Value { return millisecondsValue{field(c)} })
}

// flagDefs are the flags that work, in the order of the help text.
func flagDefs() []flagDef {
	return slices.Concat(memberFlags(), portFlags(), clusterFlags(), securityFlags(), authFlags(), monitoringFlags(), tracingFlags(), behaviourFlags())
}

func memberFlags() []flagDef {
	return []flagDef{
		{group: groupMember, name: "name", usage: "This member's name; in --initial-cluster it stands before its URLs.",
			bind: stringFlag(func(c *Config) *string { return &c.Name })},
		{group: groupMember, name: "data-dir", usage: "Directory of the data.",
			bind: stringFlag(func(c *Config) *string { return &c.DataDir })},
		{group: groupMember, name: "wal-dir", usage: "Directory of the raft log, if it should be on another disk than the data.",
			bind: stringFlag(func(c *Config) *string { return &c.WALDir })},
		{group: groupMember, name: "snapshot-count", usage: "Entries after which the applied state is flushed, so that the raft log can be cut.",
			bind: uint64Flag(func(c *Config) *uint64 { return &c.SnapshotCount })},
		{group: groupMember, name: "heartbeat-interval", usage: "Time between a leader's heartbeats, in milliseconds.",
			bind: millisecondsFlag(func(c *Config) *time.Duration { return &c.HeartbeatInterval })},
		{group: groupMember, name: "election-timeout", usage: "Time without a leader after which a member stands for election, in milliseconds.",
			bind: millisecondsFlag(func(c *Config) *time.Duration { return &c.ElectionTimeout })},
		{group: groupMember, name: "initial-election-tick-advance", usage: "Shorten the first election timeout after the start.",
			bind: boolFlag(func(c *Config) *bool { return &c.AdvanceTicks })},
		{group: groupMember, name: "listen-peer-urls", usage: "URLs to listen on for the other members.",
			bind: urlsFlag(func(c *Config) *[]url.URL { return &c.ListenPeerURLs })},
		{group: groupMember, name: "listen-client-urls", usage: "URLs to listen on for clients, gRPC and HTTP.",
			bind: urlsFlag(func(c *Config) *[]url.URL { return &c.ListenClientURLs })},
		{group: groupMember, name: "quota-backend-bytes", usage: "Size of the data from which writes are refused and an alarm is raised. 0: 2 GiB; negative: no limit.",
			bind: int64Flag(func(c *Config) *int64 { return &c.QuotaBytes })},
		{group: groupMember, name: "max-txn-ops", usage: "Operations in a transaction, at most.",
			bind: uintFlag(func(c *Config) *uint { return &c.MaxTxnOps })},
		{group: groupMember, name: "max-request-bytes", usage: "Size of a client's request, at most.",
			bind: uintFlag(func(c *Config) *uint { return &c.MaxRequestBytes })},
		{group: groupMember, name: "max-concurrent-streams", usage: "Streams that a client may open on one connection.",
			bind: valueFlag(func(c *Config) flag.Value { return uint32Value{&c.MaxConcurrentStreams} })},
		{group: groupMember, name: "grpc-keepalive-min-time", usage: "A client that pings more often is disconnected.",
			bind: durationFlag(func(c *Config) *time.Duration { return &c.KeepaliveMinTime })},
		{group: groupMember, name: "grpc-keepalive-interval", usage: "How often an idle client is pinged. 0: never.",
			bind: durationFlag(func(c *Config) *time.Duration { return &c.KeepaliveInterval })},
		{group: groupMember, name: "grpc-keepalive-timeout", usage: "How long a pinged client may take to answer. 0: for ever.",
			bind: durationFlag(func(c *Config) *time.Duration { return &c.KeepaliveTimeout })},
		{group: groupMember, name: "raft-read-timeout", usage: "A connection to a member that sends nothing for so long is given up. At least 5s.",
			bind: durationFlag(func(c *Config) *time.Duration { return &c.RaftReadTimeout })},
		{group: groupMember, name: "raft-write-timeout", usage: "A connection to a member that takes nothing for so long is given up. At least 5s.",
			bind: durationFlag(func(c *Config) *time.Duration { return &c.RaftWriteTimeout })},
	}
}

func clusterFlags() []flagDef {
	return []flagDef{
		{group: groupClustering, name: "initial-advertise-peer-urls", usage: "URLs under which the other members reach this one.",
			bind: urlsFlag(func(c *Config) *[]url.URL { return &c.AdvertisePeerURLs })},
		{group: groupClustering, name: "initial-cluster", usage: "All members of a new cluster, or of the one that is joined: name=peer-url,name=peer-url,...",
			bind: stringFlag(func(c *Config) *string { return &c.InitialCluster })},
		{group: groupClustering, name: "initial-cluster-state", usage: "'new' for the first start of a new cluster, 'existing' for a member that was added to one. Without meaning once there is data.",
			bind: valueFlag(func(c *Config) flag.Value { return choiceValue{&c.InitialClusterState, []string{"new", "existing"}} })},
		{group: groupClustering, name: "initial-cluster-token", usage: "A text that tells new clusters apart: members with another token never mix.",
			bind: stringFlag(func(c *Config) *string { return &c.InitialClusterToken })},
		{group: groupClustering, name: "advertise-client-urls", usage: "URLs under which clients reach this member.",
			bind: urlsFlag(func(c *Config) *[]url.URL { return &c.AdvertiseClientURLs })},
		{group: groupClustering, name: "strict-reconfig-check", usage: "Refuse changes of membership that would endanger the quorum.",
			bind: boolFlag(func(c *Config) *bool { return &c.StrictReconfigCheck })},
		{group: groupClustering, name: "pre-vote", usage: "Ask before an election whether it could be won, so that a member that comes back disturbs nobody.",
			bind: boolFlag(func(c *Config) *bool { return &c.PreVote })},
		{group: groupClustering, name: "auto-compaction-mode", usage: "'periodic' keeps a time of history, 'revision' a number of revisions.",
			bind: stringFlag(func(c *Config) *string { return &c.CompactionMode })},
		{group: groupClustering, name: "auto-compaction-retention", usage: "History to keep: a duration (a number alone means hours), or revisions. 0: compact nothing by itself.",
			bind: stringFlag(func(c *Config) *string { return &c.CompactionRetention })},
	}
}

func monitoringFlags() []flagDef {
	return []flagDef{
		{group: groupMonitoring, name: "listen-metrics-urls", usage: "URLs to serve metrics and health on, besides the client URLs.",
			bind: urlsFlag(func(c *Config) *[]url.URL { return &c.ListenMetricsURLs })},
		{group: groupMonitoring, name: "enable-pprof", usage: "Serve Go's profiles under /debug/pprof/ on the client URLs.",
			bind: boolFlag(func(c *Config) *bool { return &c.EnablePprof })},
		{group: groupMonitoring, name: "metrics", usage: "'basic', or 'extensive' for latency histograms of each gRPC method.",
			bind: stringFlag(func(c *Config) *string { return &c.Metrics })},

		{group: groupLogging, name: "logger", usage: "Only 'zap'.",
			bind: stringFlag(func(c *Config) *string { return &c.Logger })},
		{group: groupLogging, name: "log-outputs", usage: "Where the log goes: 'stderr' (the default), 'stdout', 'systemd/journal', or files; a comma between several.",
			bind: valueFlag(func(c *Config) flag.Value { return listValue{&c.LogOutputs} })},
		{group: groupLogging, name: "log-level", usage: "debug, info, warn, error, panic or fatal.",
			bind: stringFlag(func(c *Config) *string { return &c.LogLevel })},
		{group: groupLogging, name: "log-format", usage: "'json', or 'console' for reading.",
			bind: stringFlag(func(c *Config) *string { return &c.LogFormat })},
		{group: groupLogging, name: "enable-log-rotation", usage: "Rotate the one file among --log-outputs.",
			bind: boolFlag(func(c *Config) *bool { return &c.LogRotation })},
		{group: groupLogging, name: "log-rotation-config-json", usage: "How to rotate: maxsize in MB, maxage in days, maxbackups, localtime, compress.",
			bind: stringFlag(func(c *Config) *string { return &c.LogRotationSet })},
		{group: groupLogging, name: "warning-unary-request-duration", usage: "A request that takes longer is logged.",
			bind: durationFlag(func(c *Config) *time.Duration { return &c.WarningRequest })},
	}
}

func behaviourFlags() []flagDef {
	return []flagDef{
		{group: groupFeatures, name: "compaction-batch-limit", usage: "Revisions that a compaction removes in one step.", shown: "1000",
			bind: intFlag(func(c *Config) *int { return &c.CompactionBatchLimit })},
		{group: groupFeatures, name: "compaction-sleep-interval", usage: "Pause between two steps of a compaction.", shown: "10ms",
			bind: durationFlag(func(c *Config) *time.Duration { return &c.CompactionSleep })},
		{group: groupFeatures, name: "corrupt-check-time", usage: "How often the leader compares all members' data, which takes each a pass over it.", shown: "0s",
			bind: durationFlag(func(c *Config) *time.Duration { return &c.CorruptCheckTime })},
		{group: groupFeatures, name: "compact-hash-check-time", usage: "How often the leader compares the hashes that members kept of compactions.",
			bind: durationFlag(func(c *Config) *time.Duration { return &c.CompactHashCheckTime })},
		{group: groupFeatures, name: "watch-progress-notify-interval", usage: "How often idle watches that ask for it get a sign of progress.", shown: "10m",
			bind: durationFlag(func(c *Config) *time.Duration { return &c.WatchProgressInterval })},
		{group: groupFeatures, name: "warning-apply-duration", usage: "An entry that takes longer to apply is logged.",
			bind: durationFlag(func(c *Config) *time.Duration { return &c.WarningApply })},
		{group: groupFeatures, name: "max-learners", usage: "Learners in the cluster, at most.",
			bind: intFlag(func(c *Config) *int { return &c.MaxLearners })},

		{group: groupBelay, name: "disk-stall-handover", usage: "A leader whose disk has ended no sync for so long hands over to a member whose disk works. 0: never.",
			bind: durationFlag(func(c *Config) *time.Duration { return &c.DiskStallHandOver })},
		{group: groupBelay, name: "max-unsynced-bytes", usage: "Raft log that is held in memory while the disk stalls; beyond it writes are refused.",
			bind: int64Flag(func(c *Config) *int64 { return &c.MaxUnsyncedBytes })},

		{group: groupUnsafe, name: "unsafe-no-fsync", usage: "Never wait for the disk. A crash loses acknowledged writes.",
			bind: boolFlag(func(c *Config) *bool { return &c.UnsafeNoFsync })},
	}
}

// An otherFlag is a flag of etcd that does nothing here. What asks for nothing that is not so anyway
// (harmless) is accepted in silence. Else an inert one, about a part that Belay has not, is accepted
// with a warning, and any other is refused.
type otherFlag struct {
	name     string
	def      string
	boolean  bool // needs no value
	ignored  bool // boolean, but takes anything
	inert    bool
	harmless []string
}

// otherFlags are all flags of etcd 3.7 that are not among flagDefs.
func otherFlags() []otherFlag {
	var all []otherFlag
	// not is a flag that is refused unless its value is the default or another harmless one.
	not := func(name, def string, harmless ...string) {
		all = append(all, otherFlag{name: name, def: def, harmless: append(harmless, def)})
	}
	notBool := func(name, def string) {
		all = append(all, otherFlag{name: name, def: def, boolean: true, harmless: []string{def}})
	}
	inert := func(name, def string) {
		all = append(all, otherFlag{name: name, def: def, inert: true, harmless: []string{def}})
	}
	for _, name := range []string{
		"config-file", "feature-gates",
		"discovery-endpoints", "discovery-token", "discovery-cert", "discovery-key", "discovery-cacert", "discovery-user", "discovery-password",
		"discovery-srv", "discovery-srv-name",
	} {
		not(name, "")
	}
	for _, name := range []string{
		"discovery-insecure-skip-tls-verify", "force-new-cluster",
	} {
		notBool(name, "false")
	}
	notBool("discovery-insecure-transport", "true")
	not("discovery-dial-timeout", "2s")
	not("discovery-request-timeout", "5s")
	not("discovery-keepalive-time", "2s")
	not("discovery-keepalive-timeout", "6s")

	inert("max-snapshots", "5")
	inert("max-wals", "5")
	inert("backend-bbolt-freelist-type", "")
	inert("backend-batch-interval", "0s")
	inert("backend-batch-limit", "0")
	inert("bootstrap-defrag-threshold-megabytes", "0")
	inert("v2-deprecation", "write-only")
	inert("downgrade-check-time", "5s")
	all = append(all,
		otherFlag{name: "memory-mlock", def: "false", boolean: true, inert: true, harmless: []string{"false"}},
		otherFlag{name: "snapshot-catchup-entries", def: "5000", inert: true},
	)
	// What etcd itself has accepted without effect since version 2.
	for _, name := range []string{
		"cluster-active-size", "cluster-remove-delay", "cluster-sync-interval", "config", "force", "max-result-buffer",
		"max-retry-attempts", "peer-heartbeat-interval", "peer-election-timeout", "retry-interval", "snapshot", "v", "vv",
		"test.coverprofile", "test.outputdir",
	} {
		all = append(all, otherFlag{name: name, boolean: true, ignored: true, inert: true})
	}
	return all
}
