package config

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
)

// Member is one member of --initial-cluster.
type Member struct {
	Name string
	URLs []url.URL // sorted
}

// Members reads --initial-cluster; sorted by name.
func (c *Config) Members() ([]Member, error) {
	byName := map[string][]string{}
	for part := range strings.SplitSeq(c.InitialCluster, ",") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		byName[name] = append(byName[name], value)
	}
	var members []Member
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		urls, err := newURLs(byName[name])
		if err != nil {
			return nil, fmt.Errorf("error setting up initial cluster: %w", err)
		}
		members = append(members, Member{Name: name, URLs: urls})
	}
	return members, nil
}

// verifyTimeout is how long Verify may try to resolve host names.
const verifyTimeout = 30 * time.Second

// Verify is what a member checks before it makes or joins a cluster, when it has no data yet: that
// --initial-cluster knows it, under its advertised URLs if the cluster is new, and no URL twice.
func (c *Config) Verify(ctx context.Context, lg *zap.Logger) error {
	members, err := c.Members()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(members, func(m Member) bool { return m.Name == c.Name })
	if i < 0 {
		if len(members) == 0 {
			return errors.New("initial cluster unset and no discovery endpoints found")
		}
		return fmt.Errorf("couldn't find local name %q in the initial cluster configuration", c.Name)
	}
	if c.InitialClusterState == "new" {
		if err := c.verifyAdvertised(ctx, lg, members[i]); err != nil {
			return err
		}
	}
	seen := map[string]bool{}
	for _, m := range members {
		for _, u := range m.URLs {
			if seen[u.String()] {
				return fmt.Errorf("initial cluster %s has duplicate url", writeMembers(members...))
			}
			seen[u.String()] = true
		}
	}
	return nil
}

// verifyAdvertised compares the URLs that --initial-cluster gives this member with those it
// advertises: as text, and if they differ, as addresses.
func (c *Config) verifyAdvertised(ctx context.Context, lg *zap.Logger, own Member) error {
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	err := sameURLs(ctx, lg, c.AdvertisePeerURLs, own.URLs)
	if err == nil {
		return nil
	}
	without := func(a, b []url.URL) (missing []string) {
		for _, u := range a {
			if !slices.ContainsFunc(b, func(v url.URL) bool { return u.String() == v.String() }) {
				missing = append(missing, u.String())
			}
		}
		return missing
	}
	advertised := JoinURLs(c.AdvertisePeerURLs)
	if missing := without(own.URLs, c.AdvertisePeerURLs); len(missing) > 0 {
		for i := range missing {
			missing[i] = c.Name + "=" + missing[i]
		}
		return fmt.Errorf("--initial-cluster has %s but missing from --initial-advertise-peer-urls=%s (%w)", strings.Join(missing, ","), advertised, err)
	}
	if missing := without(c.AdvertisePeerURLs, own.URLs); len(missing) > 0 {
		return fmt.Errorf("--initial-advertise-peer-urls has %s but missing from --initial-cluster=%s", strings.Join(missing, ","), writeMembers(Member{c.Name, c.AdvertisePeerURLs}))
	}
	return fmt.Errorf("failed to resolve %s to match --initial-cluster=%s (%w)", advertised, writeMembers(Member{c.Name, c.AdvertisePeerURLs}), err)
}

func writeMembers(members ...Member) string {
	var pairs []string
	for _, m := range members {
		for _, u := range m.URLs {
			pairs = append(pairs, m.Name+"="+u.String())
		}
	}
	slices.Sort(pairs)
	return strings.Join(pairs, ",")
}

func texts(urls []url.URL) (all []string) {
	for i := range urls {
		all = append(all, urls[i].String())
	}
	slices.Sort(all)
	return all
}

// sameURLs says why a and b are not the same addresses.
func sameURLs(ctx context.Context, lg *zap.Logger, a, b []url.URL) error {
	if len(a) != len(b) {
		return fmt.Errorf("len(%q) != len(%q)", texts(a), texts(b))
	}
	if slices.Equal(normal(a), normal(b)) {
		return nil
	}
	var resolved [2][]url.URL
	for side, urls := range [][]url.URL{a, b} {
		for _, u := range urls {
			v, err := resolve(ctx, lg, u)
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

// resolve replaces the host of u by its address; it tries again each second till ctx ends, because
// the name of a pod may appear later than the pod.
func resolve(ctx context.Context, lg *zap.Logger, u url.URL) (url.URL, error) {
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
			lg.Info("resolved URL Host", append(fields, zap.String("resolved-addr", u.Host))...)
			return u, nil
		}
		lg.Warn("failed to resolve URL Host", append(fields, zap.Duration("retry-interval", retryInterval), zap.Error(err))...)
		select {
		case <-ctx.Done():
			return u, err
		case <-time.After(retryInterval):
		}
	}
}
