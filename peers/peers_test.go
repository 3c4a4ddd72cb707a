package peers

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

func client(t *testing.T) *http.Client {
	rt := NewRoundTripper(Options{Reuse: true})
	t.Cleanup(rt.CloseIdleConnections)
	return NewClient(rt)
}

// Each URL in turn until an answer is taken; the last error is told.
func TestAsk(t *testing.T) {
	var asked []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked = append(asked, r.Method+" "+r.URL.Path+" "+r.Header.Get("A")+" "+string(body))
		if r.URL.Path == "/long" {
			_, _ = io.WriteString(w, strings.Repeat("x", 11))
			return
		}
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, " no\n")
	}))
	defer srv.Close()
	c := client(t)
	q := Question{Method: http.MethodPost, Path: "/q", Header: http.Header{"A": {"b"}}, Body: []byte("body")}
	n := 0
	err := Ask(t.Context(), c, []string{"http://127.0.0.1:1", srv.URL, srv.URL + "/"}, q, func(a Answer) error {
		if n++; n == 1 {
			return errors.New("not this one")
		}
		return a.OK()
	})
	if want := srv.URL + "/q answered 418 I'm a teapot: no"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if got := strings.Join(asked, "; "); got != "POST /q b body; POST /q b body" {
		t.Errorf("asked: %s", got)
	}
	if err := Ask(t.Context(), c, nil, q, nil); !errors.Is(err, ErrNoURL) {
		t.Errorf("without a URL: %v", err)
	}
	if a, err := At(t.Context(), c, srv.URL, Question{Path: "/long", MaxAnswer: 10}); err == nil {
		t.Errorf("an answer that is too long was taken: %q", a.Body)
	}
	if a, err := At(t.Context(), c, srv.URL, Question{Path: "/long", MaxAnswer: 11}); err != nil || len(a.Body) != 11 {
		t.Errorf("%q, %v", a.Body, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := At(ctx, c, srv.URL, q); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

// What answers does not choose who is asked.
func TestNoRedirects(t *testing.T) {
	srv := httptest.NewServer(http.RedirectHandler("http://127.0.0.1:1/", http.StatusFound))
	defer srv.Close()
	if a, err := At(t.Context(), client(t), srv.URL, Question{Path: "/"}); err != nil || a.Status != http.StatusFound {
		t.Errorf("%d, %v", a.Status, err)
	}
}

// etcd's socket URLs have a name and a port, which are the file's name, or a name alone.
func TestUnixURLs(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"localhost:20001", "localhost"} {
		l, err := net.Listen("unix", filepath.Join(".", name))
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.URL.Path) })}
		go srv.Serve(l)
		a, err := At(t.Context(), client(t), "unix://"+name, Question{Path: "/members"})
		if err != nil || string(a.Body) != "/members" {
			t.Errorf("%s: %q, %v", name, a.Body, err)
		}
		srv.Close()
	}
}
