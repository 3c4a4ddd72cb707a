package discovery

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"go.uber.org/zap"
)

// SameURLs returns an error that says why a and b are not the same addresses; nil if they are.
func SameURLs(ctx context.Context, logger *zap.Logger, a, b []url.URL) error {
	if logger == nil {
		logger = zap.NewNop()
	}
	if len(a) != len(b) {
		return fmt.Errorf("len(%q) != len(%q)", sorted(a), sorted(b))
	}
	if slices.Equal(normal(a), normal(b)) {
		return nil
	}
	var resolved [2][]url.URL
	for side, urls := range [][]url.URL{a, b} {
		for _, u := range urls {
			v, err := resolveURL(ctx, logger, u)
			if err != nil {
				return fmt.Errorf("failed to resolve %q (%w)", u.String(), err)
			}
			resolved[side] = append(resolved[side], v)
		}
	}
	x, y := normal(resolved[0]), normal(resolved[1])
	for i := range x {
		if x[i] != y[i] {
			return fmt.Errorf("resolved urls: %q != %q", x[i], y[i])
		}
	}
	return nil
}

func sorted(urls []url.URL) []string { return slices.Sorted(slices.Values(texts(urls))) }

// normal writes URLs with their IP addresses in one form, sorted.
func normal(urls []url.URL) (all []string) {
	for _, u := range urls {
		if addr, err := netip.ParseAddrPort(u.Host); err == nil {
			u.Host = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()).String()
		}
		all = append(all, u.String())
	}
	slices.Sort(all)
	return all
}

// resolveURL replaces the host of u by its address; it retries each second until ctx ends, because
// the name of a pod may appear later than the pod.
func resolveURL(ctx context.Context, logger *zap.Logger, u url.URL) (url.URL, error) {
	const retryInterval = time.Second
	if u.Scheme == "unix" || u.Scheme == "unixs" || u.Hostname() == "localhost" {
		return u, nil
	}
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil {
		return u, err
	}
	fields := []zap.Field{zap.String("url", u.String()), zap.String("host", u.Host)}
	for {
		number, err := net.DefaultResolver.LookupPort(ctx, "tcp", port)
		var ips []net.IPAddr
		if err == nil {
			ips, err = net.DefaultResolver.LookupIPAddr(ctx, host)
		}
		if err == nil {
			addr := net.TCPAddr{IP: ips[0].IP, Port: number, Zone: ips[0].Zone}
			u.Host = addr.String()
			logger.Info("resolved URL Host", append(fields, zap.String("resolved-addr", u.Host))...)
			return u, nil
		}
		logger.Warn("failed to resolve URL Host", append(fields, zap.Duration("retry-interval", retryInterval), zap.Error(err))...)
		select {
		case <-ctx.Done():
			return u, err
		case <-time.After(retryInterval):
		}
	}
}
