package server

import (
	"net/http"
	"time"

	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/timemap"
)

// pathEvents serves what the member recorded about its own troubles, and its verdicts (package
// evidence), as JSON.
const pathEvents = "/debug/belay/events"

func (p *pages) handleEvents(mux *http.ServeMux) {
	if p.events != nil {
		mux.HandleFunc(pathEvents, p.serveEvents)
	}
	if p.revisions != nil {
		mux.HandleFunc(timemap.Path, p.serveRevisions)
	}
}

// serveRevisions answers when which revision was written.
func (p *pages) serveRevisions(w http.ResponseWriter, r *http.Request) {
	if !peers.AllowMethod(w, r, http.MethodGet) {
		return
	}
	answer, err := p.revisions(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	peers.AnswerJSON(w, answer)
}

// serveEvents answers with everything that is kept, or only recent events (?within=90s).
func (p *pages) serveEvents(w http.ResponseWriter, r *http.Request) {
	if !peers.AllowMethod(w, r, http.MethodGet) {
		return
	}
	within := time.Duration(0)
	if text := r.URL.Query().Get("within"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 {
			http.Error(w, "within must be a duration such as 90s", http.StatusBadRequest)
			return
		}
		within = d
	}
	peers.AnswerJSON(w, p.events(within))
}
