package config

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/version"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/belaydb/belay/internal/show"
	"github.com/belaydb/belay/logsink"
)

// Options of Load.
type Options struct {
	Program Program
	Version string   // Belay's version
	GitSHA  string   // "" if not known
	Command []string // the whole command line, for the log
	Args    []string // the flags
	Environ []string // as os.Environ gives it

	Stdout, Stderr io.Writer

	// LogWriter, if not nil, takes the log instead of --log-outputs.
	LogWriter io.Writer
	Sink      logsink.Options

	// terminal reports whether a stream is a terminal; a seam for tests. Nil asks the system.
	terminal func(io.Writer) bool
	// defaultHost finds the address of this machine; a seam for tests.
	defaultHost func() (string, error)
}

// Load reads the command line and the environment. If there is a server to run, ok is true and cfg
// and logger are set; otherwise everything has been reported and the process should exit with code.
func Load(o Options) (cfg *Config, logger *logsink.Logger, code int, ok bool) {
	if o.terminal == nil {
		o.terminal = isTerminal
	}
	p := &parser{o: o, cfg: Default()}
	code, ok = p.load()
	if !ok {
		if p.logger != nil {
			_ = p.logger.Close() // the code says enough
		}
		_, _ = io.WriteString(o.Stderr, p.plain)
		return nil, nil, code, false
	}
	return p.cfg, p.logger, 0, true
}

// Parse is Load for a program that runs members itself: it takes flags alone, tells what Load would
// log to logger, and returns what is wrong with them.
func Parse(args []string, logger *zap.Logger) (*Config, error) {
	if logger == nil {
		logger = zap.NewNop()
	}
	p := &parser{o: Options{Program: Belay, Args: args}, cfg: Default(), logger: &logsink.Logger{Logger: logger}}
	p.flags()
	switch err := p.fs.Parse(args); {
	case err != nil:
		return nil, err
	case p.fs.NArg() > 0:
		return nil, fmt.Errorf("%q is not a valid flag", p.fs.Arg(0))
	case p.version || p.file != "":
		return nil, errors.New("--version and --config-file are for the command line alone")
	}
	p.derive()
	p.applyGates()
	if err := p.cfg.Validate(); err != nil {
		return nil, err
	}
	p.warn()
	p.complete()
	p.remember()
	return p.cfg, nil
}

type parser struct {
	o       Options
	cfg     *Config
	fs      *flag.FlagSet
	logger  *logsink.Logger // the plain one until the configured one is there
	version bool
	// fallback is --discovery-fallback: with no discovery, only its checks are left.
	fallback string
	file     string            // --config-file; "": none
	fileKeys []fileKey         // what stands in it
	defaults map[string]string // of the inert flags
	plain    string            // said at last, for a person
}

const (
	codeFailed = 1
	codeUsage  = 2
)

// flags makes the flag set.
func (p *parser) flags() {
	p.fs = flag.NewFlagSet(string(p.o.Program), flag.ContinueOnError)
	p.fs.SetOutput(io.Discard) // we print errors ourselves
	p.fs.Usage = func() {}
	for _, d := range flagDefs() {
		d.bind(p.fs, p.cfg, d.name)
	}
	p.defaults = map[string]string{}
	for _, d := range flagDefs() {
		if d.inert != "" {
			p.defaults[d.name] = p.fs.Lookup(d.name).Value.String()
		}
	}
	for _, name := range ignoredFlags() {
		p.fs.Var(ignoredValue{new(string)}, name, "")
	}
	p.fs.StringVar(&p.file, "config-file", "", "")
	p.fallback = "exit"
	p.fs.Var(choiceValue{&p.fallback, []string{"exit", "proxy"}}, "discovery-fallback", "")
	p.fs.BoolVar(&p.version, "version", false, "")
}

// forPerson selects lines made for people if the log goes to a terminal and no format was given.
// Under the name etcd the log looks like etcd's wherever it goes.
func (p *parser) forPerson(l logsink.Config) logsink.Config {
	if p.o.Program == Etcd || p.o.LogWriter != nil || p.asked("log-format") || p.cfg.Explicit["log-format"] || len(l.Outputs) > 1 {
		return l
	}
	out := p.o.Stderr
	if len(l.Outputs) == 1 {
		switch l.Outputs[0] {
		case logsink.OutputDefault, logsink.OutputStderr:
		case logsink.OutputStdout:
			out = p.o.Stdout
		default:
			return l
		}
	}
	if p.o.terminal(out) {
		l.Person, l.Colour = true, p.variable("NO_COLOR") == "" && p.variable("TERM") != "dumb"
	}
	return l
}

// asked reports whether a flag was given by argument or variable.
func (p *parser) asked(name string) (yes bool) {
	p.fs.Visit(func(f *flag.Flag) { yes = yes || f.Name == name })
	return yes || p.variable(envName(name)) != ""
}

// isTerminal reports whether w is a character device: a terminal, or /dev/null, where it does not
// matter.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func (p *parser) load() (code int, ok bool) {
	p.flags()
	switch err := p.fs.Parse(p.o.Args); {
	case errors.Is(err, flag.ErrHelp):
		p.help()
		return 0, false
	case err != nil:
		p.usageError(err.Error())
		return codeUsage, false
	}
	// Until the configured logger is there, etcd's default one.
	plain, err := logsink.New(p.forPerson(logsink.Config{Writer: p.o.Stderr}))
	if err != nil {
		fmt.Fprintln(p.o.Stderr, err)
		return codeFailed, false
	}
	p.logger = plain
	if p.fs.NArg() > 0 {
		return p.failed(fmt.Errorf("%q is not a valid flag", p.fs.Arg(0)))
	}
	if p.version {
		p.printVersion()
		return 0, false
	}
	if p.file == "" {
		p.file = p.variable(envName("config-file"))
	}
	var fileWarnings []fileWarning
	if p.file != "" {
		// Everything else that was given is ignored, also where the file leaves a value open.
		path := p.file
		p.cfg = Default()
		p.flags()
		p.file = path
		var badURL *fileURLError
		var err error
		if p.fileKeys, fileWarnings, err = p.cfg.readFile(path); errors.As(err, &badURL) {
			fmt.Fprintln(p.o.Stderr, err)
			fmt.Fprintf(p.o.Stderr, "see %s:%d\n", path, lineOf(p.fileKeys, badURL.key))
			return codeFailed, false
		} else if err != nil {
			return p.failed(err)
		}
		p.floorTimeouts()
	} else {
		if err, fatal := p.environment(); fatal {
			return codeFailed, false
		} else if err != nil {
			return p.failed(err)
		}
		p.derive()
		if p.fallback == "proxy" {
			return p.failed(errors.New(`v2 proxy is deprecated, and --discovery-fallback can't be configured as "proxy"`))
		}
	}
	p.applyGates()
	if p.cfg.Logger == "" {
		return p.failed(errors.New(`unknown logger option ""`))
	}
	logCfg := p.forPerson(p.cfg.Log())
	p.cfg.LogForPerson = logCfg.Person
	logCfg.Writer, logCfg.Sink = p.o.LogWriter, p.o.Sink
	configured, err := logsink.New(logCfg)
	switch {
	case errors.Is(err, logsink.ErrLevel):
		// etcd panics here, with this text and this code.
		if p.o.Program == Etcd {
			fmt.Fprintln(p.o.Stderr, err)
		}
		p.tell(err, nil)
		return codeUsage, false
	case err != nil:
		return p.failed(err)
	}
	err = p.cfg.Validate()
	if err != nil && p.file != "" {
		_ = configured.Close() // as etcd, which forgets all of a file that is wrong
		return p.failed(err)
	}
	if err := p.logger.Close(); err != nil {
		fmt.Fprintln(p.o.Stderr, err)
	}
	p.logger = configured
	if p.file != "" {
		p.logger.Info("loaded server configuration, other configuration command line flags and environment variables will be ignored if provided",
			zap.String("path", p.file))
		for _, w := range fileWarnings {
			p.logger.Warn(w.text, w.fields...)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(deprecated())) {
		if p.cfg.Explicit[name] {
			p.logger.Warn(deprecated()[name])
		}
	}
	if err != nil {
		return p.failed(err)
	}
	p.logger.Info("Running: ", zap.Strings("args", show.CommandLine(p.o.Command)))
	p.warn()
	p.complete()
	p.remember()
	return 0, true
}

// applyGates sets the fields of the gates that have an effect.
func (p *parser) applyGates() {
	c := p.cfg
	c.InitialCorruptCheck = c.Gates.Enabled(GateInitialCorruptCheck)
	if on, said := c.Gates[GateCompactHashCheck]; said {
		c.CompactHashCheck = on
	}
}

// warn logs which of the given flags have no effect and which are dangerous.
func (p *parser) warn() {
	const noEffect = "flag has no effect in Belay - ignoring"
	for _, d := range flagDefs() {
		if value := p.fs.Lookup(d.name).Value.String(); d.inert != "" && value != p.defaults[d.name] {
			p.logger.Warn(noEffect, zap.String("flag-name", d.name), zap.String("value", value), zap.String("reason", d.inert))
		}
	}
	for _, name := range ignoredFlags() {
		if p.cfg.Explicit[name] && p.file == "" {
			p.logger.Warn(noEffect, zap.String("flag-name", name), zap.String("value", p.fs.Lookup(name).Value.String()),
				zap.String("reason", "etcd ignores it since version 2"))
		}
	}
	for _, d := range dependent() {
		var idle []string
		for _, name := range slices.Sorted(maps.Keys(p.cfg.Explicit)) {
			if name != d.on && strings.HasPrefix(name, d.prefix) {
				idle = append(idle, name)
			}
		}
		if len(idle) > 0 && !d.set(p.cfg) {
			p.logger.Warn("flags have no effect without another one", zap.Strings("flags", idle), zap.String("without", d.on), zap.String("so", d.so))
		}
	}
	for _, g := range p.cfg.gatesWithoutEffect() {
		p.logger.Warn("feature gate has no effect in Belay - ignoring",
			zap.String("feature-gate", g.name), zap.Bool("value", p.cfg.Gates[g.name]), zap.String("reason", g.reason))
	}
	if p.cfg.Metrics != "basic" && p.cfg.Metrics != "extensive" {
		p.logger.Warn("unknown --metrics: taken for basic", zap.String("metrics", p.cfg.Metrics))
	}
	if p.cfg.CompactionMode == CompactionRevision && p.cfg.CompactionRevisions >= int64(time.Millisecond) {
		p.logger.Warn("--auto-compaction-retention with --auto-compaction-mode=revision is a number of revisions; a duration there is a number of nanoseconds, and nothing will be compacted",
			zap.String("auto-compaction-retention", p.cfg.CompactionRetention), zap.Int64("revisions", p.cfg.CompactionRevisions))
	}
	if p.cfg.UnsafeNoFsync {
		p.logger.Warn("--unsafe-no-fsync is set: a crash of the machine loses acknowledged writes and may leave this member with data that its cluster never had; never set it where data matters")
	}
}

// variable is the value of an environment variable; the first one counts, as with os.Getenv.
func (p *parser) variable(name string) string {
	for _, kv := range p.o.Environ {
		if value, ok := strings.CutPrefix(kv, name+"="); ok {
			return value
		}
	}
	return ""
}

// failed logs what is wrong with the configuration, as etcd does.
func (p *parser) failed(err error) (int, bool) {
	p.logger.Info("Running: ", zap.Strings("args", show.CommandLine(p.o.Command)))
	fields := []zap.Field{zap.Error(err)}
	var inFile *inFileError
	if errors.As(err, &inFile) {
		fields = []zap.Field{zap.Error(inFile.error)}
		fields = append(fields, inFile.where...)
	} else if p.file != "" && !errors.Is(err, os.ErrNotExist) {
		fields = append(fields, whereInFile(p.file, p.fileKeys, err)...)
	}
	p.logger.Warn("failed to verify flags", fields...)
	if errors.Is(err, ErrAdvertiseUnset) {
		p.logger.Warn("advertise client URLs are not set", zap.Error(err))
	}
	p.tell(err, fields[1:])
	return codeFailed, false
}

// environment sets flags from variables. fatal: a flag and its variable are both set.
func (p *parser) environment() (err error, fatal bool) {
	given := map[string]bool{} // variables of flags that were given
	p.fs.Visit(func(f *flag.Flag) { given[envName(f.Name)] = true })
	values := map[string]string{}
	for _, kv := range p.o.Environ {
		if name, value, ok := strings.Cut(kv, "="); ok {
			if _, twice := values[name]; !twice { // as os.Getenv, the first counts
				values[name] = value
			}
		}
	}
	if v := values["ETCD_VERSION"]; v != "" {
		delete(values, "ETCD_VERSION")
		p.logger.Warn("cannot set special environment variable", zap.String("key", "ETCD_VERSION"), zap.String("value", v))
	}
	used := map[string]bool{"ETCD_VERSION": true}
	p.fs.VisitAll(func(f *flag.Flag) {
		key := envName(f.Name)
		value := values[key]
		if given[key] || value == "" {
			return
		}
		used[key] = true
		if serr := p.fs.Set(f.Name, value); serr != nil {
			err = fmt.Errorf("invalid value %q for %s: %w", value, key, serr)
		} else {
			p.logger.Info("recognized and used environment variable", zap.String("variable-name", key), zap.String("variable-value", show.Secret(f.Name, value)))
		}
	})
	for _, kv := range p.o.Environ {
		name, _, ok := strings.Cut(kv, "=")
		if !ok {
			p.logger.Warn("found invalid environment variable", zap.String("environment-variable", kv))
		}
		switch {
		case used[name]:
		case given[name]:
			p.logger.WithOptions(zap.WithFatalHook(stay{}), zap.AddStacktrace(zapcore.InvalidLevel)).Fatal(
				"conflicting environment variable is shadowed by corresponding command-line flag (either unset environment variable or disable flag))",
				zap.String("environment-variable", name))
			return nil, true
		case strings.HasPrefix(kv, "ETCD_"):
			p.logger.Warn("unrecognized environment variable", zap.String("environment-variable", kv))
		}
	}
	return err, false
}

// stay lets a fatal line be written without ending the process: Load's caller ends it.
type stay struct{}

func (stay) OnWrite(*zapcore.CheckedEntry, []zapcore.Field) {}

func envName(flagName string) string {
	return "ETCD_" + strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
}

// derive does what etcd does between parsing and checking.
func (p *parser) derive() {
	p.fs.Visit(func(f *flag.Flag) { p.cfg.Explicit[f.Name] = true })
	if p.cfg.Explicit["listen-client-urls"] && !p.cfg.Explicit["advertise-client-urls"] {
		p.cfg.AdvertiseClientURLs = nil
	}
	c := p.cfg
	if (c.DiscoverySRV != "" || c.DiscoverySRVName != "" || len(c.Discovery.Endpoints) > 0) && !c.Explicit["initial-cluster"] {
		c.InitialCluster = ""
	}
	p.floorTimeouts()
}

// floorTimeouts raises timeouts that are too short.
func (p *parser) floorTimeouts() {
	if p.cfg.RaftReadTimeout < minRaftTimeout {
		p.cfg.RaftReadTimeout = minRaftTimeout
		p.logger.Info(fmt.Sprintf("raft-read-timeout increased to minimum value: %v", minRaftTimeout))
	}
	if p.cfg.RaftWriteTimeout < minRaftTimeout {
		p.cfg.RaftWriteTimeout = minRaftTimeout
		p.logger.Info(fmt.Sprintf("raft-write-timeout increased to minimum value: %v", minRaftTimeout))
	}
	if p.cfg.WarningRequest == 0 {
		p.cfg.WarningRequest = Default().WarningRequest
	}
}

// complete fills in what a valid configuration left open.
func (p *parser) complete() {
	c := p.cfg
	listensEverywhere := func(urls []url.URL) bool { return urls[0].Hostname() == "0.0.0.0" }
	isDefault := func(urls []url.URL, def string) bool { return len(urls) == 1 && urls[0].String() == def }
	peer := isDefault(c.AdvertisePeerURLs, defaultPeerURL) && listensEverywhere(c.ListenPeerURLs)
	client := isDefault(c.AdvertiseClientURLs, defaultClientURL) && listensEverywhere(c.ListenClientURLs)
	if peer || client {
		find := p.o.defaultHost
		if find == nil {
			find = defaultHost
		}
		host, err := find()
		if err != nil {
			p.logger.Info("failed to detect default host", zap.Error(err))
		} else {
			if peer {
				c.AdvertisePeerURLs = []url.URL{{Scheme: c.AdvertisePeerURLs[0].Scheme, Host: net.JoinHostPort(host, c.ListenPeerURLs[0].Port())}}
			}
			if client {
				c.AdvertiseClientURLs = []url.URL{{Scheme: c.AdvertiseClientURLs[0].Scheme, Host: net.JoinHostPort(host, c.ListenClientURLs[0].Port())}}
			}
			p.logger.Info("detected default host for advertise", zap.String("host", host))
		}
	}
	if c.Name != defaultName && c.InitialCluster == Default().InitialCluster {
		c.InitialCluster = writeMembers(Member{cmp.Or(c.Name, defaultName), c.AdvertisePeerURLs})
	}
	if members, err := c.Members(); err == nil && c.Name == defaultName && (len(members) > 1 || c.InitialClusterState == "existing") {
		p.logger.Warn("it isn't recommended to use default name, please set a value for --name. "+
			"Note that etcd might run into issue when multiple members have the same default name", zap.String("name", c.Name))
	}
	if c.DataDir == "" {
		c.DataDir = c.Name + "." + string(p.o.Program)
		log := p.logger.Info
		if p.o.Program == Etcd {
			log = p.logger.Warn
		}
		log("'data-dir' was empty; using default", zap.String("data-dir", c.DataDir))
	}
}

// defaultHost is the address that this machine would use to reach the world. Nothing is sent.
func defaultHost() (string, error) {
	conn, err := net.Dial("udp4", "192.0.2.1:9") // an address for documentation, on the default route
	if err != nil {
		return "", err
	}
	defer conn.Close()
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	return host, err
}

func (p *parser) printVersion() {
	sha := p.o.GitSHA
	if sha == "" {
		sha = "not known"
	}
	if p.o.Program == Belay {
		fmt.Fprintf(p.o.Stdout, "Belay Version: %s\n", p.o.Version)
	}
	fmt.Fprintf(p.o.Stdout, "etcd Version: %s\nGit SHA: %s\nGo Version: %s\nGo OS/Arch: %s/%s\n",
		version.Version, sha, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
