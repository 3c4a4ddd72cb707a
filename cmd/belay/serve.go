package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/belaydb/belay/internal/daemon"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/belaydb/belay/cli/dev"
	"github.com/belaydb/belay/config"
	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/discovery"
	"github.com/belaydb/belay/internal/fault"
	"github.com/belaydb/belay/internal/interrupt"
	"github.com/belaydb/belay/internal/version"
	"github.com/belaydb/belay/listen"
	"github.com/belaydb/belay/logsink"
	"github.com/belaydb/belay/node"
)

// stopTimeout bounds an orderly stop. A disk that does not answer must not keep the process alive:
// nothing that it acknowledged depends on an orderly end.
const stopTimeout = 20 * time.Second

// sameSignal is how long after a signal another one counts as the same request: timeout(1), a shell
// that runs a script and some supervisors signal the process and its group at once, and that is not
// a second Ctrl-C.
const sameSignal = time.Second

// serveBroken runs a member of `belay dev`, over what the supervisor, which is at the other end of
// standard input, says is broken.
func serveBroken(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	pipe, ok := stdin.(*os.File)
	if ok {
		info, err := pipe.Stat()
		ok = err == nil && info.Mode()&os.ModeNamedPipe != 0
	}
	if !ok {
		fmt.Fprintln(stderr, "belay dev member is how belay dev starts its members; to run one yourself there is belay server")
		return 2
	}
	layer, err := fault.Attach(pipe)
	if err != nil {
		fmt.Fprintf(stderr, "belay dev member: %v\n", err)
		return 2
	}
	go layer.Follow()
	return serve(config.Belay, args, stdout, stderr, func(c *node.Config) {
		c.FS = layer.FS(datadir.FS(), datadir.PathsOf(c.DataDir, c.WALDir).Log)
		c.Over = layer.Dialer
	})
}

// serve runs one member until a signal or a failure ends it. Each of changes is made to its
// configuration.
func serve(program config.Program, args []string, stdout, stderr io.Writer, changes ...func(*node.Config)) int {
	cfg, logger, code, ok := config.Load(config.Options{
		Program: program, Version: version.Belay, GitSHA: version.Commit(),
		Command: os.Args, Args: args, Environ: os.Environ(), Stdout: stdout, Stderr: stderr,
	})
	if !ok {
		return code
	}
	defer logger.Close()
	if len(changes) == 0 { // a member of belay dev has nobody to serve when that has gone
		daemon.OutliveLog()
	}
	daemon.LogGRPC(logger.Logger)
	listen.BoundUnpacking()

	// Before the first listener opens: a signal from here on is an orderly stop.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)

	if wrong := datadir.CheckRoot(cfg.DataDir, logger.Logger); wrong != nil {
		fail(program, cfg, logger, stderr, wrong.Err, wrong.Says, wrong.Fields...)
		return wrong.Code
	}
	nc := cfg.NodeConfig(logger.Logger)
	boundGarbage(nc.Budget)
	nc.LogDropped, nc.LogStalled = logger.Dropped, logger.Stalled
	for _, change := range changes {
		change(&nc)
	}
	n, s, err := begin(nc, nil, nil, signals, logger)
	for {
		switch {
		case s != nil:
			return endBySignal(s, logger)
		case errors.Is(err, node.ErrRemoved):
			sayRemoved(cfg, logger)
			return 0
		case err != nil:
			return failStart(program, cfg, logger, stderr, err)
		}
		go announce(n, cfg, logger)

		select {
		case s := <-signals:
			received(s, signals, logger)
			stop(n, logger)
			return endBySignal(s, logger)
		case err = <-n.Failed():
		}
		switch {
		case errors.Is(err, node.ErrRemoved):
			sayRemoved(cfg, logger)
			stop(n, logger)
			return 0
		case nc.Heal && node.IsDamage(err):
			why := "this member cannot read its data; it stops in order to heal"
			if node.IsDiffering(err) {
				why = "this member's data differs from that of the others; it stops in order to heal"
			}
			logger.WithOptions(zap.AddStacktrace(zapcore.InvalidLevel)).Error(why, zap.String("error", err.Error()))
			if others := node.Others(n); stop(n, logger) {
				n, s, err = begin(nc, err, others, signals, logger)
				continue
			}
		}
		// No orderly stop: it might wait for the disk that has failed.
		return fail(program, cfg, logger, stderr, err, "the member cannot run", zap.String("error", err.Error()))
	}
}

// received is the first signal: a second one ends the process at once.
func received(s os.Signal, signals <-chan os.Signal, logger *logsink.Logger) {
	logger.Info("received signal; shutting down", zap.String("signal", s.String()))
	first := time.Now()
	go func() {
		for range signals {
			if time.Since(first) > sameSignal {
				break
			}
		}
		logger.Warn("received a second signal; stopping at once")
		logger.Close()
		os.Exit(130)
	}()
}

// begin starts a member. One that may heal does so first if its data is damaged, in this process: a
// supervisor that restarts what ends would start it again with the same data. found, if not nil, is
// what was wrong with its data as it ran, others whom it knew then. A signal, which is returned, ends
// it: at once where it waits for others, and otherwise within stopTimeout.
func begin(nc node.Config, found error, others []string, signals <-chan os.Signal, logger *logsink.Logger) (*node.Node, os.Signal, error) {
	for {
		if found == nil {
			var n *node.Node
			var err error
			s := untilSignal(signals, logger, func(ctx context.Context) { n, err = node.Start(ctx, nc) }, func() {
				if err == nil { // it had just begun to serve
					n.Stop()
				}
			})
			if s != nil {
				return nil, s, nil
			}
			if err == nil || !nc.Heal || !node.IsDamage(err) {
				return n, nil, err
			}
			found = err
		}
		var err error
		s := untilSignal(signals, logger, func(ctx context.Context) { err = node.Heal(ctx, nc, found, others) }, func() {})
		if s != nil {
			return nil, s, nil
		}
		if err != nil {
			return nil, nil, err
		}
		found = nil
	}
}

// untilSignal does a step of a start, which its context ends, and returns the signal that came
// meanwhile; nil: it was done before. After a signal it has the step undone, and waits for both within
// stopTimeout.
func untilSignal(signals <-chan os.Signal, logger *logsink.Logger, step func(context.Context), undo func()) os.Signal {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan struct{})
	go func() { step(ctx); close(done) }()
	select {
	case <-done:
		return nil
	case s := <-signals:
		received(s, signals, logger)
		cancel()
		within(logger, func() { <-done; undo() })
		return s
	}
}

func sayRemoved(cfg *config.Config, logger *logsink.Logger) {
	logger.Warn("this member was removed from its cluster; it stops. The data-dir used by this member must be removed before another member can use it",
		zap.String("data-dir", cfg.DataDir))
}

// announce logs, once the member serves, how to reach it.
func announce(n *node.Node, cfg *config.Config, logger *logsink.Logger) {
	dataDir := cfg.DataDir
	if abs, err := filepath.Abs(dataDir); err == nil {
		dataDir = abs
	}
	logger.Info("Belay listens",
		zap.String("for-clients", config.JoinURLs(cfg.ListenClientURLs)),
		zap.String("for-peers", config.JoinURLs(cfg.ListenPeerURLs)),
		zap.String("data-dir", dataDir),
		zap.String("member-id", fmt.Sprintf("%x", n.MemberID())),
		zap.String("cluster-id", fmt.Sprintf("%x", n.ClusterID())))
	select {
	case <-n.Ready():
	case <-n.Stopping():
		return
	case <-time.After(10 * time.Second):
		logger.Warn("still waiting for a leader; are enough members of the cluster running, and can they reach each other's peer URLs, and were they started with the same --initial-cluster and --initial-cluster-token?",
			zap.String("initial-cluster", cfg.InitialCluster))
		select {
		case <-n.Ready():
		case <-n.Stopping():
			return
		}
	}
	logger.Info("ready to serve client requests",
		zap.String("try", tryLine(cfg)))
	daemon.NotifyReady(logger.Logger)
	if cfg.LogForPerson { // the last line on the screen says what to do next
		for tick, tries := time.NewTicker(100*time.Millisecond), 0; !n.Versioned() && tries < 50; tries++ {
			<-tick.C
		}
		logger.Info(fmt.Sprintf("Belay %s is ready: clients at %s, peers at %s, data in %s; Ctrl-C stops it. Try, elsewhere: %s",
			version.Belay, config.JoinURLs(cfg.AdvertiseClientURLs), config.JoinURLs(cfg.AdvertisePeerURLs), dataDir, tryLine(cfg)))
	}
}

// tryLine is a command that works when it is pasted. It sets variables rather than flags: the shell
// may have them already, and a flag together with its variable is refused, as in etcdctl.
func tryLine(cfg *config.Config) string {
	words := []string{"ETCDCTL_ENDPOINTS=" + clientEndpoint(cfg)}
	if urls := cfg.AdvertiseClientURLs; len(urls) > 0 && (urls[0].Scheme == "https" || urls[0].Scheme == "unixs") {
		info := cfg.ClientTLS
		if info.CertFile == "" && cfg.ClientAutoTLS {
			info.CertFile = filepath.Join(cfg.DataDir, "fixtures", "client", "cert.pem")
		}
		for _, v := range listen.ClientVariables(info, urls[0].Hostname()) {
			name, value, _ := strings.Cut(v, "=")
			words = append(words, name+"="+dev.Quoted(value))
		}
	}
	program, err := os.Executable()
	if err != nil {
		program = "belay"
	}
	return strings.Join(append(words, dev.Quoted(dev.CommandName(program)), "ctl put hello world"), " ")
}

func clientEndpoint(cfg *config.Config) string {
	if len(cfg.AdvertiseClientURLs) > 0 {
		return strings.TrimPrefix(cfg.AdvertiseClientURLs[0].String(), "http://")
	}
	return cfg.ListenClientURLs[0].Host
}

// stop reports whether the member has stopped in time: nothing of it runs then.
func stop(n *node.Node, logger *logsink.Logger) bool { return within(logger, n.Stop) }

// within reports whether the end of a member has come in time.
func within(logger *logsink.Logger, end func()) bool {
	done := make(chan struct{})
	go func() { end(); close(done) }()
	select {
	case <-done:
		return true
	case <-time.After(stopTimeout):
		logger.Warn("the member did not stop in time, a disk does not answer; ending the process without waiting for it (nothing acknowledged is lost)",
			zap.Duration("waited", stopTimeout))
		return false
	}
}

// failStart is fail for a member that could not start.
func failStart(program config.Program, cfg *config.Config, logger *logsink.Logger, stderr io.Writer, err error) int {
	if program != config.Etcd {
		err = datadir.Denied(err)
	}
	var failed *discovery.Error
	if errors.As(err, &failed) {
		logger.Warn("failed to bootstrap; discovery token was already used",
			zap.String("discovery-token", cfg.Discovery.Token), zap.Strings("discovery-endpoints", cfg.Discovery.Endpoints), zap.Error(err))
		logger.Warn("do not reuse discovery token; generate a new one to bootstrap a cluster")
		logger.Close()
		if program != config.Etcd {
			fmt.Fprintf(stderr, "belay: %v\n", err)
		}
		return 1
	}
	return fail(program, cfg, logger, stderr, err, "discovery failed", zap.String("error", err.Error()))
}

// fail logs why the member cannot run and returns the exit code. Under the name etcd it uses etcd's
// texts, which monitoring looks for; otherwise plain ones, repeated on stderr for people.
func fail(program config.Program, cfg *config.Config, logger *logsink.Logger, stderr io.Writer, err error, etcdSays string, fields ...zap.Field) int {
	// Without a stack: the text says what is wrong and what to do.
	plain := logger.WithOptions(zap.AddStacktrace(zapcore.InvalidLevel), zap.WithFatalHook(stay{}))
	if program == config.Etcd {
		plain.Fatal(etcdSays, fields...)
	} else {
		plain.Error("the member cannot run", zap.String("error", err.Error()))
	}
	logger.Close()
	if program != config.Etcd {
		fmt.Fprintf(stderr, "belay: %s\n", cfg.Explain(err))
	}
	return 1
}

// stay lets a fatal line be written without ending the process: serve's caller ends it.
type stay struct{}

func (stay) OnWrite(*zapcore.CheckedEntry, []zapcore.Field) {}

// endBySignal ends the process by the signal that has stopped the member.
func endBySignal(s os.Signal, logger *logsink.Logger) int {
	logger.Close()
	return interrupt.End(s)
}

func printVersion(w io.Writer) {
	fmt.Fprintf(w, "belay version: %s\netcd surface: %s\nGit SHA: %s\nGo Version: %s\nGo OS/Arch: %s/%s\n",
		version.Belay, version.Etcd, version.Commit(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
