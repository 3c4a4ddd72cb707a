package transport

import (
	"net/url"
	"sync"

	"go.etcd.io/etcd/client/pkg/v3/types"
)

// parseURLs checks peer URLs as etcd does and sorts them.
func parseURLs(list []string) (urls []*url.URL, err error) {
	parsed, err := types.NewURLs(list)
	for i := range parsed {
		urls = append(urls, &parsed[i])
	}
	return urls, err
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
