package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/belaydb/belay/listen"
)

// selfSigned writes a certificate and its key.
func selfSigned(t *testing.T, cert, key string, notBefore, notAfter time.Time) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(notAfter.Unix()), Subject: pkix.Name{CommonName: "m1"}, NotBefore: notBefore, NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A certificate whose time runs out is warned of once a day until it is renewed.
func TestCertificatesExpiry(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	now := time.Now()
	selfSigned(t, cert, key, now.Add(-99*time.Hour), now.Add(time.Hour))
	core, logs := observer.New(zap.WarnLevel)
	logger := zap.New(core)
	security, err := listen.NewSecurity(listen.TLSInfo{CertFile: cert, KeyFile: key, TrustedCAFile: cert}, listen.SecurityOptions{Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	r := prometheus.NewRegistry()
	c := newCertificates(map[string]*listen.Security{"client": nil, "peer": security}, logger, NewMetrics(r).notAfter)
	said := func(at time.Time, message string, n int) {
		t.Helper()
		c.look(at)
		if got := logs.FilterMessage(message).Len(); got != n {
			t.Errorf("%v: %q was said %d times, want %d", at.Sub(now), message, got, n)
		}
	}
	said(now, "a certificate expires soon", 1)
	said(now, "a certificate authority expires soon", 1)
	said(now.Add(time.Minute), "a certificate expires soon", 1)
	said(now.Add(2*time.Hour), "a certificate has expired; connections fail", 1)
	said(now.Add(25*time.Hour), "a certificate has expired; connections fail", 1)
	said(now.Add(26*time.Hour), "a certificate has expired; connections fail", 2)
	selfSigned(t, cert, key, now.Add(48*time.Hour), now.Add(999*time.Hour))
	said(now.Add(27*time.Hour), "a certificate is not valid yet; connections fail", 1)
	said(now.Add(49*time.Hour), "a certificate is not valid yet; connections fail", 1)
	if len(c.told) != 0 {
		t.Errorf("still told: %v", c.told)
	}
	families, err := r.Gather()
	if err != nil || len(families) == 0 {
		t.Fatal(families, err)
	}
	if got, want := families[0].GetMetric()[0].GetGauge().GetValue(), float64(now.Add(999*time.Hour).Unix()); got != want {
		t.Errorf("not-after metric %f, want %f", got, want)
	}
}
