package transport

import (
	"cmp"
	"fmt"
	"net/http"

	"github.com/coreos/go-semver/semver"
	"go.etcd.io/etcd/api/v3/version"

	"github.com/belaydb/belay/peers"
)

// What we tell peers: the etcd version whose protocol we speak, and the oldest cluster we join.
const minClusterVersion = "3.0.0"

var etcdVersion = version.Version

// checkVersion refuses a peer whose major and minor version is below the oldest that we support, or
// that requires a newer cluster than we can be part of.
func checkVersion(h http.Header) error {
	server, err := headerSemver(h, peers.HeaderVersion)
	if err != nil {
		return err
	}
	minCluster, err := headerSemver(h, peers.HeaderMinCluster)
	if err != nil {
		return err
	}
	local, localMin := semver.New(etcdVersion), semver.New(minClusterVersion)
	name := h.Get(peers.HeaderFrom)
	if compareMinor(server, localMin) < 0 {
		return fmt.Errorf("remote version is too low: remote[%s]=%s, local=%s", name, server, local)
	}
	if compareMinor(minCluster, local) > 0 {
		return fmt.Errorf("local version is too low: remote[%s]=%s, local=%s", name, server, local)
	}
	return nil
}

// headerSemver reads a version; etcd 2.0 sent none.
func headerSemver(h http.Header, key string) (*semver.Version, error) {
	s := h.Get(key)
	if s == "" {
		s = "2.0.0"
	}
	v, err := semver.NewVersion(s)
	if err != nil {
		return nil, fmt.Errorf("header %s: %w", key, err)
	}
	return v, nil
}

func compareMinor(a, b *semver.Version) int {
	return cmp.Or(cmp.Compare(a.Major, b.Major), cmp.Compare(a.Minor, b.Minor))
}
