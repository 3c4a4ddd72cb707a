package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Authority issues certificates into files: ca.pem, and name.pem with name-key.pem for each.
type Authority struct {
	Dir     string
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
	serial  int64
	revoked []x509.RevocationListEntry
}

// NewAuthority makes an authority that writes to dir, which must exist.
func NewAuthority(dir, name string) (*Authority, error) {
	a := &Authority{Dir: dir, serial: 1}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte(name),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	if err := a.write("ca.pem", "CERTIFICATE", der); err != nil {
		return nil, err
	}
	return a, a.Revoke()
}

// Path of one of its files.
func (a *Authority) Path(name string) string { return filepath.Join(a.Dir, name) }

// CA, Cert and Key are the files that flags name.
func (a *Authority) CA() string              { return a.Path("ca.pem") }
func (a *Authority) Cert(name string) string { return a.Path(name + ".pem") }
func (a *Authority) Key(name string) string  { return a.Path(name + "-key.pem") }
func (a *Authority) CRL() string             { return a.Path("crl.der") }

// write replaces a file in one go.
func (a *Authority) write(name, kind string, der []byte) error {
	data := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if kind == "" {
		data = der
	}
	if err := os.WriteFile(a.Path(name+".new"), data, 0o600); err != nil {
		return err
	}
	return os.Rename(a.Path(name+".new"), a.Path(name))
}

// Issue makes (or renews) a certificate for 127.0.0.1 and localhost with the common name name, for
// servers and clients, valid for a day; change, if not nil, may modify it.
func (a *Authority) Issue(name string, change func(*x509.Certificate)) (*big.Int, error) {
	a.serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.serial), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	if change != nil {
		change(template)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := a.write(name+"-key.pem", "EC PRIVATE KEY", keyDER); err != nil {
		return nil, err
	}
	return template.SerialNumber, a.write(name+".pem", "CERTIFICATE", der)
}

// Revoke adds certificates to the revocation list and writes it.
func (a *Authority) Revoke(serials ...*big.Int) error {
	for _, s := range serials {
		a.revoked = append(a.revoked, x509.RevocationListEntry{SerialNumber: s, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(24 * time.Hour), RevokedCertificateEntries: a.revoked,
	}, a.cert, a.key)
	if err != nil {
		return err
	}
	return a.write("crl.der", "", der)
}

// Client is the TLS configuration of a client with the certificate name; "" presents none. The
// certificate is presented whatever authorities the server names.
func (a *Authority) Client(name string) (*tls.Config, error) {
	cfg := &tls.Config{RootCAs: x509.NewCertPool()}
	cfg.RootCAs.AddCert(a.cert)
	if name == "" {
		return cfg, nil
	}
	pair, err := tls.LoadX509KeyPair(a.Cert(name), a.Key(name))
	if err != nil {
		return nil, err
	}
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	return cfg, nil
}
