package backup

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/belaydb/belay/peers"
)

// Path is where a member's client port answers about its backups: GET gives a Status, with ?list=1
// the backups, too; POST makes one (?kind=full, increment or nothing) or tries one (?verify=NAME),
// and gives the Outcome when that is done.
const Path = "/debug/belay/backup"

// A Status is what a member says about its backups, as JSON.
type Status struct {
	Member     string `json:"member"`
	Leading    bool   `json:"leading"` // it makes the backups, or has them made
	To         string `json:"to"`
	Every      string `json:"every"`
	Increments string `json:"increments,omitempty"`
	MaxAge     string `json:"maxAge"`

	LastGood *time.Time `json:"lastGood,omitempty"` // of the leader
	TooOld   bool       `json:"tooOld"`
	Next     *time.Time `json:"next,omitempty"` // when the next one is due
	Running  *Running   `json:"running,omitempty"`

	LastError   string    `json:"lastError,omitempty"` // since the start of the member
	LastErrorAt time.Time `json:"lastErrorAt,omitzero"`

	Backups []Listed `json:"backups,omitempty"`
}

// Running is what is being done.
type Running struct {
	Doing string    `json:"doing"`
	Kind  string    `json:"kind,omitempty"`
	Since time.Time `json:"since"`
	Bytes int64     `json:"bytes,omitempty"` // saved so far, before compression
	By    string    `json:"by,omitempty"`    // the member that does it for the leader
}

// An Outcome is what came of an order.
type Outcome struct {
	Name      string `json:"name,omitempty"`
	State     State  `json:"state,omitempty"`
	Revision  int64  `json:"revision,omitempty"`
	Unchanged bool   `json:"unchanged,omitempty"` // nothing was written since that one
	Error     string `json:"error,omitempty"`
	By        string `json:"by,omitempty"` // the member that made it
}

// Status is what there is to say without reading the depot.
func (m *Maker) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.status
	if s.Running != nil {
		running := *s.Running
		s.Running = &running
	}
	return s
}

// ServeHTTP implements Path. The caller has judged who asks.
func (m *Maker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	switch r.Method {
	case http.MethodGet:
		s := m.Status()
		if query.Get("list") != "" {
			c, err := Load(r.Context(), m.env.Depot, clusterFolder(m.env.Cluster), nil)
			if err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			s.Backups = Listing(c)
		}
		peers.AnswerJSON(w, s)
	case http.MethodPost:
		o := &order{verify: query.Get("verify"), full: query.Get("kind") == Full, done: make(chan Outcome, 1)}
		if kind := query.Get("kind"); kind != "" && kind != Full && kind != Increment {
			http.Error(w, "kind must be full or increment", http.StatusBadRequest)
			return
		}
		if !m.env.Leading() {
			http.Error(w, "this member does not lead: ask the leader", http.StatusConflict)
			return
		}
		out, err := m.order(r.Context(), o)
		if err != nil {
			return // nobody waits any more
		}
		peers.AnswerJSON(w, out)
	default:
		w.Header().Set("Allow", "GET, POST")
		http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
	}
}

// order waits until one order before it is done, and then for its own.
func (m *Maker) order(ctx context.Context, o *order) (Outcome, error) {
	select {
	case m.orders <- o:
	case <-ctx.Done():
		return Outcome{}, ctx.Err()
	}
	select {
	case out := <-o.done:
		return out, nil
	case <-ctx.Done():
		return Outcome{}, ctx.Err()
	}
}

// Metrics are a member's about its backups.
type Metrics struct {
	lastGood, tooOld, took prometheus.Gauge
	made                   *prometheus.CounterVec // by kind
	failures, bytes        prometheus.Counter
}

// NewMetrics registers them.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		lastGood: prometheus.NewGauge(prometheus.GaugeOpts{Name: "belay_backup_last_good_timestamp_seconds",
			Help: "When the state of the last good backup was saved, in seconds since 1970; 0: none, or this member does not lead."}),
		tooOld: prometheus.NewGauge(prometheus.GaugeOpts{Name: "belay_backup_too_old",
			Help: "Whether this member leads and the last good backup is older than --backup-max-age."}),
		took: prometheus.NewGauge(prometheus.GaugeOpts{Name: "belay_backup_last_duration_seconds",
			Help: "How long the last backup took that this member made, with its proof."}),
		made: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "belay_backup_made_total",
			Help: "Backups that this member made and found good."}, []string{"kind"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "belay_backup_failures_total",
			Help: "Backups that this member could not make, or that were not good."}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{Name: "belay_backup_written_bytes_total",
			Help: "Bytes of backups that this member wrote."}),
	}
	for _, kind := range []string{Full, Increment} {
		m.made.WithLabelValues(kind)
	}
	r.MustRegister(m.lastGood, m.tooOld, m.took, m.made, m.failures, m.bytes)
	return m
}
