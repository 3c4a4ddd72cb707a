package listen

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
)

// ClientVariables are the ETCDCTL_* variables, NAME=value, that a client on this machine needs to
// use a port with these certificates: for the commands that we suggest. File names are made
// absolute. Without files there are no variables.
func ClientVariables(tls TLSInfo, host string) (vars []string) {
	if tls.CertFile == "" {
		return nil
	}
	set := func(name, file string) {
		if abs, err := filepath.Abs(file); err == nil {
			file = abs
		}
		vars = append(vars, "ETCDCTL_"+name+"="+file)
	}
	leaf, intermediates := readCertificates(tls.CertFile)
	vouches := func(roots *x509.CertPool) bool {
		if leaf == nil {
			return false
		}
		_, err := leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: intermediates})
		return err == nil
	}
	// The clients' authority is usually the server's, too.
	known := false
	for _, file := range []string{tls.TrustedCAFile, tls.CertFile} {
		if file == "" || known {
			continue
		}
		if pool := readPool(file); pool != nil && vouches(pool) {
			set("CACERT", file)
			known = true
		}
	}
	if !known && !vouches(nil) { // nor by the system's authorities
		vars = append(vars, "ETCDCTL_INSECURE_SKIP_TLS_VERIFY=true")
	}
	if tls.ClientCertAuth {
		cert, key := tls.CertFile, tls.KeyFile
		if tls.ClientCertFile != "" {
			cert, key = tls.ClientCertFile, tls.ClientKeyFile
		}
		set("CERT", cert)
		set("KEY", key)
	}
	return vars
}

// readCertificates returns the first certificate of a file, nil if there is none, and those after
// it.
func readCertificates(file string) (leaf *x509.Certificate, rest *x509.CertPool) {
	rest = x509.NewCertPool()
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, rest
	}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return leaf, rest
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		switch {
		case err != nil:
		case leaf == nil:
			leaf = cert
		default:
			rest.AddCert(cert)
		}
	}
}

func readPool(file string) *x509.CertPool {
	text, err := os.ReadFile(file)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(text) {
		return nil
	}
	return pool
}
