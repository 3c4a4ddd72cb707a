package transport

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// parseURLs checks peer URLs as etcd does and sorts them.
func parseURLs(list []string) ([]*url.URL, error) {
	if len(list) == 0 {
		return nil, errors.New("no valid URLs given")
	}
	var urls []*url.URL
	for _, s := range list {
		s = strings.TrimSpace(s)
		u, err := url.Parse(s)
		if err != nil {
			return nil, err
		}
		switch u.Scheme {
		case "http", "https":
			if _, _, err := net.SplitHostPort(u.Host); err != nil {
				return nil, fmt.Errorf(`URL address does not have the form "host:port": %s`, s)
			}
			if u.Path != "" {
				return nil, fmt.Errorf("URL must not contain a path: %s", s)
			}
		case "unix", "unixs":
		default:
			return nil, fmt.Errorf("URL scheme must be http, https, unix, or unixs: %s", s)
		}
		urls = append(urls, u)
	}
	slices.SortFunc(urls, func(a, b *url.URL) int { return strings.Compare(a.String(), b.String()) })
	return urls, nil
}

// A urlPicker stays with one of a peer's URLs until it fails.
type urlPicker struct {
	mu     sync.Mutex
	urls   []*url.URL
	picked int
}

func (p *urlPicker) update(urls []*url.URL) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.urls, p.picked = urls, 0
}

// pick returns the URL to use now; nil if the peer has none.
func (p *urlPicker) pick() *url.URL {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.urls) == 0 {
		return nil
	}
	return p.urls[p.picked]
}

// unreachable switches to the next URL, if u is the one in use.
func (p *urlPicker) unreachable(u *url.URL) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.urls) > 0 && p.urls[p.picked] == u {
		p.picked = (p.picked + 1) % len(p.urls)
	}
}
