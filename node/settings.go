package node

import (
	"net/url"
	"time"

	"github.com/belaydb/belay/backup"
	"github.com/belaydb/belay/listen"
	"github.com/belaydb/belay/rpc"
)

// Settings are what flags say and a member goes by as it stands: package config fills them, and
// they are passed on whole. A zero means the default of the part that uses it, where nothing else
// is said.
type Settings struct {
	Cluster
	Ports
	Raft
	Data
}

// Cluster is who the member is, and in which cluster.
type Cluster struct {
	Name    string
	DataDir string // holds member/log and member/store
	WALDir  string // of the raft log; empty: in DataDir

	InitialCluster      string // name=url,name=url,...; a name may come again with another URL
	InitialClusterToken string
	ForceNewCluster     bool // makes this member the only one of its cluster
	MaxLearners         int  // 0: none
	StrictReconfigCheck bool
	// Heal: damaged data is replaced by the others', and this member helps others to do so.
	Heal               bool
	MaxClusterVersion  string        // to which the leader raises the cluster's; empty: that of the members
	DowngradeCheckTime time.Duration // between two looks of the leader at a downgrade; 0: never
}

// The engines of --rpc-engine.
const (
	EngineBelay = rpc.EngineBelay
	EngineGRPC  = rpc.EngineGRPC
)

// Ports are the ports, TLS, and what may be asked over HTTP and gRPC.
type Ports struct {
	ListenPeerURLs       []url.URL
	ListenClientURLs     []url.URL
	AdvertisePeerURLs    []url.URL
	AdvertiseClientURLs  []url.URL
	ListenClientHTTPURLs []url.URL // if any, ListenClientURLs serve gRPC alone
	ListenMetricsURLs    []url.URL
	ReusePort            bool // --socket-reuse-port
	ReuseAddress         bool // --socket-reuse-address
	EnableGateway        bool // JSON on /v3/
	EnablePprof          bool
	WebView              bool // --web-view

	// TLS of the two sides; ports with a plain URL ignore it.
	ClientTLS, PeerTLS         listen.TLSInfo
	ClientAutoTLS, PeerAutoTLS bool // certificates of its own, if none are given
	SelfSignedYears            uint // how long these last
	CipherSuites               []string
	TLSMinVersion              string   // TLS1.2, TLS1.3
	TLSMaxVersion              string   // empty: Go's
	CORS                       []string // origins; none or "*": all
	CORSSimpleRequests         bool     // also of requests without preflight
	HostWhitelist              []string // of plain HTTP; none or "*": all

	// RPCEngine is what serves gRPC: EngineBelay, which has no tracing, so that with spans it is
	// EngineGRPC all the same, or EngineGRPC. Empty: EngineBelay. With http2debug in the environment's
	// GODEBUG it is EngineGRPC, too.
	RPCEngine            string
	MaxConcurrentStreams uint32
	KeepaliveMinTime     time.Duration
	KeepaliveInterval    time.Duration // 0: none
	KeepaliveTimeout     time.Duration
	RaftReadTimeout      time.Duration // of peers' connections; at least 5 s
	RaftWriteTimeout     time.Duration // likewise
}

// Raft is how the member takes part in elections, and what of the log may wait.
type Raft struct {
	AdvanceTicks     bool // --initial-election-tick-advance
	PreVote          bool
	SnapshotCount    uint64 // entries between two flushes of the applied state
	MaxUnsyncedBytes int64
	UnsafeNoFsync    bool
	// NeighboursRecordBytes is how large the record of who writes to the log's disk may become; 0: it
	// is not kept.
	NeighboursRecordBytes int64
}

// Data is what is kept, what a request may take, and what is checked and told of it.
type Data struct {
	QuotaBytes    int64 // 0: the default of 2 GiB; negative: none
	NoSpaceDisarm bool  // a NOSPACE alarm that a member raised itself ends when it has room again
	Limits        Limits
	Usage         bool // who uses the member is counted

	Backup backup.Settings // without a place: none are made

	CompactionBatchLimit int           // 0: the default of mvcc
	CompactionSleep      time.Duration // 0: the default of mvcc
	InitialCorruptCheck  bool          // compare with the peers before serving
	CorruptCheckTime     time.Duration // between two corruption checks of the leader; 0: none
	AuthToken            string        // kind and options of tokens; empty: nobody gets one

	WatchProgressInterval time.Duration // 0: the default of watch
	WarningApply          time.Duration // --warning-apply-duration
	WarningRequest        time.Duration // --warning-unary-request-duration
}
