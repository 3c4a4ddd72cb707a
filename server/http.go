package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/pprof"
	"net/url"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/coreos/go-semver/semver"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"golang.org/x/net/trace"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/evidence"
	"github.com/belaydb/belay/internal/show"
	"github.com/belaydb/belay/internal/version"
	"github.com/belaydb/belay/leader"
	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/timemap"
)

// pages are HTTP's: versions, health, metrics and debugging, on the ports of clients and of
// metrics.
type pages struct {
	memberID uint64
	state    seen
	versions *memberVersions
	status   func() replica.Status
	// probe reads what is not there, as a client would; it shows nothing.
	probe  func(ctx context.Context, serializable bool) error
	events func(within time.Duration) evidence.Report // nil: there is no such page
	// usage tells who uses this member, under usageName; without a tracker there is no such page.
	usage     *usageOf
	usageName string
	// neighbours writes a record; nil: there is no such page
	neighbours func(w io.Writer, since time.Time) error
	// revisions answers when which revision was written; nil: there is no such page.
	revisions func(query url.Values) (timemap.Answer, error)
	backups   http.Handler // nil: there is no such page
	// admin judges whether a call may administrate.
	admin func(context.Context) error

	gatherer       prometheus.Gatherer   // nil: no metrics
	registerer     prometheus.Registerer // of the metrics page's own series; nil: it has none
	readyChecks    []HealthCheck         // besides etcd's
	requestTimeout time.Duration
	profiles       bool // they are served
	debug          bool // debug logging is on: traces of calls are served, too
	metrics        *Metrics
	logger         *zap.Logger
}

// seen is what health depends on; *state.Machine has it.
type seen interface {
	Alarms() []*pb.AlarmMember
	AlarmActive(pb.AlarmType) bool
	IsLearner(id uint64) bool
}

// register registers all pages.
func (p *pages) register(mux *http.ServeMux) {
	p.handleMetricsAndHealth(mux)
	mux.HandleFunc(peers.PathVersion, p.serveVersion)
	mux.HandleFunc("/debug/vars", p.serveVars)
	if p.backups != nil {
		mux.HandleFunc(pathBackup, p.serveBackup)
	}
	if p.profiles || p.debug {
		handleProfiles(mux)
	}
	if p.debug {
		mux.HandleFunc("/debug/requests", func(w http.ResponseWriter, r *http.Request) { trace.Render(w, r, true) })
		mux.HandleFunc("/debug/events", func(w http.ResponseWriter, r *http.Request) { trace.RenderEvents(w, r, true) })
	}
}

func handleProfiles(mux *http.ServeMux) {
	if runtime.SetMutexProfileFraction(-1) == 0 {
		runtime.SetMutexProfileFraction(5) // /debug/pprof/mutex samples one of five waits
	}
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/cmdline", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprint(w, strings.Join(show.CommandLine(os.Args), "\x00")) // as in pprof, without passwords
	})
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
}

func (p *pages) handleMetricsAndHealth(mux *http.ServeMux) {
	if p.gatherer != nil {
		h := promhttp.HandlerFor(p.gatherer, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
		if p.registerer != nil {
			h = promhttp.InstrumentMetricHandler(p.registerer, h)
		}
		mux.Handle("/metrics", h)
	}
	mux.HandleFunc("/health", p.serveHealth)
	p.handleEvents(mux)
	p.handleNeighbours(mux)
	p.handleUsage(mux)
	p.handleChecks(mux, "livez", []HealthCheck{
		{"serializable_read", p.serializableRead},
	})
	p.handleChecks(mux, "readyz", append([]HealthCheck{
		{"data_corruption", p.checkCorruption},
		{"serializable_read", p.serializableRead},
		{"linearizable_read", p.linearizableRead},
		{"non_learner", p.checkLearner},
	}, p.readyChecks...))
}

// memberVersions are the versions that this member tells.
type memberVersions struct {
	belay   string
	cluster func() *semver.Version // nil: not decided yet
}

func (v *memberVersions) all() leader.Versions {
	out := leader.Versions{Server: version.Etcd, Cluster: "not_decided", Storage: "unknown", Belay: v.belay}
	if cluster := v.cluster(); cluster != nil {
		out.Cluster = cluster.String()
	}
	if storage := v.storage(); storage != nil {
		out.Storage = storage.String()
	}
	return out
}

// storage is the schema that etcd would have on disk at this cluster
// version, nil as long as that is unknown.
func (v *memberVersions) storage() *semver.Version {
	c := v.cluster()
	if c == nil || c.LessThan(semver.Version{Major: 3, Minor: 6}) {
		return nil
	}
	return &semver.Version{Major: c.Major, Minor: c.Minor}
}

func (p *pages) serveVersion(w http.ResponseWriter, r *http.Request) {
	if !peers.AllowMethod(w, r, http.MethodGet) {
		return
	}
	peers.AnswerJSON(w, p.versions.all())
}

// serveVars is expvar's page without its global registry: the same variables in
// the same order and layout.
func (p *pages) serveVars(w http.ResponseWriter, r *http.Request) {
	if !peers.AllowMethod(w, r, http.MethodGet) {
		return
	}
	st := p.status()
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
func (p *pages) serveHealth(w http.ResponseWriter, r *http.Request) {
	if !peers.AllowMethod(w, r, http.MethodGet) {
		p.logger.Warn("/health error", zap.Int("status-code", http.StatusMethodNotAllowed))
		return
	}
	answer := healthAnswer{Health: "true"}
	if answer.Reason = p.unhealthy(r); answer.Reason != "" {
		answer.Health = "false"
	}
	body, _ := json.Marshal(answer) // two strings always have a JSON form
	if answer.Reason != "" {
		p.metrics.healthFailures.Inc()
		http.Error(w, string(body), http.StatusServiceUnavailable)
		p.logger.Warn("/health error", zap.String("output", string(body)), zap.Int("status-code", http.StatusServiceUnavailable))
		return
	}
	p.metrics.healthSuccess.Inc()
	_, _ = w.Write(body)
	p.logger.Debug("/health OK", zap.Int("status-code", http.StatusOK))
}

// unhealthy returns the reason, or "" for a healthy member.
func (p *pages) unhealthy(r *http.Request) string {
	excluded := querySet(r, "exclude")
	for _, a := range p.state.Alarms() {
		if excluded[a.Alarm.String()] {
			p.logger.Debug("/health excluded alarm", zap.String("alarm", a.String()))
			continue
		}
		p.logger.Warn("serving /health false due to an alarm", zap.String("alarm", a.String()))
		switch a.Alarm {
		case pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT:
			return "ALARM " + a.Alarm.String()
		}
		return "ALARM UNKNOWN"
	}
	serializable := r.URL.Query().Get("serializable") == "true"
	if !serializable && p.status().Leader == 0 {
		p.logger.Warn("serving /health false; no leader")
		return "RAFT NO LEADER"
	}
	ctx, cancel := context.WithTimeout(r.Context(), p.requestTimeout)
	defer cancel()
	if err := p.probe(ctx, serializable); err != nil {
		p.logger.Warn("serving /health false; Range fails", zap.Error(err))
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

func (p *pages) checkCorruption(context.Context) error {
	if p.state.AlarmActive(pb.AlarmType_CORRUPT) {
		return fmt.Errorf("alarm activated: %s", pb.AlarmType_CORRUPT)
	}
	return nil
}

func (p *pages) serializableRead(ctx context.Context) error { return p.probe(ctx, true) }
func (p *pages) linearizableRead(ctx context.Context) error { return p.probe(ctx, false) }

func (p *pages) checkLearner(context.Context) error {
	if p.state.IsLearner(p.memberID) {
		return fmt.Errorf("not supported for learner")
	}
	return nil
}

// handleChecks serves all checks at /kind and each at /kind/name.
func (p *pages) handleChecks(mux *http.ServeMux, kind string, checks []HealthCheck) {
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
			p.logger.Warn("some health checks cannot be excluded", zap.String("missing-health-checks", strings.Join(missing, ",")))
		}
		p.serveChecks(w, r, kind, run)
	})
	for _, c := range checks {
		mux.HandleFunc("/"+kind+"/"+c.Name, func(w http.ResponseWriter, r *http.Request) {
			p.serveChecks(w, r, kind, []HealthCheck{c})
		})
	}
}

func (p *pages) serveChecks(w http.ResponseWriter, r *http.Request, kind string, checks []HealthCheck) {
	if !peers.AllowMethod(w, r, http.MethodGet) {
		p.logger.Warn("Health request error", zap.String("path", r.URL.Path), zap.Int("status-code", http.StatusMethodNotAllowed))
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
		p.metrics.healthcheck.WithLabelValues(kind, c.Name).Set(value)
		p.metrics.healthchecks.WithLabelValues(kind, c.Name, status).Inc()
	}
	if failed {
		http.Error(w, lines.String(), http.StatusServiceUnavailable)
		p.logger.Error("Health check error", zap.String("path", r.URL.Path), zap.String("reason", lines.String()),
			zap.Int("status-code", http.StatusServiceUnavailable))
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if _, verbose := r.URL.Query()["verbose"]; verbose {
		fmt.Fprint(w, lines.String())
	}
	fmt.Fprint(w, "ok\n")
	p.logger.Debug("Health check OK", zap.String("path", r.URL.Path), zap.Int("status-code", http.StatusOK))
}
