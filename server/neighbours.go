package server

import (
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/belaydb/belay/peers"
)

// pathNeighbours serves the record of who writes to the member's disk (package neighbours), a line
// for each sample.
const pathNeighbours = "/debug/belay/neighbours"

func (p *pages) handleNeighbours(mux *http.ServeMux) {
	if p.neighbours != nil {
		mux.HandleFunc(pathNeighbours, p.serveNeighbours)
	}
}

// serveNeighbours answers with all of the record, or what is newer than a time (?since=, RFC 3339).
func (p *pages) serveNeighbours(w http.ResponseWriter, r *http.Request) {
	if !peers.AllowMethod(w, r, http.MethodGet) {
		return
	}
	var since time.Time
	if text := r.URL.Query().Get("since"); text != "" {
		var err error
		if since, err = time.Parse(time.RFC3339, text); err != nil {
			http.Error(w, "since must be a time such as 2026-11-28T12:00:00Z", http.StatusBadRequest)
			return
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if err := p.neighbours(w, since); err != nil {
		p.logger.Warn("cannot tell who writes to the disk", zap.Error(err))
	}
}
