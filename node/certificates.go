package node

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/belaydb/belay/listen"
)

const (
	// certificateInterval is the time between two checks of the certificates' dates: files may be
	// renewed at any time.
	certificateInterval = time.Minute
	// certificateWarnInterval is the time between two warnings about the same certificate.
	certificateWarnInterval = 24 * time.Hour
)

// certificates reports the expiry of TLS certificates: as a metric, and in the log at the start and
// once a day. It reads files in its own goroutine, so no request and no scrape waits for it.
type certificates struct {
	sides    map[string]*listen.Security // by "client" and "peer"
	logger   *zap.Logger
	notAfter *prometheus.GaugeVec
	told     map[told]time.Time // when each warning was logged
}

// told identifies a warning.
type told struct {
	cert     listen.Certificate
	validity listen.Validity
}

func newCertificates(sides map[string]*listen.Security, logger *zap.Logger, notAfter *prometheus.GaugeVec) *certificates {
	return &certificates{sides: sides, logger: logger, notAfter: notAfter, told: make(map[told]time.Time)}
}

// watch runs until stop is closed.
func (c *certificates) watch(stop <-chan struct{}) {
	tick := time.NewTicker(certificateInterval)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			c.look(now)
		case <-stop:
			return
		}
	}
}

func (c *certificates) look(now time.Time) {
	still := make(map[told]time.Time)
	for side, security := range c.sides {
		if security == nil {
			continue
		}
		for _, cert := range security.Certificates() {
			c.notAfter.WithLabelValues(side, cert.File).Set(float64(cert.NotAfter.Unix()))
			validity := cert.Validity(now)
			if validity == listen.Valid {
				continue
			}
			this := told{cert, validity}
			last, ok := c.told[this]
			if !ok || now.Sub(last) >= certificateWarnInterval {
				c.warn(side, cert, validity, now)
				last = now
			}
			still[this] = last
		}
	}
	c.told = still // what was renewed is forgotten
}

func (c *certificates) warn(side string, cert listen.Certificate, validity listen.Validity, now time.Time) {
	what := "certificate"
	if cert.Authority {
		what = "certificate authority"
	}
	fields := []zap.Field{zap.String("side", side), zap.String("file", cert.File), zap.String("subject", cert.Subject),
		zap.Time("not-before", cert.NotBefore), zap.Time("not-after", cert.NotAfter)}
	const renew = "replace the file; it is read again without a restart"
	switch validity {
	case listen.Expired:
		c.logger.Warn("a "+what+" has expired; connections fail", append(fields,
			zap.Duration("expired-for", now.Sub(cert.NotAfter).Round(time.Second)), zap.String("advice", renew))...)
	case listen.NotYetValid:
		c.logger.Warn("a "+what+" is not valid yet; connections fail", append(fields,
			zap.String("advice", "look at the clock of this machine and of the one that issued it"))...)
	case listen.ExpiresSoon:
		c.logger.Warn("a "+what+" expires soon", append(fields,
			zap.Duration("expires-in", cert.NotAfter.Sub(now).Round(time.Second)), zap.String("advice", renew))...)
	}
}
