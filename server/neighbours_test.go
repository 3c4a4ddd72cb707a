package server

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestNeighbours(t *testing.T) {
	var asked time.Time
	p := &pages{}
	p.neighbours = func(w io.Writer, since time.Time) error {
		asked = since
		_, err := io.WriteString(w, "a line\n")
		return err
	}
	mux := http.NewServeMux()
	p.handleNeighbours(mux)
	for _, c := range []struct {
		method, query string
		code          int
		since         time.Time
	}{
		{http.MethodGet, "", http.StatusOK, time.Time{}},
		{http.MethodGet, "?since=2026-11-28T12:00:00Z", http.StatusOK, time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)},
		{http.MethodGet, "?since=yesterday", http.StatusBadRequest, time.Time{}},
		{http.MethodPost, "", http.StatusMethodNotAllowed, time.Time{}},
	} {
		asked = time.Time{}
		rec := httptest.NewRecorder()
		mux.ServeHTTP(rec, httptest.NewRequest(c.method, pathNeighbours+c.query, nil))
		if rec.Code != c.code || !asked.Equal(c.since) || c.code == http.StatusOK && rec.Body.String() != "a line\n" {
			t.Errorf("%s %s: %d, since %v, %q", c.method, c.query, rec.Code, asked, rec.Body)
		}
	}
}
