package node

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/evidence"
	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/state"
)

const (
	// lastWordsTimeout is how long a member that ends may take to tell the others
	// why; flushTimeout how long to write it down.
	lastWordsTimeout = 250 * time.Millisecond
	flushTimeout     = 200 * time.Millisecond
	maxReportBytes   = 4 << 20
	maxLastWords     = 4 << 10
	minFreeBytes     = 128 << 20 // server's
)

// witness connects a member to package evidence: what it records, and what others ask.
type witness struct {
	cfg       *Config
	logger    *zap.Logger
	registry  *prometheus.Registry
	freeBytes func() (uint64, error)
	member    // zero before meet

	started time.Time
	life    string // of this process
	ring    *evidence.Ring
	keeper  *evidence.Keeper // nil: the record is in memory alone
	links   *evidence.Links
	// begun is closed when start has made these two: others may ask before, since peers are served
	// first.
	begun     chan struct{}
	sampler   *evidence.Sampler
	inspector *evidence.Inspector
	once      sync.Once // last words
	leader    func() uint64
	leaves    func(id uint64) // is called when a member has said that it stops or fails
}

// A member is what a witness asks of the parts that are made after it.
type member struct {
	self    uint64 // id
	state   *state.Machine
	replica *replica.Replica
	client  *http.Client
	urls    func(id uint64) []string // of a peer
}

// meet gives the witness what is made after it. It comes before start, and before anybody asks.
func (w *witness) meet(m member) { w.member = m }

func newWitness(cfg *Config, logger *zap.Logger, registry *prometheus.Registry, freeBytes func() (uint64, error)) *witness {
	w := &witness{cfg: cfg, logger: logger, registry: registry, freeBytes: freeBytes, started: time.Now(), ring: evidence.NewRing(0), begun: make(chan struct{})}
	w.leader = func() uint64 { return w.replica.Leader() }
	w.leaves = func(id uint64) { w.replica.TellDisk(id, replica.DiskReport{Leaving: true}) }
	w.life = strconv.FormatInt(w.started.UnixNano(), 36)
	w.links = evidence.NewLinks(w.ring, w.ping)
	return w
}

// keep continues the record on disk. It is called once the data directory exists.
func (w *witness) keep() {
	last := evidence.FirstStart
	if w.cfg.onDisk() {
		var err error
		w.keeper, err = evidence.Keep(w.ring, w.cfg.paths().Member)
		if err != nil {
			w.logger.Warn("the record of earlier events cannot be read", zap.Error(err))
		}
		last = w.keeper.LastEnd()
	}
	w.ring.Record(evidence.Event{Kind: evidence.Started, Note: string(last)})
}

func (w *witness) start() {
	w.sampler = evidence.StartSampler(w.ring, evidence.SamplerOptions{
		LogDropped: w.cfg.LogDropped, LogStalled: w.cfg.LogStalled, FreeBytes: w.freeBytes, MinFreeBytes: minFreeBytes,
		NoSignals: w.cfg.NoSignals || !w.cfg.onDisk(), // a test's, whose time may be virtual: signals are of no such time
	})
	w.inspector = evidence.NewInspector(evidence.InspectorOptions{
		Self: w.self, Ring: w.ring, Links: w.links, Logger: w.logger, Metrics: evidence.NewMetrics(w.registry),
		Members: w.members, Leads: w.replica.IsLeader, Collect: w.collect, CaughtUp: w.sampler.CaughtUp,
	})
	w.links.Start()
	w.inspector.Start()
	close(w.begun)
}

func (w *witness) hasBegun() bool {
	select {
	case <-w.begun:
		return true
	default:
		return false
	}
}

// caughtUp waits, but not for long, until the ring has what a pause of this process hid.
func (w *witness) caughtUp(ctx context.Context) {
	if w.hasBegun() {
		w.sampler.CaughtUp(ctx)
	}
}

func (w *witness) stop() {
	if w.inspector != nil {
		w.inspector.Stop()
	}
	w.links.Stop()
	if w.sampler != nil {
		w.sampler.Stop()
	}
	if w.keeper != nil {
		w.keeper.Close(flushTimeout)
	}
}

func (w *witness) members() map[uint64]string {
	names := map[uint64]string{w.self: w.cfg.Name}
	for _, m := range w.state.Members() {
		names[m.ID] = m.Name
	}
	for _, id := range w.links.Peers() {
		if _, ok := names[id]; !ok {
			names[id] = ""
		}
	}
	return names
}

// report is what this member reports, within a time or of everything that it keeps.
func (w *witness) report(within time.Duration) evidence.Report {
	st := w.replica.Status()
	r := w.ring.Report(within)
	r.Member, r.Name = command.IDText(w.self), w.cfg.Name
	r.Now, r.Uptime = time.Now().Format("2006-01-02T15:04:05.000Z07:00"), time.Since(w.started).Seconds()
	r.Term, r.Links = st.Term, w.links.Report()
	if st.Leader != 0 {
		r.Leader = command.IDText(st.Leader)
	}
	if w.hasBegun() {
		r.Verdicts, r.Open = w.inspector.Verdicts()
	}
	return r
}

// ask sends one request to a member's peer port and decodes the answer.
func (w *witness) ask(ctx context.Context, id uint64, method, path, body string, answer any) (fresh bool, err error) {
	q := peers.Question{Method: method, Path: path, Body: []byte(body), MaxAnswer: maxReportBytes}
	err = peers.Ask(ctx, w.client, w.urls(id), q, func(a peers.Answer) error {
		fresh = a.Fresh
		if a.Status == http.StatusNotFound || answer == nil || len(a.Body) == 0 {
			return nil // a member of another kind, or nothing to say
		}
		return json.Unmarshal(a.Body, answer)
	})
	return fresh, err
}

func (w *witness) ping(ctx context.Context, id uint64) (answer evidence.PingAnswer, err error) {
	answer.Fresh, err = w.ask(ctx, id, http.MethodGet, peers.PathPing, "", &answer)
	return answer, err
}

func (w *witness) collect(ctx context.Context, id uint64) (report evidence.Report, err error) {
	_, err = w.ask(ctx, id, http.MethodGet, peers.PathEvents, "", &report)
	return report, err
}

// lastWords records why this member ends, here and with the others, within the timeouts above: the
// disk or the network may be what is wrong.
func (w *witness) lastWords(kind evidence.Kind, why string) {
	w.once.Do(func() {
		w.ring.Record(evidence.Event{Kind: kind, Note: why})
		ctx, cancel := context.WithTimeout(context.Background(), lastWordsTimeout)
		defer cancel()
		var telling sync.WaitGroup
		for _, id := range w.links.Peers() {
			telling.Go(func() {
				// A member that does not get it finds out by its pings.
				_, _ = w.ask(ctx, id, http.MethodPost, peers.PathLastWords, kind.String()+" "+why, nil)
			})
		}
		if w.keeper != nil {
			telling.Go(func() { w.keeper.Flush(flushTimeout) })
		}
		telling.Wait()
	})
}

// ends are the last words of a member that cannot go on.
func (w *witness) ends(err error) {
	if errors.Is(err, ErrRemoved) {
		w.lastWords(evidence.Stopping, "removed from the cluster")
		return
	}
	w.lastWords(evidence.Failing, err.Error())
}

// register serves what members tell each other about their troubles. etcd answers 404, which counts
// as nothing to report.
func (w *witness) register(mux *peers.Mux) {
	handle := func(path, method string, answer func(w http.ResponseWriter, r *http.Request, from uint64)) {
		mux.Handle(path, method, peers.NamedMembers, func(rw http.ResponseWriter, r *http.Request) {
			from, _ := strconv.ParseUint(r.Header.Get(peers.HeaderFrom), 16, 64) // 0: no known member
			w.links.Heard(from)
			answer(rw, r, from)
		})
	}
	handle(peers.PathPing, http.MethodGet, func(rw http.ResponseWriter, _ *http.Request, _ uint64) {
		peers.AnswerJSON(rw, evidence.PingAnswer{Life: w.life, NearMiss: w.ring.NearMiss(), Leader: command.IDText(w.leader())})
	})
	handle(peers.PathEvents, http.MethodGet, func(rw http.ResponseWriter, r *http.Request, _ uint64) {
		w.caughtUp(r.Context())
		peers.AnswerJSON(rw, w.report(evidence.TellWithin))
	})
	handle(peers.PathLastWords, http.MethodPost, func(rw http.ResponseWriter, r *http.Request, from uint64) {
		w.hearLastWords(from, r.Body)
		rw.WriteHeader(http.StatusNoContent)
	})
}

func (w *witness) hearLastWords(from uint64, body io.Reader) {
	text, err := io.ReadAll(io.LimitReader(body, maxLastWords))
	if err != nil || !slices.Contains(w.links.Peers(), from) {
		return
	}
	kind, why, _ := strings.Cut(string(text), " ")
	switch kind {
	case evidence.Failing.String():
		w.ring.Record(evidence.Event{Kind: evidence.PeerFails, Peer: from, Note: why})
	case evidence.Stopping.String():
		w.ring.Record(evidence.Event{Kind: evidence.PeerStops, Peer: from, Note: why})
	default:
		return
	}
	w.leaves(from)
}

// progress records a snapshot that is on its way, once a second.
type progress struct {
	ring  *evidence.Ring
	event evidence.Event
	since time.Time
	told  time.Time
}

func (w *witness) progress(kind evidence.Kind, peer uint64) *progress {
	now := time.Now()
	return &progress{ring: w.ring, event: evidence.Event{Kind: kind, Peer: peer, Note: "under way"}, since: now, told: now}
}

// took counts n bytes more.
func (p *progress) took(n int) {
	p.event.Value += int64(n)
	if now := time.Now(); now.Sub(p.told) >= time.Second {
		p.told = now
		p.event.Took = now.Sub(p.since)
		p.ring.Record(p.event)
	}
}

// end records how it went.
func (p *progress) end(err error) {
	p.event.Took, p.event.Note = time.Since(p.since), "complete"
	if err != nil {
		p.event.Note = "failed: " + err.Error()
	}
	p.ring.Record(p.event)
}

type progressReader struct {
	io.Reader
	p *progress
}

func (r progressReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.p.took(n)
	return n, err
}

type progressWriter struct {
	io.Writer
	p *progress
}

func (w progressWriter) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	w.p.took(n)
	return n, err
}
