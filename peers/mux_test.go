package peers

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Who may ask is judged before the method, and both before the part that answers.
func TestMux(t *testing.T) {
	guard := func(next http.Handler, anonymous bool) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch from := r.Header.Get(HeaderFrom); {
			case from == "member", from == "" && anonymous:
				next.ServeHTTP(w, r)
			default:
				http.Error(w, fmt.Sprint("guard ", anonymous), http.StatusForbidden)
			}
		})
	}
	mux := NewMux(guard)
	says := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { AnswerProto(w, []byte(text)) }
	}
	mux.Handle(PathMembers, http.MethodGet, Anyone, says("members"))
	mux.Handle(PathPromote, http.MethodPost, Members, says("promote"))
	mux.Handle(PathDisk, http.MethodGet, NamedMembers, func(w http.ResponseWriter, _ *http.Request) { AnswerJSON(w, map[string]int{"a": 1}) })
	mux.Handle(PathLeases, "", Members, func(w http.ResponseWriter, r *http.Request) {
		if body, ok := ReadQuestion(w, r, 4); ok {
			AnswerProto(w, body)
		}
	})
	for _, c := range []struct{ method, path, from, body, want string }{
		{"GET", "/members", "", "", "200 members"},
		{"GET", "/members", "stranger", "", "200 members"},
		{"PUT", "/members", "", "", "405 Method Not Allowed"},
		{"POST", "/members/promote/7", "", "", "200 promote"},
		{"POST", "/members/promote/7", "stranger", "", "403 guard true"},
		{"GET", "/members/promote/7", "stranger", "", "403 guard true"},
		{"GET", "/members/promote/7", "member", "", "405 Method Not Allowed"},
		{"GET", "/belay/disk", "member", "", `200 {"a":1}`},
		{"GET", "/belay/disk", "", "", "403 guard false"},
		{"GET", "/belay/none", "member", "", "404 404 page not found"},
		{"GET", "/belay/none", "stranger", "", "403 guard false"},
		{"GET", "/none", "stranger", "", "404 404 page not found"},
		{"POST", "/leases", "", "four", "200 four"},
		{"POST", "/leases", "", "five!", "413 request body too large"},
	} {
		r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
		r.Header.Set(HeaderFrom, c.from)
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		if got := fmt.Sprintf("%d %s", w.Code, strings.TrimSpace(w.Body.String())); got != c.want {
			t.Errorf("%s %s from %q: %s, want %s", c.method, c.path, c.from, got, c.want)
		}
		if allow := w.Header().Get("Allow"); (allow != "") != (w.Code == http.StatusMethodNotAllowed) {
			t.Errorf("%s %s: Allow %q with %d", c.method, c.path, allow, w.Code)
		}
	}
}

// A body that breaks off is no question.
func TestBrokenQuestion(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, "/", io.MultiReader(strings.NewReader("x"), broken{}))
	w := httptest.NewRecorder()
	if body, ok := ReadQuestion(w, r, 10); ok || w.Code != http.StatusBadRequest {
		t.Errorf("%q, %v, %d", body, ok, w.Code)
	}
	w = httptest.NewRecorder()
	if AnswerJSON(w, func() {}); w.Code != http.StatusInternalServerError {
		t.Errorf("%d for what is no JSON", w.Code)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("broken") }
