package listen

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/tlsutil"
)

// unsettled is how fresh a file's time may be before the same time and size no
// longer prove the same content: time stamps are coarser than writes.
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

// same says that the file need not be read again.
func (s stamp) same(now stamp) bool {
	return s.info != nil && os.SameFile(s.info, now.info) && s.info.Size() == now.info.Size() &&
		s.info.ModTime().Equal(now.info.ModTime()) && s.read.Sub(s.info.ModTime()) > unsettled
}

// keyPair is a certificate with its key, read again when a file changed. etcd
// reads and parses both files at each handshake, about 100 us for an RSA key.
type keyPair struct {
	certFile, keyFile string
	failed            func(error) // told once for each change of a file that gave no pair

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

// revocations is a CRL file, read again when it changed.
type revocations struct {
	path string

	mu      sync.Mutex
	stamp   stamp
	serials map[string]bool
}

// check refuses if one of certs is on the list, or if there is no readable list:
// then nobody knows.
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
	if block, _ := pem.Decode(data); block != nil { // etcd reads DER alone
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
