package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/pprof"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"golang.org/x/net/trace"
	"google.golang.org/grpc"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/internal/show"
	"github.com/belaydb/belay/internal/version"
	"github.com/belaydb/belay/leader"
	"github.com/belaydb/belay/peers"
)

// HTTPHandler serves the client port's HTTP: versions, health, metrics,
// profiles, and the JSON gateway if there is a connection for it to call this
// member's gRPC server on.
func (s *Server) HTTPHandler(gateway *grpc.ClientConn) (http.Handler, error) {
	mux := http.NewServeMux()
	s.handleMetricsAndHealth(mux)
	mux.HandleFunc(peers.PathVersion, s.serveVersion)
	mux.HandleFunc("/debug/vars", s.serveVars)
	if s.cfg.EnablePprof || s.debug {
		handleProfiles(mux)
	}
	if s.debug {
		mux.HandleFunc("/debug/requests", func(w http.ResponseWriter, r *http.Request) { trace.Render(w, r, true) })
		mux.HandleFunc("/debug/events", func(w http.ResponseWriter, r *http.Request) { trace.RenderEvents(w, r, true) })
	}
	if gateway != nil {
		g, err := newGateway(gateway, s.cfg.MaxRequestBytes)
		if err != nil {
			return nil, err
		}
		mux.Handle("/v3/", newWebsocketProxy(g, s.logger, jsonOverhead*int64(s.cfg.MaxRequestBytes+recvOverheadBytes), s.stopped))
	}
	return &accessControl{Server: s, next: mux, gateway: gateway != nil, authOn: s.authOn}, nil
}

func handleProfiles(mux *http.ServeMux) {
	if runtime.SetMutexProfileFraction(-1) == 0 {
		runtime.SetMutexProfileFraction(5) // one of five waits is told by /debug/pprof/mutex
	}
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/cmdline", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprint(w, strings.Join(show.CommandLine(os.Args), "\x00")) // as pprof has it, less passwords
	})
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
}

// MetricsHandler is what --listen-metrics-urls serve: metrics and health alone.
func (s *Server) MetricsHandler() http.Handler {
	mux := http.NewServeMux()
	s.handleMetricsAndHealth(mux)
	return mux
}

func (s *Server) handleMetricsAndHealth(mux *http.ServeMux) {
	if s.cfg.Gatherer != nil {
		h := promhttp.HandlerFor(s.cfg.Gatherer, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
		if s.cfg.Registerer != nil {
			h = promhttp.InstrumentMetricHandler(s.cfg.Registerer, h)
		}
		mux.Handle("/metrics", h)
	}
	mux.HandleFunc("/health", s.serveHealth)
	s.handleEvents(mux)
	s.handleChecks(mux, "livez", []HealthCheck{
		{"serializable_read", s.checkRead(true)},
	})
	s.handleChecks(mux, "readyz", append([]HealthCheck{
		{"data_corruption", s.checkCorruption},
		{"serializable_read", s.checkRead(true)},
		{"linearizable_read", s.checkRead(false)},
		{"non_learner", s.checkLearner},
	}, s.cfg.ReadyChecks...))
}

// allowMethod answers 405 and says false to any other method.
func allowMethod(w http.ResponseWriter, r *http.Request, method string) bool {
	if r.Method == method {
		return true
	}
	w.Header().Set("Allow", method)
	http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
	return false
}

func (s *Server) versions() leader.Versions {
	v := leader.Versions{Server: version.Etcd, Cluster: "not_decided", Storage: "unknown", Belay: s.cfg.Version}
	if cluster := s.state.ClusterVersion(); cluster != nil {
		v.Cluster = cluster.String()
	}
	if storage := s.storageVersion(); storage != nil {
		v.Storage = storage.String()
	}
	return v
}

func (s *Server) serveVersion(w http.ResponseWriter, r *http.Request) {
	if !allowMethod(w, r, http.MethodGet) {
		return
	}
	writeJSON(w, s.versions())
}

func writeJSON(w http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b) // the client left: nobody to tell
}

// serveVars is expvar's page without its global registry: the same variables in
// the same order and layout.
func (s *Server) serveVars(w http.ResponseWriter, r *http.Request) {
	if !allowMethod(w, r, http.MethodGet) {
		return
	}
	st := s.replica.Status()
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	for i, v := range []struct {
		name  string
		value any
	}{
		{"cmdline", show.CommandLine(os.Args)},
		{"file_descriptor_limit", DescriptorLimit()},
		{"memstats", mem},
		{"raft.status", map[string]any{
			"id": command.IDText(st.ID), "term": st.Term, "vote": command.IDText(st.Vote), "commit": st.Committed,
			"lead": command.IDText(st.Leader), "raftState": st.State.String(), "applied": st.Applied,
		}},
	} {
		b, err := json.Marshal(v.value)
		if err != nil {
			b = []byte("null")
		}
		separator := ",\n"
		if i == 0 {
			separator = "{\n"
		}
		fmt.Fprintf(w, "%s%q: %s", separator, v.name, b)
	}
	fmt.Fprint(w, "\n}\n")
}

type healthAnswer struct {
	Health string `json:"health"`
	Reason string `json:"reason"`
}

// serveHealth is etcd's /health. Its body is JSON, its content type text.
func (s *Server) serveHealth(w http.ResponseWriter, r *http.Request) {
	if !allowMethod(w, r, http.MethodGet) {
		s.logger.Warn("/health error", zap.Int("status-code", http.StatusMethodNotAllowed))
		return
	}
	answer := healthAnswer{Health: "true"}
	if answer.Reason = s.unhealthy(r); answer.Reason != "" {
		answer.Health = "false"
	}
	body, _ := json.Marshal(answer) // two strings always have a JSON form
	if answer.Reason != "" {
		s.metrics.healthFailures.Inc()
		http.Error(w, string(body), http.StatusServiceUnavailable)
		s.logger.Warn("/health error", zap.String("output", string(body)), zap.Int("status-code", http.StatusServiceUnavailable))
		return
	}
	s.metrics.healthSuccess.Inc()
	_, _ = w.Write(body)
	s.logger.Debug("/health OK", zap.Int("status-code", http.StatusOK))
}

// unhealthy gives the reason, or "" for a healthy member.
func (s *Server) unhealthy(r *http.Request) string {
	excluded := querySet(r, "exclude")
	for _, a := range s.state.Alarms() {
		if excluded[a.Alarm.String()] {
			s.logger.Debug("/health excluded alarm", zap.String("alarm", a.String()))
			continue
		}
		s.logger.Warn("serving /health false due to an alarm", zap.String("alarm", a.String()))
		switch a.Alarm {
		case pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT:
			return "ALARM " + a.Alarm.String()
		}
		return "ALARM UNKNOWN"
	}
	serializable := r.URL.Query().Get("serializable") == "true"
	if !serializable && s.replica.Leader() == 0 {
		s.logger.Warn("serving /health false; no leader")
		return "RAFT NO LEADER"
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.RequestTimeout)
	defer cancel()
	if err := s.checkRead(serializable)(ctx); err != nil {
		s.logger.Warn("serving /health false; Range fails", zap.Error(err))
		return fmt.Sprintf("RANGE ERROR:%s", err)
	}
	return ""
}

// querySet is the set of a query parameter's values, empty ones left out.
func querySet(r *http.Request, name string) map[string]bool {
	set := make(map[string]bool)
	for _, v := range r.URL.Query()[name] {
		if v != "" {
			set[v] = true
		}
	}
	return set
}

// HealthCheck is one check of /livez or /readyz; its error is what is wrong.
type HealthCheck struct {
	Name  string
	Check func(context.Context) error
}

func (s *Server) checkCorruption(context.Context) error {
	if s.state.AlarmActive(pb.AlarmType_CORRUPT) {
		return fmt.Errorf("alarm activated: %s", pb.AlarmType_CORRUPT)
	}
	return nil
}

func (s *Server) checkRead(serializable bool) func(context.Context) error {
	return func(ctx context.Context) error {
		t := s.newTurn(ctx)
		defer t.end()
		_, err := s.kv.rangeLocal(t, &pb.RangeRequest{Key: []byte{0}, KeysOnly: true, Limit: 1, Serializable: serializable}, nil)
		return err
	}
}

func (s *Server) checkLearner(context.Context) error {
	if s.isLearner() {
		return fmt.Errorf("not supported for learner")
	}
	return nil
}

// handleChecks serves all checks at /kind and each at /kind/name.
func (s *Server) handleChecks(mux *http.ServeMux, kind string, checks []HealthCheck) {
	mux.HandleFunc("/"+kind, func(w http.ResponseWriter, r *http.Request) {
		excluded := querySet(r, "exclude")
		var run []HealthCheck
		for _, c := range checks {
			if excluded[c.Name] {
				delete(excluded, c.Name)
				continue
			}
			run = append(run, c)
		}
		if len(excluded) > 0 {
			var missing []string
			for name := range excluded {
				missing = append(missing, fmt.Sprintf("%q", name))
			}
			s.logger.Warn("some health checks cannot be excluded", zap.String("missing-health-checks", strings.Join(missing, ",")))
		}
		s.serveChecks(w, r, kind, run)
	})
	for _, c := range checks {
		mux.HandleFunc("/"+kind+"/"+c.Name, func(w http.ResponseWriter, r *http.Request) {
			s.serveChecks(w, r, kind, []HealthCheck{c})
		})
	}
}

func (s *Server) serveChecks(w http.ResponseWriter, r *http.Request, kind string, checks []HealthCheck) {
	if !allowMethod(w, r, http.MethodGet) {
		s.logger.Warn("Health request error", zap.String("path", r.URL.Path), zap.Int("status-code", http.StatusMethodNotAllowed))
		return
	}
	var lines strings.Builder
	failed := false
	for _, c := range checks {
		status, value := "success", 1.0
		if err := c.Check(r.Context()); err != nil {
			fmt.Fprintf(&lines, "[-]%s failed: %v\n", c.Name, err)
			status, value, failed = "error", 0, true
		} else {
			fmt.Fprintf(&lines, "[+]%s ok\n", c.Name)
		}
		s.metrics.healthcheck.WithLabelValues(kind, c.Name).Set(value)
		s.metrics.healthchecks.WithLabelValues(kind, c.Name, status).Inc()
	}
	if failed {
		http.Error(w, lines.String(), http.StatusServiceUnavailable)
		s.logger.Error("Health check error", zap.String("path", r.URL.Path), zap.String("reason", lines.String()),
			zap.Int("status-code", http.StatusServiceUnavailable))
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if _, verbose := r.URL.Query()["verbose"]; verbose {
		fmt.Fprint(w, lines.String())
	}
	fmt.Fprint(w, "ok\n")
	s.logger.Debug("Health check OK", zap.String("path", r.URL.Path), zap.Int("status-code", http.StatusOK))
}

// DescriptorLimit is how many file descriptors the process may have; 0 where the
// system does not tell.
func DescriptorLimit() uint64 {
	_, limit := descriptors()
	return limit
}

// watchDescriptors keeps os_fd_used and os_fd_limit, every ten minutes as etcd:
// counting costs a directory listing.
func (s *Server) watchDescriptors(ctx context.Context) {
	tick := time.NewTicker(10 * time.Minute)
	defer tick.Stop()
	for {
		used, limit := descriptors()
		s.metrics.fdUsed.Set(float64(used))
		s.metrics.fdLimit.Set(float64(limit))
		if limit > 0 && used >= limit/5*4 {
			s.logger.Warn("80% of file descriptors are used", zap.Uint64("used", used), zap.Uint64("limit", limit))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
