package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"go.uber.org/zap"
)

// Lookup is what SRV needs of DNS; *net.Resolver implements it.
type Lookup interface {
	LookupSRV(ctx context.Context, service, proto, name string) (cname string, addrs []*net.SRV, err error)
	LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error)
	LookupPort(ctx context.Context, network, service string) (port int, err error)
}

// Records names the SRV records to look up.
type Records struct {
	Domain    string
	Suffix    string    // --discovery-srv-name; "": none
	Name      string    // of this member
	Advertise []url.URL // its peer URLs
}

// SRV is the cluster that DNS lists, in the form of --initial-cluster; "" and the errors of all
// queries if it lists none. With a cluster, an error means that one of the queries failed.
func SRV(ctx context.Context, logger *zap.Logger, dns Lookup, r Records) (initialCluster string, err error) {
	if logger == nil {
		logger = zap.NewNop()
	}
	suffix := ""
	if r.Suffix != "" {
		suffix = "-" + r.Suffix
	}
	var found []string
	var errs []error
	for _, q := range []struct{ scheme, service string }{{"https", "etcd-server-ssl"}, {"http", "etcd-server"}} {
		service := q.service + suffix
		members, err := r.query(ctx, dns, q.scheme, service)
		found = append(found, members...)
		errs = append(errs, err)
		logger.Info("get cluster for "+q.service+" SRV",
			zap.String("service-scheme", q.scheme), zap.String("service-name", service),
			zap.String("server-name", r.Name), zap.String("discovery-srv", r.Domain),
			zap.Strings("advertise-peer-urls", texts(r.Advertise)), zap.Strings("found-cluster", found), zap.Error(err))
	}
	err = errors.Join(errs...)
	if err != nil {
		logger.Warn("failed to resolve during SRV discovery", zap.Error(err))
	}
	for _, member := range found {
		logger.Info("got bootstrap from DNS for etcd-server", zap.String("node", member))
	}
	return strings.Join(found, ","), err
}

func texts(urls []url.URL) []string {
	all := make([]string, len(urls))
	for i := range urls {
		all[i] = urls[i].String()
	}
	return all
}

// query is one service's members: name=url.
func (r Records) query(ctx context.Context, dns Lookup, scheme, service string) ([]string, error) {
	own := map[netip.AddrPort]url.URL{}
	for _, u := range r.Advertise {
		address, err := resolve(ctx, dns, u.Host)
		if err != nil {
			return nil, err
		}
		own[address] = u
	}
	_, records, err := dns.LookupSRV(ctx, service, "tcp", r.Domain)
	if err != nil {
		return nil, fmt.Errorf("error querying DNS SRV records for _%s %w", service, err)
	}
	var members []string
	var last error
	others := 0
	for _, record := range records {
		port := strconv.Itoa(int(record.Port))
		address, err := resolve(ctx, dns, net.JoinHostPort(record.Target, port))
		if err != nil {
			last = err
			continue
		}
		name := r.Name
		u, self := own[address]
		if !self || name == "" {
			name = strconv.Itoa(others)
			others++
		}
		found := scheme + "://" + net.JoinHostPort(strings.TrimSuffix(record.Target, "."), port)
		if self && u.Scheme != scheme {
			last = fmt.Errorf("bootstrap at %s from DNS for %s has scheme mismatch with expected peer %s", found, service, u.String())
			continue
		}
		members = append(members, name+"="+found)
	}
	if len(members) == 0 && last != nil {
		return nil, fmt.Errorf("error querying DNS SRV records for _%s %w", service, last)
	}
	return members, nil
}

// resolve is the address of host:port, IPv4 before IPv6.
func resolve(ctx context.Context, dns Lookup, hostPort string) (netip.AddrPort, error) {
	host, service, err := net.SplitHostPort(hostPort)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := dns.LookupPort(ctx, "tcp", service)
	if err != nil {
		return netip.AddrPort{}, err
	}
	ips, err := dns.LookupIPAddr(ctx, host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	var chosen netip.Addr
	for _, ip := range ips {
		address, ok := netip.AddrFromSlice(ip.IP)
		if !ok {
			continue
		}
		address = address.Unmap().WithZone(ip.Zone)
		if !chosen.IsValid() || address.Is4() && !chosen.Is4() {
			chosen = address
		}
	}
	if !chosen.IsValid() {
		return netip.AddrPort{}, fmt.Errorf("lookup %s: no address", host)
	}
	return netip.AddrPortFrom(chosen, uint16(port)), nil
}
