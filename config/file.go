package config

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"reflect"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.uber.org/zap"
	"sigs.k8s.io/yaml"
)

// A fileURLError is an invalid URL in a configuration file. etcd reports it outside its log.
type fileURLError struct {
	key    string
	called string // by etcd
	err    error
}

func (e *fileURLError) Error() string {
	return fmt.Sprintf("unexpected error setting up %s: %v", e.called, e.err)
}

// readFile reads a configuration file, YAML or JSON, in place of flags: all keys that etcd knows,
// and Belay's own flags. As in etcd, unknown keys are ignored, and durations are numbers of
// nanoseconds. Error texts name the types that are decoded into, which is why those here have
// etcd's names. It returns the keys of the file, for errors that are found later, and warnings
// about them.
func (c *Config) readFile(path string) (keys []fileKey, warnings []fileWarning, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	keys = fileKeys(data)
	known, err := c.takeFile(data)
	if err != nil {
		var badURL *fileURLError
		if !errors.As(err, &badURL) {
			err = &inFileError{err, whereInFile(path, keys, err)}
		}
		return keys, nil, err
	}
	return keys, strangeKeys(path, keys, known), nil
}

// inFileError has etcd's text, and also knows what etcd does not report.
type inFileError struct {
	error
	where []zap.Field
}

func (e *inFileError) Unwrap() error { return e.error }

// takeFile decodes a configuration file, and returns the keys that exist.
func (c *Config) takeFile(data []byte) (known []string, err error) {
	type SecureConfig struct {
		Cert               *string `json:"cert"`
		Key                *string `json:"key"`
		CACert             *string `json:"cacert"`
		ServerName         *string `json:"server-name"`
		InsecureTransport  *bool   `json:"insecure-transport"`
		InsecureSkipVerify *bool   `json:"insecure-skip-tls-verify"`
	}
	type AuthConfig struct {
		Username *string `json:"username"`
		Password *string `json:"password"`
		Token    *string `json:"token"`
	}
	type SocketOpts struct {
		ReusePort    *bool `json:"reuse-port"`
		ReuseAddress *bool `json:"reuse-address"`
	}
	type ConfigSpec struct {
		Endpoints        *[]string      `json:"endpoints"`
		RequestTimeout   *time.Duration `json:"request-timeout"`
		DialTimeout      *time.Duration `json:"dial-timeout"`
		KeepaliveTime    *time.Duration `json:"keepalive-time"`
		KeepaliveTimeout *time.Duration `json:"keepalive-timeout"`
		MaxSendBytes     *int           `json:"max-request-bytes"`
		MaxReceiveBytes  *int           `json:"max-recv-bytes"`
		Secure           SecureConfig   `json:"secure"`
		Auth             AuthConfig     `json:"auth"`
	}
	type DiscoveryConfig struct {
		ConfigSpec `json:"client"`
		Token      *string `json:"token"`
	}
	type Config struct {
		Name                  *string         `json:"name"`
		DataDir               *string         `json:"data-dir"`
		WALDir                *string         `json:"wal-dir"`
		SnapshotCount         *uint64         `json:"snapshot-count"`
		CatchupEntries        *uint64         `json:"snapshot-catchup-entries"`
		MaxSnapshots          *uint           `json:"max-snapshots"`
		MaxWALs               *uint           `json:"max-wals"`
		HeartbeatInterval     uint            `json:"heartbeat-interval"`
		ElectionTimeout       uint            `json:"election-timeout"`
		AdvanceTicks          *bool           `json:"initial-election-tick-advance"`
		BatchInterval         *time.Duration  `json:"backend-batch-interval"`
		BatchLimit            *int            `json:"backend-batch-limit"`
		FreelistType          *string         `json:"backend-bbolt-freelist-type"`
		QuotaBytes            *int64          `json:"quota-backend-bytes"`
		NoSpaceDisarm         *bool           `json:"nospace-disarm"`
		Heal                  *bool           `json:"heal"`
		StrictAuth            *bool           `json:"strict-auth"`
		Usage                 *bool           `json:"usage"`
		WebView               *bool           `json:"web-view"`
		CORSSimpleRequests    *bool           `json:"cors-simple-requests"`
		MaxTxnOps             *uint           `json:"max-txn-ops"`
		MaxRequestBytes       *uint           `json:"max-request-bytes"`
		MaxConcurrentStreams  *uint32         `json:"max-concurrent-streams"`
		RPCEngine             *string         `json:"rpc-engine"`
		SelfSignedYears       *uint           `json:"self-signed-cert-validity"`
		CipherSuites          *[]string       `json:"cipher-suites"`
		TLSMinVersion         *string         `json:"tls-min-version"`
		TLSMaxVersion         *string         `json:"tls-max-version"`
		InitialClusterState   *string         `json:"initial-cluster-state"`
		DiscoverySRV          *string         `json:"discovery-srv"`
		DiscoverySRVName      *string         `json:"discovery-srv-name"`
		InitialCluster        *string         `json:"initial-cluster"`
		InitialClusterToken   *string         `json:"initial-cluster-token"`
		StrictReconfigCheck   *bool           `json:"strict-reconfig-check"`
		CompactionMode        *string         `json:"auto-compaction-mode"`
		CompactionRetention   *string         `json:"auto-compaction-retention"`
		KeepaliveMinTime      *time.Duration  `json:"grpc-keepalive-min-time"`
		KeepaliveInterval     *time.Duration  `json:"grpc-keepalive-interval"`
		KeepaliveTimeout      *time.Duration  `json:"grpc-keepalive-timeout"`
		PreVote               *bool           `json:"pre-vote"`
		AuthToken             *string         `json:"auth-token"`
		BcryptCost            *uint           `json:"bcrypt-cost"`
		AuthTokenTTL          *uint           `json:"auth-token-ttl"`
		CorruptCheckTime      *time.Duration  `json:"corrupt-check-time"`
		CompactHashCheckTime  *time.Duration  `json:"compact-hash-check-time"`
		CompactionBatchLimit  *int            `json:"compaction-batch-limit"`
		CompactionSleep       *time.Duration  `json:"compaction-sleep-interval"`
		WatchProgressInterval *time.Duration  `json:"watch-progress-notify-interval"`
		WarningApply          *time.Duration  `json:"warning-apply-duration"`
		BootstrapDefrag       *uint           `json:"bootstrap-defrag-threshold-megabytes"`
		WarningRequest        *time.Duration  `json:"warning-unary-request-duration"`
		MaxLearners           *int            `json:"max-learners"`
		MaxClusterVersion     *string         `json:"max-cluster-version"`
		ForceNewCluster       *bool           `json:"force-new-cluster"`
		EnablePprof           *bool           `json:"enable-pprof"`
		Metrics               *string         `json:"metrics"`
		ListenMetricsURLs     string          `json:"listen-metrics-urls"`
		Tracing               *bool           `json:"enable-distributed-tracing"`
		TracingAddress        *string         `json:"distributed-tracing-address"`
		TracingServiceName    *string         `json:"distributed-tracing-service-name"`
		TracingInstanceID     *string         `json:"distributed-tracing-instance-id"`
		TracingPerMillion     *int            `json:"distributed-tracing-sampling-rate"`
		Logger                *string         `json:"logger"`
		LogLevel              *string         `json:"log-level"`
		LogFormat             *string         `json:"log-format"`
		LogOutputs            *[]string       `json:"log-outputs"`
		LogRotation           *bool           `json:"enable-log-rotation"`
		LogRotationSet        *string         `json:"log-rotation-config-json"`
		EnableGateway         *bool           `json:"enable-grpc-gateway"`
		UnsafeNoFsync         *bool           `json:"unsafe-no-fsync"`
		DowngradeCheckTime    *time.Duration  `json:"downgrade-check-time"`
		MemoryMlock           *bool           `json:"memory-mlock"`
		V2Deprecation         string          `json:"v2-deprecation"`
		SocketOptions         SocketOpts      `json:"socket-options"`
		Discovery             DiscoveryConfig `json:"discovery-config"`
		DiskStallHandOver     *time.Duration  `json:"disk-stall-handover"`
		MaxUnsyncedBytes      *int64          `json:"max-unsynced-bytes"`
		NeighboursRecordBytes *int64          `json:"neighbours-record-bytes"`
		MemoryBudget          *string         `json:"memory-budget"`
		MaxKeyBytes           *int64          `json:"max-key-bytes"`
		MaxTxnTotalOps        *int64          `json:"max-txn-total-ops"`
		MaxTxnRangeKeys       *int64          `json:"max-txn-range-keys"`
		MaxTxnRangeBytes      *int64          `json:"max-txn-range-bytes"`
		MaxAnswerBytes        *int64          `json:"max-answer-bytes"`
		MaxReceiveBytes       *int64          `json:"max-receive-bytes"`
		BackupTo              *string         `json:"backup-to"`
		BackupEvery           *time.Duration  `json:"backup-interval"`
		BackupIncrements      *time.Duration  `json:"backup-increment-interval"`
		BackupFor             *time.Duration  `json:"backup-retention"`
		BackupLeast           *int            `json:"backup-keep"`
		BackupBytesPerSecond  *int64          `json:"backup-max-bytes-per-second"`
		BackupMaxAge          *time.Duration  `json:"backup-max-age"`
		BackupScratchDir      *string         `json:"backup-scratch-dir"`
	}
	type securityConfig struct {
		CertFile           string   `json:"cert-file"`
		KeyFile            string   `json:"key-file"`
		ClientCertFile     string   `json:"client-cert-file"`
		ClientKeyFile      string   `json:"client-key-file"`
		ClientCertAuth     bool     `json:"client-cert-auth"`
		TrustedCAFile      string   `json:"trusted-ca-file"`
		AutoTLS            bool     `json:"auto-tls"`
		AllowedCNs         []string `json:"allowed-cn"`
		AllowedHostnames   []string `json:"allowed-hostname"`
		SkipClientSANCheck bool     `json:"skip-client-san-verification"`
	}
	type configJSON struct {
		ListenPeerURLs       string         `json:"listen-peer-urls"`
		ListenClientURLs     string         `json:"listen-client-urls"`
		ListenClientHTTPURLs string         `json:"listen-client-http-urls"`
		AdvertisePeerURLs    string         `json:"initial-advertise-peer-urls"`
		AdvertiseClientURLs  string         `json:"advertise-client-urls"`
		CORS                 string         `json:"cors"`
		HostWhitelist        string         `json:"host-whitelist"`
		Client               securityConfig `json:"client-transport-security"`
		Peer                 securityConfig `json:"peer-transport-security"`
		FeatureGates         string         `json:"feature-gates"`
	}
	type configYAML struct {
		Config
		configJSON
	}
	// A pointer is decoded into the field that it points to, which keeps its value if the key is
	// absent.
	d := &c.Discovery
	file := configYAML{Config: Config{
		Name: &c.Name, DataDir: &c.DataDir, WALDir: &c.WALDir, SnapshotCount: &c.SnapshotCount, CatchupEntries: &c.SnapshotCatchupEntries,
		MaxSnapshots: &c.MaxSnapshots, MaxWALs: &c.MaxWALs,
		HeartbeatInterval: uint(c.HeartbeatInterval.Milliseconds()), ElectionTimeout: uint(c.ElectionTimeout.Milliseconds()),
		AdvanceTicks: &c.AdvanceTicks, BatchInterval: &c.BatchInterval, BatchLimit: &c.BatchLimit, FreelistType: &c.FreelistType,
		QuotaBytes: &c.QuotaBytes, NoSpaceDisarm: &c.NoSpaceDisarm, Heal: &c.Heal, StrictAuth: &c.StrictAuth, Usage: &c.Usage, WebView: &c.WebView, CORSSimpleRequests: &c.CORSSimpleRequests, MaxTxnOps: &c.MaxTxnOps, MaxRequestBytes: &c.MaxRequestBytes, MaxConcurrentStreams: &c.MaxConcurrentStreams,
		RPCEngine:       &c.RPCEngine,
		SelfSignedYears: &c.SelfSignedYears, CipherSuites: &c.CipherSuites, TLSMinVersion: &c.TLSMinVersion, TLSMaxVersion: &c.TLSMaxVersion,
		InitialClusterState: &c.InitialClusterState, DiscoverySRV: &c.DiscoverySRV, DiscoverySRVName: &c.DiscoverySRVName,
		InitialCluster: &c.InitialCluster, InitialClusterToken: &c.InitialClusterToken, StrictReconfigCheck: &c.StrictReconfigCheck,
		CompactionMode: &c.CompactionMode, CompactionRetention: &c.CompactionRetention,
		KeepaliveMinTime: &c.KeepaliveMinTime, KeepaliveInterval: &c.KeepaliveInterval, KeepaliveTimeout: &c.KeepaliveTimeout, PreVote: &c.PreVote,
		AuthToken: &c.AuthToken, BcryptCost: &c.BcryptCost, AuthTokenTTL: &c.AuthTokenTTL,
		CorruptCheckTime: &c.CorruptCheckTime, CompactHashCheckTime: &c.CompactHashCheckTime,
		CompactionBatchLimit: &c.CompactionBatchLimit, CompactionSleep: &c.CompactionSleep, WatchProgressInterval: &c.WatchProgressInterval,
		WarningApply: &c.WarningApply, BootstrapDefrag: &c.BootstrapDefragMegabytes, WarningRequest: &c.WarningRequest,
		MaxLearners: &c.MaxLearners, MaxClusterVersion: &c.MaxClusterVersion, ForceNewCluster: &c.ForceNewCluster, EnablePprof: &c.EnablePprof, Metrics: &c.Metrics,
		Tracing: &c.Tracing, TracingAddress: &c.TracingAddress, TracingServiceName: &c.TracingServiceName,
		TracingInstanceID: &c.TracingInstanceID, TracingPerMillion: &c.TracingPerMillion,
		Logger: &c.Logger, LogLevel: &c.LogLevel, LogFormat: &c.LogFormat, LogOutputs: &c.LogOutputs,
		LogRotation: &c.LogRotation, LogRotationSet: &c.LogRotationSet,
		EnableGateway: &c.EnableGateway, UnsafeNoFsync: &c.UnsafeNoFsync, DowngradeCheckTime: &c.DowngradeCheckTime, MemoryMlock: &c.MemoryMlock,
		DiskStallHandOver: &c.DiskStallHandOver, MaxUnsyncedBytes: &c.MaxUnsyncedBytes, NeighboursRecordBytes: &c.NeighboursRecordBytes, MemoryBudget: &c.MemoryBudget,
		MaxKeyBytes: &c.Limits.KeyBytes, MaxTxnTotalOps: &c.Limits.TxnTotalOps,
		MaxTxnRangeKeys: &c.Limits.TxnRangeKeys, MaxTxnRangeBytes: &c.Limits.TxnRangeBytes, MaxAnswerBytes: &c.Limits.AnswerBytes, MaxReceiveBytes: &c.Limits.ReceiveBytes,
		BackupTo: &c.Backup.To, BackupEvery: &c.Backup.Every, BackupIncrements: &c.Backup.Increments, BackupFor: &c.Backup.For, BackupLeast: &c.Backup.Least,
		BackupBytesPerSecond: &c.Backup.BytesPerSecond, BackupMaxAge: &c.Backup.MaxAge, BackupScratchDir: &c.Backup.ScratchDir,
	}}
	file.SocketOptions.ReusePort, file.SocketOptions.ReuseAddress = &c.ReusePort, &c.ReuseAddress
	file.Discovery.Token = &d.Token
	client := &file.Discovery.ConfigSpec
	client.Endpoints, client.RequestTimeout, client.DialTimeout = &d.Endpoints, &d.RequestTimeout, &d.DialTimeout
	client.KeepaliveTime, client.KeepaliveTimeout = &d.KeepaliveTime, &d.KeepaliveTimeout
	client.MaxSendBytes, client.MaxReceiveBytes = &d.MaxSendBytes, &d.MaxReceiveBytes
	client.Secure.Cert, client.Secure.Key, client.Secure.CACert, client.Secure.ServerName = &d.Cert, &d.Key, &d.CACert, &d.ServerName
	client.Secure.InsecureTransport, client.Secure.InsecureSkipVerify = &d.InsecureTransport, &d.InsecureSkipVerify
	client.Auth.Username, client.Auth.Password, client.Auth.Token = &d.User, &d.Password, &d.JWToken

	if err := yaml.Unmarshal(data, &file); err != nil {
		return nil, &likeEtcds{err}
	}
	if err := c.Gates.set(file.FeatureGates); err != nil {
		return nil, &keyError{"feature-gates", err}
	}
	var keys map[string]any
	if err := yaml.Unmarshal(data, &keys); err != nil {
		return nil, err
	}
	for key := range keys {
		c.Explicit[key] = true
	}
	if peer, given := keys["peer-transport-security"]; given {
		if _, ok := peer.(map[string]any); !ok {
			return nil, &keyError{"peer-transport-security", errors.New("invalid peer-transport-security")}
		}
	}
	c.HeartbeatInterval, c.ElectionTimeout = time.Duration(file.HeartbeatInterval)*time.Millisecond, time.Duration(file.ElectionTimeout)*time.Millisecond
	for _, list := range []struct {
		key, text string
		urls      *[]url.URL
	}{
		{"listen-peer-urls", file.ListenPeerURLs, &c.ListenPeerURLs},
		{"listen-client-urls", file.ListenClientURLs, &c.ListenClientURLs},
		{"listen-client-http-urls", file.ListenClientHTTPURLs, &c.ListenClientHTTPURLs},
		{"initial-advertise-peer-urls", file.AdvertisePeerURLs, &c.AdvertisePeerURLs},
		{"advertise-client-urls", file.AdvertiseClientURLs, &c.AdvertiseClientURLs},
		{"listen-metrics-urls", file.ListenMetricsURLs, &c.ListenMetricsURLs},
	} {
		if list.text == "" {
			continue
		}
		urls, err := types.NewURLs(strings.Split(list.text, ","))
		if err != nil {
			called := list.key
			if called == "advertise-client-urls" {
				called = "advertise-peer-urls" // etcd's slip of the pen
			}
			return nil, &fileURLError{list.key, called, err}
		}
		*list.urls = urls
	}
	if file.CORS != "" {
		if err := (originsValue{&c.CORS}).Set(file.CORS); err != nil {
			return nil, &keyError{"cors", fmt.Errorf("cors: %w", err)} // etcd panics
		}
	}
	if file.HostWhitelist != "" {
		if err := (listValue{&c.HostWhitelist}).Set(file.HostWhitelist); err != nil {
			return nil, &keyError{"host-whitelist", err}
		}
	}
	if file.V2Deprecation != "" {
		c.V2Deprecation = []string{file.V2Deprecation}
	}
	if (c.DiscoverySRV != "" || len(d.Endpoints) > 0) && c.InitialCluster == Default().InitialCluster {
		c.InitialCluster = ""
	}
	if c.InitialClusterState == "" {
		c.InitialClusterState = "new"
	}
	for side, s := range []*securityConfig{&file.Client, &file.Peer} {
		info, auto := &c.ClientTLS, &c.ClientAutoTLS
		if side == 1 {
			info, auto = &c.PeerTLS, &c.PeerAutoTLS
		}
		info.CertFile, info.KeyFile, info.ClientCertFile, info.ClientKeyFile = s.CertFile, s.KeyFile, s.ClientCertFile, s.ClientKeyFile
		info.ClientCertAuth, info.TrustedCAFile, info.AllowedCNs, info.AllowedHostnames = s.ClientCertAuth, s.TrustedCAFile, s.AllowedCNs, s.AllowedHostnames
		info.SkipClientSANVerify, *auto = s.SkipClientSANCheck, s.AutoTLS
	}
	if c.SelfSignedYears == 0 {
		c.SelfSignedYears = 1
	}
	return keysOf(reflect.TypeOf(file), ""), nil
}

// likeEtcds names types as if they were in etcd's package.
type likeEtcds struct{ error }

func (e *likeEtcds) Error() string {
	return strings.ReplaceAll(e.error.Error(), "of type config.", "of type embed.")
}

func (e *likeEtcds) Unwrap() error { return e.error }
