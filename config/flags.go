package config

import (
	"flag"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/belaydb/belay/node"
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
	groupBelay      group = "Disks that stall or fill (not in etcd)"
	groupBackup     group = "Backups (not in etcd)"
	groupLimits     group = "Limits of requests (not in etcd)"
	groupUnsafe     group = "Unsafe feature"
)

// A flagDef is a flag.
type flagDef struct {
	group group
	name  string
	usage string
	shown string // shown in the help text instead of the default value
	inert string // why it does nothing here; "" if it does something
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

// flagDefs are all flags except the ignored ones, in the order of the help text.
func flagDefs() []flagDef {
	return slices.Concat(memberFlags(), portFlags(), clusterFlags(), discoveryFlags(), securityFlags(), authFlags(), monitoringFlags(), tracingFlags(), behaviourFlags(), backupFlags(), inertFlags())
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
		{group: groupMember, name: "feature-gates", usage: "Gate=true or Gate=false, a comma between several: " + gateNames() + ".",
			bind: valueFlag(func(c *Config) flag.Value { return gatesValue{&c.Gates} })},
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
		{group: groupLogging, name: "log-format", usage: "'json', or 'console' for reading. When not given, the log on a terminal is in lines for a person, and JSON elsewhere.",
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
		{group: groupFeatures, name: "downgrade-check-time", usage: "How often the leader looks whether a downgrade of the cluster is done.",
			bind: durationFlag(func(c *Config) *time.Duration { return &c.DowngradeCheckTime })},
		{group: groupFeatures, name: "max-learners", usage: "Learners in the cluster, at most.",
			bind: intFlag(func(c *Config) *int { return &c.MaxLearners })},

		{group: groupBelay, name: "max-cluster-version", usage: "The leader raises the cluster's version to this at most, as 3.6, so that members of an older etcd can join, or take the cluster back. Empty: to that of its members.",
			bind: stringFlag(func(c *Config) *string { return &c.MaxClusterVersion })},
		{group: groupBelay, name: "disk-stall-handover", usage: "A leader whose log's disk has ended no sync, or whose store has not got on, for so long hands over to a member where both work. 0: never.",
			bind: durationFlag(func(c *Config) *time.Duration { return &c.DiskStallHandOver })},
		{group: groupBelay, name: "strict-auth", usage: "A watch, or another stream, ends when its client loses the right to it, and a JWT of an older auth revision is refused for administration too. false: as in etcd, neither.",
			bind: boolFlag(func(c *Config) *bool { return &c.StrictAuth })},
		{group: groupBelay, name: "cors-simple-requests", usage: "The JSON gateway takes what a browser sends for a page of another origin without asking before (content type of a form, or none), from origins that --cors does not name too.",
			bind: boolFlag(func(c *Config) *bool { return &c.CORSSimpleRequests })},
		{group: groupBelay, name: "nospace-disarm", usage: "A NOSPACE alarm that a member raised itself is disarmed by it when it has room again. false: only by 'belay ctl alarm disarm'.",
			bind: boolFlag(func(c *Config) *bool { return &c.NoSpaceDisarm })},
		{group: groupBelay, name: "usage", usage: "Who uses the member is counted, from samples: the heaviest prefixes of keys, clients, users and watches.",
			bind: boolFlag(func(c *Config) *bool { return &c.Usage })},
		{group: groupBelay, name: "web-view", usage: "Serve a page that shows this member and its keys, read-only, at /belay/ on the client URLs; for root alone when there are users.",
			bind: boolFlag(func(c *Config) *bool { return &c.WebView })},
		{group: groupBelay, name: "heal", usage: "A member whose data is damaged or missing sets it aside and comes back with the others' data, under a new id, if the others are a quorum without it. Wanted on all members.",
			bind: boolFlag(func(c *Config) *bool { return &c.Heal })},
		{group: groupBelay, name: "max-unsynced-bytes", usage: "Raft log that is held in memory while a disk stalls, this member's or others'; beyond it writes are refused.",
			bind: int64Flag(func(c *Config) *int64 { return &c.MaxUnsyncedBytes })},

		{group: groupBelay, name: "memory-budget", usage: "Memory that this member may take, which all its caches, queues and requests share: bytes as 512MiB, or a share as 50%. Empty: 75% of the cgroup's limit, without one 50% of the machine's memory, or GOMEMLIMIT.",
			bind: stringFlag(func(c *Config) *string { return &c.MemoryBudget })},
		{group: groupBelay, name: "rpc-engine", usage: "What serves clients' gRPC: 'belay', Belay's own server, or 'grpc-go'.",
			bind: valueFlag(func(c *Config) flag.Value {
				return choiceValue{&c.RPCEngine, []string{node.EngineBelay, node.EngineGRPC}}
			})},

		{group: groupBelay, name: "neighbours-record-bytes", usage: "How large a record of who else writes to the log's disk may become, for 'belay doctor neighbours'. 0: none is kept.",
			bind: int64Flag(func(c *Config) *int64 { return &c.NeighboursRecordBytes })},

		{group: groupLimits, name: "max-key-bytes", usage: "Length of a key that is written and of a new user's or role's name. Negative: no limit.",
			bind: int64Flag(func(c *Config) *int64 { return &c.Limits.KeyBytes })},
		{group: groupLimits, name: "max-txn-total-ops", usage: "Compares and operations of a transaction on all its levels; --max-txn-ops bounds each. Negative: no limit.",
			bind: int64Flag(func(c *Config) *int64 { return &c.Limits.TxnTotalOps })},
		{group: groupLimits, name: "max-txn-range-keys", usage: "Keys that the ranges of a transaction that writes may hold, besides the largest that it deletes. Negative: no limit.",
			bind: int64Flag(func(c *Config) *int64 { return &c.Limits.TxnRangeKeys })},
		{group: groupLimits, name: "max-txn-range-bytes", usage: "Keys and values that a transaction that writes, or a delete, may read. Negative: no limit.",
			bind: int64Flag(func(c *Config) *int64 { return &c.Limits.TxnRangeBytes })},
		{group: groupLimits, name: "max-answer-bytes", usage: "Keys and values that one request may read. Negative: no limit.",
			bind: int64Flag(func(c *Config) *int64 { return &c.Limits.AnswerBytes })},
		{group: groupLimits, name: "max-receive-bytes", usage: "Bytes of gRPC requests that have come and whose requests are not complete, in all; one connection may hold half of it. Negative: no limit.",
			bind: int64Flag(func(c *Config) *int64 { return &c.Limits.ReceiveBytes })},

		{group: groupUnsafe, name: "force-new-cluster", usage: "Make this member the only one of its cluster, keeping the data. For when a quorum is lost for good.",
			bind: boolFlag(func(c *Config) *bool { return &c.ForceNewCluster })},
		{group: groupUnsafe, name: "unsafe-no-fsync", usage: "Never wait for the disk. A crash loses acknowledged writes.",
			bind: boolFlag(func(c *Config) *bool { return &c.UnsafeNoFsync })},
	}
}

// gateNames are for the help text.
func gateNames() string {
	var names []string
	for _, g := range gates() {
		names = append(names, g.name)
	}
	return strings.Join(names, ", ")
}

// discoveryFlags find the members of a new cluster.
func discoveryFlags() []flagDef {
	text := func(name, usage string, field func(*Config) *string) flagDef {
		return flagDef{group: groupClustering, name: name, usage: usage, bind: stringFlag(field)}
	}
	span := func(name, usage string, field func(*Config) *time.Duration) flagDef {
		return flagDef{group: groupClustering, name: name, usage: usage, bind: durationFlag(field)}
	}
	yes := func(name, usage string, field func(*Config) *bool) flagDef {
		return flagDef{group: groupClustering, name: name, usage: usage, bind: boolFlag(field)}
	}
	return []flagDef{
		text("discovery-srv", "DNS domain whose SRV records name the members of a new cluster, in place of --initial-cluster.", func(c *Config) *string { return &c.DiscoverySRV }),
		text("discovery-srv-name", "Behind the service's name: _etcd-server-NAME in place of _etcd-server.", func(c *Config) *string { return &c.DiscoverySRVName }),
		{group: groupClustering, name: "discovery-endpoints", usage: "A running cluster where the members of a new one find each other, in place of --initial-cluster.",
			bind: valueFlag(func(c *Config) flag.Value { return listValue{&c.Discovery.Endpoints} })},
		text("discovery-token", "Names the new cluster there; its size is under /_etcd/registry/TOKEN/_config/size.", func(c *Config) *string { return &c.Discovery.Token }),
		span("discovery-dial-timeout", "How long a connection there may take.", func(c *Config) *time.Duration { return &c.Discovery.DialTimeout }),
		span("discovery-request-timeout", "How long a request there may take.", func(c *Config) *time.Duration { return &c.Discovery.RequestTimeout }),
		span("discovery-keepalive-time", "How often the connection there is tried.", func(c *Config) *time.Duration { return &c.Discovery.KeepaliveTime }),
		span("discovery-keepalive-timeout", "How long an answer to that may take.", func(c *Config) *time.Duration { return &c.Discovery.KeepaliveTimeout }),
		yes("discovery-insecure-transport", "No TLS there, unless a certificate is given.", func(c *Config) *bool { return &c.Discovery.InsecureTransport }),
		yes("discovery-insecure-skip-tls-verify", "Believe any certificate there. For tests.", func(c *Config) *bool { return &c.Discovery.InsecureSkipVerify }),
		text("discovery-cert", "Certificate to show there.", func(c *Config) *string { return &c.Discovery.Cert }),
		text("discovery-key", "Key of --discovery-cert.", func(c *Config) *string { return &c.Discovery.Key }),
		text("discovery-cacert", "Authorities of its certificate.", func(c *Config) *string { return &c.Discovery.CACert }),
		text("discovery-user", "User there.", func(c *Config) *string { return &c.Discovery.User }),
		text("discovery-password", "The user's password.", func(c *Config) *string { return &c.Discovery.Password }),
	}
}
