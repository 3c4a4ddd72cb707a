package proxy

import (
	"net"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/client/pkg/v3/srv"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.uber.org/zap"
)

// discovered says which DNS records name the cluster.
type discovered struct {
	domain, service string
	insecure        bool // endpoints without TLS count
}

func (d *discovered) register(fs *pflag.FlagSet, about string) {
	fs.StringVar(&d.domain, "discovery-srv", "", about)
	fs.StringVar(&d.service, "discovery-srv-name", "", "service name to query when using DNS discovery")
	fs.BoolVar(&d.insecure, "insecure-discovery", false, "accept insecure SRV records")
}

// find asks DNS; it finds nothing without a domain. Unless insecure, an endpoint must answer with TLS
// and a certificate for the domain that ca vouches for.
func (d *discovered) find(logger *zap.Logger, ca string) (endpoints []string, records []*net.SRV, err error) {
	if d.domain == "" {
		return nil, nil, nil
	}
	found, err := srv.GetClient("etcd-client", d.domain, d.service)
	if err != nil {
		return nil, nil, err
	}
	of := zap.String("srv-server", d.domain)
	logger.Info("discovered cluster from SRV", of, zap.Strings("endpoints", found.Endpoints))
	if d.insecure {
		return found.Endpoints, found.SRVs, nil
	}
	logger.Info("validating discovered SRV endpoints", of, zap.Strings("endpoints", found.Endpoints))
	valid, err := transport.ValidateSecureEndpoints(transport.TLSInfo{TrustedCAFile: ca, ServerName: d.domain}, found.Endpoints)
	if err != nil {
		logger.Warn("failed to validate discovered endpoints", of, zap.Strings("endpoints", valid), zap.Error(err))
	} else {
		logger.Info("using validated discovered SRV endpoints", of, zap.Strings("endpoints", valid))
	}
	kept := make(map[string]bool)
	for _, endpoint := range valid {
		kept[endpoint] = true
	}
	for i, endpoint := range found.Endpoints {
		if kept[endpoint] {
			endpoints, records = append(endpoints, endpoint), append(records, found.SRVs[i])
		}
	}
	return endpoints, records, nil
}
