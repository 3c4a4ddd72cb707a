package listen

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/tlsutil"
)

// unsettled: if a file's time is more recent than this, the same time and size do not prove the
// same content, since time stamps are coarser than writes.
const unsettled = time.Second

// stamp is what a file looked like when it was read.
type stamp struct {
	info os.FileInfo
	read time.Time
}

func stampOf(path string) (stamp, error) {
	info, err := os.Stat(path)
	return stamp{info, time.Now()}, err
}

// same reports whether the file need not be read again.
func (s stamp) same(now stamp) bool {
	return s.info != nil && os.SameFile(s.info, now.info) && s.info.Size() == now.info.Size() &&
		s.info.ModTime().Equal(now.info.ModTime()) && s.read.Sub(s.info.ModTime()) > unsettled
}

// keyPair is a certificate with its key, read again when a file changed. etcd
// reads and parses both files at each handshake, about 100 us for an RSA key.
type keyPair struct {
	certFile, keyFile string
	failed            func(error) // called once for each change of a file that gave no pair

	mu        sync.Mutex
	cert, key stamp // of the files that pair, or the failure, came from
	pair      *tls.Certificate
	err       error // why the files as they are now give no pair
}

// get returns the newest pair that the files ever gave.
func (k *keyPair) get() (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	cert, err := stampOf(k.certFile)
	key, keyErr := stampOf(k.keyFile)
	if err = errors.Join(err, keyErr); err == nil {
		if k.pair != nil && k.err == nil && k.cert.same(cert) && k.key.same(key) {
			return k.pair, nil
		}
		var pair *tls.Certificate
		if pair, err = tlsutil.NewCert(k.certFile, k.keyFile, nil); err == nil {
			k.pair, k.err, k.cert, k.key = pair, nil, cert, key
			return pair, nil
		}
	}
	if k.err == nil || k.err.Error() != err.Error() {
		k.failed(err)
	}
	k.err = err
	if k.pair == nil {
		return nil, err
	}
	return k.pair, nil
}

// authorities is a bundle of CA certificates, read again when it changed. A file that is missing or
// invalid changes nothing: the known authorities stay.
type authorities struct {
	path   string
	failed func(error) // called once for each change of the file that gave none

	mu    sync.Mutex
	stamp stamp
	certs []*x509.Certificate
	pool  *x509.CertPool // another one whenever the file changed
	err   error          // why the file as it is now gives none
}

// newAuthorities reads the file for the first time: then it must be valid.
func newAuthorities(path string, failed func(error)) (*authorities, error) {
	a := &authorities{path: path}
	now, err := stampOf(path)
	if err == nil {
		err = a.read(now)
	}
	if err != nil {
		return nil, err
	}
	a.failed = failed
	return a, nil
}

// get returns the authorities from the last valid content of the file.
func (a *authorities) get() *x509.CertPool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now, err := stampOf(a.path)
	if err == nil && a.err == nil && a.stamp.same(now) {
		return a.pool
	}
	if err == nil {
		err = a.read(now)
	}
	if err != nil && (a.err == nil || a.err.Error() != err.Error()) {
		a.failed(err)
	}
	a.err = err
	return a.pool
}

// read takes the file's authorities, if its content has changed.
func (a *authorities) read(now stamp) error {
	data, err := os.ReadFile(a.path)
	if err != nil {
		return err
	}
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return errors.New("no certificate in it")
	}
	a.stamp = now
	if slices.EqualFunc(certs, a.certs, (*x509.Certificate).Equal) {
		return nil
	}
	a.certs, a.pool = certs, x509.NewCertPool()
	for _, cert := range certs {
		a.pool.AddCert(cert)
	}
	return nil
}

// revocations is a CRL file, read again when it changed.
type revocations struct {
	path string

	mu      sync.Mutex
	stamp   stamp
	serials map[string]bool
}

// check refuses if one of certs is on the list, or if the list cannot be read: then nobody knows.
func (r *revocations) check(certs []*x509.Certificate) error {
	serials, err := r.load()
	if err != nil {
		return err
	}
	for _, c := range certs {
		if serial := c.SerialNumber.Bytes(); serials[string(serial)] {
			return fmt.Errorf("transport: certificate serial %x revoked", serial)
		}
	}
	return nil
}

func (r *revocations) load() (map[string]bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, err := stampOf(r.path)
	if err != nil {
		return nil, err
	}
	if r.serials != nil && r.stamp.same(now) {
		return r.serials, nil
	}
	data, err := os.ReadFile(r.path)
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(data); block != nil { // etcd reads only DER
		data = block.Bytes
	}
	list, err := x509.ParseRevocationList(data)
	if err != nil {
		return nil, err
	}
	serials := make(map[string]bool, len(list.RevokedCertificateEntries))
	for _, e := range list.RevokedCertificateEntries {
		serials[string(e.SerialNumber.Bytes())] = true
	}
	r.serials, r.stamp = serials, now
	return serials, nil
}
