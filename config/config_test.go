package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/belaydb/belay/budget"
	"github.com/belaydb/belay/node"
)

// outcome is what Load said and did.
type outcome struct {
	cfg            *Config
	code           int
	ok             bool
	stdout, stderr string
	lines          []logLine
}

type logLine struct{ Level, Msg, Error, Text string }

// load runs Load with a log writer, so that nothing reaches the test's own stderr.
func load(t *testing.T, program Program, environ []string, args ...string) outcome {
	t.Helper()
	var stdout, stderr, log bytes.Buffer
	cfg, logger, code, ok := Load(Options{Program: program, Version: "0.1.0", Command: append([]string{"x"}, args...), Args: args, Environ: environ,
		Stdout: &stdout, Stderr: &stderr, LogWriter: &log,
		defaultHost: func() (string, error) { return "10.1.2.3", nil }})
	if ok {
		if err := logger.Close(); err != nil {
			t.Fatal(err)
		}
	}
	o := outcome{cfg: cfg, code: code, ok: ok, stdout: stdout.String(), stderr: stderr.String()}
	for line := range strings.Lines(stderr.String() + log.String()) {
		l := logLine{Text: strings.TrimSpace(line)}
		if json.Unmarshal([]byte(line), &l) == nil {
			o.lines = append(o.lines, l)
		}
	}
	return o
}

func (o outcome) has(level, msg string) bool {
	for _, l := range o.lines {
		if l.Level == level && l.Msg == msg {
			return true
		}
	}
	return false
}

// failure is the first line that says why nothing was started.
func (o outcome) failure() string {
	for _, l := range o.lines {
		if l.Msg == "failed to verify flags" {
			return l.Error
		}
		if l.Level == "fatal" {
			return l.Msg
		}
	}
	for line := range strings.Lines(o.stderr) {
		return strings.TrimSpace(line)
	}
	return ""
}

type failing struct {
	name string
	env  []string
	args []string
	code int
	want string
	ours bool // etcd answers otherwise, for the reason in the comment beside it
}

func failures() []failing {
	args := func(list string) []string { return strings.Fields(list) }
	return []failing{
		{name: "unknown flag", args: args("--nothing-like-it"), code: 2, want: "flag provided but not defined: -nothing-like-it"},
		{name: "no value", args: args("--name"), code: 2, want: "flag needs an argument: -name"},
		{name: "three dashes", args: args("---name"), code: 2, want: "bad flag syntax: ---name"},
		{name: "bad number", args: args("--heartbeat-interval=x"), code: 2, want: `invalid value "x" for flag -heartbeat-interval: parse error`},
		{name: "negative", args: args("--election-timeout=-1"), code: 2, want: `invalid value "-1" for flag -election-timeout: parse error`},
		{name: "bad bool", args: args("--pre-vote=maybe"), code: 2, want: `invalid boolean value "maybe" for -pre-vote: parse error`},
		{name: "bad duration", args: args("--warning-apply-duration=5"), code: 2, want: `invalid value "5" for flag -warning-apply-duration: parse error`},
		{name: "bad streams", args: args("--max-concurrent-streams=-1"), code: 2, want: `invalid value "-1" for flag -max-concurrent-streams: strconv.ParseUint: parsing "-1": invalid syntax`},
		{name: "negative check", args: args("--corrupt-check-time=-5s"), code: 1, want: `--corrupt-check-time must be 0, for never, or more (set to -5s)`},
		{name: "bad state", args: args("--initial-cluster-state=bad"), code: 2, want: `invalid value "bad" for flag -initial-cluster-state: invalid value`},
		{name: "bad fallback", args: args("--discovery-fallback=bad"), code: 2, want: `invalid value "bad" for flag -discovery-fallback: invalid value`},
		{name: "no scheme", args: args("--listen-client-urls=foo"), code: 2, want: `invalid value "foo" for flag -listen-client-urls: URL scheme must be http, https, unix, or unixs: foo`},
		{name: "no port", args: args("--listen-peer-urls=http://1.2.3.4"), code: 2, want: `invalid value "http://1.2.3.4" for flag -listen-peer-urls: URL address does not have the form "host:port": http://1.2.3.4`},
		{name: "path", args: args("--advertise-client-urls=http://a:1/x"), code: 2, want: `invalid value "http://a:1/x" for flag -advertise-client-urls: URL must not contain a path: http://a:1/x`},
		{name: "bad port", args: args("--listen-peer-urls=http://1:x"), code: 2, want: `invalid value "http://1:x" for flag -listen-peer-urls: parse "http://1:x": invalid port ":x" after host`},
		{name: "no flag", args: args("extra"), code: 1, want: `"extra" is not a valid flag`},
		{name: "proxy", args: args("--discovery-fallback=proxy"), code: 1, want: `v2 proxy is deprecated, and --discovery-fallback can't be configured as "proxy"`},
		{name: "capnslog", args: args("--logger=capnslog"), code: 1, want: "--logger=capnslog is removed in v3.5"},
		{name: "logger", args: args("--logger=x"), code: 1, want: `unknown logger option "x"`},
		{name: "outputs", args: args("--log-outputs=default,stdout"), code: 1, want: `multi logoutput for "default" is not supported yet`},
		{name: "format", args: args("--log-format=xml"), code: 1, want: "unknown log format: xml, supported values json, console"},
		// etcd panics, with the same text and code.
		{name: "level", args: args("--log-level=no"), code: 2, want: `unrecognized level: "no"`, ours: true},
		{name: "rotation without a file", args: args("--enable-log-rotation"), code: 1, want: "--log-outputs requires a single file path when --log-rotate-config-json is defined"},
		{name: "rotation", args: args("--enable-log-rotation --log-outputs=/nowhere/x --log-rotation-config-json={"), code: 1, want: "improperly formatted log rotation config: unexpected end of JSON input"},
		{name: "host to listen on", args: args("--listen-client-urls=http://example.com:1 --advertise-client-urls=http://a:1"), code: 1, want: "expected IP in URL for binding (http://example.com:1)"},
		{name: "advertised peer", args: args("--initial-advertise-peer-urls=http://:1"), code: 1, want: `--initial-advertise-peer-urls "http://:1" must be "host:port" (unexpected empty host (http://:1))`},
		{name: "advertised client", args: args("--advertise-client-urls=http://:1"), code: 1, want: `--advertise-client-urls "http://:1" must be in the format "host:port", "unix:/path/to/socket" or "unixs:/path/to/socket" (unexpected empty host (http://:1))`},
		{name: "no heartbeat", args: args("--heartbeat-interval=0"), code: 1, want: "--heartbeat-interval must be >0 (set to 0ms)"},
		{name: "no election", args: args("--election-timeout=0"), code: 1, want: "--election-timeout must be >0 (set to 0ms)"},
		{name: "short election", args: args("--election-timeout=300"), code: 1, want: "--election-timeout[300ms] should be at least as 5 times as --heartbeat-interval[100ms]"},
		{name: "long election", args: args("--election-timeout=60000"), code: 1, want: "--election-timeout[60000ms] is too long, and should be set less than 50000ms"},
		{name: "advertise unset", args: args("--listen-client-urls=http://1.2.3.4:1"), code: 1, want: "--advertise-client-urls is required when --listen-client-urls is set explicitly"},
		{name: "no mode", args: args("--auto-compaction-mode="), code: 1, want: "undefined auto-compaction-mode"},
		{name: "mode", args: args("--auto-compaction-mode=x"), code: 1, want: `unknown auto-compaction-mode "x"`},
		{name: "heartbeat before mode", args: args("--auto-compaction-mode=x --heartbeat-interval=0"), code: 1, want: "--heartbeat-interval must be >0 (set to 0ms)"},
		{name: "host of metrics", args: args("--listen-metrics-urls=http://example.com:1"), code: 1, want: "expected IP in URL for binding (http://example.com:1)"},
		{name: "host of HTTP", args: args("--listen-client-http-urls=http://example.com:1"), code: 1, want: "expected IP in URL for binding (http://example.com:1)"},
		{name: "origin", args: args("--cors=x"), code: 2, want: `invalid value "x" for flag -cors: URL scheme must be http, https, unix, or unixs: x`},
		{name: "no origin", args: args("--cors="), code: 2, want: `invalid value "" for flag -cors: URL scheme must be http, https, unix, or unixs:`},
		{name: "TLS version", args: args("--tls-min-version=1.2"), code: 1, want: `unexpected TLS version "1.2" (must be one of: TLS1.2, TLS1.3)`},
		{name: "TLS versions", args: args("--tls-min-version=TLS1.3 --tls-max-version=TLS1.2"), code: 1, want: "min version (TLS1.3) is greater than max version (TLS1.2)"},
		{name: "cipher suites of TLS 1.3", args: args("--tls-min-version=TLS1.3 --cipher-suites=x"), code: 1, want: "cipher suites cannot be configured when only TLS1.3 is enabled"},
		{name: "sampling", args: args("--enable-distributed-tracing --distributed-tracing-sampling-rate=-1"), code: 1, want: "distributed tracing configurition is not valid: (tracing sampling rate must be positive)"},
		{name: "much sampling", args: args("--enable-distributed-tracing --distributed-tracing-sampling-rate=1000001"), code: 1, want: "distributed tracing configurition is not valid: (tracing sampling rate must be less than 1000000)"},
		{name: "validity", args: args("--self-signed-cert-validity=x"), code: 2, want: `invalid value "x" for flag -self-signed-cert-validity: parse error`},
		{name: "both", env: []string{"ETCD_NAME=x"}, args: args("--name=y"), code: 1, want: "conflicting environment variable is shadowed by corresponding command-line flag (either unset environment variable or disable flag))"},
		{name: "bad variable", env: []string{"ETCD_HEARTBEAT_INTERVAL=q"}, code: 1, want: `invalid value "q" for ETCD_HEARTBEAT_INTERVAL: parse error`},
		{name: "variable", env: []string{"ETCD_HEARTBEAT_INTERVAL=0"}, code: 1, want: "--heartbeat-interval must be >0 (set to 0ms)"},
		{name: "variable of a list", env: []string{"ETCD_LISTEN_PEER_URLS=x"}, code: 1, want: `invalid value "x" for ETCD_LISTEN_PEER_URLS: URL scheme must be http, https, unix, or unixs: x`},

		// etcd finds these when it has opened its listeners, and says `discovery failed`.
		{name: "retention", args: args("--auto-compaction-retention=x"), code: 1, want: `error parsing CompactionRetention: time: invalid duration "x"`, ours: true},
		{name: "cipher suite", args: args("--cipher-suites=x"), code: 1, want: `unexpected TLS cipher suite "x"`, ours: true},
	}
}

func TestFailures(t *testing.T) {
	for _, f := range failures() {
		t.Run(f.name, func(t *testing.T) {
			o := load(t, Etcd, f.env, f.args...)
			if o.ok || o.code != f.code || o.failure() != f.want {
				t.Fatalf("ok %v, code %d, %q\nwant code %d, %q\nstderr: %s", o.ok, o.code, o.failure(), f.code, f.want, o.stderr)
			}
		})
	}
}

// TestFailuresAreTold: belay says on stderr, without JSON, what is wrong, and
// where that was said if the text itself does not name the flag.
func TestFailuresAreTold(t *testing.T) {
	nowhere := filepath.Join(t.TempDir(), "missing", "log")
	file := filepath.Join(t.TempDir(), "belay.yml")
	if err := os.WriteFile(file, []byte("name: a\nauto-compaction-mode: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, env, want string }{
		{args: "extra", want: `"extra" is not a valid flag`},
		{args: "--log-format=xml", want: "unknown log format: xml, supported values json, console (see --log-format)"},
		{args: "--log-level=no", want: `unrecognized level: "no" (see --log-level)`},
		{args: "--cipher-suites=x", want: `unexpected TLS cipher suite "x" (see --cipher-suites)`},
		{args: "--name=y --auto-compaction-retention=x", want: `error parsing CompactionRetention: time: invalid duration "x" (see --auto-compaction-retention)`},
		{env: "ETCD_AUTO_COMPACTION_RETENTION=x", want: `error parsing CompactionRetention: time: invalid duration "x" (see --auto-compaction-retention)`},
		{args: "--election-timeout=100", want: "--election-timeout[100ms] should be at least as 5 times as --heartbeat-interval[100ms]"},
		{args: "--config-file=" + nowhere, want: fmt.Sprintf("open %s: no such file or directory (see --config-file)", nowhere)},
		{args: "--config-file=" + file, want: fmt.Sprintf(`unknown auto-compaction-mode "x" (see %s:2)`, file)},
	} {
		o := load(t, Belay, strings.Fields(c.env), strings.Fields(c.args)...)
		if o.ok || !strings.Contains("\n"+o.stderr, "\nbelay: "+c.want+"\n") {
			t.Errorf("%s %s: ok %v\n got %s\nwant belay: %s", c.env, c.args, o.ok, o.stderr, c.want)
		}
		if o := load(t, Etcd, strings.Fields(c.env), strings.Fields(c.args)...); strings.Contains(o.stderr, "belay") && !strings.Contains(c.args, "belay") {
			t.Errorf("by the name etcd: %s", o.stderr)
		}
	}
}

// TestExplain: of what was given, that which an error shows; no word that only happens to be the
// same.
func TestExplain(t *testing.T) {
	o := load(t, Belay, nil, "--name=m1", "--data-dir=/data/m1", "--cert-file=/etc/m1.pem", "--key-file=/etc/m1.pem", "--trusted-ca-file=/etc/m1",
		"--initial-cluster-state=new", "--initial-cluster=m1=http://localhost:2380", "--listen-metrics-urls=http://127.0.0.1:7", "--auth-token=foo", "--log-outputs=stderr,/var/log/m1")
	for _, c := range []struct{ text, want string }{
		{"open /etc/m1.pem: no such file or directory", "open /etc/m1.pem: no such file or directory (see --cert-file, --key-file)"},
		{"cannot access data directory: mkdir /data/m1/member: permission denied", "cannot access data directory: mkdir /data/m1/member: permission denied (see --data-dir)"},
		{`couldn't find local name "m1" in the initial cluster configuration`, `couldn't find local name "m1" in the initial cluster configuration (see --name)`},
		{"expected IP in URL for binding (http://127.0.0.1:7)", "expected IP in URL for binding (http://127.0.0.1:7) (see --listen-metrics-urls)"},
		{"auth: invalid auth options", "auth: invalid auth options (see --auth-token)"},
		{"error setting up initial cluster: URL must not contain a path: http://127.0.0.1:7/", "error setting up initial cluster: URL must not contain a path: http://127.0.0.1:7/ (see --initial-cluster)"},
		{"error setting up initial cluster: URL scheme must be http, https, unix, or unixs: ", "error setting up initial cluster: URL scheme must be http, https, unix, or unixs:  (see --initial-cluster)"},
		{`open sink "/var/log/m1": open /var/log/m1: no such file or directory`, `open sink "/var/log/m1": open /var/log/m1: no such file or directory (see --log-outputs)`},
		{"m1 is no new member", "m1 is no new member"},
		{"wrong; choose another --data-dir than /data/m1", "wrong; choose another --data-dir than /data/m1"},
	} {
		if got := o.cfg.Explain(errors.New(c.text)); got != c.want {
			t.Errorf("\n got %s\nwant %s", got, c.want)
		}
	}
}

// TestFailuresOfEtcd asks the real etcd, named by BELAY_ETCD, for the same answers.
func TestFailuresOfEtcd(t *testing.T) {
	binary := os.Getenv("BELAY_ETCD")
	if binary == "" {
		t.Skip("set BELAY_ETCD to an etcd 3.7 binary")
	}
	for _, f := range failures() {
		if f.ours {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), binary, f.args...)
			cmd.Dir = t.TempDir()
			cmd.Env = f.env
			if cmd.Env == nil {
				cmd.Env = []string{}
			}
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			err := cmd.Run()
			var exit *exec.ExitError
			if !errors.As(err, &exit) {
				t.Fatalf("etcd ran: %v", err)
			}
			o := outcome{stderr: stderr.String()}
			for line := range strings.Lines(o.stderr) {
				var l logLine
				if json.Unmarshal([]byte(line), &l) == nil {
					o.lines = append(o.lines, l)
				}
			}
			if exit.ExitCode() != f.code || o.failure() != f.want {
				t.Fatalf("etcd: code %d, %q\nwant code %d, %q", exit.ExitCode(), o.failure(), f.code, f.want)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	o := load(t, Belay, nil)
	if !o.ok || o.cfg.DataDir != "default.belay" || o.cfg.Name != "default" || o.cfg.InitialCluster != "default=http://localhost:2380" {
		t.Fatalf("%+v", o)
	}
	if !o.has("info", "'data-dir' was empty; using default") || !o.has("info", "Running: ") {
		t.Fatalf("log: %v", o.lines)
	}
	if o = load(t, Etcd, nil, "-name", "m1"); o.cfg.DataDir != "m1.etcd" || o.cfg.InitialCluster != "m1=http://localhost:2380" || !o.has("warn", "'data-dir' was empty; using default") {
		t.Fatalf("%+v", o)
	}
	if err := Default().Validate(); err != nil {
		t.Fatal(err)
	}
}

// TestPasswordsAreNotLogged: neither those of the command line nor those of the environment.
func TestPasswordsAreNotLogged(t *testing.T) {
	for _, tc := range []struct{ environ, args []string }{
		{args: []string{"--discovery-password=hush", "--name=m1"}},
		{args: []string{"-discovery-password", "hush", "--name", "m1"}},
		{environ: []string{"ETCD_DISCOVERY_PASSWORD=hush"}, args: []string{"--name=m1"}},
	} {
		o := load(t, Belay, tc.environ, tc.args...)
		if !o.ok || o.cfg.Discovery.Password != "hush" || o.cfg.Name != "m1" {
			t.Fatalf("%v: %+v", tc, o)
		}
		if text := fmt.Sprint(o.lines); strings.Contains(text, "hush") || !strings.Contains(text, "***") || !strings.Contains(text, "m1") {
			t.Errorf("%v: %s", tc, text)
		}
	}
}

// TestFlags sets every flag that works, and reads it back.
func TestFlags(t *testing.T) {
	o := load(t, Etcd, []string{"ETCD_MAX_TXN_OPS=7", "ETCD_QUOTA_BACKEND_BYTES=", "ETCD_FOO=1", "ETCD_VERSION=3", "OTHER=1"},
		"--name=a", "-data-dir", "/d", "--wal-dir=/w", "--snapshot-count=5", "--heartbeat-interval=50", "--election-timeout=500",
		"--initial-election-tick-advance=false", "--listen-peer-urls=http://127.0.0.1:2,http://127.0.0.1:1,http://127.0.0.1:2",
		"--listen-client-urls=http://127.0.0.1:3,unix://sock", "--initial-advertise-peer-urls=http://h:1", "--advertise-client-urls=http://h:2",
		"--initial-cluster=a=http://h:1,b=http://i:1", "--initial-cluster-state=existing", "--initial-cluster-token=tk", "--strict-reconfig-check=false",
		"--pre-vote=false", "--auto-compaction-mode=revision", "--auto-compaction-retention=100", "--max-request-bytes=1000", "--max-learners=3", "--max-cluster-version=3.6",
		"--max-concurrent-streams=0x10", "--rpc-engine=belay", "--grpc-keepalive-min-time=1s", "--grpc-keepalive-interval=2s", "--grpc-keepalive-timeout=3s",
		"--raft-read-timeout=1s", "--raft-write-timeout=6s", "--enable-pprof", "--metrics=extensive", "--log-level=debug", "--log-format=console",
		"--log-outputs=stdout,stderr,stdout", "--warning-apply-duration=1s", "--warning-unary-request-duration=2s", "--compaction-batch-limit=9",
		"--compaction-sleep-interval=4s", "--watch-progress-notify-interval=5s", "--snapshot-catchup-entries=6", "--unsafe-no-fsync",
		"--cert-file=", "--client-cert-auth=false", "--auth-token=simple", "--max-wals=9", "--memory-mlock", "--cluster-active-size=3", "-v")
	if !o.ok {
		t.Fatal(o.failure())
	}
	c := o.cfg
	for _, check := range []struct {
		name      string
		got, want any
	}{
		{"name", c.Name, "a"}, {"data-dir", c.DataDir, "/d"}, {"wal-dir", c.WALDir, "/w"}, {"snapshot-count", c.SnapshotCount, uint64(5)},
		{"heartbeat-interval", c.HeartbeatInterval, 50 * time.Millisecond}, {"election-timeout", c.ElectionTimeout, 500 * time.Millisecond},
		{"ticks", c.ElectionTicks(), 10}, {"advance", c.AdvanceTicks, false},
		{"listen-peer-urls", JoinURLs(c.ListenPeerURLs), "http://127.0.0.1:1,http://127.0.0.1:2"},
		{"listen-client-urls", JoinURLs(c.ListenClientURLs), "http://127.0.0.1:3,unix://sock"},
		{"initial-advertise-peer-urls", JoinURLs(c.AdvertisePeerURLs), "http://h:1"}, {"advertise-client-urls", JoinURLs(c.AdvertiseClientURLs), "http://h:2"},
		{"initial-cluster", c.InitialCluster, "a=http://h:1,b=http://i:1"}, {"state", c.InitialClusterState, "existing"}, {"token", c.InitialClusterToken, "tk"},
		{"strict", c.StrictReconfigCheck, false}, {"pre-vote", c.PreVote, false}, {"mode", c.CompactionMode, "revision"},
		{"revisions", c.CompactionRevisions, int64(100)}, {"period", c.CompactionPeriod, time.Duration(0)},
		{"max-request-bytes", c.MaxRequestBytes, uint(1000)}, {"max-txn-ops", c.MaxTxnOps, uint(7)}, {"quota", c.QuotaBytes, int64(0)},
		{"max-learners", c.MaxLearners, 3}, {"max-cluster-version", c.MaxClusterVersion, "3.6"}, {"streams", c.MaxConcurrentStreams, uint32(16)}, {"engine", c.RPCEngine, "belay"},
		{"min-time", c.KeepaliveMinTime, time.Second}, {"interval", c.KeepaliveInterval, 2 * time.Second}, {"timeout", c.KeepaliveTimeout, 3 * time.Second},
		{"raft-read-timeout", c.RaftReadTimeout, 5 * time.Second}, {"raft-write-timeout", c.RaftWriteTimeout, 6 * time.Second},
		{"pprof", c.EnablePprof, true}, {"metrics", c.Metrics, "extensive"}, {"level", c.LogLevel, "debug"}, {"format", c.LogFormat, "console"},
		{"outputs", fmt.Sprint(c.LogOutputs), "[stderr stdout]"}, {"warning-apply", c.WarningApply, time.Second}, {"warning-unary", c.WarningRequest, 2 * time.Second},
		{"batch", c.CompactionBatchLimit, 9}, {"sleep", c.CompactionSleep, 4 * time.Second}, {"progress", c.WatchProgressInterval, 5 * time.Second},
		{"no fsync", c.UnsafeNoFsync, true},
		{"explicit by flag", c.Explicit["wal-dir"], true}, {"explicit by variable", c.Explicit["max-txn-ops"], true}, {"not explicit", c.Explicit["logger"], false},
	} {
		if check.got != check.want {
			t.Errorf("%s: %v, want %v", check.name, check.got, check.want)
		}
	}
	for _, l := range [][2]string{{"info", "recognized and used environment variable"}, {"warn", "unrecognized environment variable"},
		{"warn", "cannot set special environment variable"}, {"info", "raft-read-timeout increased to minimum value: 5s"}} {
		if !o.has(l[0], l[1]) {
			t.Errorf("no line %s %q in %s", l[0], l[1], o.stderr)
		}
	}
}

func TestRetention(t *testing.T) {
	for _, c := range []struct {
		mode, retention string
		period          time.Duration
		revisions       int64
	}{
		{"periodic", "0", 0, 0}, {"periodic", "2", 2 * time.Hour, 0}, {"periodic", "90s", 90 * time.Second, 0}, {"revision", "1000", 0, 1000},
	} {
		cfg := Default()
		cfg.CompactionMode, cfg.CompactionRetention = c.mode, c.retention
		if err := cfg.Validate(); err != nil || cfg.CompactionPeriod != c.period || cfg.CompactionRevisions != c.revisions {
			t.Errorf("%s %s: %v, %d, %v", c.mode, c.retention, cfg.CompactionPeriod, cfg.CompactionRevisions, err)
		}
	}
}

// TestEverywhere: a member that listens on all addresses advertises one that others can reach.
func TestEverywhere(t *testing.T) {
	o := load(t, Etcd, nil, "--name=m", "--listen-peer-urls=http://0.0.0.0:12380")
	if JoinURLs(o.cfg.AdvertisePeerURLs) != "http://10.1.2.3:12380" || o.cfg.InitialCluster != "m=http://10.1.2.3:12380" || !o.has("info", "detected default host for advertise") {
		t.Fatalf("%s, %s", JoinURLs(o.cfg.AdvertisePeerURLs), o.cfg.InitialCluster)
	}
	if host, err := defaultHost(); err == nil && net.ParseIP(host) == nil {
		t.Fatalf("this machine is %q", host)
	}
}

func TestWarnings(t *testing.T) {
	const recommended = "it isn't recommended to use default name, please set a value for --name. Note that etcd might run into issue when multiple members have the same default name"
	if o := load(t, Etcd, nil); o.has("warn", recommended) {
		t.Error("a single member is warned of its name")
	}
	if o := load(t, Etcd, nil, "--initial-cluster=default=http://localhost:2380,b=http://b:1"); !o.has("warn", recommended) {
		t.Error("one of two members may be called default without a word")
	}
	if o := load(t, Etcd, nil, "--backend-batch-limit=5"); !o.ok || !o.has("warn", "flag has no effect in Belay - ignoring") {
		t.Error("a flag without effect is taken without a word")
	}
	const idle = "flags have no effect without another one"
	for _, args := range []string{"--backup-interval=5m", "--backup-keep=3 --backup-to=", "--log-rotation-config-json={}", "--distributed-tracing-address=h:1", "--discovery-srv-name=n"} {
		if o := load(t, Belay, nil, strings.Fields(args)...); !o.ok || !o.has("warn", idle) {
			t.Errorf("%s is taken without a word", args)
		}
	}
	for _, args := range []string{"--backup-interval=5m --backup-to=/b", "--backup-to=/b", "--backup-to="} {
		if o := load(t, Belay, nil, strings.Fields(args)...); !o.ok || o.has("warn", idle) {
			t.Errorf("%s is warned of", args)
		}
	}
	if o := load(t, Etcd, nil, "--listen-client-urls=http://1.2.3.4:1"); !o.has("warn", "advertise client URLs are not set") {
		t.Error("one warning is missing")
	}
}

func TestHelpAndVersion(t *testing.T) {
	o := load(t, Etcd, nil, "--version")
	if o.ok || o.code != 0 || !strings.HasPrefix(o.stdout, "etcd Version: 3.7.") || strings.Count(o.stdout, "\n") != 4 || o.stderr != "" {
		t.Fatalf("%+v", o)
	}
	o = load(t, Belay, nil, "--version")
	if !strings.HasPrefix(o.stdout, "Belay Version: 0.1.0\netcd Version: 3.7.") {
		t.Fatalf("%+v", o)
	}
	o = load(t, Belay, nil, "--name=x", "-h")
	if o.ok || o.code != 0 || o.stderr != "" {
		t.Fatalf("%+v", o)
	}
	for _, want := range []string{"\nMember:\n  --name 'default'\n    ", "--data-dir '${name}.belay'", "--compaction-batch-limit '1000'", "\nUnsafe feature:\n", " --cert-file", "belay server [flags]"} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("help has no %q", want)
		}
	}
	for line := range strings.Lines(o.stdout) {
		if len(line) > 150 {
			t.Errorf("long line: %s", line)
		}
	}
	if o = load(t, Etcd, nil, "--help"); !strings.HasPrefix(o.stderr, "Usage:\n\n  etcd [flags]") || !strings.Contains(o.stdout, "${name}.etcd") {
		t.Fatalf("%+v", o)
	}
}

func TestSuggestions(t *testing.T) {
	for name, want := range map[string]string{
		"naem": "name", "datadir": "data-dir", "listen-client-url": "listen-client-urls", "advertise-clients-urls": "advertise-client-urls",
		"experimental-compaction-batch-limit": "compaction-batch-limit", "zzzzzzzzzz": "", "w": "", "proxy": "",
		"experimental-initial-corrupt-check": "feature-gates=InitialCorruptCheck=true", "discovery": "discovery-endpoints",
		"nmae": "name", "port": "listen-client-urls", "wal": "wal-dir", "cert": "cert-file", "key": "key-file", "peer-urls": "listen-peer-urls",
		"initial-clustr-state": "initial-cluster-state", "client-cert-auht": "client-cert-auth", "loglevel": "log-level", "cacert": "trusted-ca-file",
	} {
		if got := nearest(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if o := load(t, Belay, nil, "--naem=x"); !strings.HasPrefix(o.stderr, "flag provided but not defined: -naem\nDid you mean --name?\nUsage:\n") {
		t.Fatal(o.stderr)
	}
}

// TestFileLines: errors and warnings about a configuration file name its line and key.
func TestFileLines(t *testing.T) {
	for _, c := range []struct{ file, want string }{
		{"name: a\nheartbeat-interval: fast\n", `"line":2,"key":"heartbeat-interval"`},
		{"name: a\n\nelection-timeout: -1\n", `"line":3,"key":"election-timeout"`},
		{"corrupt-check-time: 10m\n", `"line":1,"key":"corrupt-check-time","hint":"durations here are numbers of nanoseconds, as in etcd: 10s is 10000000000"`},
		{"name: a\nclient-transport-security:\n  client-cert-auth: 5\n", `"line":3,"key":"client-transport-security.client-cert-auth"`},
		{"discovery-config:\n  client:\n    endpoints: x\n", `"line":3,"key":"discovery-config.client.endpoints"`},
		{"name: a\nfeature-gates: X=true\n", `"error":"unrecognized feature gate: X","path":"FILE","line":2,"key":"feature-gates"`},
		{"peer-transport-security: 1\n", "json: cannot unmarshal number"},
		{"name: a\ninitial-cluster-state: odd\n", `"error":"unexpected clusterState \"odd\"","path":"FILE","line":2,"key":"initial-cluster-state"`},
		{"heartbeat-interval: 100\nelection-timeout: 200\n", `"line":2,"key":"election-timeout"`},
		{"{\n\"name\": \"a\",\n\"max-txn-ops\": \"x\"}\n", `"line":3,"key":"max-txn-ops"`},
		{"name: [\n", "yaml: line 1: did not find expected node content"},
		{"name: a\nadvertise-client-urls: x\n", "unexpected error setting up advertise-peer-urls: URL scheme must be http, https, unix, or unixs: x\nsee FILE:2\n"},
		{"name: a\nlog-level: odd\n", "unrecognized level"},
		// These start.
		{"name: a\nhearbeat-interval: 1\n", `"msg":"unknown key in the configuration file - ignoring","path":"FILE","line":2,"key":"hearbeat-interval","did-you-mean":"heartbeat-interval"`},
		{"peer-transport-security:\n  cert: x\n", `"line":2,"key":"peer-transport-security.cert"`},
		{"name: a\nname: b\n", `"msg":"a key stands twice in the configuration file; the last one counts","path":"FILE","line":2,"key":"name"`},
		{"etcd:\n  name: b\n  data-dir: x\n", `"line":1,"key":"etcd"`},
	} {
		path := filepath.Join(t.TempDir(), "f.yaml")
		if err := os.WriteFile(path, []byte(c.file), 0o600); err != nil {
			t.Fatal(err)
		}
		o := load(t, Belay, nil, "--config-file="+path)
		text := o.stderr
		for _, l := range o.lines {
			text += l.Text + "\n"
		}
		if text = strings.ReplaceAll(text, path, "FILE"); !strings.Contains(text, c.want) {
			t.Errorf("%s\nsays\n%s\nwithout %s", c.file, text, c.want)
		}
		if strings.Contains(text, "etcd.name") {
			t.Errorf("%s: what is in an unknown part is called unknown too", c.file)
		}
	}
	// Every key is known; nothing is said of a file that is right.
	path := filepath.Join(t.TempDir(), "f.yaml")
	if err := os.WriteFile(path, []byte("Name: a\nlog-outputs: [stderr]\npeer-transport-security:\n  allowed-cn: [a]\nsocket-options: {reuse-port: true}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, l := range load(t, Belay, nil, "--config-file="+path).lines {
		if strings.Contains(l.Msg, "configuration file") {
			t.Error(l.Text)
		}
	}
}

// TestAllOfEtcd: each flag of etcd is either here or refused by name; none is called unknown.
func TestAllOfEtcd(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range flagDefs() {
		if d.group == groupBelay || d.group == groupBackup || d.group == groupLimits {
			continue
		}
		seen[d.name] = true
	}
	for _, name := range ignoredFlags() {
		if seen[name] {
			t.Errorf("%s stands in both tables", name)
		}
		seen[name] = true
	}
	// 113 live flags and 15 ignored ones; version, config-file and discovery-fallback are defined
	// apart.
	if len(seen)+3 != 113+15 {
		t.Errorf("%d flags", len(seen)+3)
	}
}

func TestVerify(t *testing.T) {
	for _, c := range []struct{ cluster, advertise, state, want string }{
		{"m=http://127.0.0.1:1,n=http://127.0.0.1:2", "http://127.0.0.1:1", "new", ""},
		{"m=http://127.0.0.1:1,m=http://127.0.0.1:2", "http://127.0.0.1:2,http://127.0.0.1:1", "new", ""},
		{"m=http://[::ffff:127.0.0.1]:1", "http://127.0.0.1:1", "new", ""},
		{"x=http://127.0.0.1:1", "http://127.0.0.1:1", "new", `couldn't find local name "m" in the initial cluster configuration`},
		{",", "http://127.0.0.1:1", "new", `couldn't find local name "m" in the initial cluster configuration`},
		{"m=http://127.0.0.1:1", "http://127.0.0.1:2", "new", `--initial-cluster has m=http://127.0.0.1:1 but missing from --initial-advertise-peer-urls=http://127.0.0.1:2 (resolved urls: "http://127.0.0.1:2" != "http://127.0.0.1:1")`},
		{"m=http://127.0.0.1:1", "http://127.0.0.1:1,http://127.0.0.1:2", "new", "--initial-advertise-peer-urls has http://127.0.0.1:2 but missing from --initial-cluster=m=http://127.0.0.1:1,m=http://127.0.0.1:2"},
		{"m=http://127.0.0.1:1,m=http://127.0.0.1:3", "http://127.0.0.1:1", "new", `--initial-cluster has m=http://127.0.0.1:3 but missing from --initial-advertise-peer-urls=http://127.0.0.1:1 (len(["http://127.0.0.1:1"]) != len(["http://127.0.0.1:1" "http://127.0.0.1:3"]))`},
		{"m=http://127.0.0.1:1", "http://127.0.0.1:2", "existing", ""},
		{"m=http://127.0.0.1:1,n=http://127.0.0.1:1", "http://127.0.0.1:1", "new", "initial cluster m=http://127.0.0.1:1,n=http://127.0.0.1:1 has duplicate url"},
		{"m=http://127.0.0.1:1,n=http://127.0.0.1:1", "http://127.0.0.1:1", "existing", "initial cluster m=http://127.0.0.1:1,n=http://127.0.0.1:1 has duplicate url"},
	} {
		cfg := Default()
		urls, err := ParseURLs(c.advertise)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Name, cfg.InitialCluster, cfg.InitialClusterState, cfg.AdvertisePeerURLs = "m", c.cluster, c.state, urls
		got := ""
		if err := cfg.Verify(t.Context(), zap.NewNop(), c.cluster); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s, %s:\n got %s\nwant %s", c.cluster, c.advertise, got, c.want)
		}
	}
}

func FuzzArguments(f *testing.F) {
	for _, c := range failures() {
		f.Add(strings.Join(c.args, " "), strings.Join(c.env, " "))
	}
	f.Fuzz(func(t *testing.T, args, env string) {
		if strings.Contains(args+env, "log") || strings.Contains(args+env, "LOG") {
			return // would open files
		}
		var stdout, stderr, log bytes.Buffer
		cfg, logger, code, ok := Load(Options{Program: Belay, Args: strings.Fields(args), Environ: strings.Fields(env), Stdout: &stdout, Stderr: &stderr, LogWriter: &log,
			defaultHost: func() (string, error) { return "", errors.New("no network") }})
		if ok {
			_ = logger.Close()
			if err := cfg.Validate(); err != nil {
				t.Fatalf("Load took what Validate refuses: %v", err)
			}
		} else if code != 0 && stderr.Len()+log.Len() == 0 {
			t.Fatal("refused without a word")
		}
	})
}

// TestMemoryBudget: what no flag has set is a share of the budget; what one has set stays.
func TestMemoryBudget(t *testing.T) {
	budgeted := func(args ...string) (node.Config, []string) {
		o := load(t, Belay, nil, append(args, "--data-dir", t.TempDir())...)
		if !o.ok {
			t.Fatalf("%q: %s", args, o.stderr)
		}
		core, logs := observer.New(zap.WarnLevel)
		nc := o.cfg.NodeConfig(zap.New(core))
		var told []string
		for _, e := range logs.All() {
			told = append(told, e.Message)
		}
		return nc, told
	}
	nc, told := budgeted("--memory-budget=128MiB")
	if nc.MaxUnsyncedBytes != 16<<20 || nc.Limits.ReceiveBytes != 12<<20 || nc.Limits.AnswerBytes != 28<<20 || nc.Budget.Bytes != 128<<20 || len(told) != 0 {
		t.Errorf("128MiB: %+v, %+v, told %q", nc.Budget, nc.Limits, told)
	}
	nc, _ = budgeted("--memory-budget=128MiB", "--max-unsynced-bytes=1073741824", "--max-receive-bytes=1000", "--max-answer-bytes=-1")
	if nc.MaxUnsyncedBytes != 1<<30 || nc.Limits.ReceiveBytes != 1000 || nc.Limits.AnswerBytes != -1 || nc.Budget.Parts.Log != 1<<30 || nc.Budget.Taken() < 1<<30 {
		t.Errorf("128MiB with flags: %+v, %+v", nc.Budget, nc.Limits)
	}
	if _, told = budgeted("--memory-budget=1000TiB"); len(told) != 1 || !strings.HasPrefix(told[0], "--memory-budget is more than there is") {
		t.Errorf("more than any machine has: told %q", told)
	}
	if nc, _ = budgeted("--memory-budget=100%"); nc.Budget.Bytes < budget.Least {
		t.Errorf("100%%: %+v", nc.Budget)
	}
	for value, want := range map[string]string{"banana": "want bytes as 536870912, 512MiB or 2GiB", "127MiB": "must be at least 128MiB", "200%": "must be between 1% and 100%"} {
		o := load(t, Belay, nil, "--memory-budget="+value)
		if o.ok || !strings.Contains(o.stderr+fmt.Sprint(o.lines), want) || !strings.Contains(o.stderr+fmt.Sprint(o.lines), "--memory-budget") {
			t.Errorf("%s: %s %v; want %q", value, o.stderr, o.lines, want)
		}
	}
}
