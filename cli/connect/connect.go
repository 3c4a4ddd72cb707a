// Package connect is how the command-line programs reach a cluster: etcdctl's global flags and
// ETCDCTL_* variables, their meaning, and the client made from them. ctl, doctor and every other
// program that asks a cluster take the same flags. Those that are made of cobra's commands take
// abbreviations, and refuse what is unknown, alike.
//
// There is no state in package variables: each command line has its own Flags.
package connect

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/client/pkg/v3/srv"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// envPrefix begins the names of the variables that stand for flags.
const envPrefix = "ETCDCTL_"

// Flags select the cluster of a command line and the user. Each may also come from the environment,
// as ETCDCTL_<NAME>.
type Flags struct {
	Endpoints          []string
	Debug              bool
	DialTimeout        time.Duration // how long logging in may take
	CommandTimeout     time.Duration // how long a short command may take
	KeepAliveTime      time.Duration
	KeepAliveTimeout   time.Duration
	MaxSendBytes       int // 0: clientv3's 2 MiB
	MaxRecvBytes       int // 0: clientv3's limit, about 2 GiB
	InsecureTransport  bool
	InsecureDiscovery  bool
	InsecureSkipVerify bool
	Cert, Key, CACert  string
	Token              string
	User, Password     string
	SRVDomain, SRVName string
}

// Register adds the flags to fs with etcdctl's names and defaults.
func (f *Flags) Register(fs *pflag.FlagSet) {
	fs.StringSliceVar(&f.Endpoints, "endpoints", []string{"127.0.0.1:2379"}, "servers to talk to, comma separated")
	fs.BoolVar(&f.Debug, "debug", false, "show the client's own log and its settings on standard error")
	fs.DurationVar(&f.DialTimeout, "dial-timeout", 2*time.Second, "how long logging in may take")
	fs.DurationVar(&f.CommandTimeout, "command-timeout", 5*time.Second, "how long a short command may take")
	fs.DurationVar(&f.KeepAliveTime, "keepalive-time", 2*time.Second, "send a ping on a connection idle for this long")
	fs.DurationVar(&f.KeepAliveTimeout, "keepalive-timeout", 6*time.Second, "give a connection up when a ping is unanswered for this long")
	fs.IntVar(&f.MaxSendBytes, "max-request-bytes", 0, "largest request to send, in bytes (0: 2 MiB)")
	fs.IntVar(&f.MaxRecvBytes, "max-recv-bytes", 0, "largest response to accept, in bytes (0: 2 GiB)")
	fs.BoolVar(&f.InsecureTransport, "insecure-transport", true, "connect without TLS when no certificate is given")
	fs.BoolVar(&f.InsecureDiscovery, "insecure-discovery", true, "accept http endpoints from DNS discovery")
	fs.BoolVar(&f.InsecureSkipVerify, "insecure-skip-tls-verify", false, "do not verify the server's certificate (for tests only)")
	fs.StringVar(&f.Cert, "cert", "", "file with the client's TLS certificate")
	fs.StringVar(&f.Key, "key", "", "file with the client's TLS key")
	fs.StringVar(&f.CACert, "cacert", "", "file with the CA certificates that vouch for the server")
	fs.StringVar(&f.Token, "auth-jwt-token", "", "JWT to authenticate with, instead of --user")
	fs.StringVar(&f.User, "user", "", "name[:password] to authenticate with; the password is asked for if absent")
	fs.StringVar(&f.Password, "password", "", "password for --user")
	fs.StringVarP(&f.SRVDomain, "discovery-srv", "d", "", "domain whose SRV records name the endpoints")
	fs.StringVar(&f.SRVName, "discovery-srv-name", "", "service name to look for in those records")
}

// Variable is the name of the environment variable that stands for a flag.
func Variable(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// FromEnvironment sets the flags of fs that ETCDCTL_* variables name; warnings go to stderr. A
// variable and its flag together are refused, as in etcdctl: silently preferring one of them has
// sent commands to the wrong cluster.
func FromEnvironment(fs *pflag.FlagSet, stderr io.Writer) error {
	known := map[string]bool{
		// Read elsewhere, or meant for etcdctl 3.3 and older.
		envPrefix + "WATCH_KEY": true, envPrefix + "WATCH_RANGE_END": true, envPrefix + "API": true,
	}
	var shadowed string
	fs.VisitAll(func(f *pflag.Flag) {
		env := Variable(f.Name)
		known[env] = true
		value, set := os.LookupEnv(env)
		if f.Changed {
			if set {
				shadowed = env
			}
			return
		}
		if value == "" {
			return
		}
		before := f.Value.String()
		if err := fs.Set(f.Name, value); err != nil {
			// It may have left a zero: a timeout of 0 fails every command.
			if restored := f.Value.Set(before); restored != nil {
				fmt.Fprintf(stderr, "Warning: --%s: %v\n", f.Name, restored)
			}
			fmt.Fprintf(stderr, "Warning: ignoring environment variable %s: %v\n", env, err)
		}
	})
	if shadowed != "" {
		return fmt.Errorf("conflicting environment variable %s is shadowed by corresponding command-line flag (either unset environment variable or disable flag)", shadowed)
	}
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, envPrefix) && !known[name] {
			fmt.Fprintf(stderr, "Warning: unrecognized environment variable %s\n", name)
		}
	}
	return nil
}

// EmptyFile is a flag that was given and names no file; "" if there is none.
func (f *Flags) EmptyFile(fs *pflag.FlagSet) string {
	for _, file := range []struct{ flag, value string }{{"cert", f.Cert}, {"key", f.Key}, {"cacert", f.CACert}} {
		if file.value == "" && fs.Changed(file.flag) {
			return file.flag
		}
	}
	return ""
}

// Targets are the endpoints: from DNS if a domain is given and its records name some, else from
// --endpoints.
func (f *Flags) Targets(stderr io.Writer) ([]string, error) {
	var found []string
	if f.SRVDomain != "" {
		srvs, err := srv.GetClient("etcd-client", f.SRVDomain, f.SRVName)
		if err != nil {
			return nil, err
		}
		for _, ep := range srvs.Endpoints {
			if !f.InsecureDiscovery && strings.HasPrefix(ep, "http://") {
				fmt.Fprintf(stderr, "ignoring discovered insecure endpoint %q\n", ep)
				continue
			}
			found = append(found, ep)
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	for _, ep := range f.Endpoints {
		found = append(found, strings.TrimSpace(ep))
	}
	return found, nil
}

// Credentials are nil when the command line names no user. It prompts for a missing password, once
// for each Flags, and reads it from in.
func (f *Flags) Credentials(in io.Reader, out io.Writer) (*clientv3.AuthConfig, error) {
	switch {
	case f.Token != "":
		return &clientv3.AuthConfig{Token: f.Token}, nil
	case f.User == "":
		return nil, nil
	case f.Password != "":
		return &clientv3.AuthConfig{Username: f.User, Password: f.Password}, nil
	}
	if name, password, ok := strings.Cut(f.User, ":"); ok {
		return &clientv3.AuthConfig{Username: name, Password: password}, nil
	}
	password, err := AskPassword(in, out, "Password: ")
	if err != nil {
		return nil, err
	}
	f.Password = password
	return &clientv3.AuthConfig{Username: f.User, Password: password}, nil
}

// Spec is what clientv3 makes a client from.
func (f *Flags) Spec(endpoints []string, auth *clientv3.AuthConfig) *clientv3.ConfigSpec {
	secure := &clientv3.SecureConfig{
		Cert: f.Cert, Key: f.Key, Cacert: f.CACert,
		InsecureTransport:  f.InsecureTransport,
		InsecureSkipVerify: f.InsecureSkipVerify,
	}
	if !f.InsecureDiscovery {
		secure.ServerName = f.SRVDomain
	}
	return &clientv3.ConfigSpec{
		Endpoints:          endpoints,
		DialTimeout:        f.DialTimeout,
		KeepAliveTime:      f.KeepAliveTime,
		KeepAliveTimeout:   f.KeepAliveTimeout,
		MaxCallSendMsgSize: f.MaxSendBytes,
		MaxCallRecvMsgSize: f.MaxRecvBytes,
		Secure:             secure,
		Auth:               auth,
	}
}

// HTTPBase is where the server at an endpoint of clients speaks HTTP: scheme and host. An endpoint
// without a scheme has https if secure. It is "" for unix sockets, and for what is no endpoint.
func HTTPBase(endpoint string, secure bool) string {
	if !strings.Contains(endpoint, "://") {
		if secure {
			endpoint = "https://" + endpoint
		} else {
			endpoint = "http://" + endpoint
		}
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return ""
	}
	return u.Scheme + "://" + u.Host
}

// AskPassword reads one line from in, without echo if that is a terminal, and not a byte more: what
// follows may be a value. End of input counts as an empty line, as in etcdctl.
func AskPassword(in io.Reader, out io.Writer, prompt string) (string, error) {
	fmt.Fprint(out, prompt)
	defer fmt.Fprintln(out)
	restore, err := echoOff(in)
	if err != nil {
		return "", err
	}
	if restore != nil {
		defer restore()
	}
	var line []byte
	for b := make([]byte, 1); ; {
		n, err := in.Read(b)
		if n == 1 && b[0] != '\n' {
			line = append(line, b[0])
		}
		switch {
		case err != nil && !errors.Is(err, io.EOF):
			return "", fmt.Errorf("failed during password entry: %w", err)
		case err != nil, n == 1 && b[0] == '\n':
			return strings.TrimSpace(string(line)), nil
		}
	}
}
