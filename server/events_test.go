package server

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/belaydb/belay/evidence"
	"github.com/belaydb/belay/timemap"
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

func TestRevisionsPage(t *testing.T) {
	var m timemap.Map
	p := &pages{revisions: func(query url.Values) (timemap.Answer, error) { return m.Answer("m1", query) }}
	mux := http.NewServeMux()
	p.handleEvents(mux)
	for _, c := range []struct {
		method, query string
		code          int
		says          string
	}{
		{http.MethodGet, "", http.StatusOK, `"name":"m1"`},
		{http.MethodGet, "?at=2026-11-29T12:00:00Z&of=7&of=8", http.StatusOK, `"of":[{"revision":7},{"revision":8}]`},
		{http.MethodGet, "?at=noon", http.StatusBadRequest, "2006-01-02T15:04:05Z"},
		{http.MethodGet, "?of=0", http.StatusBadRequest, "must be a revision"},
		{http.MethodGet, "?" + strings.Repeat("of=1&", timemap.MaxQuestions+1), http.StatusBadRequest, "more than 1000"},
		{http.MethodPost, "", http.StatusMethodNotAllowed, ""},
	} {
		rec := httptest.NewRecorder()
		mux.ServeHTTP(rec, httptest.NewRequest(c.method, timemap.Path+c.query, nil))
		if rec.Code != c.code || !strings.Contains(rec.Body.String(), c.says) {
			t.Errorf("%s %.40s: %d %s", c.method, c.query, rec.Code, rec.Body)
		}
	}
}
