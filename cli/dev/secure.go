package dev

import (
	"crypto/tls"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/belaydb/belay/listen"
)

// Members get certificates like any server, by the flags after "--": with --auto-tls or --cert-file
// clients use https, with --peer-auto-tls or --peer-cert-file peers do.

// serverArg is the value of a flag for the members; that of a flag without one is "true".
func (o *Options) serverArg(name string) (value string, given bool) {
	for i, arg := range o.ServerArgs {
		flag, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-"), "=")
		if !strings.HasPrefix(arg, "-") || flag != name {
			continue
		}
		if ok {
			return value, true
		}
		if i+1 < len(o.ServerArgs) && !strings.HasPrefix(o.ServerArgs[i+1], "-") {
			return o.ServerArgs[i+1], true
		}
		return "true", true
	}
	return "", false
}

func (o *Options) serverSwitch(name string) bool {
	value, given := o.serverArg(name)
	return given && value != "false" && value != "0"
}

func (o *Options) serverText(name string) string {
	value, _ := o.serverArg(name)
	return value
}

// scheme of the URLs for clients (prefix "") or peers ("peer-").
func (o *Options) scheme(prefix string) string {
	if o.serverSwitch(prefix+"auto-tls") || o.serverText(prefix+"cert-file") != "" {
		return "https"
	}
	return "http"
}

// certificates are those of the client ports.
func (o *Options) certificates() listen.TLSInfo {
	return listen.TLSInfo{
		CertFile: o.serverText("cert-file"), KeyFile: o.serverText("key-file"), TrustedCAFile: o.serverText("trusted-ca-file"),
		ClientCertFile: o.serverText("client-cert-file"), ClientKeyFile: o.serverText("client-key-file"),
		ClientCertAuth: o.serverSwitch("client-cert-auth"),
	}
}

// clientVariables are the environment variables that a client of all members needs. Certificates
// that the members made for themselves are collected in one file.
func (o *Options) clientVariables(members []member) ([]string, error) {
	info := o.certificates()
	if info.CertFile == "" && o.serverSwitch("auto-tls") {
		var all []byte
		for _, m := range members {
			cert, err := os.ReadFile(filepath.Join(m.dataDir, "fixtures", "client", "cert.pem"))
			if err != nil {
				return nil, err
			}
			all = append(all, cert...)
		}
		file := filepath.Join(o.DataDir, authoritiesName)
		return []string{"ETCDCTL_CACERT=" + file}, os.WriteFile(file, all, 0o600)
	}
	return listen.ClientVariables(info, "127.0.0.1"), nil
}

// healthClient asks members, which are on this machine, for their health.
func (o *Options) healthClient() *http.Client {
	config := &tls.Config{InsecureSkipVerify: true} // nothing secret is sent, and the answers are only shown
	info := o.certificates()
	cert, key := info.CertFile, info.KeyFile
	if info.ClientCertFile != "" {
		cert, key = info.ClientCertFile, info.ClientKeyFile
	}
	if pair, err := tls.LoadX509KeyPair(cert, key); err == nil {
		config.Certificates = []tls.Certificate{pair}
	}
	return &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
}
