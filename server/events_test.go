package server

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/belaydb/belay/evidence"
)

func TestEvents(t *testing.T) {
	var asked time.Duration
	p := &pages{}
	p.events = func(within time.Duration) evidence.Report {
		asked = within
		return evidence.Report{Name: "m1", Events: []evidence.Told{{Kind: "paused", Ago: 2}}}
	}
	mux := http.NewServeMux()
	p.handleEvents(mux)
	for _, c := range []struct {
		method, query string
		code          int
		within        time.Duration
	}{
		{http.MethodGet, "", http.StatusOK, 0},
		{http.MethodGet, "?within=90s", http.StatusOK, 90 * time.Second},
		{http.MethodGet, "?within=-1s", http.StatusBadRequest, 0},
		{http.MethodGet, "?within=x", http.StatusBadRequest, 0},
		{http.MethodPost, "", http.StatusMethodNotAllowed, 0},
	} {
		asked = 0
		rec := httptest.NewRecorder()
		mux.ServeHTTP(rec, httptest.NewRequest(c.method, pathEvents+c.query, nil))
		if rec.Code != c.code || asked != c.within {
			t.Errorf("%s %s: %d, within %v", c.method, c.query, rec.Code, asked)
		}
	}
}
