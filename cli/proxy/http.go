package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/pprof"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/belaydb/belay/cli/connect"
	"github.com/belaydb/belay/internal/show"
	"github.com/belaydb/belay/listen"
)

const (
	clusterHealthTimeout = time.Second
	proxyHealthTimeout   = 3 * time.Second
	scrapeTimeout        = 5 * time.Second
	// maxScrapeBytes bounds what is passed on of a member's metrics.
	maxScrapeBytes = 16 << 20
)

// pages are what is served over HTTP to clients, and at --metrics-addr.
type pages struct{ clients, metrics http.Handler }

func (p *proxy) pages() pages {
	add := func(mux *http.ServeMux) {
		mux.Handle("/metrics", p.memberMetrics())
		mux.Handle("/proxy/metrics", promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{}))
		mux.HandleFunc("/health", p.healthPage(p.clusterHealth))
		mux.HandleFunc("/proxy/health", p.healthPage(p.proxyHealth))
		// Alive is whoever answers; ready, who could pass a call on.
		mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
		mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
			if p.cluster.Fit() == 0 {
				http.Error(w, "no member of the cluster can be reached and knows a leader", http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintln(w, "ok")
		})
	}
	clients, metrics := http.NewServeMux(), http.NewServeMux()
	add(clients)
	add(metrics)
	if p.o.pprof {
		addPprof(clients)
		p.logger.Info("gRPC proxy enabled pprof", zap.String("path", "/debug/pprof"))
	}
	return pages{clients, metrics}
}

func addPprof(mux *http.ServeMux) {
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("/debug/pprof/cmdline", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprint(w, strings.Join(show.CommandLine(os.Args), "\x00"))
	})
}

// memberMetrics passes on the metrics of some member.
func (p *proxy) memberMetrics() http.Handler {
	client := &http.Client{Timeout: scrapeTimeout}
	secure, err := p.clusterTLS()
	if err == nil && secure != nil {
		client.Transport = &http.Transport{TLSClientConfig: secure}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		members := p.cluster.Members()
		if len(members) == 0 {
			http.Error(w, "Internal server error", http.StatusInternalServerError)
			return
		}
		m := members[rand.IntN(len(members))]
		base := connect.HTTPBase(m.Endpoint, m.Secure)
		req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, base+"/metrics", nil)
		if base == "" || err != nil {
			http.Error(w, "Internal server error", http.StatusInternalServerError)
			return
		}
		resp, err := client.Do(req)
		if err != nil {
			http.Error(w, "Internal server error", http.StatusInternalServerError)
			return
		}
		defer resp.Body.Close()
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, io.LimitReader(resp.Body, maxScrapeBytes)) // the client is gone, or the member
	})
}

// health is etcd's answer.
type health struct {
	Health string `json:"health"`
	Reason string `json:"reason"`
}

func (p *proxy) healthPage(check func(context.Context) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
			http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
			return
		}
		h, code := health{Health: "true"}, http.StatusOK
		if err := check(r.Context()); err != nil {
			h, code = health{"false", err.Error()}, http.StatusServiceUnavailable
			p.logger.Warn("serving /health false", zap.String("path", r.URL.Path), zap.Error(err))
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		b, _ := json.Marshal(h)
		_, _ = w.Write(b)
	}
}

// clusterHealth asks the cluster for a linearizable read.
func (p *proxy) clusterHealth(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, clusterHealthTimeout)
	defer cancel()
	if err := p.relay.Healthy(ctx); err != nil {
		return fmt.Errorf("GET ERROR:%w", err)
	}
	return nil
}

// proxyHealth reads and watches through the proxy itself.
func (p *proxy) proxyHealth(ctx context.Context) error {
	if err := p.clusterHealth(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, proxyHealthTimeout)
	defer cancel()
	select {
	case <-p.self.client.Watch(ctx, "a", clientv3.WithCreatedNotify()):
		if ctx.Err() == nil {
			return nil
		}
	case <-ctx.Done():
	}
	return fmt.Errorf("WATCH TIMEOUT")
}

// self is a client of this proxy, in its process.
type self struct{ client *clientv3.Client }

func newSelf(memory *listen.Memory, logger *zap.Logger) (*self, error) {
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"http://proxy"}, Logger: logger.Named("client"),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(memory.Dial)},
	})
	if err != nil {
		return nil, err
	}
	return &self{client}, nil
}

func (s *self) close() { _ = s.client.Close() }
