package node

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/belaydb/belay/listen"
	"github.com/belaydb/belay/peers"
)

// dialing is how this member reaches the others. Its methods may be called from any goroutine once
// the fields are set.
type dialing struct {
	logger     *zap.Logger
	advertised []url.URL // peer URLs of this member
	// fromAdvertised: connections come from the first IP address of advertised that is not the
	// loopback's.
	fromAdvertised bool
	// security is the peer side's; nil: no TLS. Set once the ports listen.
	security *listen.Security
	// serverName is what peers' certificates must be for; empty: their addresses. Set before
	// anybody is asked.
	serverName string
	// over is put over the way found; nil: nothing is.
	over func(Dial) Dial

	once   sync.Once
	dialer Dial
}

// tls is how this member speaks to others, for one connection; nil:
// certificates as the system trusts them.
func (d *dialing) tls() *tls.Config {
	var c *tls.Config
	if d.security != nil {
		c = d.security.ClientConfig()
	}
	if d.serverName == "" {
		return c
	}
	if c == nil {
		c = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	c = c.Clone()
	c.ServerName = d.serverName
	return c
}

// client asks other members before there is a transport, or apart from it.
func (d *dialing) client(dialTimeout time.Duration) *http.Client {
	return peers.NewClient(peers.NewRoundTripper(peers.Options{TLS: d.tls, Dial: d.dial(), DialTimeout: dialTimeout}))
}

// dial dials other members; nil: as the system likes. It is found once: the search is logged.
func (d *dialing) dial() Dial {
	d.once.Do(func() {
		d.dialer = d.find()
		if d.over == nil {
			return
		}
		if d.dialer == nil {
			d.dialer = (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext
		}
		d.dialer = d.over(d.dialer)
	})
	return d.dialer
}

func (d *dialing) find() Dial {
	if !d.fromAdvertised {
		return nil
	}
	advertised := zap.Strings("advertise-peer-urls", urlStrings(d.advertised))
	d.logger.Info("searching for a suitable member local address in AdvertisePeerURLs", advertised)
	for _, u := range d.advertised {
		address, err := netip.ParseAddr(u.Hostname())
		if err != nil || address.IsLoopback() || address.IsUnspecified() {
			continue
		}
		d.logger.Info("setting member local address", zap.String("LocalAddr", address.String()))
		tcp := net.Dialer{KeepAlive: 30 * time.Second, LocalAddr: &net.TCPAddr{IP: address.AsSlice(), Zone: address.Zone()}}
		return func(ctx context.Context, network, address string) (net.Conn, error) {
			if network == "unix" {
				return (&net.Dialer{}).DialContext(ctx, network, address)
			}
			return tcp.DialContext(ctx, network, address)
		}
	}
	d.logger.Warn("unable to set a member local address due to lack of suitable local addresses", advertised)
	return nil
}
